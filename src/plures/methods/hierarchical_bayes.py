"""Hierarchical Bayes: clients borrow strength from one another."""

import torch
from torch import Tensor

from plures.method import (
    Assign,
    Batch,
    Combine,
    Known,
    Leaves,
    Method,
    Personal,
    Phase,
    Predict,
    Shared,
    Start,
    State,
    Visit,
    gradient,
    parameters,
)
from plures.method.curvature import fisher, output_covariance
from plures.method.needs import curvature, mixing
from plures.methods.entry import entry, require
from plures.models.layers import uniform

LOSS, SHARE, SLOPE = "/loss", "/share", "/slope/"


def variance(x: State) -> Leaves:
    """Posterior variance of every entry of a client's parameters, ``1 / (1/tau^2 + information)``."""
    return {k: 1 / (1 / x.prior[k] + known) for k, known in x.information.items()}


def mean(x: State) -> Leaves:
    """Posterior mean of a client's model; the prior mean where its data carry no information."""
    known = x.information
    return {k: torch.where(known[k] > 0, t, x.model[k]) if k in known else t for k, t in x.personal.items()}


def doubt(x: State, batch: Batch) -> Tensor:
    """Covariance of the outputs over a client's posterior, ``(batch, outputs, outputs)``, of the linearised model.

    Linearising keeps the Laplace posterior sensible in networks, where weights drawn from it directly would be noise in
    all directions that the data leave open (Immer, Korzepa, Bauer 2021). In a deep model with a marked head the body
    stays at its mean, where independent entries would be far too wide (last-layer Laplace: Daxberger et al. 2021).
    """
    info, wide = batch.problem.network.info, variance(x)
    last = {k: t for k, t in wide.items() if "head" in info[k].roles}
    return output_covariance(mean(x), last or wide, batch)


def predictive(x: State, batch: Batch) -> tuple[Tensor, Tensor]:
    """Mean and variance ``(batch, outputs)`` of a client's prediction in regression, noise included."""
    return batch.outputs(mean(x)), doubt(x, batch).diagonal(dim1=-2, dim2=-1) + x.noise["variance"]


def averaged(x: State, batch: Batch, draws: int) -> Tensor:
    """Outputs ``(batch, outputs)`` whose probabilities are averaged over draws of the linearised scores.

    If the model diverged and its scores are NaN, so is the result.
    """
    scores = batch.outputs(mean(x))
    values, vectors = torch.linalg.eigh(doubt(x, batch).nan_to_num(0.0, 0.0, 0.0))
    normal = latin(draws, scores.shape[-1]).to(scores)
    offsets = (vectors * values.clamp(min=0.0).sqrt().unsqueeze(-2)) @ (vectors.mT @ normal.T)
    drawn = (scores.unsqueeze(-1) + offsets).unbind(-1)
    return batch.problem.task.mix(drawn, scores.new_full((draws,), 1 / draws))


def latin(draws: int, size: int) -> Tensor:
    """Fixed normal numbers ``(draws, size)``: a Latin hypercube, with mean 0 and variance 1 over the draws."""
    normal = torch.special.ndtri((torch.arange(draws, dtype=torch.float64) + 0.5) / draws)
    levels: Tensor = normal / normal.square().mean().sqrt().clamp(min=1e-300)
    return levels[uniform(torch.tensor(0x2545F491), draws * size).view(draws, size).argsort(0)]


def near(x: State, received: State, batch: Batch) -> Tensor:
    """Loss of a client's model plus its prior; gradients and weight decay are scaled to keep steps stable."""
    pull = {k: 2 * x.noise["variance"] / (x.about["examples"] * t) for k, t in received.prior.items()}
    held = {k: t.detach() for k, t in x.personal.items()}
    soft = {k: held[k] + (t - held[k]) / (1 + pull[k]) if k in pull else t for k, t in x.personal.items()}
    terms = [pull[k] / 2 * (soft[k] - received.model[k]).square().sum() for k in pull]
    terms += [-batch.problem.decay / 2 * pull[k] / (1 + pull[k]) * x.personal[k].square().sum() for k in pull]
    return batch.loss(soft, keep=x.personal) + torch.stack(terms).sum()


def measured(x: State, received: State, batch: Batch) -> Leaves:
    """Loss and Fisher information of a client's model; for squared error also one over the number of outputs."""
    loss, task = batch.loss(x.personal), batch.problem.task
    share = 1 / task.outputs if task.squared else 0.0
    slope = {SLOPE + k: t for k, t in gradient(x.personal, batch).items()}
    return {LOSS: loss, SHARE: torch.full_like(loss, share), **slope, **fisher(x.personal, batch)}


def settle(x: State, received: State, visit: Visit) -> dict[str, Leaves]:
    """The client's posterior, and its contribution to the next prior and noise."""
    noise, share = x.noise["variance"], visit.measured[SHARE]
    curve = {k: visit.measured[k] for k in x.prior}
    known = {k: x.about["examples"] / (2 * noise) * t for k, t in curve.items()}
    spread = {k: 1 / (1 / x.prior[k] + t) for k, t in known.items()}
    gap = {}
    for k, t in spread.items():
        far, slope = x.personal[k] - received.model[k], x.about["examples"] / (2 * noise) * visit.measured[SLOPE + k]
        found, reached = (d.square().mean() + t.mean() for d in (far, far - t * (far / x.prior[k] + slope)))
        gap[k] = torch.minimum(torch.maximum(found, x.prior[k]), torch.maximum(found, reached))
    left = visit.measured[LOSS] + torch.stack([(curve[k] * spread[k]).sum() / 2 for k in curve]).sum()
    rest = {"variance": torch.where(share > 0, share * left, noise)}
    return {"information": known, "model": x.personal, "prior": gap, "noise": rest}


@entry(
    "Hierarchical Bayes",
    "Bayesian",
    "Lindley, Smith 1972, J. Royal Stat. Soc. B 34(1); EM: Dempster, Laird, Rubin 1977; Laplace: MacKay 1992",
    {"tau2": (0.01, 0.1, 1.0)},
)
def hierarchical_bayes(
    tau2: float = 0.1, noise: float = 1.0, learn: bool = True, draws: int = 16, visits: int = 5
) -> Method:
    """Every client's weights are drawn around common ones; how much clients differ is learned from all of them.

    ``theta_i ~ N(mu, tau^2)``, with one ``tau^2`` for each leaf, and the client's ``n_i`` examples given ``theta_i``.
    A client keeps a Gaussian posterior with independent entries. Its mean ``m`` minimises
    ``f_i(m) + c/(2 n_i) sum (m - mu)^2 / tau^2``, where ``c`` is 1 for classes and twice the noise variance for
    regression, so that ``f_i / c`` is the negative log-likelihood of one example; its variance ``V`` is Laplace's,
    ``1 / (1/tau^2 + n_i F_i)`` with the Fisher information. Gradients are divided by ``1 + c/(n_i tau^2)``, which
    keeps the steps stable for small ``tau^2`` and does not move the optimum.

    Empirical Bayes by EM: a client sends ``m`` and, for each leaf, the mean of ``(m - mu)^2 + V``; their uniform means
    are the next ``mu`` and ``tau^2``. If training has not reached the mode, ``m`` is too close to ``mu``, and ``tau^2``
    would shrink to zero. So that mean uses ``m`` after a Newton step if this makes the mean larger, but at most the
    present ``tau^2``. In regression the expected squared error, averaged over examples, is the next variance of the
    noise. The server needs only sums. Class probabilities are averaged over draws from the posterior of the
    linearised model, or of its head where one is marked; :func:`predictive` gives mean and
    variance in regression. In networks with many more weights than examples EM narrows ``tau^2`` over many rounds, and
    until then probabilities are cautious; ``hierarchical_bayes() + temperature()`` sharpens them.

    Args:
        tau2: initial variance between clients.
        noise: initial variance of the targets around the prediction; for regression.
        learn: whether EM learns ``tau^2`` and the noise; otherwise they stay as given.
        draws: number of draws for class probabilities.
        visits: visits an unseen client makes; before the first it predicts with the prior.
    """
    require(tau2 > 0 and noise > 0 and draws >= 1, f"hierarchical_bayes: tau2={tau2}, noise={noise}, draws={draws}")

    def unknown(start: Start) -> Leaves:
        return {k: torch.zeros_like(t) for k, t in parameters(start.model).items()}

    def prior(start: Start) -> Leaves:
        return {k: t.new_tensor(tau2) for k, t in parameters(start.model).items()}

    def rest(start: Start) -> Leaves:
        mixing(start, "hierarchical_bayes")
        curvature(start, "hierarchical_bayes")
        value = noise if start.setting.task.squared else 0.5
        return {"variance": torch.tensor(value, dtype=start.network.dtype)}

    def outputs(x: State, batch: Batch) -> Tensor:
        return averaged(x, batch, draws) if batch.problem.task.probable else batch.outputs(mean(x))

    common = ("prior", "noise") if learn else ()
    return Method(
        layout={
            "model": Shared(),
            "personal": Personal(unseen="model"),
            "information": Personal(),
            "prior": Shared(),
            "noise": Shared(),
            "about": Known("examples"),
        },
        slots={"information": unknown, "prior": prior, "noise": rest},
        schedule=(Phase("personal", objective=near), Assign(("information", "model", *common), settle, measured)),
        combine={"model": Combine("uniform"), "prior": Combine("uniform")},
        predict=Predict(outputs=outputs, visits=visits),
    )
