"""Temperature scaling, with or without biases, fitted by each client."""

import torch
from torch import Tensor
from torch.nn.functional import pad

from plures.method import Batch, Calibration, Leaves, Method, Personal, Predict, Shared, Start, State
from plures.method.needs import classes
from plures.methods.entry import entry, require
from plures.tasks.shift import stays

HOTTEST = 1000.0
NEWTON_STEPS = 20
FRACTIONS = (0.0, *(2.0**-k for k in range(12)))
TOGETHER = 1 << 17
"""Largest number of a client's logits for all steps that are tried at once."""


def optimum(z: Tensor, y: Tensor, weight: Tensor, bias: bool, prior: float) -> Tensor:
    """The inverse temperature and biases of :func:`temperature`, by Newton's method.

    Args:
        z: ``(n, classes)`` logits.
        y: ``(n,)`` classes.
        weight: ``(n,)`` how much an example counts, 0 for padding.
        bias: whether to fit biases.
        prior: weight of the penalty on moving from the start.

    Returns:
        ``(1 + classes,)`` the inverse temperature, and the biases.
    """
    free = 1 + z.shape[1] if bias else 1
    start = torch.cat([z.new_ones(1), z.new_zeros(z.shape[1])])
    truth = (y[:, None] == torch.arange(z.shape[1], device=z.device)).to(z)

    def costs(tried: Tensor) -> Tensor:
        """The objective at some candidates, ``(candidates,)``."""
        logits = z * tried[:, :1, None] + tried[:, None, 1:]
        likelihoods = logits.log_softmax(-1).gather(-1, y[None, :, None].expand(len(tried), -1, 1)).squeeze(-1)
        found = prior / 2 * (tried - start).square().sum(1) - likelihoods @ weight
        return torch.where(tried[:, 0] >= 1 / HOTTEST, found, torch.inf)

    at = start
    for _ in range(NEWTON_STEPS):
        p = (z * at[0] + at[1:]).softmax(-1)
        mass, wrong, far = weight[:, None] * p, weight[:, None] * (p - truth), z - (p * z).sum(-1, True)
        slope = torch.cat([(wrong * z).sum().view(1), wrong.sum(0)]) + prior * (at - start)
        cross = (mass * far).sum(0)
        top = torch.cat([(mass * far.square()).sum().view(1), cross])
        rest = torch.cat([cross[:, None], torch.diag_embed(mass.sum(0)) - mass.T @ p], 1)
        curvature = torch.cat([top[None], rest])[:free, :free] + (prior + 1e-9) * torch.eye(free).to(z)
        step = pad(torch.linalg.solve(curvature, slope[:free]), (0, len(at) - free))
        tried = at - z.new_tensor(FRACTIONS)[:, None] * step
        found = torch.cat([costs(some) for some in torch.split(tried, max(1, TOGETHER // max(1, z.numel())))])
        best = found.nan_to_num(nan=torch.inf).argmin()
        at = tried[best]
        if stays(best):
            break
    return at


@entry(
    "Temperature scaling",
    "after training",
    "Guo, Pleiss, Sun, Weinberger 2017, ICML, section 4.2; biases: Alexandari, Kundaje, Shrikumar 2020, ICML",
    {"bias": (False, True)},
)
def temperature(bias: bool = False, prior: float = 1.0) -> Method:
    """Each client divides the logits by a temperature of its own, fitted on its validation examples.

    ``min sum_n -log softmax(z_n / T + b)[y_n] + prior/2 ((1/T - 1)^2 + ||b||^2)`` over ``0 < T <= 1000`` and ``b``,
    convex in ``1/T`` and ``b``, by Newton's method from ``T = 1, b = 0``, whose steps never raise the objective. So
    the likelihood of the validation examples never gets worse; a client without any keeps ``T = 1``. A temperature
    alone never changes the predicted class; biases do, and generalise a threshold to more than two classes. Weights
    of examples multiply their terms, scaled to mean 1 so that ``prior`` keeps its meaning.

    Args:
        bias: whether to fit a bias for each class as well.
        prior: weight of the penalty, in examples; 0 is the papers' maximum likelihood.
    """
    require(prior >= 0, f"temperature: prior={prior} must not be negative")

    def fit(x: State, outputs: Tensor, batch: Batch) -> Leaves:
        weight, real = batch.mask.to(torch.float64), batch.real.to(torch.float64)
        weight = weight * (real.sum() / torch.where(real.any(), weight.sum(), 1.0))
        at = optimum(outputs.to(torch.float64), batch.targets, weight, bias, prior)
        return {"temperature": (1 / at[0]).to(outputs), "bias": at[1:].to(outputs)}

    def start(start: Start) -> Leaves:
        none = torch.zeros(classes(start, "temperature"), dtype=start.network.dtype)
        return {"temperature": none[0] + 1, "bias": none}

    def revise(x: State, outputs: Tensor) -> Tensor:
        return outputs / x.temperature["temperature"] + x.temperature["bias"]

    return Method(
        layout={"model": Shared(), "temperature": Personal()},
        slots={"temperature": start},
        predict=Predict(calibrate=(Calibration("temperature", fit, revise),)),
    )
