"""Stages of the wire, one file for each idea: clipping, and sparse quantized changes with error feedback."""

from plures.codecs.clip import Clip
from plures.codecs.qsparse import Feedback, Quantize, TopK, qsparse

__all__ = ["Clip", "Feedback", "Quantize", "TopK", "qsparse"]
