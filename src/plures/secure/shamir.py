"""A secret in shares (Shamir 1979): any ``threshold`` of them give it back, and fewer say nothing about it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from plures.errors import PluresError

PRIME = 2**521 - 1
"""The order of the field: a Mersenne prime above any secret of 64 bytes."""


def split(
    secret: int, threshold: int, places: Sequence[int], draw: Callable[[], int], prime: int = PRIME
) -> dict[int, int]:
    """Shares of a secret: values of a random polynomial of degree ``threshold - 1`` whose value at 0 is the secret.

    Args:
        secret: from 0 to below ``prime``.
        threshold: how many shares give the secret back.
        places: different positive numbers, one for each share.
        draw: gives the polynomial's coefficients, uniform from 0 to below ``prime``.
        prime: order of the field.

    Raises:
        PluresError: if the threshold is not positive, or there are fewer places.

    Examples:
        >>> coefficients = iter([3, 2])
        >>> split(7, 3, [1, 2, 3, 4, 5], lambda: next(coefficients), prime=11)
        {1: 1, 2: 10, 3: 1, 4: 7, 5: 6}
    """
    if not 1 <= threshold <= len(places):
        raise PluresError(f"secret sharing: a threshold of {threshold} with {len(places)} shares cannot be met")
    coefficients = [secret, *(draw() for _ in range(threshold - 1))]
    shares = {}
    for place in places:
        value = 0
        for coefficient in reversed(coefficients):
            value = (value * place + coefficient) % prime
        shares[place] = value
    return shares


def recover(shares: Mapping[int, int], prime: int = PRIME) -> int:
    """The secret of at least ``threshold`` shares, by place: the polynomial's value at 0.

    Examples:
        >>> recover({2: 10, 3: 1, 5: 6}, prime=11)
        7
    """
    secret = 0
    for place, share in shares.items():
        above = below = 1
        for other in shares:
            if other != place:
                above = above * other % prime
                below = below * (other - place) % prime
        secret = (secret + share * above * pow(below, -1, prime)) % prime
    return secret
