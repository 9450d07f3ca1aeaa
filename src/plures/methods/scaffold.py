"""SCAFFOLD."""

from typing import Literal

from torch import Tensor

from plures.method import (
    Assign,
    Batch,
    Combine,
    Leaves,
    Method,
    Personal,
    Phase,
    Relax,
    Shared,
    State,
    Visit,
    dot,
    gradient,
    task_loss,
    zeros,
)
from plures.methods.entry import entry

PLAIN = "scaffold's option II reads a client's change as a mean of gradients, which needs SGD: use option='I'"


@entry(
    "SCAFFOLD",
    "variance reduction",
    "Karimireddy, Kale, Mohri, Reddi, Stich, Suresh 2020, ICML, Algorithm 1",
)
def scaffold(option: Literal["I", "II"] = "II", server_lr: float = 1.0) -> Method:
    """FedAvg with control variates that cancel the drift of heterogeneous clients.

    Client step: ``x -= lr (grad f_i(x) - c_i + c)``; then ``c_i`` becomes the gradient at the received model
    (option I) or ``c_i - c + (w - x) / (K lr)`` (option II), which is the mean gradient of the visit. Averages are
    uniform; ``c`` moves by the cohort's share of the population. With momentum, ``K`` in option II is the number of
    times that the visit's gradients count in its change, which keeps ``c_i`` a weighted mean of gradients; optimizers
    other than SGD are refused.

    Args:
        option: rule for the client's control variate.
        server_lr: step of the server towards the average.
    """

    def corrected(x: State, received: State, batch: Batch) -> Tensor:
        return task_loss(x.model, batch) + dot(x.model, received.control) - dot(x.model, received.own_control)

    def fresh(x: State, received: State, visit: Visit) -> dict[str, Leaves]:
        old, c = received.own_control, received.control
        path = (visit.reach * visit.lr).clamp(min=1e-30)
        moved = {k: old[k] - c[k] + (received.model[k] - x.model[k]) / path for k in old}
        new = {k: visit.measured[k] for k in old} if option == "I" else moved
        return {"own_control": new, "control": {k: c[k] + new[k] - old[k] for k in c}}

    def at_received(x: State, received: State, batch: Batch) -> Leaves:
        return gradient(received.model, batch)

    return Method(
        layout={"model": Shared(), "control": Shared(), "own_control": Personal()},
        slots={"control": zeros, "own_control": zeros},
        schedule=(
            Phase(objective=corrected),
            Assign(("own_control", "control"), fresh, at_received)
            if option == "I"
            else Assign(("own_control", "control"), fresh, linear=PLAIN),
        ),
        combine={
            "model": Combine("uniform", Relax(server_lr)),
            "control": Combine("uniform", Relax("participation")),
        },
    )
