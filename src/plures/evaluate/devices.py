"""What a simulated fleet did in a run: whose work counted, who was left out, and the time and energy of each device."""

from __future__ import annotations

from plures.evaluate.record import FleetCard
from plures.hardware import Fleet
from plures.method import Setting
from plures.run import Buffered, Clocked, Run
from plures.run.turn import OUTCOMES


def fleet_of(run: Run) -> Fleet | None:
    """The devices of a run's clients; ``None`` without a clock."""
    rule = run.participation
    return rule.fleet(run.setting) if isinstance(rule, Clocked | Buffered) else None


def fleet_card(run: Run) -> FleetCard | None:
    """What the devices did up to the run's current round; ``None`` without a clock."""
    fleet = fleet_of(run)
    if fleet is None or run.pace is None:
        return None
    setting: Setting = run.setting
    counts = {name: row.tolist() for name, row in zip(OUTCOMES, run.pace["outcomes"], strict=True)}
    return FleetCard(
        clients=list(setting.clients),
        kinds=list(fleet.kinds),
        unfit=(run.load().memory > fleet.memory).tolist(),
        seconds=run.pace["seconds"].tolist(),
        joules=run.pace["joules"].tolist(),
        **counts,
    )
