"""Features of a network's frozen first part, computed once for every example of a run instead of in every step."""

from __future__ import annotations

import copy
import logging
import time
from dataclasses import replace

import torch
from torch import Tensor

from plures.errors import PluresError
from plures.federation import Federation
from plures.federation.inputs import Inputs
from plures.method import Bound, Setting
from plures.models.cut import first_part, through
from plures.models.network import FEATURES
from plures.run.execution import Execution
from plures.run.rehearse import rehearse
from plures.run.training import Training

log = logging.getLogger("plures")

MOST = 1 << 30
"""Most bytes of features."""
FEW = 8
"""Examples on which the first part is looked for."""
WORTH = 1.5
"""How often as many examples as there are must be read for their features to be worth their computation."""


def with_features(
    bound: Bound,
    federation: Federation,
    training: Training,
    execution: Execution,
    seed: int,
    setting: Setting,
    cohort: int,
) -> tuple[Bound, Federation, Execution]:
    """What a run trains with: features and a network that takes them, where that gives the same numbers in less time.

    Args:
        bound: the method, resolved.
        federation: the clients.
        training: local work.
        execution: says whether features are wanted.
        seed: of the run.
        setting: facts about the clients.
        cohort: number of clients in a round.

    Returns:
        The same method with a network that takes features as well as inputs, and the federation with features as
        inputs; or what was given. And the execution, which says what was decided where a resumed run could decide
        otherwise.

    Raises:
        PluresError: if features are wanted and cannot be used; says why.
    """
    if execution.features is False:
        return bound, federation, execution
    found = _cut(bound, federation, execution)
    if execution.features == "auto" and not isinstance(found, str) and not _pays(federation, training, cohort):
        return bound, federation, replace(execution, features=False)
    if not isinstance(found, str):
        inputs, begun = federation.inputs, time.perf_counter()
        assert isinstance(inputs, Tensor)
        made = copy.copy(bound)
        made.network, made.verdicts = bound.network.beyond(found), {}
        features = Inputs({FEATURES: through(bound.network, found, inputs)})
        featured = replace(federation, inputs=features, columns=(), scaling=None)
        try:
            rehearse(made, featured, training, execution, seed, setting)
        except PluresError as error:
            found = f"the method needs the inputs themselves ({error})"
        else:
            log.info(
                "%s is frozen: its features of %d examples were computed once, in %.1f s, and are trained on; "
                "Execution(features=False) computes them in every step",
                found[0] if len(found) == 1 else f"{found[0]} to {found[-1]}",
                len(inputs),
                time.perf_counter() - begun,
            )
            return made, featured, replace(execution, features=True)
    if execution.features is True:
        raise PluresError(f"features=True: {found}; leave it out")
    return bound, federation, execution


def _cut(bound: Bound, federation: Federation, execution: Execution) -> tuple[str, ...] | str:
    """The modules of the first part; or why its features cannot be used."""
    inputs, network = federation.inputs, bound.network
    if execution.side > 1 or execution.ray is not None:
        return "several processes train the clients"
    if federation.augment is not None:
        return "examples are augmented, so their features are never the same"
    if not isinstance(inputs, Tensor):
        return "the network has several inputs"
    if bound.method.predictor.reads:
        return "the method predicts with the clients' own examples"
    few = inputs[torch.linspace(0, len(inputs) - 1, min(FEW, len(inputs))).long()]
    names = first_part(network, few) if network.frozen else ()
    if not names:
        return "the network has no frozen first part that gives the same in every step"
    if any(
        not torch.equal(leaves[path], value)
        for leaves in bound.initial.values()
        for path, value in network.leaves().items()
        if path in leaves and any(path.startswith(f"{name}.") for name in names)
    ):
        return "the method's models have different first parts"
    size = through(network, names, few[:1]).nbytes * len(inputs)
    if size > MOST:
        return f"the features would take {size / 1e9:.1f} GB of memory"
    return names


def _pays(federation: Federation, training: Training, cohort: int) -> bool:
    """Whether the run reads its examples so often that computing all features once is less work."""
    train = len(federation.splits["train"].rows)
    share = cohort / len(federation)
    steps = training.steps
    read = train * training.passes if steps is None else steps * len(federation) * (training.batch_size or train)
    return training.rounds * share * read > WORTH * len(federation.targets)
