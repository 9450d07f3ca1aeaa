"""FedAvgM, momentum at the server."""

from plures.method import SGD, Combine, Method, ServerOptimizer
from plures.methods.entry import entry, remark, require


@entry("FedAvgM", "server optimizer", "Hsu, Qi, Brown 2019, arXiv:1909.06335 (FedAvgM)", {"momentum": (0.5, 0.9)})
def fedavgm(momentum: float = 0.9, server_lr: float = 1.0) -> Method:
    """FedAvg whose server moves by a decaying sum of the clients' mean changes.

    ``m <- momentum m + Delta``, ``w <- w + server_lr m`` with the mean change ``Delta``, weighted by examples; so the
    steps add up to ``server_lr / (1 - momentum)`` times the change. Running statistics are averaged. Communication is
    that of FedAvg.

    Args:
        momentum: share of the sum kept from round to round; 0 is FedAvg.
        server_lr: step of the server.
    """
    require(0 <= momentum < 1 and server_lr >= 0, f"fedavgm: momentum={momentum} in [0, 1), server_lr={server_lr} >= 0")
    remark(momentum == 0, "fedavgm with momentum=0 is fedavg with a server step")
    return Method(combine=Combine(server=ServerOptimizer(SGD(server_lr, momentum))))
