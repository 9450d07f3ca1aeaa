"""Three fleets drawn from published numbers: phones, hospitals, sensors.

The traces of whole populations that papers used (MobiPerf and AI-Benchmark as FedScale prepared them, FLASH's states of
136,000 phones) are data sets of their own and do not come with plures: what they contain for each client can be given
as a table (:class:`~plures.hardware.FleetTable`). Here are medians, shares and ranges that papers, data sheets and
standards print. Where nothing is published, a class says so, and the number is an option. Read in their sources: the
medians of LTE, the drop-outs, the fixed lines, the energy of fixed lines, the gateway's watts and NB-IoT's downlink.
Quoted without a second look at the source: the three classes of phones, the power model of LTE and the data sheets.
Whoever reports hours or joules that depend on them gives a table of the devices at hand instead.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from plures.errors import PluresError
from plures.hardware.fleet import DAY, DeviceClass, Fleet, FleetRule, Numbers
from plures.names import name_key
from plures.signature import checked

MBIT, KBIT, HOUR = 1e6 / 8, 1e3 / 8, 3600.0
ORDER = float(np.log(10) / (2 * 1.6448536269514722))
"""Standard deviation of the logarithm with which the 5th and the 95th percentile differ by a factor of ten."""


def radio(slope: float, base: float, rate: float) -> float:
    """Joules per byte of a radio whose power is ``slope * rate + base`` (Huang et al. 2012, section 4).

    Args:
        slope: milliwatts per Mbit/s.
        base: milliwatts.
        rate: Mbit/s.
    """
    return (slope * rate + base) / rate * 1e-3 * 8 / 1e6


@dataclass(frozen=True)
class Drawn:
    """A fleet of classes of devices, a pure function of its seed and of the clients' names.

    Attributes:
        seed: root of the draws.
        spread: standard deviation of the logarithm of each rate around its class's median; default: the 5th and the
            95th percentile differ by a factor of ten.
        reached: share of the published peak of floating-point operations that training reaches. No distribution of it
            is published; measure yours.
    """

    seed: int = 0
    spread: float = ORDER
    reached: float = 0.1

    CLASSES: ClassVar[tuple[DeviceClass, ...]]

    def __post_init__(self) -> None:
        if not self.spread >= 0:
            raise PluresError(f"fleet: spread={self.spread}: give 0 or more")
        if not 0 < self.reached <= 1:
            raise PluresError(f"fleet: reached={self.reached}: give a share above 0, up to 1")

    def fleet(self, clients: Sequence[str], metadata: Mapping[str, Sequence[object]]) -> Fleet:
        """The devices of some clients; metadata are not read."""
        keys = np.array([name_key(client) for client in clients], dtype=np.uint64)

        def unit(what: str) -> Numbers:
            return uniform(keys, self.seed, what)

        ends = np.cumsum([one.share for one in self.CLASSES])
        kind = np.searchsorted(ends / ends[-1], unit("class"), side="right")

        def each(value: Callable[[DeviceClass], float]) -> Numbers:
            return np.array([value(one) for one in self.CLASSES])[kind]

        opens, stays = self.hours(unit)
        return Fleet(
            tuple(clients),
            tuple(self.CLASSES[one].name for one in kind),
            each(lambda one: one.speed * self.reached),
            each(lambda one: one.memory),
            each(lambda one: one.up) * np.exp(self.spread * normal(unit("up"), unit("up, angle"))),
            each(lambda one: one.down) * np.exp(self.spread * normal(unit("down"), unit("down, angle"))),
            each(lambda one: one.watts / (one.speed * self.reached)),
            each(lambda one: one.send_energy),
            each(lambda one: one.receive_energy),
            opens,
            stays,
            self.failures(unit),
        )

    def hours(self, unit: Callable[[str], Numbers]) -> tuple[Numbers, Numbers]:
        """When each device is available; by default always."""
        count = len(unit("opens"))
        return np.zeros(count), np.full(count, DAY)

    def failures(self, unit: Callable[[str], Numbers]) -> Numbers:
        """The probability that a visit of each device fails."""
        raise NotImplementedError


@checked
@dataclass(frozen=True)
class Phones(Drawn):
    """Phones of three classes that train at night.

    - Classes, peak operations, memory and power: 15 % high (153.6 GFLOP/s, 8 GB, 5.5 W), 35 % middle (80, 4 GB,
      5.6 W), 50 % low (52.8, 2 GB, 3.6 W): Kim and Wu, *AutoFL*, MICRO 2021 (30, 70 and 100 of 200 devices).
    - Rates: medians 13 Mbit/s down and 6 up, LTE: Huang et al., MobiSys 2012, abstract; the factor of ten around them
      is the order of magnitude between clients in MobiPerf's measurements (Lai et al., *Oort*, OSDI 2021, section 2).
    - Energy of the radio: LTE's power model of Huang et al., table 4 (438.39 mW per Mbit/s up, 51.97 down, 1288.04 mW
      besides), at the median rates.
    - Failure: 6 to 10 % of the devices drop out of a round: Bonawitz et al., MLSys 2019, section 9.
    - Hours: a phone trains while it charges, is idle and in an unmetered network (the same, section 9). When that is
      for a single phone is not published: here from about 22 h, for 4 to 10 hours.

    Examples:
        >>> fleet = plures.hardware.Phones(seed=1).fleet(["ann", "bob", "eve"], {})
        >>> fleet.kinds
        ('middle', 'middle', 'low')
    """

    CLASSES: ClassVar = tuple(
        DeviceClass(
            name, share, gflops * 1e9, gigabytes * 1e9, watts, 6 * MBIT, 13 * MBIT,
            radio(438.39, 1288.04, 6), radio(51.97, 1288.04, 13),
        )
        for name, share, gflops, gigabytes, watts in (
            ("high", 0.15, 153.6, 8, 5.5), ("middle", 0.35, 80, 4, 5.6), ("low", 0.5, 52.8, 2, 3.6),
        )
    )  # fmt: skip

    def hours(self, unit: Callable[[str], Numbers]) -> tuple[Numbers, Numbers]:
        begin = 22 * HOUR + 2 * HOUR * normal(unit("opens"), unit("opens, angle"))
        return np.mod(begin, DAY), (4 + 6 * unit("stays")) * HOUR

    def failures(self, unit: Callable[[str], Numbers]) -> Numbers:
        return 0.06 + 0.04 * unit("failure")


@checked
@dataclass(frozen=True)
class Hospitals(Drawn):
    """Servers of three classes, always there.

    - Peak single-precision operations, memory and power from the makers' data sheets: NVIDIA A100 (19.5 TFLOP/s, 40 GB,
      400 W), NVIDIA T4 (8.1, 16 GB, 70 W), and a server without a GPU, Intel Xeon Gold 6148 (20 cores at 1.6 GHz with
      two AVX-512 units: 2.05 TFLOP/s, 150 W; 64 GB of memory). How many hospitals have which is not published: here
      20, 40 and 40 %.
    - Rates: 55.0 Mbit/s down and 18.9 up, averages of fixed lines: Konečný et al. 2016, section 1.
    - Energy of the network: 0.06 kWh per GB: Aslan et al., Journal of Industrial Ecology 2018, for 2015.
    - Failure: nothing is published; ``failing`` of the visits.

    Attributes:
        failing: probability that a visit fails.
    """

    failing: float = 0.01

    CLASSES: ClassVar = tuple(
        DeviceClass(name, share, speed, memory, watts, 18.9 * MBIT, 55.0 * MBIT, 0.06 * 3.6e6 / 1e9, 0.06 * 3.6e6 / 1e9)
        for name, share, speed, memory, watts in (
            ("A100", 0.2, 19.5e12, 40e9, 400.0), ("T4", 0.4, 8.1e12, 16e9, 70.0), ("CPU", 0.4, 2.05e12, 64e9, 150.0),
        )
    )  # fmt: skip

    def failures(self, unit: Callable[[str], Numbers]) -> Numbers:
        return np.full(len(unit("failure")), self.failing)


@checked
@dataclass(frozen=True)
class Sensors(Drawn):
    """Gateways and microcontrollers in long-range networks, always there.

    - Gateway: Raspberry Pi 4 (four Cortex-A72 at 1.5 GHz, 8 operations a cycle: 48 GFLOP/s; 2 GB; 6.4 W with all cores
      busy, as pidramble.com measured), at the rates and with the radio of :class:`Phones`. 10 % of the clients.
    - M7: STM32H743 (480 MHz, a multiply-add a cycle: 0.96 GFLOP/s; 1 MB, 0.44 W), with NB-IoT's peak rates of release
      13 on several tones (62.5 kbit/s up, 26 down) and 0.8 W while sending. 40 %.
    - M4: nRF52840 (64 MHz, 0.064 GFLOP/s; 256 kB, 10 mW), with LoRaWAN at spreading factor 7 (5,470 bit/s), of which a
      duty cycle of 1 % may be used (ETSI EN 300 220), and an SX1276 (96 mW sending, 38 mW receiving). 50 %.
    - The shares are not published, nor is failure: ``failing`` of the visits.

    Attributes:
        failing: probability that a visit fails.
    """

    failing: float = 0.1

    CLASSES: ClassVar = (
        DeviceClass("gateway", 0.1, 48e9, 2e9, 6.4, 6 * MBIT, 13 * MBIT,
                    radio(438.39, 1288.04, 6), radio(51.97, 1288.04, 13)),
        DeviceClass("M7", 0.4, 0.96e9, 1e6, 0.44, 62.5 * KBIT, 26 * KBIT, 0.8 / (62.5 * KBIT), 0.2 / (26 * KBIT)),
        DeviceClass("M4", 0.5, 0.064e9, 256e3, 0.01, 0.0547 * KBIT, 0.0547 * KBIT,
                    0.096 / (5.47 * KBIT), 0.038 / (5.47 * KBIT)),
    )  # fmt: skip

    def failures(self, unit: Callable[[str], Numbers]) -> Numbers:
        return np.full(len(unit("failure")), self.failing)


NAMED: Mapping[str, Callable[..., FleetRule]] = {"phones": Phones, "hospitals": Hospitals, "sensors": Sensors}
"""Fleets by name."""


def uniform(keys: NDArray[np.uint64], *parts: object) -> Numbers:
    """A uniform number in [0, 1) for each key, a pure function of the key and the parts."""
    mixed = keys ^ np.uint64(name_key("\x1f".join(map(str, parts))))
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    return np.asarray(((mixed ^ (mixed >> np.uint64(31))) >> np.uint64(11)).astype(np.float64) / 2**53)


def normal(first: Numbers, second: Numbers) -> Numbers:
    """Standard normal numbers from two uniform ones (Box and Muller 1958)."""
    return np.asarray(np.sqrt(-2 * np.log1p(-first)) * np.cos(2 * np.pi * second))
