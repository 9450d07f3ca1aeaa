"""FedRoD: one body, a balanced generic head and a personal head."""

from torch import Tensor

from plures.method import Batch, Known, Leaves, Method, Personal, Phase, Predict, Shared, Start, State
from plures.method.needs import classes
from plures.methods.entry import entry, require

ABSENT = 1e-30
"""Count used for a class of which a client has no example: it effectively removes the logit but keeps it finite."""


@entry("FedRoD", "split model", "Chen, Chao 2022, ICLR, section 4")
def fedrod(gamma: float = 1.0, visits: int = 5) -> Method:
    """A shared model trained as if every client's classes were balanced, and a personal head that learns the rest.

    Body and generic head minimise the balanced softmax loss (Ren et al. 2020), the cross-entropy of
    ``g(z) + gamma log n_i`` with ``n_i`` the client's training examples of each class. The personal head minimises the
    cross-entropy of ``g(z) + h_i(z)`` with ``g`` and the representation ``z`` held fixed. Prediction is by
    ``g(z) + h_i(z)``; the personal head starts from zero, so that an unseen client's first model is the generic one.

    Args:
        gamma: strength of the balance; 0 trains the generic model by FedAvg.
        visits: visits an unseen client makes to train its head.
    """
    require(gamma >= 0, f"fedrod: gamma={gamma} must not be negative")

    def both(x: State, received: State, batch: Batch) -> Tensor:
        z = batch.features(x.model)
        generic, prior = batch.head(x.model, z), x.about["labels"].clamp(min=ABSENT).log()
        own = generic.detach() + batch.head(x.personal, z.detach())
        balanced = batch.problem.loss(generic + gamma * prior, batch.targets, batch.weight)
        return balanced + batch.problem.loss(own, batch.targets, batch.weight)

    def predicted(x: State, batch: Batch) -> Tensor:
        z = batch.features(x.model)
        return batch.head(x.model, z) + batch.head(x.personal, z)

    def zero_head(start: Start) -> Leaves:
        classes(start, "fedrod")
        part = f"{start.network.one('head')}."
        return {path: 0 * t for path, t in start.model.items() if path.startswith(part)}

    return Method(
        layout={"model": Shared(), "personal": Personal(), "about": Known("labels")},
        slots={"personal": zero_head},
        schedule=(Phase(train=("model", "personal"), objective=both),),
        predict=Predict(visits=visits, outputs=predicted),
    )
