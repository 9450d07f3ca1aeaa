"""Stages of the wire, one file for each idea: clipping, and sparse quantized changes with error feedback."""

from collections.abc import Mapping

from plures.codecs.clip import Clip
from plures.codecs.qsparse import Feedback, Quantize, TopK, qsparse
from plures.method import Codec

CODECS: Mapping[str, type[Codec]] = {"clip": Clip, "quantize": Quantize, "topk": TopK}
"""Stages that are added to a method by name: ``ditto+clip``."""

__all__ = ["CODECS", "Clip", "Feedback", "Quantize", "TopK", "qsparse"]
