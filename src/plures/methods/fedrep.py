"""FedRep: first the head, then the representation."""

from plures.method import Method, Personal, Phase, Predict, Shared, body, head
from plures.methods.entry import entry


@entry(
    "FedRep",
    "split model",
    "Collins, Hassani, Mokhtari, Shakkottai 2021, ICML, Algorithm 1",
    {"head_epochs": (1, 3, 5)},
    {"head_steps": "head_epochs", "body_steps": "body_epochs"},
)
def fedrep(
    head_epochs: float = 3,
    body_epochs: float = 1,
    head_steps: int | None = None,
    body_steps: int | None = None,
    visits: int = 5,
) -> Method:
    """A shared body and a personal head, trained one after the other: the head on the received body, then the body.

    The server averages the bodies weighted by examples, as in FedAvg; the paper averages uniformly, which is the same
    if all clients have equally many.

    Args:
        head_epochs: passes that train the head.
        body_epochs: passes that train the body.
        head_steps: gradient steps for the head instead of epochs.
        body_steps: gradient steps for the body instead of epochs.
        visits: visits an unseen client makes to train its head.
    """
    return Method(
        layout={head: Personal(), "model": Shared()},
        schedule=(
            Phase(head, epochs=head_epochs if head_steps is None else None, steps=head_steps, stream="head"),
            Phase(body, epochs=body_epochs if body_steps is None else None, steps=body_steps),
        ),
        predict=Predict("model", visits=visits),
    )
