"""Reference networks, and modules seen as pure functions of their leaves."""

from plures.models.network import LeafInfo, Leaves, ModelFactory, Network, build, with_roles
from plures.models.reference import (
    NETWORKS,
    default_model,
    fedavg_cnn,
    fedbn_cnn,
    fedrep_cnn,
    har_cnn,
    logistic,
    mlp,
)

__all__ = [
    "LeafInfo",
    "Leaves",
    "ModelFactory",
    "NETWORKS",
    "Network",
    "build",
    "default_model",
    "fedavg_cnn",
    "fedbn_cnn",
    "fedrep_cnn",
    "har_cnn",
    "logistic",
    "mlp",
    "with_roles",
]
