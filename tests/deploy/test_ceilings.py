"""A site's ceilings for privacy: refused before a row is read, in one sentence, which the coordinator shows."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hospitals import written
from sites import Loopback, conductor

from plures.cli.operate import spent
from plures.deploy.app import Closed, answerer, opened
from plures.deploy.journal import read_log
from plures.deploy.operate.status import run_status
from plures.deploy.plan import Plan, SiteFile
from plures.deploy.promise import promise
from plures.errors import PluresError
from plures.method.channel import FACTS, MEASURED, TRAINING
from plures.methods import METHODS
from plures.privacy import epsilon, gaussian
from plures.remote import allowed as ceilings
from plures.remote.allowed import CHANNELS, FILE
from plures.remote.message import Order, Reply, pack, unpack
from plures.remote.state import RefusedError
from plures.serving.personal import PersonalModel
from plures.tables.heart import heart_tables

CENTRAL = {"method": "fedavg", "dp": "clip=0.5,noise=2,delta=1e-3", "rounds": 4}
LOCAL = {"method": "fedavg", "dp": "clip=0.5,noise=20,delta=1e-3,trust=nobody", "rounds": 4}
STEPS = {"method": "fedavg+dp_sgd(clip=0.5,noise=8,delta=1e-3,rate=1)", "rounds": 4, "batch_size": 0, "steps": 2}
NONE = {"method": "fedavg", "rounds": 4}


def asking(folder: Path, run: dict[str, object], **allow: object) -> Path:
    """A federation of which one site allows less; returns that site's file."""
    file = written(folder, **run)
    site = folder / "va" / "site.toml"
    site.write_text(site.read_text() + "".join(f"{name} = {json.dumps(value)}\n" for name, value in allow.items()))
    assert Plan.load(file)
    return site


@pytest.mark.parametrize(
    ("run", "allow", "sentence"),
    [
        (
            NONE,
            {"epsilon": 8},
            "the plan has no differential privacy, and [allow] epsilon in the site's site.toml",
        ),
        (
            CENTRAL,
            {"epsilon": 2.5},
            "the plan spends epsilon 3.14 at delta 0.001 in 4 rounds, and [allow] epsilon in the site's site.toml "
            "allows 2.5",
        ),
        (CENTRAL, {"epsilon": 4, "delta": 1e-6}, "the plan spends epsilon 4.89 at delta 1e-06 in 4 rounds, and"),
        (
            CENTRAL,
            {"epsilon": 4, "trust": "nobody"},
            "the plan trusts the server with single uploads, and",
        ),
        (STEPS, {"epsilon": 4, "unit": "client"}, "the plan hides single examples, and [allow] unit"),
        (CENTRAL, {"clip": 0.4}, "the plan bounds a client's upload by 0.5, and [allow] clip in the site's site.toml"),
        (
            NONE,
            {"clip": 0.4},
            "the plan bounds no client's upload, and [allow] clip in the site's site.toml",
        ),
        (
            {**CENTRAL, "dp": "clip=0.1,noise=2,quantile=0.5,votes=3"},
            {"clip": 0.4},
            "the plan bounds a client's upload by a quantile of the clients' norms, however large, and",
        ),
        (
            {"method": "ifca", "rounds": 4},
            {"channels": ["examples", "update", "loss"]},
            "the plan sends 'choices' (which of the models the client chose), and [allow] channels in the site's",
        ),
    ],
)
def test_a_plan_beyond_a_ceiling_is_refused_before_a_row_is_read(run, allow, sentence, tmp_path):
    site = asking(tmp_path, run, **allow)
    (site.parent / "data.csv").unlink()  # nobody could read a row
    with pytest.raises(RefusedError) as error:
        opened(site)
    assert str(error.value).startswith(sentence)
    closed = answerer(site, "va")
    assert isinstance(closed, Closed)
    reply = unpack(closed.answer(pack(Order(request="join"))), Reply)[0]
    assert (reply.status, reply.reason) == ("refused", str(error.value))


@pytest.mark.parametrize(
    ("run", "allow"),
    [
        (CENTRAL, {"epsilon": 4, "clip": 0.5}),
        (LOCAL, {"epsilon": 4, "trust": "nobody", "unit": "client"}),
        (STEPS, {"epsilon": 4, "trust": "nobody", "clip": 0.5}),
        (CENTRAL, {"channels": ["examples", "update"]}),
        ({**NONE, "method": "fedavg+clip(norm=0.3)"}, {"clip": 0.3}),
    ],
)
def test_a_plan_within_the_ceilings_is_worked_on(run, allow, tmp_path):
    site = opened(asking(tmp_path, run, **allow))
    reply = unpack(site.answer(pack(Order(request="join"))), Reply)[0]
    assert reply.status == "done"


def test_the_coordinator_shows_who_refuses_and_why(tmp_path):
    site = asking(tmp_path, {**CENTRAL}, epsilon=2.5)
    file = tmp_path / "federation.toml"
    file.write_text(file.read_text().replace("[rules]", "[rules]\njoin_deadline = 0.2"))
    carrier = Loopback([answerer(tmp_path / name / "site.toml", name) for name in heart_tables()])
    with pytest.raises(PluresError) as error:
        conductor(file, carrier).run()
    assert "client 'va': the plan spends epsilon 3.14 at delta 0.001 in 4 rounds, and [allow] epsilon in the" in str(
        error.value
    )
    assert site.exists()


def test_check_says_it_before_the_start(tmp_path):
    site = asking(tmp_path, CENTRAL, epsilon=2.5, channels=["examples", "update"])
    own = SiteFile.load(site)
    found = promise(Plan.load(tmp_path / "federation.toml"), own, own.table(site.parent))
    assert [one.partition(",")[0] for one in found.refused] == [
        "the plan spends epsilon 3.14 at delta 0.001 in 4 rounds"
    ]
    lines = found.text().splitlines()
    assert lines[2] == "it would measure, once in a round, to 17 digits: nothing"
    assert lines[3].startswith("the whole plan: epsilon 3.14. Differential privacy of each client at delta 0.001")


def test_what_a_site_may_leave_out_it_leaves_out(tmp_path):
    """Losses and scores that it does not agree to are no reason to refuse; no answer has them."""
    site = opened(asking(tmp_path, NONE, channels=["examples", "update"]))
    assert site.allowed.measures(site.data.metrics, 1000) == ()
    assert "train_loss" in replace(site.allowed, channels=None).measures(site.data.metrics, 1000)
    assert replace(site.allowed, channels=("loss",)).measures(site.data.metrics, 1000) == ("train_loss",)


@pytest.mark.parametrize(
    ("allow", "sentence"),
    [
        ({"epsilon": 0}, r"\[allow\] epsilon = 0: give a positive number"),
        ({"delta": 1e-5}, r"\[allow\] delta is not used without epsilon"),
        ({"epsilon": 1, "delta": 2}, r"\[allow\] delta = 2: give a number between 0 and 1"),
        ({"trust": "nobody"}, r"\[allow\] trust is not used without epsilon"),
        ({"channels": ["losses"]}, r"\[allow\] channels: no 'losses'"),
    ],
)
def test_ceilings_that_say_nothing_are_refused(allow, sentence, tmp_path):
    site = asking(tmp_path, NONE, **allow)
    with pytest.raises(PluresError, match=sentence) as error:
        SiteFile.load(site)
    assert "site.toml" in str(error.value)


def test_every_channel_of_the_catalogue_has_a_name_that_a_site_can_agree_to():
    fixed = {channel.name for channel in (*FACTS, *TRAINING, *MEASURED)}
    assert fixed <= set(CHANNELS)
    assert len(set(CHANNELS)) == len(CHANNELS)
    assert "ifca" in METHODS


def test_what_took_long_to_compute_is_kept(tmp_path, monkeypatch):
    run = {**CENTRAL, "dp": "clip=0.5,noise=2,delta=1e-3,accountant=rdp", "participation": "poisson", "fraction": 0.5}
    site = asking(tmp_path, run, epsilon=50)
    opened(site)
    (kept,) = (tmp_path / "va" / "state").glob(f"*/*/{FILE}")
    spends = epsilon(2, 4, 1e-3, rate=0.5, accountant="rdp")
    assert json.loads(kept.read_text())
    monkeypatch.setattr(ceilings.Plan, "epsilon", lambda *given: 1 / 0)
    opened(site)
    site.write_text(site.read_text().replace("epsilon = 50", f"epsilon = {0.9 * spends}"))
    with pytest.raises(RefusedError, match=f"the plan spends epsilon {spends:.3g} at"):
        opened(site)


def test_results_cards_and_status_say_what_was_spent(tmp_path):
    file = written(tmp_path, **CENTRAL)
    job = conductor(file, Loopback([opened(tmp_path / name / "site.toml") for name in heart_tables()]))
    seen = []
    tell = job.tell
    job.tell = lambda *given: (tell(*given), seen.append(run_status(read_log(job.out), job.out, job.plan)))
    result = job.run()
    whole = gaussian(1.0, 1e-3)
    assert result.privacy is not None
    assert (result.privacy.epsilon, result.privacy.rounds) == (pytest.approx(whole), 4)
    assert [one.epsilon_round for one in seen] == [1, 2, 3, 4]
    assert [one.epsilon for one in seen] == [pytest.approx(gaussian(2 / n**0.5, 1e-3)) for n in (1, 2, 3, 4)]
    assert [one.epsilon_plan for one in seen] == [pytest.approx(whole)] * 4
    status = run_status(read_log(job.out), job.out, job.plan)
    assert spent(status) == "differential privacy: epsilon 3.14 after round 4, 3.14 for all 4 rounds, at delta 0.001"
    written_down = json.loads((tmp_path / "out" / "result.json").read_text())
    assert written_down["result"]["privacy"]["epsilon"] == pytest.approx(whole)
    card = PersonalModel.load(tmp_path / "va" / "state" / "heart" / job.plan.label / "published").card
    assert card.privacy is not None
    assert (card.privacy.epsilon, card.privacy.rounds) == (pytest.approx(whole), 4)
