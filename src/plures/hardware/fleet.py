"""What the clients' devices can do: how fast they compute and send, when they are there, and the energy they need."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from plures.brief import brief
from plures.content import by_content
from plures.errors import PluresError

Numbers = NDArray[np.float64]
DAY = 24 * 3600.0
"""Seconds of a day."""
ROUNDING = 1e-6
"""Seconds by which times are known after years of simulation."""
FLEETS = "a fleet, such as plures.hardware.Phones() or a FleetTable"
"""The expected type, as messages describe it."""


@brief
@by_content
@dataclass(frozen=True)
class Fleet:
    """One device for each client. All arrays are ``(clients,)``.

    Attributes:
        clients: the clients' names.
        kinds: the class of each device, by which results are reported.
        speed: floating-point operations per second that training reaches.
        memory: bytes that training may take.
        up: bytes per second that it sends.
        down: bytes per second that it receives.
        compute_energy: joules per floating-point operation.
        send_energy: joules per byte sent.
        receive_energy: joules per byte received.
        opens: time of the day at which it becomes available, in seconds.
        stays: seconds of each day for which it is available then; a whole day for always.
        failure: probability that a visit fails, from 0 to below 1.
    """

    clients: tuple[str, ...]
    kinds: tuple[str, ...]
    speed: Numbers
    memory: Numbers
    up: Numbers
    down: Numbers
    compute_energy: Numbers
    send_energy: Numbers
    receive_energy: Numbers
    opens: Numbers
    stays: Numbers
    failure: Numbers

    def __post_init__(self) -> None:
        for name, low, high, strict in BOUNDS:
            values = getattr(self, name)
            wrong = np.flatnonzero(~((values > low) if strict else (values >= low)) | ~(values <= high))
            if len(wrong):
                first = int(wrong[0])
                raise PluresError(
                    f"fleet: {name} of client {self.clients[first]!r} is {values[first]:g}; give a number "
                    f"{'above' if strict else 'from'} {low:g}{'' if high == np.inf else f' to {high:g}'}"
                )

    def __len__(self) -> int:
        return len(self.clients)

    def waits(self, now: float) -> Numbers:
        """Seconds from a time until each device is available, 0 for those that are."""
        since = self._since(now)
        return np.where((since < self.stays) | (self.stays >= DAY), 0.0, DAY - since)

    def leaves(self, now: float) -> Numbers:
        """Seconds from a time until each available device goes away; infinite for one that is always there."""
        return np.where(self.stays >= DAY, np.inf, np.maximum(self.stays - self._since(now), 0.0))

    def _since(self, now: float) -> Numbers:
        """Seconds since each device last became available; 0 where rounding says that it is about to."""
        since = np.mod(now - self.opens, DAY)
        return np.where(since > DAY - ROUNDING, 0.0, since)


MOST = 1 - 1e-9
BOUNDS = (
    *((name, 0.0, np.inf, True) for name in ("speed", "memory", "up", "down", "stays")),
    *((name, 0.0, np.inf, False) for name in ("compute_energy", "send_energy", "receive_energy", "opens")),
    ("failure", 0.0, MOST, False),
)
"""Bounds of each field, and whether the lower one is excluded."""


@runtime_checkable
class FleetRule(Protocol):
    """A rule that gives each client a device."""

    def fleet(self, clients: Sequence[str], metadata: Mapping[str, Sequence[object]]) -> Fleet:
        """The devices of some clients.

        Args:
            clients: their names.
            metadata: columns of facts about them.
        """


@dataclass(frozen=True)
class DeviceClass:
    """A class of devices. Energies are those of the published power at the published speed.

    Attributes:
        name: of the class.
        share: of the clients.
        speed: floating-point operations per second that training reaches.
        memory: bytes.
        watts: power while it computes.
        up: median of the bytes per second that it sends.
        down: median of the bytes per second that it receives.
        send_energy: joules per byte sent.
        receive_energy: joules per byte received.
    """

    name: str
    share: float
    speed: float
    memory: float
    watts: float
    up: float
    down: float
    send_energy: float
    receive_energy: float
