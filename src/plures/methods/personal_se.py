"""Personal squeeze-and-excitation: every client weights the channels of shared convolutions in its own way."""

from dataclasses import replace
from typing import Literal

from plures.method import Method, Personal, Predict, Shared, role
from plures.methods.entry import entry

gates = replace(
    role("se"),
    hint="use a network with squeeze-and-excitation, such as plures.models.resnet(features, outputs, se=True), or "
    "mark the gates of your own: plures.with_roles(model, se=('name of a gate', ...))",
)
biases = replace(
    gates, name="se biases", chooses=lambda leaf: gates.chooses(leaf) and leaf.path.split(".")[-1] == "bias"
)


@entry(
    "Personal SE", "split model", "channel gates of Hu, Shen, Sun 2018, equation 3, kept by each client as in FedPer"
)
def personal_se(part: Literal["gate", "bias"] = "gate", visits: int = 5) -> Method:
    """FedAvg of the convolutions, with the channel gates ``s = sigmoid(W2 relu(W1 mean(x)) + b_i)`` kept by the client.

    The model must have squeeze-and-excitation.

    Args:
        part: the personal part of a gate: all of it, or only the bias ``b_i``, one number per channel.
        visits: visits an unseen client makes to train its gates, starting from the initial ones.
    """
    personal = {"gate": gates, "bias": biases}
    return Method(layout={personal[part]: Personal(), "model": Shared()}, predict=Predict(visits=visits))
