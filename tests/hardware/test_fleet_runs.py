"""Fleets by name: what a run's description says becomes devices and rules, or is refused; results have more."""

from __future__ import annotations

import pytest

import plures
from plures import RunSpec
from plures.errors import PluresError
from plures.evaluate import finish
from plures.hardware import FleetTable, Phones
from plures.report import html_report
from plures.report.hours import energy, lasting
from plures.run import Buffered, Clocked, Full, Joint, Oort, PowerOfChoice, Uniform


def rule(**fields):
    found = RunSpec(data="heart", **fields).who()
    assert isinstance(found, Joint)
    return found.rule


def test_texts_become_devices_and_rules(tmp_path):
    file = tmp_path / "fleet.csv"
    file.write_text("client,gflops,up_mbit,down_mbit\nva,1,2,3\n")
    assert rule(fleet="phones(seed=3)", deadline=9.0, late="partial") == Clocked(
        Full(), Phones(seed=3), deadline=9.0, late="partial"
    )
    assert rule(fleet="metadata", fraction=0.5, over_select=1.5) == Clocked(Uniform(0.5), FleetTable(), over_select=1.5)
    assert rule(fleet=str(file)) == Clocked(Full(), FleetTable.read(file))
    assert rule(fleet="phones", buffer=2) == Buffered(Full(), Phones(), 2, 0.5)
    assert rule(fleet="phones", buffer=2, staleness=1.0, fraction=0.5, select="oort(penalty=1)") == Buffered(
        Uniform(0.5), Phones(), 2, 1.0, Oort(penalty=1.0)
    )
    assert rule(fraction=0.5, select="power_of_choice(3)") == Clocked(Uniform(0.5), None, PowerOfChoice(3))


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"deadline": 5.0}, "simulated devices, and there are none"),
        ({"buffer": 5}, "simulated devices, and there are none"),
        ({"fleet": "phones", "buffer": 2, "deadline": 5.0}, "where no round waits"),
        ({"fleet": "phones", "staleness": 1.0}, "without a buffer"),
        ({"fleet": "phone"}, "phones"),
        ({"fleet": "phones", "drop_out": 0.1}, "without drop_out"),
        ({"fleet": "phones", "select": "orts"}, "oort"),
        ({"select": "oort"}, "uniform"),
        ({"fleet": "none.csv", "over_select": 2.0}, "uniform"),
    ],
)
def test_an_option_that_would_not_be_used_is_refused(fields, why):
    with pytest.raises(PluresError, match=why):
        RunSpec(data="heart", **fields)


def test_a_missing_file_is_named_when_the_run_is_made_and_not_when_its_description_is_read():
    spec = RunSpec(data="heart", fleet="none.csv")
    with pytest.raises(PluresError, match=r"none\.csv"):
        spec.who()


def test_private_steps_and_cohorts_are_refused():
    heart = plures.load("heart")
    with pytest.raises(PluresError, match="nobody can account for it"):
        RunSpec(data="heart", fleet="phones", dp="clip=1,noise=1,delta=1e-3").run(heart)


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    return plures.compare(
        "heart",
        [],
        rounds=2,
        seeds=1,
        tune_rounds=0,
        out=tmp_path_factory.mktemp("fleet"),
        fleet="sensors(seed=1)",
        deadline=2000.0,
    )


def test_a_comparison_has_hours_joules_and_what_became_of_visits(compared):
    run = compared.method("fedavg").seeds[0]
    hours = [point.hours for point in run.curve]
    assert hours == sorted(hours)
    assert 0 < hours[-1] <= 2 * 2000 / 3600
    card = run.fleet
    asked = [sum(outcome) for outcome in zip(card.counted, card.late, card.dropped, card.surplus, strict=True)]
    assert max(asked) == run.chosen_round
    assert sum(card.joules) == pytest.approx(next(p.joules for p in run.curve if p.round == run.chosen_round))
    assert len(card.kinds) == len(card.clients) == 4


def test_the_report_has_them_by_class_of_device(compared):
    page = html_report(compared)
    assert 'id="hours"' in page
    assert "Simulated devices: fleet sensors(seed=1), deadline after 33.3 minutes." in page
    for kind in {*compared.method("fedavg").seeds[0].fleet.kinds}:
        assert f'<td class="text">{kind}</td>' in page
    assert 'value="joules"' in page or 'data-axis="joules"' in page or "joules" in page


def test_a_run_without_a_clock_has_none_of_it():
    heart = plures.load("heart")
    run = RunSpec(data="heart", rounds=1).run(heart)
    result = finish(plures.fit(run, "fedavg"), 0)
    assert result.fleet is None
    assert result.curve[0].hours is None


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.0, "0 s"), (0.0123, "12.3 ms"), (5.0, "5.00 s"), (300.0, "5.00 minutes"), (7200.0, "2.00 hours")],
)
def test_times_are_told_in_their_unit(seconds, text):
    assert lasting(seconds) == text


@pytest.mark.parametrize(("joules", "text"), [(0.0, "0 J"), (0.05, "50.0 mJ"), (2500.0, "2.50 kJ")])
def test_energies_are_told_in_their_unit(joules, text):
    assert energy(joules) == text
