"""The one exception that plures raises for bad input."""

from __future__ import annotations


class PluresError(ValueError):
    """Bad input or an impossible request.

    The message names the thing at fault (client, column, option or file) and says what to do.
    """


class PluresWarning(UserWarning):
    """Something legal that is probably not what was meant.

    The message names the thing and says what it amounts to.
    """
