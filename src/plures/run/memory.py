"""How many clients fit into the memory of a GPU."""

from __future__ import annotations

from collections.abc import Callable

import torch

SHARE = 1 / 4
"""Share of the free memory for the leaves and intermediate values of a stack. As much again is for the buffers of
recorded steps; the rest is for combining in double precision and for evaluation."""
SAMPLE = 16
"""Number of clients in the larger measured stack."""


def fitting(visit: Callable[[int], None], device: torch.device, cohort: int, held: int) -> int:
    """Number of clients whose stack takes :data:`SHARE` of a GPU's free memory; a cohort's stacks are of equal size.

    Args:
        visit: makes a stack of some clients and trains it for a step.
        device: the GPU.
        cohort: number of clients in a round.
        held: bytes that the run will hold between the visits.
    """
    sizes = 1, min(SAMPLE, cohort)
    if sizes[1] == 1:
        return 1
    peaks = []
    for clients in sizes:
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        visit(clients)
        peaks.append(torch.cuda.max_memory_allocated(device) - before)
    each = max(1, (peaks[1] - peaks[0]) // (sizes[1] - sizes[0]))
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    free = max(0, torch.cuda.mem_get_info(device)[0] + unused - held)
    return equal(cohort, int(free * SHARE / each))


def equal(cohort: int, most: int) -> int:
    """Number of clients per stack if a cohort is divided into as few stacks of about equal size as possible."""
    stacks = -(-cohort // max(1, min(most, cohort)))
    return -(-cohort // stacks)
