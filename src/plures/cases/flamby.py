"""FLamby's strategies (du Terrail et al. 2022, NeurIPS) where their settings are not those of the catalogue.

FLamby's adaptive strategies have betas of .9 and .999 and a tau of 1e-8, also FedAdagrad.
"""

from __future__ import annotations

from functools import partial

from plures.method import Adam, Method, Personal, Phase, Predict
from plures.methods import fedopt
from plures.methods.entry import entry

FAMILY, SOURCE = "server optimizer", "du Terrail et al. 2022, NeurIPS; Reddi et al. 2021, ICLR, Algorithm 2"
adaptive = partial(fedopt, betas=(0.9, 0.999), tau=1e-8)


@entry("FedAdam", FAMILY, SOURCE)
def fedadam(server_lr: float) -> Method:
    """FedAdam with FLamby's settings.

    Args:
        server_lr: step of the server.
    """
    return adaptive("adam", server_lr)


@entry("FedYogi", FAMILY, SOURCE)
def fedyogi(server_lr: float) -> Method:
    """FedYogi with FLamby's settings.

    Args:
        server_lr: step of the server.
    """
    return adaptive("yogi", server_lr)


@entry("FedAdagrad", FAMILY, SOURCE)
def fedadagrad(server_lr: float) -> Method:
    """FedAdagrad with FLamby's settings.

    Args:
        server_lr: step of the server.
    """
    return adaptive("adagrad", server_lr)


@entry("Own centre only, Adam", "baseline", "du Terrail et al. 2022, NeurIPS", rounds=1)
def alone(lr: float, epochs: int) -> Method:
    """Every client trains its own model by Adam in a single visit: FLamby's baseline of one centre.

    Args:
        lr: learning rate.
        epochs: passes over the client's training data.
    """
    visit = Phase(epochs=epochs, optimizer=Adam(lr))
    return Method(layout={"model": Personal()}, schedule=(visit,), predict=Predict(visits=1))
