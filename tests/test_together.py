"""The centralised baseline: one model trained on all clients' examples in one place."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import plures
from plures.errors import PluresError
from plures.evaluate import Comparison, RunFolder, compare, fit
from plures.evaluate.centralised import pooled
from plures.evaluate.results import POOLED
from plures.federation import Federation, SplitRule, from_arrays
from plures.report import console_table, headline, html_report, markdown_table
from plures.run.together import EVERYONE, PooledRun
from saying import Says

EXACT = plures.Execution("loop", 1, False, "float64")


def uneven() -> Federation:
    """Clients of 10, 20 and 30 training examples."""
    draw = np.random.default_rng(0)
    client = np.repeat(["A", "B", "C"], [20, 40, 60])
    x = draw.normal(size=(120, 2)) + (client == "C")[:, None]
    return from_arrays(
        x, (x[:, 0] + x[:, 1] > 0.5).astype(int), client, split=SplitRule(0.25, 0.25), dtype=torch.float64
    )


def line() -> torch.nn.Module:
    torch.manual_seed(3)
    return torch.nn.Linear(2, 2)


def trained(run: plures.Run, rounds: int) -> dict[str, torch.Tensor]:
    for _ in range(rounds):
        run.step()
    return {path: t[0] for path, t in run.predictors([0]).items()}


def test_a_round_on_all_examples_is_one_step_of_gradient_descent_on_their_mean_loss() -> None:
    data, network = uneven(), line().double()
    training = plures.Training(rounds=1, batch_size=None, optimizer=plures.SGD(0.5))
    run = PooledRun(data, line, pooled(), training, execution=EXACT)
    rows = data.splits["train"].rows
    loss = torch.nn.functional.cross_entropy(network(data.inputs[rows]), data.targets[rows])
    slopes = torch.autograd.grad(loss, list(network.parameters()))
    found = trained(run, 1)
    for (path, leaf), slope in zip(network.named_parameters(), slopes, strict=True):
        assert torch.allclose(found[path], leaf - 0.5 * slope, atol=1e-12)


def test_rounds_are_those_of_one_client_that_has_everything() -> None:
    """In batches, over several rounds, and whatever share of the clients the methods beside it draw."""
    data = uneven()
    training = plures.Training(rounds=3, batch_size=8, optimizer=plures.SGD(0.1))
    alone = plures.Run(data.together(EVERYONE), line, plures.METHODS["local"](), training, execution=EXACT)
    one, other = trained(PooledRun(data, line, pooled(), training, execution=EXACT), 3), trained(alone, 3)
    assert all(torch.allclose(one[path], other[path], atol=1e-12) for path in one)


def test_it_resumes_exactly(tmp_path: Path) -> None:
    data, training = uneven(), plures.Training(rounds=4, batch_size=8, optimizer=plures.SGD(0.1))

    def begin() -> PooledRun:
        return PooledRun(data, line, pooled(), training, execution=EXACT)

    def stop(point: Any) -> None:
        if point.round == 2:
            raise KeyboardInterrupt

    whole = begin()
    fit(whole, "pooled")
    file = tmp_path / "state"
    with pytest.raises(KeyboardInterrupt):
        fit(begin(), "pooled", checkpoint=file, checkpoint_every=1, progress=stop)
    resumed = begin()
    fit(resumed, "pooled", checkpoint=file)
    one, other = whole.predictors([0, 2]), resumed.predictors([0, 2])
    assert all(torch.equal(one[path], other[path]) for path in one)


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    out = tmp_path_factory.mktemp("pooled")
    made = compare(
        uneven(),
        ["ditto"],
        model=line,
        rounds=2,
        seeds=1,
        learning_rates=[0.1, 1.0],
        tune_rounds=1,
        pooled=True,
        fraction=0.5,
        execution=EXACT,
        out=out,
    )
    return made.model_copy(update={"environment": {"folder": str(out)}})


def test_a_comparison_tunes_it_and_lists_it_behind_the_baselines(result: Comparison) -> None:
    assert [row.name for row in result.rows()][5:] == [POOLED, "ditto"]
    assert [trial.lr for trial in result.method(POOLED).trials] == [0.1, 1.0]
    row, data = result.row(POOLED), uneven()
    rows = len(data.splits["train"].rows)
    assert row.never == 0
    assert row.megabytes == pytest.approx(rows * (2 * 8 + 8) / 3 / 1e6)  # its examples, once
    assert "Pooled, not federated" in html_report(result)
    assert "needs all data in one place" in html_report(result)
    assert "which breaks privacy" in str(console_table(result).caption)
    assert "Pooled, not federated" in markdown_table(result)


def test_it_is_never_the_best(result: Comparison) -> None:
    """Even if it is far better than all others, they are compared with each other."""
    (seed,) = result.method(POOLED).seeds
    test = seed.test.model_copy(update={"metrics": {**seed.test.metrics, "accuracy": [1.0] * 3}})
    perfect = [seed.model_copy(update={"test": test})]
    methods = [m.model_copy(update={"seeds": perfect}) if m.name == POOLED else m for m in result.methods]
    other = result.model_copy(update={"methods": methods})
    text = headline(other)
    assert "Pooled" not in text.partition("With all data in one place, which breaks privacy, one model has")[0]
    assert "has accuracy 100.0 %" in text
    assert "**100.0**" not in markdown_table(other)
    page = html_report(other)
    assert page.count("best mean") >= 1
    marked = page.partition(f'data-method="{POOLED}"')[2].partition("</th>")[0]
    assert "needs all data in one place" in marked
    assert "best mean" not in marked


def test_no_federation_can_choose_it(result: Comparison, says: Says) -> None:
    for methods in (["pooled"], ["pooled+threshold"]):
        with pytest.raises(PluresError, match="'pooled' is no method of a federation, because it needs all"):
            compare("heart", methods)
    status, text = says("run", "heart", "pooled")
    assert (status, "'pooled' is no method of a federation" in text) == (2, True)
    folder = RunFolder(Path(result.environment["folder"]) / "runs" / "pooled-seed0")
    assert folder.finished
    with pytest.raises(PluresError):
        folder.run()


def test_it_travels_to_other_processes() -> None:
    assert pickle.loads(pickle.dumps(pooled)) is pooled
