"""The six parts of a method, and Method itself."""

from plures.method.combine import Combine, Mean, Relax, Replace, Server
from plures.method.layout import (
    Block,
    Clustered,
    Frozen,
    Layout,
    Leaf,
    Personal,
    Selector,
    Share,
    Shared,
    body,
    everything,
    head,
    norm_layers,
    norm_statistics,
    nothing,
    paths,
    role,
)
from plures.method.method import Bound, Method
from plures.method.optimizer import SGD, Adam, AdamW, Optimizer
from plures.method.predict import Predict
from plures.method.schedule import Assign, Objective, Phase, Schedule, Visit
from plures.method.state import Batch, Problem, State, gradient, task_loss
from plures.method.tree import axpy, detach, dot, interpolate, squared_distance, zeros_like
from plures.method.wire import Codec, Wire, encode
from plures.models import Leaves

__all__ = [
    "SGD",
    "Adam",
    "AdamW",
    "Assign",
    "Batch",
    "Block",
    "Bound",
    "Clustered",
    "Codec",
    "Combine",
    "Frozen",
    "Layout",
    "Leaf",
    "Leaves",
    "Mean",
    "Method",
    "Objective",
    "Optimizer",
    "Personal",
    "Phase",
    "Predict",
    "Problem",
    "Relax",
    "Replace",
    "Schedule",
    "Selector",
    "Server",
    "Share",
    "Shared",
    "State",
    "Visit",
    "Wire",
    "axpy",
    "body",
    "detach",
    "dot",
    "encode",
    "everything",
    "gradient",
    "head",
    "interpolate",
    "norm_layers",
    "norm_statistics",
    "nothing",
    "paths",
    "role",
    "squared_distance",
    "task_loss",
    "zeros_like",
]
