"""L2GD, loopless local gradient descent."""

import math

import torch
from torch import Tensor

from plures.method import Cohort, Method, Mixed, Phase, Predict
from plures.methods.entry import entry, remark, require


def geometric(u: float, chance: float) -> int:
    """Number of trials up to the first success, from a uniform number in [0, 1)."""
    return 1 + int(math.log1p(-u) / math.log1p(-chance))


@entry(
    "L2GD",
    "regularised",
    "Hanzely, Richtárik 2020, arXiv:2002.05516, Algorithm 1",
    {"strength": (0.1, 0.3, 0.6, 0.9)},
)
def l2gd(strength: float = 0.3, p: float = 0.5, visits: int = 5) -> Method:
    """A coin decides in each iteration: a gradient step by every client, or a step of all models towards their mean.

    ``min 1/n sum_i f_i(x_i) + lam/(2n) sum_i ||x_i - mean_j x_j||^2``. With probability ``1 - p`` every client makes a
    step of length ``alpha/(n (1 - p))``, here the run's learning rate; with probability ``p`` every model moves by the
    factor ``alpha lam/(n p)``, here ``strength``, to the mean. So ``lam = strength p / ((1 - p) lr)`` with plain SGD; a
    decaying learning rate raises ``lam``, because ``strength`` stays the same.

    Steps towards the mean leave the mean unchanged, so consecutive ones need no communication. A round here
    is a geometric number of gradient steps, one upload, a geometric number of averaging steps at the server, and one
    download: ``2p(1 - p)`` exchanges per iteration of the paper. The mean is over all clients; those not taking part
    count with their last models.

    Args:
        strength: fraction of the way to the mean covered by one averaging step; 0 is local training, 1 consensus.
        p: probability of an averaging step.
        visits: visits an unseen client makes, starting from the mean of the models.
    """
    require(0 <= strength <= 1 and 0 < p < 1, f"l2gd: strength={strength} must lie in [0, 1] and p={p} in (0, 1)")
    remark(strength == 0, "l2gd with strength=0 is local training, with a random number of steps")

    def average(models: Tensor, cohort: Cohort) -> Tensor:
        stays = (1 - strength) ** geometric(float(cohort.draw("averaging", 1)), 1 - p)
        return stays * torch.eye(len(models), dtype=torch.float64) + (1 - stays) / len(models)

    return Method(
        layout={"model": Mixed(average)},
        schedule=(Phase(steps=lambda u: geometric(u, p)),),
        predict=Predict("model", visits=visits),
    )
