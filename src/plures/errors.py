"""The exception that plures raises for bad input, and suggestions of what was probably meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

LISTED = 12


class PluresError(ValueError):
    """Bad input or an impossible request.

    The message names the thing at fault (client, column, option or file) and says what to do.

    Examples:
        >>> try:
        ...     plures.load("hart")
        ... except plures.PluresError as error:
        ...     print(str(error).partition(";")[0])
        no data set 'hart': did you mean 'heart'? (or name a folder of .npz files)
    """


class PluresWarning(UserWarning):
    """Something allowed that is probably not what was meant.

    The message names the thing and says what it means.

    Examples:
        >>> import warnings
        >>> with warnings.catch_warnings(record=True) as said:
        ...     warnings.simplefilter("always", plures.PluresWarning)
        ...     method = plures.METHODS["ditto"](lam=0.0)
        >>> print(said[0].message)
        ditto with lam=0 predicts with local-only models
    """


def closest(name: object, known: Iterable[object]) -> str | None:
    """The known name closest to a given one, ignoring case; None if none is close."""
    lower = {str(other).lower(): str(other) for other in reversed(list(known))}
    near = difflib.get_close_matches(str(name).lower(), lower, n=1)
    return lower[near[0]] if near else None


def suggestion(name: object, known: Iterable[object], listed: str = "there are") -> str:
    """The end of a sentence about an unknown name.

    Either ``did you mean 'seed'?``, or the known names; of more than twelve, the first twelve and how many more.

    Args:
        name: what was given.
        known: the valid names.
        listed: words before the list.

    Examples:
        >>> suggestion("sead", ["seed", "name"])
        "did you mean 'seed'?"
        >>> suggestion("colour", ["seed", "name"])
        'there are seed, name'
    """
    names = [str(other) for other in known]
    near = closest(name, names)
    if near is not None:
        return f"did you mean {near!r}?"
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return f"{listed} {', '.join(names[:LISTED])}{more}" if names else "there is none"


def check_choice(what: str, value: object, known: Iterable[object]) -> None:
    """Refuse an option that has none of its few values.

    Args:
        what: whose option it is, and its name: ``split rule: by``.
        value: what was given.
        known: the valid values.

    Raises:
        PluresError: names the option, with the value that was probably meant.
    """
    known = list(known)
    if value not in known:
        raise PluresError(f"{what}={value!r} is unknown; {suggestion(value, known, 'use')}")
