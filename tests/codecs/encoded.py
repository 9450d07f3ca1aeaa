"""What stages of the wire make of changes."""

from __future__ import annotations

import torch

from plures.method import Sending, lay


def sending(clients: int, seed: int = 0) -> Sending:
    return Sending(torch.arange(clients) * 7919 + seed, {})


def through(stage, changes):
    """What a stage lets through of one client's changes in turn, and its last memory."""
    line = lay((stage,), {"x": torch.zeros(1, len(changes[0]), dtype=torch.float64)})
    memory, sent = line.memory, []
    for change in changes:
        payload, memory = line.encode({"x": torch.tensor([change], dtype=torch.float64)}, memory, sending(1))
        sent.append(line.decode(payload)["x"][0].tolist())
    return sent, {name: t[0].tolist() for name, t in memory.items()}
