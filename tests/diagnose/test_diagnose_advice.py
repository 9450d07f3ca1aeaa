"""The rules are valid data, and a diagnosis is shown as text, JSON, HTML and on the command line."""

from __future__ import annotations

import json
from html.parser import HTMLParser

import pytest
from typer.testing import CliRunner
from worlds import WORLDS, world

from plures.cli import diagnose as command
from plures.cli import main
from plures.cli.common import app
from plures.diagnose import FAMILIES, RULES, Diagnosis, Rule, diagnose, diagnosis_page, diagnosis_section
from plures.diagnose.advise import advise, numbers
from plures.errors import PluresError
from plures.methods import METHODS

SMALL = {"clients": 12, "rows": 400, "rows_each": 40}


@pytest.fixture(scope="module")
def found() -> Diagnosis:
    return diagnose(WORLDS["clusters"](0), **SMALL)


def test_families_name_methods_of_the_catalogue():
    for family in FAMILIES.values():
        assert set(family.methods) <= METHODS.keys()


def test_rules_read_numbers_that_exist_and_speak_for_families_that_exist(found):
    known = numbers(found)
    names = [rule.name for rule in RULES]
    assert len(set(names)) == len(names)
    for rule in RULES:
        assert {name for name, _, _ in rule.when} <= known.keys(), rule.name
        assert rule.points.keys() <= FAMILIES.keys(), rule.name
        assert rule.says.format(**known)
        assert rule.source


def test_a_rule_needs_all_its_conditions_and_no_missing_number():
    rule = Rule("r", (("a", ">=", 1.0), ("b", "<", 2.0)), {"local": 1.0}, "", "")
    assert rule.applies({"a": 1.0, "b": 1.9})
    assert not rule.applies({"a": 0.9, "b": 1.9})
    assert not rule.applies({"a": 1.0, "b": 2.0})
    assert not rule.applies({"a": float("nan"), "b": 0.0})


def test_points_are_the_sum_of_the_rules_that_apply(found):
    rules = (
        Rule("one", (), {"local": 1.0, "partial": 2.0}, "one", "here"),
        Rule("two", (("clients", ">=", 3),), {"local": 2.5}, "{clients:.0f} clients", "here"),
        Rule("three", (("clients", "<", 3),), {"partial": 9.0}, "few", "here"),
    )
    advice = advise(found, rules)
    assert [(f.family, f.points) for f in advice.ranking[:2]] == [("local", 3.5), ("partial", 2.0)]
    assert [reason.says for reason in advice.ranking[0].why] == ["one", "12 clients"]
    assert advice.ranking[0].confidence == "medium"
    assert advice.ranking[1].confidence == "low"
    assert not advice.nothing_beats_fedavg


def test_json_comes_back_the_same(found, tmp_path):
    file = tmp_path / "d.json"
    file.write_text(found.to_json(), encoding="utf-8")
    assert Diagnosis.from_json(file) == found
    file.write_text("{}", encoding="utf-8")
    with pytest.raises(PluresError, match="is not a diagnosis"):
        Diagnosis.from_json(file)


def test_text_fits_80_columns_and_says_what_matters(found):
    read, text = found, str(found)
    assert max(map(len, text.splitlines())) <= 80
    joined = " ".join(text.split())
    assert read.advice.summary in joined
    assert "What this cannot know" in text
    assert all(limit in joined for limit in read.advice.cannot_know)
    assert f"[{read.advice.ranking[0].points:+.1f}, {read.advice.ranking[0].confidence} confidence]" in text


class Balanced(HTMLParser):
    """Every element that is opened is closed, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag, attrs):
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def test_html_is_whole_escaped_and_needs_no_network(found):
    wicked = found.model_copy(update={"federation": "<script>alert(1)</script>"})
    section, page = diagnosis_section(wicked), diagnosis_page(wicked)
    parser = Balanced()
    parser.feed(page)
    assert parser.open == []
    text = " ".join("".join(parser.text).split())
    assert wicked.advice.summary in text
    assert "<script" not in page
    assert "http" not in page
    assert section in page
    assert section.startswith("<section")
    assert section.count("<th scope=") >= 12


def test_command_writes_json_and_html(tmp_path):
    files = tmp_path / "d.json", tmp_path / "d.html"
    done = CliRunner().invoke(
        app, ["diagnose", "heart", "--rows", "300", "--out", str(files[0]), "--out", str(files[1])]
    )
    assert done.exit_code == 0, done.output
    assert "Diagnosis of heart: 4 clients" in done.output
    read = Diagnosis.from_json(files[0])
    assert read.looked.clients == ["cleveland", "hungarian", "switzerland", "va"]
    assert read.quality.missing_from == "indicators"
    assert json.loads(files[0].read_text(encoding="utf-8"))["seed"] == 0
    assert files[1].read_text(encoding="utf-8").startswith("<!doctype html>")


def test_command_refuses_unknown_files_before_it_works(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(command, "diagnose", lambda *_, **__: pytest.fail("it must not start"))
    monkeypatch.setattr("sys.argv", ["plures", "diagnose", "heart", "--out", str(tmp_path / "d.pdf")])
    with pytest.raises(SystemExit) as exit_code:
        main()
    assert exit_code.value.code == 2
    assert "give a file that ends with .json or .html" in " ".join(capsys.readouterr().err.split())


def test_progress_is_told_in_order():
    told: list[tuple[int, int, str]] = []
    diagnose(world(0, clients=3, sizes=lambda client: 30), progress=lambda *step: told.append(step))
    assert [done for done, _, _ in told] == list(range(len(told)))
    assert told[-1] == (8, 8, "done")
