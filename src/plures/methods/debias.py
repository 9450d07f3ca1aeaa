"""Regression calibration: inputs corrected for sensor noise."""

from dataclasses import replace

import torch

from plures.method import Assign, Batch, Leaves, Method, Personal, Phase, Predict, Shared, Start, State, Visit
from plures.methods.entry import entry
from plures.methods.quality import Reported


@entry("Regression calibration", "data quality", "Carroll, Ruppert, Stefanski, Crainiceanu 2006, chapter 4")
def debias(column: str = "reliability", joint: bool = False) -> Method:
    """FedAvg on the best linear prediction of the true inputs from each client's noisy ones.

    An input ``x + u`` with noise ``u`` shrinks a slope by the reliability ``rho = var(x) / var(x + u)``, and clients
    whose sensors differ in noise pull the shared model apart. Each client replaces its inputs by
    ``m + rho (x + u - m)`` with ``m`` its own mean, in training and in prediction. For a linear model under squared
    error the least-squares slope is then that of the true inputs for every client: it is divided by ``rho`` before
    averaging, and predictions from noisy inputs are as good as noise allows. For other models and losses this is the
    usual first-order correction.

    Args:
        column: metadata column with each client's reliability in (0, 1]; 1 everywhere is FedAvg.
        joint: for correlated inputs, ``(x + u - m) S^-1 (S - (1 - rho) diag S)`` with ``S`` the client's covariance,
            which amounts to subtracting the noise variance from the diagonal of the normal equations (Fuller 1987).
            Otherwise each input is corrected separately, which is exact if a client's inputs are uncorrelated.
    """

    def moments(x: State, received: State, batch: Batch) -> Leaves:
        flat, mask = batch.input.flatten(1), batch.mask
        square = {"square": (mask[:, None] * flat).T @ flat / mask.sum()} if joint else {}
        return {"mean": batch.mean(batch.input), **square}

    def learn(x: State, received: State, visit: Visit) -> dict[str, Leaves]:
        mean, noisy = visit.measured["mean"], 1 - x.reported[column]
        if not joint:
            return {"sensor": {"mean": mean, "gain": 1 - noisy}}
        square, flat = visit.measured["square"], mean.flatten()
        covariance = square - flat[:, None] * flat
        noise = noisy * torch.diag_embed(covariance.diagonal())
        gain = torch.eye(len(flat)).to(flat) - torch.linalg.pinv(covariance, hermitian=True) @ noise
        return {"sensor": {"mean": mean, "gain": gain}}

    def corrected(x: State, batch: Batch) -> Batch:
        mean, gain = x.sensor["mean"], x.sensor["gain"]
        far = batch.input - mean
        return replace(batch, inputs=mean + ((far.flatten(1) @ gain).view_as(far) if joint else far * gain))

    def start(start: Start) -> Leaves:
        mean = torch.zeros(start.setting.features, dtype=start.network.dtype)
        return {"mean": mean, "gain": torch.eye(mean.numel()).to(mean) if joint else mean.new_ones(())}

    see = Assign(("sensor",), learn, moments)
    return Method(
        layout={"model": Shared(), "reported": Reported(column, positive=True, most=1.0), "sensor": Personal()},
        slots={"sensor": start},
        schedule=(see, Phase(objective=lambda x, received, batch: corrected(x, batch).loss(x.model))),
        predict=Predict(adapt=(see,), outputs=lambda x, batch: corrected(x, batch).outputs(x.model)),
    )
