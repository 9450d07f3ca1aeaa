"""What is known of the speed of simulated devices before a method is bound, so that it may choose networks by it."""

from __future__ import annotations

from dataclasses import replace

import torch

from plures.method import Setting
from plures.method.setting import TRAVEL, WORK
from plures.run.buffer import Buffered
from plures.run.clock import Clocked
from plures.run.participation import Joint, Participation
from plures.run.training import Training


def timed(setting: Setting, participation: Participation | None, training: Training) -> Setting:
    """A setting that knows how fast its clients' devices are; the same without devices.

    Args:
        setting: facts about the clients.
        participation: who takes part, and on what devices.
        training: the work of a visit. What a method says of its own phases is not known yet.
    """
    rule = participation.rule if isinstance(participation, Joint) else participation
    fleet = rule.fleet(setting) if isinstance(rule, Clocked | Buffered) else None
    if fleet is None:
        return setting
    examples = setting.facts["examples"].double().cpu()
    batch = examples if training.batch_size is None else examples.clamp(max=training.batch_size)
    seen = training.passes * examples if training.steps is None else training.steps * batch
    travel = torch.from_numpy(1 / fleet.down + 1 / fleet.up)
    device = setting.facts["examples"].device
    facts = {TRAVEL: travel, WORK: seen / torch.from_numpy(fleet.speed)}
    return replace(setting, facts={**setting.facts, **{name: t.to(device) for name, t in facts.items()}})
