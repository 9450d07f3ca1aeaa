"""What `plures deploy check` says a site would send, report and do is what the rounds ask; and what it refuses."""

from __future__ import annotations

from pathlib import Path

import pytest

from plures.deploy import Plan, SiteFile, project
from plures.deploy.promise import Promise, promise


@pytest.fixture
def hearts(tmp_path: Path) -> Path:
    project.write(tmp_path, project.heart("127.0.0.1"))
    site = tmp_path / "va"
    site.mkdir()
    (site / "site.toml").write_text('client = "va"\nfederation = "../federation.toml"\ndata = "../rows/va.csv"\n')
    return site


def asked(folder: Path, **allow: object) -> Promise:
    own = SiteFile.load(folder / "site.toml")
    own = own.model_copy(update={"allow": own.allow.model_copy(update=allow)})
    return promise(Plan.load(folder.parent / "federation.toml"), own, own.table(folder))


def test_numbers_are_those_of_the_shared_model(hearts: Path) -> None:
    plan = Plan.load(hearts.parent / "federation.toml")
    network = plan.spec.network(plan.table.empty(plan.name, plan.clients))
    found = asked(hearts)
    assert found.ok
    assert found.numbers == {"model": sum(p.numel() for p in network().parameters())}
    assert found.facts == ("examples",)
    assert found.text().splitlines() == [
        f"it would send in a round: {found.numbers['model']} numbers of 'model'",
        "it would tell: examples",
        "it would measure, once in a round, to 3 digits: accuracy, loss, ece, brier, auroc, auprc, "
        "balanced_accuracy, f1, train_loss, train_objective",
        "the whole plan: no differential privacy",
    ]


@pytest.mark.parametrize(
    ("allow", "measured"),
    [
        ({"metrics": ("loss", "train_loss")}, "loss, train_loss"),
        ({"metrics": ()}, "nothing"),
        ({"least": 41}, "train_loss, train_objective"),
        ({"least": 121}, "nothing"),
    ],
)
def test_what_a_site_would_measure_is_what_it_allows(hearts: Path, allow: dict[str, object], measured: str) -> None:
    """40 of 200 rows are for validation, 120 for training."""
    found = asked(hearts, **allow)
    assert found.ok
    assert found.text().splitlines()[2] == f"it would measure, once in a round, to 3 digits: {measured}"


@pytest.mark.parametrize(
    ("allow", "sentence"),
    [
        ({"send": ()}, "the method sends 'model', and [allow] send does not name it; add it, or do without"),
        ({"tell": ()}, "members tell 'examples', and [allow] tell does not name it; add it, or do without"),
        ({"max_epochs": 0.5}, "a visit takes 1 epochs, and this site allows 0.5"),
        ({"max_steps": 3}, "a visit takes 8 steps, and this site allows 3"),
    ],
)
def test_what_a_site_does_not_allow_is_said_before_it_joins(
    hearts: Path, allow: dict[str, object], sentence: str
) -> None:
    """Ditto's two phases take four batches of 32 each: 120 of 200 rows are for training."""
    found = asked(hearts, **allow)
    assert not found.ok
    assert len(found.refused) == 1
    assert found.refused[0].startswith(sentence)
    assert f"error  {sentence}" in found.text()
