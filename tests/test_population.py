"""Clients that are drawn seldom or never: who trains, how they are served, and what the report says about it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from people import FAST, net, people
from plures.errors import PluresError
from plures.evaluate import Comparison, RunFolder, compare, finish, fit, follow, score
from plures.federation import Split, Stream
from plures.method import SGD, Generated, Known, Method, Personal, Setting, Shared, everything
from plures.methods import METHODS, ditto, fedavg, fedper, ifca, local
from plures.report import headline, html_report
from plures.report.sheets import drawn
from plures.report.table import markdown_table
from plures.run import Fixed, Joint, Run, Training, Uniform, onboard
from plures.run.checkpoint import restore, snapshot
from problems import EXACT, personal, predictions, quadratic, run, scalar

LOW = Joint(Uniform(0.3))


# Local-only training ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [local, lambda: fedper(everything), lambda: Method(layout={"model": Personal()})])
def test_where_nothing_travels_everybody_trains_in_every_round(make):
    """After r rounds of one full gradient step, w = b (1 - (1 - lr a)^r), whichever clients are drawn."""
    sampled, whole = (run(make(), 4, steps=1, participation=p) for p in (LOW, None))
    expected = [b * (1 - (1 - 0.1 * a) ** 4) for a, b in zip((1.0, 2.0, 4.0), (-1.0, 0.5, 3.0), strict=True)]
    for done in (sampled, whole):
        assert done.predictors([0, 1, 2])["weight"].flatten().tolist() == pytest.approx(expected)
        assert done.last.tolist() == [4, 4, 4]


def test_where_something_travels_a_sample_trains():
    done = run(fedavg(), 0, participation=LOW)
    done.training = Training(rounds=3, batch_size=None, steps=1, optimizer=SGD(0.1))
    assert [len(record.cohort) for record in done.rounds()] == [1, 1, 1]


def test_an_explicit_cohort_of_a_single_run_is_kept():
    assert run(local(), 1, participation=Uniform(0.3)).last.sum() == 1


def test_a_stream_trains_everybody_alone():
    data = quadratic()
    stream = Stream("twice", ("one", "two"), (data, data))
    training = Training(rounds=2, batch_size=None, steps=1, optimizer=SGD(0.1))
    options = {"execution": EXACT}
    few = follow(stream, scalar(), local(), training, participation=Uniform(0.3), **options)
    every = follow(stream, scalar(), local(), training, **options)
    assert np.array_equal(few.values, every.values)


@pytest.fixture(scope="module")
def sampled() -> tuple[Comparison, Comparison]:
    """A comparison in which two of six clients are drawn in a round, and one in which all are."""
    options = {"model": net, "rounds": 3, "seeds": 2, "tune_rounds": 0, "execution": FAST, "batch_size": 8}
    return compare(people(), ["fedper"], fraction=0.3, **options), compare(people(), ["fedper"], **options)


def test_the_local_baseline_is_that_of_full_participation(sampled):
    few, every = sampled
    for one, other in zip(few.method("local").seeds, every.method("local").seeds, strict=True):
        assert one.test == other.test
        assert one.chosen_round == other.chosen_round
    assert few.method("fedavg").seeds[0].test != every.method("fedavg").seeds[0].test
    assert (few.row("local").megabytes, few.row("local").visits) == (0.0, few.row("local").chosen_round)


# Bytes --------------------------------------------------------------------------------------------------------------


def test_a_clients_megabytes_are_those_that_travelled(sampled):
    """Two of six clients: 58 numbers of four bytes go up and down for each, a third of the full amount per client."""
    few, every = sampled
    for result, share in ((few, 1 / 3), (every, 1.0)):
        row = result.row("fedavg")
        assert row.megabytes == pytest.approx(share * 2 * 4 * 58 * row.chosen_round / 1e6)
        assert row.visits == pytest.approx(share * row.chosen_round)
        assert drawn(result, result.method("fedavg")) == pytest.approx(share)
    seed = few.method("fedper").seeds[0]
    assert seed.reached is not None
    assert [seed.reached.bytes, seed.reached.visits] == [2 * 2 * 4 * 40 * seed.chosen_round, 2 * seed.chosen_round]
    page = html_report(few)
    assert "divided by all clients, drawn or not" in page


def test_visits_are_counted_on_after_an_interruption(tmp_path):
    def fresh():
        training = Training(rounds=4, batch_size=8, optimizer=SGD(0.1))
        return Run(people(), net, fedavg(), training, participation=Uniform(0.3), execution=FAST)

    def stop(point):
        if point.round == 2:
            raise KeyboardInterrupt

    file = tmp_path / "checkpoint"
    with pytest.raises(KeyboardInterrupt):
        fit(fresh(), "m", checkpoint=file, checkpoint_every=1, progress=stop)
    again = fit(fresh(), "m", checkpoint=file)
    assert [point.visits for point in again.curve] == [2, 4, 6, 8]


# Clients that were never drawn --------------------------------------------------------------------------------------

ALIKE = quadratic((1.0, 1.0, 1.0, 1.0), (2.0, 2.0, 2.0, 2.0), (10, 10, 10, 10))
WITHOUT_D = Fixed([["a", "b", "c"]])


@pytest.mark.parametrize("name", ["ditto", "pfedme", "mrmtl", "fedu", "fedamp", "apfl", "eefed", "l2gd"])
def test_a_client_that_was_never_drawn_is_served_as_a_newcomer(name):
    """All optima are 2: the client that was never drawn would have 0; it now gets what a newcomer gets."""
    done = run(METHODS[name](), 60, federation=ALIKE, participation=WITHOUT_D, lr=0.3)
    stored = personal_leaves(done)
    later = predictions(onboard(done, ALIKE.subset(["d"])))
    found = predictions(done)
    assert found[3:] == later
    mixed_with_its_stored_model = name in ("fedu", "l2gd")
    assert found == pytest.approx([2.0] * 4, abs=0.5 if mixed_with_its_stored_model else 0.02)
    assert [done.deployed([i])["model"]["weight"].item() for i in (3, 0)] == [found[3], found[0]]
    assert personal_leaves(done) == stored
    assert all(values[3] == start for values, start in stored)
    assert score(done, "test").values["rmse"][3] == pytest.approx(abs(found[3] - 2.0) * 0.5**0.5)


def personal_leaves(done: Run) -> list[tuple[list[float], float]]:
    """What is stored for every client, and its value at the start."""
    return [
        (done.store.get(leaf, [0, 1, 2, 3]).flatten().tolist(), float(done.bound.initial[leaf[0]][leaf[1]]))
        for leaf in done.stored_leaves()
    ]


def test_the_drawn_clients_do_not_change_and_neither_does_full_participation():
    few = run(ditto(0.5), 3, federation=ALIKE, participation=WITHOUT_D)
    assert predictions(few)[:3] == personal(few, "personal")[:3]
    assert personal(few, "personal")[3] == 0.0
    whole = run(ditto(0.5), 3, federation=ALIKE)
    assert predictions(whole) == personal(whole, "personal")


def test_before_the_first_round_nobody_is_a_newcomer():
    assert predictions(run(ditto(), 0, federation=ALIKE, model=scalar(0.75))) == [0.75] * 4


def test_clients_that_were_never_drawn_choose_their_cluster_by_loss():
    data = quadratic((1.0,) * 4, (-3.0, 3.0, 3.1, -3.0), (10,) * 4)
    done = run(ifca(2), 20, federation=data, participation=Fixed([["a", "b", "c"]]), model=scattered(), lr=0.3)
    assert predictions(done) == pytest.approx([-3.0, 3.05, 3.05, -3.0], abs=0.01)
    assert done.membership["model"].tolist()[3] == 0


def scattered():
    """A scalar whose start differs with the seed of its factory."""

    def model():
        layer = nn.Linear(1, 1, bias=False)
        with torch.no_grad():
            layer.weight.mul_(3.0)
        return layer

    return model


def test_chosen_round_test_scores_and_kept_models_agree_on_who_is_served_how(tmp_path):
    """A run that is interrupted, resumed, restored and read back serves a client that was never drawn the same."""

    def fresh():
        training = Training(rounds=3, batch_size=8, optimizer=SGD(0.3))
        return Run(people(), net, fedper(), training, participation=Fixed([["p0", "p1"], ["p2"]]), execution=FAST)

    result = finish(fitted := fit(fresh(), "m"), 0)
    assert result.never == ["p3", "p4", "p5"] if result.chosen_round > 1 else ["p2", "p3", "p4", "p5"]
    last = fresh()
    for _ in range(result.chosen_round):
        last.step()
    again = fresh()
    restore(again, snapshot(last))
    newcomers = onboard(last, last.federation.subset(result.never))
    expected = score(newcomers, "test").values["loss"].tolist()
    for done in (last, again, fitted.run):
        assert score(done, "test").values["loss"][-len(expected) :].tolist() == expected
    assert result.test.metrics["loss"][-len(expected) :] == expected
    folder = RunFolder(tmp_path / "run")
    folder.write(fitted.run, None, result)
    assert torch.equal(folder.model("p5")["2.weight"], newcomers.predictors([len(expected) - 1])["2.weight"][0])
    assert folder.result().never == result.never


def test_the_report_says_how_many_were_never_drawn(sampled):
    few, every = sampled
    row = few.row("fedper")
    assert row.never == np.mean([len(seed.never) for seed in few.method("fedper").seeds]) > 0
    assert few.row("local").never == every.row("fedper").never == 0
    most = max(row.never for row in few.rows())
    assert f"Up to {most:g} of 6 clients had not been drawn by the chosen round" in headline(few)
    assert "never drawn" in markdown_table(few)
    assert "that were never drawn up to the chosen round" in html_report(few)
    assert "drawn" not in headline(every) + markdown_table(every)
    assert Comparison.model_validate_json(few.to_json()).row("fedper").never == row.never


# Clients that are all alike -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("visits", [0, 1, 5])
def test_a_newcomer_of_apple_predicts_what_clients_like_it_predict(visits):
    """All optima are 1: its weights of the core models have the sum that the clients have learned."""
    alike = quadratic((1.0,) * 5, (1.0,) * 5, (10,) * 5, names=tuple("abcde"))
    seen, later = alike.hold_out(["e"])
    done = run(METHODS["apple"](), 60, federation=seen, lr=0.1)
    assert predictions(done) == pytest.approx([1.0] * 4, abs=1e-3)
    assert predictions(onboard(done, later, visits=visits)) == pytest.approx([1.0], abs=0.02)


QUICK = {"steps": 10, "lr": 0.3}


@pytest.mark.parametrize(
    "name", ["local", "fedavg", "fedavg_ft", "ditto", "fedu", "mrmtl", "fedamp", "perfedavg", "fedem"]
)
def test_where_all_clients_are_alike_a_newcomer_predicts_what_they_predict(name):
    """Ten steps reduce an error to 3 %, or to less if a pull is as strong as the loss."""
    done = run(METHODS[name](), 5, federation=ALIKE, **QUICK)
    later = quadratic((1.0,), (2.0,), (10,), names=("z",))
    assert predictions(done) == pytest.approx([2.0] * 4, abs=0.07)
    assert predictions(onboard(done, later)) == pytest.approx([2.0], abs=0.07)
    if name != "local":
        assert predictions(onboard(done, later, visits=0)) == pytest.approx([2.0], abs=0.07)


# Clients that were never drawn do not count for others ----------------------------------------------------------------


def test_newcomers_of_generated_models_start_from_embeddings_that_were_learned():
    """The embedding of a client that was never drawn is its random start, so the mean leaves it out."""
    method = Method(layout={"model": Generated(embeddings=torch.tensor([[1.0], [3.0], [5.0], [100.0]]))})
    frozen = replace(method, layout={"model": replace(method.layout["model"], learn_embeddings=False)})
    done = run(frozen, 1, federation=ALIKE, participation=WITHOUT_D)
    later = onboard(done, quadratic((1.0,), (2.0,), (10,), names=("z",)))
    assert later.server["model"].extra["embedding"].tolist() == [[3.0]]
    untrained = run(frozen, 0, federation=ALIKE, participation=WITHOUT_D)
    later = onboard(untrained, quadratic((1.0,), (2.0,), (10,), names=("z",)))
    assert later.server["model"].extra["embedding"].tolist() == [[27.25]]


def test_a_newcomer_without_data_joins_the_cluster_of_those_that_were_drawn():
    """Two of five were drawn, and use the second model: the clients that never chose do not vote for the first."""
    data = quadratic((1.0,) * 5, (-3.0, 3.0, 3.1, -3.0, -3.0), (10,) * 5)
    done = run(ifca(2), 20, federation=data, participation=Fixed([["b", "c"]]), model=scattered(), lr=0.3)
    chosen = done.membership["model"].tolist()
    assert chosen[1] == chosen[2] == 1
    assert chosen[0] == 0
    later = quadratic((1.0,), (0.0,), (10,), names=("z",))
    later = replace(later, splits={**later.splits, "train": Split.of([torch.zeros(0, dtype=torch.int64)])})
    assert predictions(onboard(done, later)) == pytest.approx([3.05], abs=0.01)


def test_mocha_pulls_a_newcomer_to_the_mean_of_what_pulls_the_clients():
    """With a learned relationship, also equal models are pulled towards 0, a newcomer's like theirs."""
    done = run(METHODS["mocha"](visits=40), 40, federation=ALIKE, steps=10, lr=0.2)
    later = quadratic((1.0,), (2.0,), (10,), names=("z",))
    assert predictions(done)[0] < 1.99
    assert predictions(onboard(done, later)) == pytest.approx(predictions(done)[:1], abs=1e-6)


# Columns that have the name of a fact ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["examples", "labels", "rounds missed", "comes later"])
def test_a_column_does_not_replace_a_fact(name):
    """A column ``examples`` does not weight clients; a method that asks for it gets an error."""
    data = replace(ALIKE, metadata={name: (0.1, 0.2, 0.3, 0.4)})
    setting = Setting.of(data)
    assert setting.fact("examples").tolist() == [10.0] * 4
    assert "labels" not in setting.facts
    assert setting.facts["rounds missed"].tolist() == [0.0] * 4
    other = replace(quadratic(), metadata={name: (1.0, 5.0, 9.0)})
    assert predictions(run(fedavg(), 3, federation=other)) == predictions(run(fedavg(), 3))
    for make in (
        lambda: METHODS["quality"](name),
        lambda: METHODS["pfedhn"](columns=(name,)),
        lambda: Method(layout={"model": Shared(), "about": Known(name)}),
    ):
        with pytest.raises(PluresError, match=f"asks for '{name}', which .* another name, such as 'client {name}'"):
            run(make(), 1, federation=data)
    assert Setting.of(data).groups(name)[1] == ("0.1", "0.2", "0.3", "0.4")


def test_a_column_of_ages_is_a_column():
    """Clients count by it: the third, with 3 of 60 in all, draws the model to a twentieth of its optimum."""
    data = replace(quadratic((1.0,) * 3, (0.0, 0.0, 1.0), (10,) * 3), metadata={"age": (28.5, 28.5, 3.0)})
    done = run(METHODS["quality"]("age"), 60, federation=data, lr=0.3)
    assert predictions(done) == pytest.approx([0.05] * 3, abs=1e-9)


def test_only_those_that_are_asked_for_make_their_visits():
    """In any order of requests, clients get the same models, and none trains twice in the same state."""
    done = run(ditto(0.5), 3, federation=ALIKE, participation=Fixed([["a"]]))
    whole = done.deployed([0, 1, 2, 3])["model"]["weight"].flatten().tolist()
    again = run(ditto(0.5), 3, federation=ALIKE, participation=Fixed([["a"]]))
    assert again.deployed([2])["model"]["weight"].flatten().tolist() == whole[2:3]
    assert again._kept is not None
    assert [len(guest.federation) for guest in again._kept.guests] == [1]
    assert again.deployed([3, 2, 0, 1])["model"]["weight"].flatten().tolist() == [whole[i] for i in (3, 2, 0, 1)]
    assert [guest.federation.clients for guest in again._kept.guests] == [("c",), ("b", "d")]
