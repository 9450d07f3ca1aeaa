"""Use cases: the catalogue is complete, every case has its page, and a tiny one goes through the machinery."""

from __future__ import annotations

import csv
import functools
import sys
from collections.abc import Sequence
from dataclasses import replace
from html import escape
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.model_selection import train_test_split
from typer.testing import CliRunner

import plures
from located import needs
from plures.cases import CASES, Case, Part, answer, conduct
from plures.cases.answer import best_by, of, personalization, preferred, published
from plures.cases.catalogue import find_case
from plures.cases.flamby import alone, fedadagrad, fedadam, fedyogi
from plures.cases.hospitals import log_odds
from plures.cases.newcomers import by_labels, curve, everybody
from plures.cases.repeated import repeated
from plures.cases.speech import across_time
from plures.cli import app
from plures.evaluate import Code, Comparison, MethodResult
from plures.evaluate.record import ClientValues
from plures.evaluate.spec import find_method
from plures.federation import DATASETS
from plures.federation.datasets.heart import COMPLETE, FILE, HOSPITALS
from plures.methods import threshold
from plures.methods.fedopt import Adaptive
from plures.methods.threshold import best_threshold, utilities
from plures.run import Execution

PAGES = Path(__file__).parents[1] / "docs" / "guides" / "cases"
SETTLED = Execution("loop", 1, False)
TINY = {"rounds": 2, "seeds": 2, "tune_rounds": 0, "learning_rates": (0.5,), "every": 1, "execution": SETTLED}


def test_the_catalogue_is_complete():
    for name, case in CASES.items():
        assert name == case.name
        assert case.question.endswith("?")
        assert case.advice.endswith(".")
        assert len({part.name for part in case.parts}) == len(case.parts)
        assert max(len(part.personal) for part in case.parts) >= 5
        for part in case.parts:
            assert part.data in DATASETS
            assert part.worth > 0
            for method in (*part.personal, *part.shared):
                find_method(method, Code.typed(method))
        page = (PAGES / f"{name}.md").read_text(encoding="utf-8")
        assert f"plures case {name}" in page
        assert "## What to do" in page
    assert {page.stem for page in PAGES.glob("*.md")} == {*CASES, "index"}
    assert all(f"]({name}.md)" in (PAGES / "index.md").read_text(encoding="utf-8") for name in CASES)


def two(signs: tuple[int, int]) -> plures.Federation:
    """Two clients with one input; a sign of -1 turns a client's labels around."""
    generator = np.random.default_rng(0)
    x = generator.normal(size=(160, 1)).astype(np.float32)
    y = np.concatenate([x[:80, 0] * signs[0] > 0, x[80:, 0] * signs[1] > 0]).astype(int)
    return plures.from_arrays(x, y, ["a"] * 80 + ["b"] * 80, classes=("no", "yes"))


@functools.cache
def trained(signs: tuple[int, int]) -> Comparison:
    """A comparison of two clients, trained once."""
    return plures.compare(two(signs), ["ditto"], model="logistic", **{**TINY, "rounds": 5})


@pytest.fixture
def found() -> Comparison:
    """A comparison of clients that differ; a test may change the scores of this copy."""
    return trained((1, -1)).model_copy(deep=True)


@pytest.mark.parametrize(("signs", "expected"), [((1, -1), "helps here"), ((1, 1), "does not help here")])
def test_the_answer_says_whether_personalization_helps(signs: tuple[int, int], expected: str):
    part = Part("toy", "A toy", "toy", ("ditto",), told=("auroc",))
    found = trained(signs)
    said = personalization(part, found)
    assert said.startswith(f"Personalization {expected} by accuracy")
    text = answer(Case("toy", "Somebody", "What now?", (part,), "nothing."), [found])
    assert text.startswith("What now?\n\nA toy:\n- Personalization")
    assert text.endswith("What to do: nothing.")
    assert "- By AUROC, " in text


@pytest.mark.parametrize(
    ("worth", "expected", "least"),
    [
        (0.0, "helps here", "seeds;"),
        (0.3, "helps here", "at least 30 points would"),
        (0.6, "does next to nothing here", "at least 60 points would"),
    ],
)
def test_a_gain_must_be_worth_something(found: Comparison, worth: float, expected: str, least: str):
    """Ditto is right in 90 % and FedAvg in 50 % with every seed, so the gain is 0.4 without spread."""
    for method in found.methods:
        value = 0.9 if method.name == "ditto" else 0.5
        for seed in method.seeds:
            for scores in (seed.test, seed.validation):
                scores.metrics["accuracy"][:] = [value, value]
    said = personalization(Part("toy", "A toy", "toy", ("ditto",), worth=worth), found)
    assert said.startswith(f"Personalization {expected} by accuracy")
    assert least in said
    assert ("would matter" in said) is (worth > 0)
    one = [method.model_copy(update={"seeds": method.seeds[:1]}) for method in found.methods]
    said = personalization(
        Part("toy", "A toy", "toy", ("ditto",), worth=worth), found.model_copy(update={"methods": one})
    )
    assert said.startswith("One seed cannot tell whether personalization helps by accuracy: of the models")


def test_published_means_stand_beside_those_of_all_seeds(found: Comparison):
    """Means over clients of .5 and .7, so their mean is .6 and their population standard deviation .1."""
    fedavg, own = found.method("fedavg"), [(0.4, 0.6), (0.8, 0.6)]
    seeds = [
        seed.model_copy(update={"test": seed.test.model_copy(update={"metrics": {"accuracy": list(values)}})})
        for seed, values in zip(fedavg.seeds, own, strict=True)
    ]
    changed = found.model_copy(update={"methods": [fedavg.model_copy(update={"seeds": seeds})]})
    part = Part("toy", "A toy", "toy", (), published_means={"fedavg": (0.55, 0.02)})
    assert published(part, changed) == [
        "FedAvg, mean accuracy over clients: published 55.0 \N{PLUS-MINUS SIGN} 2.0; here 60.0 "
        "\N{PLUS-MINUS SIGN} 10.0 (population standard deviation over 2 seeds)."
    ]
    case = Case("toy", "Somebody", "What now?", (), "nothing.", together=lambda all_: [f"{len(all_)} parts."])
    assert answer(case, []) == "What now?\n\nAll together:\n- 0 parts.\n\nWhat to do: nothing."


def test_the_best_by_another_metric_is_told_with_intervals_over_seeds(found: Comparison):
    """FedAvg's losses .1 and .3 have a mean of .2, and t(.975, 1) = 12.7062 times a standard error of .1."""
    for method in found.methods:
        for seed, value in zip(method.seeds, (0.1, 0.3) if method.name == "fedavg" else (0.9, 0.9), strict=True):
            seed.test.metrics["loss"][:] = [value, value]
    told = best_by(found, "loss")
    assert told.startswith(
        "By cross-entropy, FedAvg has the best mean, 0.200 \N{PLUS-MINUS SIGN} 1.271 (Constant 0.900 "
    )
    assert "FedAvg 0.200 \N{PLUS-MINUS SIGN} 1.271, FedAvg + intercept 0.900" in told


def test_methods_of_a_case_are_known_by_the_name_of_their_function():
    assert of("fedadam server_lr=0.1", ["plures.cases.flamby:fedadam(server_lr=0.1)"])
    assert not of("fedadam server_lr=0.1", ["fedavg", "plures.cases.flamby:fedyogi(server_lr=0.1)"])


def test_flambys_strategies_have_its_settings():
    for method, rule in ((fedadam, "adam"), (fedyogi, "yogi"), (fedadagrad, "adagrad")):
        assert method(server_lr=0.3).combine.server == Adaptive(rule, 0.3, (0.9, 0.999), 1e-8)


def test_a_centre_alone_trains_by_adam_for_its_epochs():
    """Adam's first step moves every weight by the learning rate; one epoch of one batch is one step."""
    x, y = torch.tensor([[-1.0], [2.0]]), torch.tensor([0, 1])
    data = plures.from_arrays(x.numpy().repeat(40, 0), y.numpy().repeat(40), ["a"] * 80, copies="allow")
    training = plures.Training(rounds=1, batch_size=None, optimizer=plures.SGD(5.0))
    run = plures.Run(data, torch.nn.Linear(1, 2), alone(lr=0.01, epochs=1), training, execution=SETTLED)
    before = {name: leaf.clone() for name, leaf in run.states([0])["model"].items()}
    for _ in run.rounds():
        pass
    for name, leaf in run.states([0])["model"].items():
        torch.testing.assert_close((leaf - before[name]).abs(), torch.full_like(leaf, 0.01), atol=1e-6, rtol=0)


def test_divisions_are_told_together_with_an_interval_over_them(found: Comparison):
    """Ditto gains .25 and .05: a mean of .15, and t(.975, 1) = 12.7062 times a standard error of .1."""

    def having(fedavg: float, ditto: float) -> Comparison:
        methods = []
        for name, value in (("fedavg", fedavg), ("ditto", ditto)):
            seed = found.method(name).seeds[0]
            test = seed.test.model_copy(update={"metrics": {"accuracy": [value, value]}})
            methods.append(found.method(name).model_copy(update={"seeds": [seed.model_copy(update={"test": test})]}))
        return found.model_copy(update={"methods": methods})

    assert repeated([having(0.5, 0.75), having(0.7, 0.75)]) == [
        "Ditto, mean accuracy of 2 divisions, %: 75.0 (75.0, 75.0; gain over FedAvg 15.0 \N{PLUS-MINUS SIGN} 127.1).",
        "FedAvg, mean accuracy of 2 divisions, %: 60.0 (50.0, 70.0).",
    ]


def test_new_clients_scores_by_labels_are_means_over_seeds_and_clients():
    """Scores of two new clients: .5 and .7 with one seed, .7 and .9 with the other."""
    found = plures.compare(two((1, 1)), ["ditto"], model="logistic", unseen=["b"], **TINY)
    assert curve(found.method("fedavg"), "accuracy").keys() == {"0", "1", "5", "20", "all"}
    told = by_labels(found)
    assert len(told) == len(found.methods)
    assert all(", new clients' accuracy by labelled examples, %: 0: " in line for line in told)
    fedavg = having(found, ([0.5, 0.7], [0.7, 0.9]))
    assert curve(fedavg, "accuracy")["5"] == pytest.approx([0.6, 0.8])
    told = by_labels(found.model_copy(update={"methods": [fedavg]}))
    assert told == ["FedAvg, new clients' accuracy by labelled examples, %: 5: 70.0."]
    with_two = [found.model_copy(update={"methods": [having(found, one)]}) for one in ([[0.5], [0.7]], [[0.3], [0.5]])]
    assert everybody(with_two) == [
        "FedAvg, accuracy of 2 clients when they were new, mean (lowest to highest), by labelled examples, %: "
        "5: 50.0 (40.0 to 60.0)."
    ]


def having(found: Comparison, runs: Sequence[Sequence[float]]) -> MethodResult:
    """FedAvg with these scores of new clients with five labels, for each seed."""
    seeds = []
    for seed, values in zip(found.method("fedavg").seeds, runs, strict=True):
        clients = [f"new {place}" for place in range(len(values))]
        five = ClientValues(clients=clients, sizes=[9] * len(values), metrics={"accuracy": list(values)})
        assert seed.details is not None
        seeds.append(seed.model_copy(update={"details": seed.details.model_copy(update={"cold": {"5": five}})}))
    return found.method("fedavg").model_copy(update={"seeds": seeds})


def test_speech_has_every_speaker_new_once_and_hears_a_word_wherever_it_begins():
    speech = CASES["speech"]
    new = [name for part in speech.parts for name in part.options["unseen"]]
    assert len(new) == len(set(new)) == 6
    net, word = across_time((1, 32, 32), 10), torch.randn(2, 1, 32, 6)
    assert sum(p.numel() for p in net.parameters()) == 10_762
    early, late = (torch.cat([torch.zeros(2, 1, 32, n), word, torch.zeros(2, 1, 32, 26 - n)], dim=3) for n in (12, 16))
    torch.testing.assert_close(net(early), net(late))
    assert not torch.allclose(net(early), net(early.roll(3, dims=2)))


def test_methods_are_preferred_by_validation_not_by_test(found: Comparison):
    fedavg, local = found.method("fedavg"), found.method("local")
    seeds = [seed.model_copy(update={"test": local.seeds[0].test}) for seed in fedavg.seeds]
    swapped = fedavg.model_copy(update={"seeds": seeds})
    assert preferred([swapped, local], found.metric) is local
    assert preferred([local, swapped], found.metric) is local


def test_a_case_runs_from_the_command_line_and_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    whole = CASES["hospitals"].parts[0]
    told = {name: whole.published[name] for name in ("fedavg", "fedprox mu=0.01")}
    part = replace(
        whole, personal=(), shared=("fedprox(mu=0.01)",), published=told, options={**whole.options, "steps": 2}
    )
    monkeypatch.setattr("plures.cli.case.find_case", lambda name: replace(CASES["hospitals"], parts=(part,)))
    for _ in range(2):
        words = ["case", "hospitals", "--quick", "--out", str(tmp_path)]
        done = CliRunner().invoke(app, words, catch_exceptions=False)
        assert done.exit_code == 0, done.output
    result = Comparison.from_json(tmp_path / "published" / "results.json")
    assert all(f"- {line}\n" in done.output for line in published(part, result))
    assert "accuracy of each client: published 73.1, 71.9, 65.0, 64.0; here " in done.output
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert f'<h1 class="name">{CASES["hospitals"].title}</h1>' in page
    assert escape(part.title) in page
    assert all(f"<li>{escape(line)}</li>" in page for line in published(part, result))
    quick = f"This was only a quick try: its numbers mean nothing. {CASES['hospitals'].question}"
    assert (tmp_path / "answer.txt").read_text(encoding="utf-8").startswith(quick)
    assert "Four hospitals predict heart disease" in CliRunner().invoke(app, ["case"]).output
    with pytest.raises(plures.PluresError, match="no case 'hospital': did you mean 'hospitals'"):
        find_case("hospital")


@needs("tcga_brca")
@pytest.mark.filterwarnings("ignore:C-index is undefined")
def test_survival_runs_and_tells_its_divisions_together():
    """A single method besides the baselines, and one step of each client."""
    case, least = CASES["survival"], {"epochs": None, "steps": 1}
    last = replace(case.parts[-1], personal=("ditto",), shared=(), options={**case.parts[-1].options, **least})
    (found,) = conduct(replace(case, parts=(last,)), quick=True, execution=SETTLED)
    assert case.together is not None
    told = case.together([found, found, found])
    assert {line.partition(",")[0] for line in told} == {method.title for method in found.methods}
    assert all("mean C-index of 2 divisions: " in line for line in told)


def test_data_that_are_not_there_are_named_before_anything_is_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PLURES_DATA", str(tmp_path))
    part = Part("toy", "A toy", "landmine", ("ditto",))
    with pytest.raises(plures.PluresError, match=r"data set 'landmine': no .*PLURES_DATA.*to get it"):
        conduct(Case("toy", "Somebody", "What now?", (CASES["hospitals"].parts[0], part), "nothing."), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_flambys_split_is_that_of_scikit_learn():
    data = plures.load("fed_heart_disease")
    with FILE.open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if "?" not in [row[column] for column in COMPLETE]]
    begun = 0
    for place, hospital in enumerate(HOSPITALS):
        own = [row for row in rows if row["hospital"] == hospital]
        ill = np.array([row["num"] != "0" for row in own])
        few = min(np.bincount(ill)) <= 2
        train, test = train_test_split(
            np.arange(len(own)), train_size=0.66, test_size=1 - 0.66, random_state=43, stratify=None if few else ill
        )
        assert (data.splits["train"][place] - begun).tolist() == sorted(train.tolist())
        assert (data.splits["test"][place] - begun).tolist() == sorted(test.tolist())
        x = data.inputs[data.splits["train"][place]]
        spread = x.std(0)
        torch.testing.assert_close(x.mean(0), torch.zeros(13), atol=1e-5, rtol=0)
        assert bool((torch.isclose(spread, torch.ones(13), atol=1e-4) | (spread == 0)).all())
        age = torch.tensor([float(row["age"]) for row in own])[train]
        first = float((float(own[0]["age"]) - age.mean()) / age.std())
        assert float(data.inputs[begun, 0]) == pytest.approx(first, abs=1e-5)
        begun += len(own)
    assert len(data.columns) == 13


def test_the_network_is_one_sigmoid():
    net, x, y = log_odds((13,)), torch.randn(5, 13), torch.tensor([0, 1, 1, 0, 1])
    torch.testing.assert_close(
        torch.nn.functional.cross_entropy(net(x), y),
        torch.nn.functional.binary_cross_entropy_with_logits(net.linear(x)[:, 0], y.float()),
    )


def test_the_threshold_of_the_highest_specificity_at_a_stated_sensitivity():
    """Of scores .1 to .6 with ill at .3, .5, .6: two of three ill are kept above .45 with all healthy below."""
    scores = torch.tensor([0.1, 0.2, 0.3, 0.4, 0.5, 0.6])
    ill = torch.tensor([0.0, 0.0, 1.0, 0.0, 1.0, 1.0])
    for recall, expected in ((0.6, 0.45), (0.9, 0.25)):
        rule = utilities(1.0, 1.0, recall)["specificity"]
        assert float(best_threshold(scores, ill, torch.ones(6), rule, -1.0)) == pytest.approx(expected)
    assert threshold("specificity", recall=0.9)


@pytest.mark.parametrize("quick", [True, False])
def test_a_part_may_start_from_a_network_that_is_made_when_the_case_runs(quick: bool, monkeypatch: pytest.MonkeyPatch):
    network, asked, compared = torch.nn.Linear(2, 2), list[bool](), list[object]()
    monkeypatch.setattr(
        sys.modules[conduct.__module__], "compare", lambda *given, model, **options: compared.append(model)
    )
    part = Part("toy", "A toy", "heart", ("ditto",), start=lambda quick: asked.append(quick) or network)
    conduct(Case("toy", "Somebody", "What now?", (part,), "nothing."), quick=quick)
    assert (asked, compared) == ([quick], [network])


def test_variants_of_a_method_are_told_apart_by_their_options():
    personal, shared = "lora(share=personal,heads=frozen)", "lora(share=shared,heads=frozen)"
    assert of(find_method(personal).name, ["ditto", personal])
    assert not of(find_method(personal).name, ["ditto", shared])


@needs("movielens")
def test_newcomers_of_a_case_are_among_the_users_of_its_data():
    (part,) = (part for part in CASES["recommendation"].parts if "unseen" in part.options)
    federation = plures.load(part.data, **part.options["data_options"])
    seen, held = federation.hold_out(part.options["unseen"])
    assert (len(seen), len(held)) == (180, 20)
