"""Stages of the wire, one file for each idea: clipping, lossy changes, error feedback, downloads, secure sums."""

from collections.abc import Mapping

from plures.codecs.cast import Cast
from plures.codecs.clip import Clip
from plures.codecs.downlink import Downlink
from plures.codecs.feedback import Feedback
from plures.codecs.lowrank import LowRank
from plures.codecs.qsparse import qsparse
from plures.codecs.quantize import Quantize
from plures.codecs.secure import SecureSum
from plures.codecs.sign import Sign
from plures.codecs.sparse import RandomK, TopK
from plures.method import Codec

CODECS: Mapping[str, type[Codec]] = {
    "cast": Cast,
    "clip": Clip,
    "downlink": Downlink,
    "feedback": Feedback,
    "lowrank": LowRank,
    "quantize": Quantize,
    "randomk": RandomK,
    "secure_sum": SecureSum,
    "sign": Sign,
    "topk": TopK,
}
"""Stages that are added to a method by name: ``ditto+clip``."""

__all__ = [
    "CODECS",
    "Cast",
    "Clip",
    "Downlink",
    "Feedback",
    "LowRank",
    "Quantize",
    "RandomK",
    "SecureSum",
    "Sign",
    "TopK",
    "qsparse",
]
