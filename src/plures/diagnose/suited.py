"""Which methods cannot learn a federation's task, so that advice does not name them."""

from __future__ import annotations

import warnings

from torch import nn

from plures.diagnose.families import FAMILIES
from plures.errors import PluresError, PluresWarning
from plures.federation import Federation
from plures.method import Setting
from plures.method.needs import UnsuitableTaskError
from plures.methods import METHODS
from plures.models import ModelFactory, Network, default_model


def unsuitable(federation: Federation, model: nn.Module | ModelFactory | None, seed: int) -> frozenset[str]:
    """Names of the methods that the families list and that refuse the task; each is set up, none is trained.

    A method that refuses for want of anything else, such as metadata or a marked head, is not among them: that can be
    supplied.

    Args:
        federation: whose task.
        model: what would be trained; default: the network that fits the data.
        seed: of initial values.
    """
    setting, found = Setting.of(federation), set[str]()
    for name in {name for family in FAMILIES.values() for name in family.methods}:
        method = METHODS[name]()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", PluresWarning)  # they concern a model that is not trained here
            try:
                network = Network(method.prepare(default_model(federation) if model is None else model, setting, seed))
                method.bind(network, setting, lambda _, network=network: network.leaves())  # type: ignore[misc]
            except UnsuitableTaskError:
                found.add(name)
            except PluresError:
                continue
    return frozenset(found)
