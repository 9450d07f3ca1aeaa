"""Reference networks, and modules seen as pure functions of their leaves."""

from plures.models.adapters import merged, with_adapters, with_lora
from plures.models.autoencoder import autoencoder_classifier
from plures.models.exits import with_exits
from plures.models.frozen import featured
from plures.models.graph import gcn, sage
from plures.models.mixture import mixture_of_experts, moe
from plures.models.network import LeafInfo, Leaves, Marked, ModelFactory, Network, build, redrawn, with_roles
from plures.models.oneof import one_of
from plures.models.ratings import matrix_factorization
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
from plures.models.residual import resnet
from plures.models.segmentation import unet
from plures.models.sequence import char_lstm, char_transformer

__all__ = [
    "LeafInfo",
    "Leaves",
    "Marked",
    "ModelFactory",
    "NETWORKS",
    "Network",
    "autoencoder_classifier",
    "build",
    "redrawn",
    "char_lstm",
    "char_transformer",
    "default_model",
    "fedavg_cnn",
    "featured",
    "fedbn_cnn",
    "fedrep_cnn",
    "gcn",
    "har_cnn",
    "logistic",
    "matrix_factorization",
    "merged",
    "mixture_of_experts",
    "mlp",
    "moe",
    "one_of",
    "resnet",
    "sage",
    "unet",
    "with_adapters",
    "with_exits",
    "with_lora",
    "with_roles",
]
