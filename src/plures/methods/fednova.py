"""FedNova."""

from dataclasses import dataclass

import torch
from torch import Tensor

from plures.method import Assign, Cohort, Combine, Known, Leaves, Method, Personal, Phase, Shared, Start, State, Visit
from plures.methods.entry import entry

PLAIN = "fednova divides a client's change by the number of its gradients, which needs SGD"


def _one(start: Start) -> Leaves:
    return {"": torch.ones((), dtype=start.setting.kind("examples").dtype)}


@dataclass(frozen=True)
class Effective:
    """The server's step along the mean of normalised changes, as long as the mean of the clients' steps.

    With weights ``n_i / tau_i`` the weighted mean of the changes is ``sum(n_i / tau_i D_i) / sum(n_i / tau_i)``. Times
    ``tau_eff sum(n_i / tau_i) / sum(n_i)`` it is FedNova's step, where ``tau_eff = sum(n_i tau_i) / sum(n_i)``.
    """

    def start(self, value: Leaves) -> Leaves:
        return {}

    def step(self, old: Leaves, combined: Leaves, memory: Leaves, cohort: Cohort) -> tuple[Leaves, Leaves]:
        weights = cohort.weights.double()
        examples = cohort.setting.facts["examples"][cohort.clients].to(weights.device, torch.float64)
        length = float((examples**2 / weights).sum() / examples.sum() * weights.sum() / examples.sum())
        moved = {
            k: (v.double() + length * (combined[k].double() - v.double())).to(v.dtype) if v.is_floating_point() else v
            for k, v in old.items()
        }
        return {**combined, **moved}, memory


@entry(
    "FedNova",
    "variance reduction",
    "Wang, Liu, Liang, Joshi, Poor 2020, NeurIPS, section 5",
)
def fednova() -> Method:
    """FedAvg in which clients that do more steps do not pull the model further to themselves.

    The server's step is ``w - tau_eff sum_i p_i d_i``, with ``d_i = (w - x_i) / tau_i`` and ``tau_eff = sum_i p_i
    tau_i``: each change is divided by how often its gradients count in it, ``tau_i``, the number of local steps (with
    momentum the sum of the coefficients of the gradients). ``p_i`` is proportional to the number of examples. If all
    clients do as many steps, it is FedAvg.
    """

    def note(x: State, received: State, visit: Visit) -> dict[str, Leaves]:
        return {"tau": {"": visit.reach.clamp(min=1e-30)}}

    def weigh(x: State) -> Tensor:
        return x.about["examples"] / x.tau[""]

    return Method(
        layout={"model": Shared(), "tau": Personal(), "about": Known("examples")},
        slots={"tau": _one},
        schedule=(Phase(), Assign(("tau",), note, linear=PLAIN)),
        combine={"model": Combine(weigh, Effective())},
    )
