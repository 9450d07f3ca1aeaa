"""FedHome: an auto-encoder whose classifier each client refines on a class-balanced set of codes."""

from math import prod

import torch
from torch import Tensor, nn

from plures.method import (
    Assign,
    Batch,
    Leaves,
    Method,
    Personal,
    Phase,
    Predict,
    Setting,
    Shared,
    Start,
    State,
    Visit,
    head,
)
from plures.method.needs import classes
from plures.method.representation import blank, members, width
from plures.methods.entry import entry, remark, require
from plures.models import Network
from plures.models.beside import beside
from plures.models.layers import uniform


def between(codes: Tensor, member: Tensor, places: int, key: Tensor) -> tuple[Tensor, Tensor]:
    """A class-balanced set of codes: the client's own, and convex combinations of two codes of one class.

    Each class that the client has gets as many codes as its largest class, at most ``places``: first its own, then
    ``a + u (b - a)`` for random ``a``, a different ``b`` of the class and ``u`` in [0, 1) (SMOTE, Chawla et al. 2002,
    without the restriction to nearest neighbours).

    Args:
        codes: ``(examples, d)``.
        member: ``(examples, classes)`` one-hot classes; all zeros for padding.
        places: capacity of each class.
        key: of the random numbers.

    Returns:
        Codes ``(classes, places, d)``, and their weights ``(classes, places)``, 1 for a code and 0 for an empty place.
    """
    count = member.sum(0).long()
    order = member.argsort(dim=0, descending=True, stable=True)
    place = torch.arange(places, device=codes.device)
    first, other, mix = uniform(key, 3 * len(count) * places).reshape(3, len(count), places).to(codes.dtype)
    size = count.clamp(min=1).unsqueeze(1)
    own = place < size
    a = torch.where(own, place, (first * size).long() % size)
    b = (a + 1 + (other * (size - 1)).long()) % size
    near, far = (codes[order.T.gather(1, which)] for which in (a, b))
    made = near + torch.where(own, 0.0, mix).unsqueeze(2) * (far - near)
    return made, ((place < count.max()) & (count > 0).unsqueeze(1)).to(codes.dtype)


def linear_decoder(module: nn.Module, setting: Setting) -> nn.Module:
    """The model with an added linear layer from the head's input to the flattened input."""
    return beside(module, "decoder", nn.Linear(width(Network(module), setting), prod(setting.features)))


def coded(x: State, received: State, batch: Batch) -> Tensor:
    """The codes of some examples, ``(batch, d)``."""
    return batch.features(x.model).flatten(1)


def balance(x: State, received: State, visit: Visit) -> dict[str, Leaves]:
    """The slot ``codes``: a class-balanced set made of the client's training examples."""
    own = visit.examples["train"]
    codes, (count, most) = own.input, x.codes["weight"].shape
    member = members(own.targets, count, codes) * own.real.unsqueeze(1)
    made, weight = between(codes, member, most, visit.key)
    return {"codes": {"code": made, "weight": weight}}


def refine(x: State, received: State, batch: Batch) -> Tensor:
    """Cross-entropy of the head on the slot ``codes``, all at once."""
    codes, weight = x.codes["code"], x.codes["weight"]
    label = torch.arange(len(weight), device=weight.device).repeat_interleave(weight.shape[1])
    return batch.problem.loss(batch.head(x.model, codes.flatten(0, 1)), label, weight.flatten())


@entry(
    "FedHome",
    "representation",
    "Wu, Chen, Zhou, Zhang 2022, IEEE Trans. Mobile Computing 21(8)",
    {"lam": (0.1, 1.0, 10.0)},
)
def fedhome(lam: float = 1.0, refine_steps: int = 20, refine_lr: float | None = None, per_class: int = 100) -> Method:
    """A global auto-encoder with a classifier on its code; each client refines the classifier on balanced codes.

    FedAvg on ``f_i(x) + lam * mean squared error of the reconstruction``. Before predicting, a client fills up its
    smaller classes with combinations of its codes (:func:`between`) and trains the head on all of them at once. Only
    the paper's abstract was available: the form of the loss, the combinations and the refinement are our choice.

    The code is the head's input, and the part marked ``decoder`` reconstructs the model's input from it: use
    :func:`~plures.models.autoencoder.autoencoder_classifier`. A model without a decoder gets a linear one.

    Args:
        lam: weight of the reconstruction.
        refine_steps: gradient steps of the refinement; 0 predicts with the global model.
        refine_lr: their learning rate; default: the run's.
        per_class: maximum number of codes of a class in the balanced set.
    """
    require(lam >= 0 and refine_steps >= 0, f"fedhome: lam={lam}, refine_steps={refine_steps} must not be negative")
    require(per_class >= 1, f"fedhome: per_class={per_class}: give at least 1")
    remark(lam == 0 and refine_steps == 0, "fedhome with lam=0 and no refinement is fedavg")

    def places(start: Start) -> Leaves:
        count, setting = classes(start, "fedhome"), start.setting
        require(setting.dtype.is_floating_point, "fedhome reconstructs real inputs, but they are integers (tokens)")
        most = min(per_class, int(setting.fact("labels").max()))
        return {"code": blank(start, count, most, width(start.network, setting)), "weight": blank(start, count, most)}

    def reconstruct(x: State, received: State, batch: Batch) -> Tensor:
        outputs, codes = batch.represented(x.model)
        back = batch.part("decoder", x.model, codes).flatten(1)
        error = batch.mean((back - batch.input.flatten(1)).square().mean(1))
        return batch.problem.loss(outputs, batch.targets, batch.weight) + lam * error

    refinement = (
        Assign(("codes",), balance, reads=("train",), through=coded),
        Phase(head, refine, steps=refine_steps, lr=refine_lr, stream="adapt"),
    )
    return Method(
        layout={"model": Shared(), "codes": Personal()},
        slots={"codes": places},
        schedule=(Phase(objective=reconstruct),),
        predict=Predict("model", adapt=refinement if refine_steps else ()),
        adds={"decoder": linear_decoder},
    )
