"""The type of the fixture ``says``."""

from collections.abc import Callable

Says = Callable[..., tuple[int, str]]
"""``says(*words)``: the exit status of a command in this process, and what it printed, on one line."""
