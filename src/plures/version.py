"""The version of plures."""

__version__ = "0.1.0"
