"""Metrics compared with torchmetrics and lifelines, ties included; skipped where these are not installed."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from plures.evaluate.predictions import said
from plures.metrics import Predictions
from plures.metrics.auroc import auroc
from plures.metrics.average_precision import average_precision
from plures.metrics.calibration import ece
from plures.metrics.confusion import kappa, mcc
from plures.metrics.items import discounted
from plures.metrics.positions import dice, iou, perplexity
from plures.metrics.survival import baseline, c_index
from plures.tasks import Classification, NextToken, Segmentation, Survival

SEEDS = range(3)


def several(seed: int, classes: int = 4) -> tuple[Predictions, torch.Tensor, torch.Tensor]:
    """One client's predictions with ties, their probabilities and the targets."""
    draw = torch.Generator().manual_seed(seed)
    outputs = torch.randn(90, classes, generator=draw).round().double()
    targets = torch.randint(classes, (90,), generator=draw)
    made = said(Classification(tuple("abcdefg"[:classes])), outputs, targets, torch.ones(90))
    return made, made.chances, targets


@pytest.mark.parametrize("seed", SEEDS)
def test_classes_as_torchmetrics_counts_them(seed: int) -> None:
    found = pytest.importorskip("torchmetrics.functional.classification")
    made, chances, targets = several(seed)
    decided = made.decisions
    pairs = {
        auroc: found.multiclass_auroc(chances, targets, 4, average="macro"),
        average_precision: found.multiclass_average_precision(chances, targets, 4, average="macro"),
        mcc: found.multiclass_matthews_corrcoef(decided, targets, 4),
        kappa: found.multiclass_cohen_kappa(decided, targets, 4),
    }
    for metric, wanted in pairs.items():
        assert metric.of(made) == pytest.approx(float(wanted), abs=1e-6), metric.name


@pytest.mark.parametrize("seed", SEEDS)
def test_calibration_error_as_torchmetrics_bins_it(seed: int) -> None:
    """Probabilities that no bin ends at, for torchmetrics' bins contain their upper ends."""
    found = pytest.importorskip("torchmetrics.functional.classification")
    draw = torch.Generator().manual_seed(seed)
    outputs, targets = torch.randn(90, 4, generator=draw).double(), torch.randint(4, (90,), generator=draw)
    made = said(Classification(tuple("abcd")), outputs, targets, torch.ones(90))
    wanted = found.multiclass_calibration_error(outputs.softmax(1), targets, 4, n_bins=10)
    assert ece.of(made) == pytest.approx(float(wanted), abs=1e-6)


@pytest.mark.parametrize("seed", SEEDS)
def test_perplexity_leaves_padding_out_as_torchmetrics_does(seed: int) -> None:
    found = pytest.importorskip("torchmetrics.functional.text")
    draw = torch.Generator().manual_seed(seed)
    outputs, targets = torch.randn(5, 7, 11, generator=draw).double(), torch.randint(11, (5, 7), generator=draw)
    targets[:, 4:] = torch.where(torch.rand(5, 3, generator=draw) < 0.5, -1, targets[:, 4:])
    made = said(NextToken(tuple(map(str, range(11)))), outputs, targets, torch.ones(5))
    assert perplexity.of(made) == pytest.approx(float(found.perplexity(outputs, targets, ignore_index=-1)), rel=1e-6)


@pytest.mark.parametrize("seed", SEEDS)
def test_overlaps_as_torchmetrics_measures_them(seed: int) -> None:
    """Means over examples and labels without the background, all of which occur in every picture."""
    found = pytest.importorskip("torchmetrics.functional.segmentation")
    draw = torch.Generator().manual_seed(seed)
    outputs, targets = torch.randn(6, 3, 8, 8, generator=draw).double(), torch.randint(3, (6, 8, 8), generator=draw)
    made = said(Segmentation(labels=("ground", "roof", "tree"), size=(8, 8)), outputs, targets, torch.ones(6))
    told = {"num_classes": 3, "include_background": False, "input_format": "index"}
    shown = outputs.argmax(1), targets
    assert dice.of(made) == pytest.approx(float(found.dice_score(*shown, average="macro", **told).mean()), abs=1e-6)
    assert iou.of(made) == pytest.approx(float(found.mean_iou(*shown, **told).mean()), abs=1e-6)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_ranking_gains_what_torchmetrics_says(seed: int) -> None:
    found = pytest.importorskip("torchmetrics.functional.retrieval")
    draw = torch.Generator().manual_seed(seed)
    scores, gains = torch.randn(30, generator=draw).double(), torch.randint(6, (30,), generator=draw)
    share = discounted(10, scores, gains.double()) / discounted(10, gains.double(), gains.double())
    wanted = found.retrieval_normalized_dcg(scores, gains, top_k=10)
    assert float(share) == pytest.approx(float(wanted), abs=1e-6)


@pytest.mark.parametrize("seed", SEEDS)
def test_survival_as_lifelines_estimates_it(seed: int) -> None:
    """Harrell's index with ties of times and of hazards; Kaplan and Meier's curves of events and of censoring."""
    lifelines, utils = pytest.importorskip("lifelines"), pytest.importorskip("lifelines.utils")
    draw = np.random.default_rng(seed)
    hazards, times = draw.normal(size=80).round(1), np.ceil(10 * draw.exponential(size=80))
    events = (draw.uniform(size=80) < 0.6).astype(float)
    targets = torch.tensor(np.stack([times, events], 1))
    made = said(Survival(), torch.tensor(hazards).unsqueeze(1), targets, torch.ones(80))
    assert c_index.of(made) == pytest.approx(utils.concordance_index(times, -hazards, events), abs=1e-12)
    ours = baseline(torch.zeros(80).double(), targets, torch.ones(80).double())
    fitted = lifelines.KaplanMeierFitter().fit(times, events)
    assert ours.survival.exp().tolist() == pytest.approx(fitted.predict(ours.times.numpy()).tolist(), abs=1e-9)
