"""Metrics of all clients' rows together, beside the mean over clients."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch

from plures import METHODS, Execution, Run, Training, from_arrays, score
from plures.errors import PluresWarning
from plures.evaluate import pooled
from plures.federation import SplitRule
from plures.metrics.auroc import auroc


def untrained(true: list[int], chances: list[float], clients: list[str]) -> Run:
    """A run before its first round, in which every client predicts these probabilities of the second class."""
    split = SplitRule(validation=0, test=0)
    odds = torch.tensor(chances).logit().unsqueeze(1)
    with warnings.catch_warnings():  # clients are small, and one has a single class
        warnings.simplefilter("ignore", PluresWarning)
        federation = from_arrays(odds, true, clients, task="binary", split=split, copies="allow")
    layer = torch.nn.Linear(1, 1)
    torch.nn.init.ones_(layer.weight)
    torch.nn.init.zeros_(layer.bias)
    return Run(federation, layer, METHODS["fedavg"](), Training(rounds=0), execution=Execution(chunk=1))


@pytest.mark.oracle("EV4")
def test_v3_pooled_auroc_compares_rows_of_different_clients() -> None:
    run = untrained([1, 1, 0, 0] * 2, [0.4, 0.3, 0.2, 0.1, 0.9, 0.8, 0.7, 0.6], ["A"] * 4 + ["B"] * 4)
    assert score(run, "train").values["auroc"].tolist() == [1, 1]
    assert pooled(run, "train")["auroc"] == 0.75
    other = untrained([1, 0, 1, 0, 0], [0.1, 0.2, 0.9, 0.95, 0.05], ["A"] * 2 + ["B"] * 3)
    assert score(other, "train").values["auroc"].tolist() == [0, 0.5]
    assert pooled(other, "train", metrics=[auroc]) == {"auroc": 0.5}


@pytest.mark.oracle("EV4")
def test_v4_pooled_f1_is_that_of_summed_counts() -> None:
    """A finds one of two; B finds its eight and claims two more: 18/21, where the mean is 7/9."""
    run = untrained([1, 1, *[1] * 8, *[0] * 2], [0.9, 0.1, *[0.9] * 10], ["A"] * 2 + ["B"] * 10)
    f1 = run.federation.judged_by("positive_f1").metrics[0]
    assert np.mean(score(run, "train", metrics=[f1]).values["positive_f1"]) == pytest.approx(7 / 9)
    assert pooled(run, "train", metrics=[f1])["positive_f1"] == pytest.approx(6 / 7)
