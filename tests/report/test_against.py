"""What the report says of attacks and robust combinations: differences, flags, rates, and the number that is stood."""

from __future__ import annotations

import re
from typing import Any

import pytest
from comparisons import comparison

from plures.evaluate.record import Watched
from plures.evaluate.results import Against, ClientScores, Comparison, MethodResult
from plures.report import headline, html_report
from plures.report.against import attacked, beyond, combined, flagged, rates

PEOPLE = [f"ward {i}" for i in range(4)]


def moved(method: MethodResult, by: float, watched: Watched | None = None) -> MethodResult:
    """The method with every client's accuracy moved."""
    seeds = []
    for seed in method.seeds:
        accuracy = [None if v is None else v + by for v in seed.test.metrics["accuracy"]]
        test = ClientScores(
            clients=seed.test.clients, sizes=seed.test.sizes, metrics={"accuracy": accuracy, "ece": accuracy}
        )
        seeds.append(seed.model_copy(update={"test": test, "watched": watched}))
    return method.model_copy(update={"seeds": seeds})


def against(**more: Any) -> Against:
    given: dict[str, Any] = {
        "attack": "sign_flip",
        "attackers": ["ward 8", "ward 9"],
        "first": 3,
        "knows": "all",
        "combine": "krum(f=1)",
        "uncombined": {"local": "it sends nothing that could be combined"},
        "population": 6,
        "cohort": 6,
        "stands": 1,
        "plain": [],
        "undefended": [],
    }
    return Against(**given | more)


SEEN = Watched(
    left_out={"ward 0": 0.6, "ward 1": 0.5, "ward 8": 1.0, "ward 9": 0.2},
    clusters={"model": {"ward 0": 0, "ward 1": 0, "ward 2": 0, "ward 3": 0, "ward 8": 0, "ward 9": 1}},
    personal={"ward 0": 0.25, "ward 1": 0.75},
)


@pytest.fixture(scope="module")
def made() -> Comparison:
    names = ("local", "fedavg", "fedavg_ft", "ditto")
    plain = comparison(clients=4, seeds=2, names=names, client_names=PEOPLE, missing=False, rounds=3)
    ditto = plain.method("ditto")
    beside = against(plain=[moved(ditto, 0.02)], undefended=[moved(ditto, -0.3)])
    methods = [moved(m, 0.0, SEEN if m.name == "ditto" else None) for m in plain.methods]
    return plain.model_copy(update={"methods": methods, "against": beside})


def test_a_client_is_flagged_by_what_was_seen() -> None:
    """More than half of the rounds, or alone in a cluster; the only cluster of all is no place apart."""
    assert flagged(SEEN) == {"ward 0", "ward 8", "ward 9"}
    assert flagged(Watched(clusters={"model": {"ward 0": 0}})) == set()


def test_detection_and_false_alarms_are_measured(made: Comparison) -> None:
    """Both attackers are flagged, and of the four honest clients that were judged or put somewhere, one."""
    assert rates(made.method("ditto"), against()) == (1.0, 0.25)
    assert rates(made.method("fedavg"), against()) == (None, None)
    assert rates(made.method("ditto"), against(attackers=[])) == (None, 0.5)


@pytest.mark.parametrize(
    ("clients", "attackers", "cohort", "number", "expected"),
    [
        (100, 20, 10, 2, 0.31878),
        (100, 20, 10, 3, 0.109572),
        (100, 20, 10, 4, 0.025465),
        (1000, 200, 50, 12, 0.180477),
        (100, 1, 10, 0, 0.1),
        (1000, 10, 10, 0, 0.096032),
        (100, 4, 10, 0, 0.348369),
        (6, 2, 6, 1, 1.0),
        (6, 1, 6, 1, 0.0),
    ],
)
def test_how_often_a_round_has_more_attackers_than_are_stood(clients, attackers, cohort, number, expected) -> None:
    assert beyond(clients, attackers, cohort, number) == pytest.approx(expected, abs=5e-7)


def test_the_number_is_said() -> None:
    assert attacked(against()) == "Simulated attack: sign_flip by 2 clients (ward 8, ward 9) from round 3."
    assert combined(against()) == (
        "Combined by krum(f=1), made to stand 1 hostile upload among the 6 of a round; 2 clients attack, which is more."
    )
    drawn = against(population=100, attackers=[f"w{i}" for i in range(20)], cohort=10, stands=2)
    assert combined(drawn).endswith("; with 20 attackers among 100 clients, more come in 32 % of rounds.")
    assert combined(against(stands=None, combine="norm_bound")) == (
        "Combined by norm_bound, which bounds what an upload can do and promises no number."
    )
    assert (attacked(against(attackers=[])), combined(against(combine=None))) == ("", "")


def test_the_page_shows_every_honest_client_beside_the_mean(made: Comparison) -> None:
    card = made.federation.model_copy(update={"hostile": ["ward 8", "ward 9"]})
    page = html_report(made.model_copy(update={"federation": card}))
    assert "<dt>attackers, not scored</dt><dd>ward 8, ward 9</dd>" in page
    section = re.search(r'<section id="against".*?</section>', page, re.DOTALL)
    assert section is not None
    text = section[0]
    assert text.count('<td data-value="-0.02') + text.count('<td data-value="-0.0199') >= 5
    assert "\N{MINUS SIGN}2.0" in text
    assert "Local only: it sends nothing that could be combined" in text
    for words in (
        "Every honest client",
        "How often the backdoor opens",
        "Who was left out or put apart",
        "Who was put where",
    ):
        assert f"<h3>{words}</h3>" in text
    assert "50 %" in text
    assert "75 %" in text
    assert "<small>attacks</small>" in text
    assert "what the trigger does by itself" in text
    for word in ("malicious", "guilty", "suspect", "cheat"):
        assert word not in text.lower()
    ditto = f"{100 * made.row('ditto').mean:.1f}"
    assert (
        f"Ditto has {ditto} %, without attackers and combination {float(ditto) + 2:.1f}, under attack without"
        in headline(made)
    )


def test_pages_without_attack_have_no_such_section(made: Comparison) -> None:
    assert 'id="against"' not in html_report(made.model_copy(update={"against": None}))
    alone = made.model_copy(update={"against": against(attack=None, attackers=[], plain=made.against.plain)})
    page = html_report(alone)
    assert ">Robust combination</h2>" in page
    assert "Under attack" not in page
