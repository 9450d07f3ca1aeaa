"""Pages that are generated from the code: every method has one, with the code's numbers."""

from __future__ import annotations

import re
import tomllib

import pytest
from tools.diagrams import BLOCK, DOCS, DRAWINGS, digest, drawn
from tools.drawing import parts, telling
from tools.evidence import GENERAL, ROOT, Experiment, experiments, oracles, proofs
from tools.pages import best_baseline, navigation, pages, sections
from tools.reference import path, shown
from tools.roles import linked
from tools.typeset import displayed, typeset

from plures import METHODS
from plures.report.catalogue import bind, sample
from plures.run.cost import traffic


@pytest.fixture(scope="module")
def made() -> dict[str, str]:
    return pages()


def table_below(text: str, heading: str) -> list[list[str]]:
    """Cells of the first table below a heading, without its own heading."""
    lines = text.partition(f"## {heading}\n")[2].splitlines()
    first = next(i for i, line in enumerate(lines) if line.startswith("|"))
    rows = []
    for line in lines[first + 2 :]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]])
    return rows


def test_every_method_has_its_page_and_its_place_in_the_navigation(made):
    names = {path.removeprefix("methods/").removesuffix(".md") for path in made if path.startswith("methods/")}
    assert names == {*METHODS, "index"}
    listed = [path for family in navigation() for members in family.values() for m in members for path in m.values()]
    assert sorted(listed) == sorted(f"methods/{name}.md" for name in METHODS)
    for name, entry in METHODS.items():
        assert f"]({name}.md)" in made["methods/index.md"]
        page = made[f"methods/{name}.md"]
        assert page.startswith(f"# {entry.title}\n")
        assert entry.citation in page
        assert f"· {entry.family} ·" in page


@pytest.mark.parametrize("name", METHODS)
def test_bytes_parameters_and_search_space_are_those_of_the_code(made, name):
    page, entry = made[f"methods/{name}.md"], METHODS[name]
    bound = bind(entry, sample())
    rows = table_below(page, "Layout and what travels")
    last = [cell.strip("*").replace(",", "") for cell in rows[-1]]
    assert (int(last[3]), int(last[4])) == traffic(bound)
    assert [row[0] for row in rows[: len(bound.blocks)]] == [f"`{block.name}`" for block in bound.blocks]
    travelling = {f"`{block.name}`" for block in bound.blocks if bound.travelling(block)}
    assert {row[0] for row in rows[: len(bound.blocks)] if row[3] != "0"} == travelling
    parameters = table_below(page, "Parameters") if entry.defaults else []
    assert [row[0] for row in parameters] == [f"`{p}`" for p in entry.defaults]
    for row, (parameter, value) in zip(parameters, entry.defaults.items(), strict=True):
        assert row[2] == f"`{value!r}`"
        assert row[4], f"the docstring of {name} does not say what {parameter} is"
        tried = [] if row[3] == "\N{EN DASH}" else re.findall(r"`([^`]*)`", row[3])
        assert tried == [repr(v) for v in entry.space.get(parameter, ())]


def test_the_drawing_shows_every_block_with_its_bytes():
    bound = bind(METHODS["ditto"], sample())
    model, personal = parts(bound)
    whole = sum(t.nbytes for t in bound.initial["model"].values())
    assert (model.kind, model.size, model.up, model.down, model.rows) == ("shared", whole, whole, whole, 1)
    assert (personal.kind, personal.size, personal.up, personal.down, personal.rows) == ("personal", whole, 0, 0, 0)
    clusters = parts(bind(METHODS["ifca"], sample()))[0]
    assert (clusters.kind, clusters.rows, clusters.up, clusters.down) == ("clustered", 3, whole, 3 * whole)
    mixed = bind(METHODS["apple"], sample())
    assert parts(mixed)[0].rows == 4
    assert telling(mixed) == 5 * 4  # four other models' weights and the own one, in single precision


def test_every_oracle_stands_on_the_pages_of_its_methods(made):
    entries = tomllib.loads((ROOT / "tests" / "oracles.toml").read_text("utf-8"))["entry"]
    everywhere = "\n".join(text for path, text in made.items() if path.startswith("methods/"))
    for entry in entries:
        for name, what in entry["oracles"].items():
            row = f"| {name} | {what.replace('|', chr(92) + '|')} | "
            assert (row in everywhere) == (entry["title"] not in GENERAL), row
    assert {name for name, _ in proofs()} == {name for entry in entries for name in entry["oracles"]}
    assert oracles()["ditto"][2].what == "first two rounds"
    assert oracles()["ditto"][2].tests == ("test_oracles.py::test_di2_first_rounds",)


def test_experiments_are_those_of_the_results(made):
    found = {one.name: one for one in experiments()}
    text = (ROOT / "benchmarks" / "results" / "families.md").read_text(encoding="utf-8")
    assert len(found) == text.count("\n## ")
    for one in found.values():
        assert one.why in text
    school = found["school"]
    line = next(x for x in text.partition("school (helps)")[2].splitlines() if x.startswith("| Ditto |"))
    assert school.rows["Ditto"][0] == line.split("|")[2].strip()
    assert school.rows["Ditto"][0] in made["methods/ditto.md"]


def test_the_best_baseline_is_the_smallest_error_or_the_largest_accuracy():
    rows = {"Local only": ("0.9",), "FedAvg": ("**0.8 ± 0.1**",), "Ditto": ("0.7",)}
    error = Experiment("g", "n", True, "", ("mean ± 95 % CI",), rows)
    assert best_baseline(error) == "FedAvg: 0.8 ± 0.1"
    accuracy = Experiment("g", "n", True, "", ("mean ± 95 % CI", "calib. err. %"), rows)
    assert best_baseline(accuracy) == "Local only: 0.9"


def test_docstrings_are_taken_apart():
    text, meanings = sections(METHODS["fedrep"])
    assert text.startswith("A shared body and a personal head")
    assert "Args" not in text
    assert set(meanings) == set(METHODS["fedrep"].defaults)
    assert meanings["head_steps"] == "gradient steps for the head instead of epochs."


def test_equations():
    assert typeset("lam/2 ||v_i - w||^2") == (
        "\N{GREEK SMALL LETTER LAMDA}/2 \N{DOUBLE VERTICAL LINE}<var>v</var><sub><var>i</var></sub> \N{MINUS SIGN} "
        "<var>w</var>\N{DOUBLE VERTICAL LINE}<sup>2</sup>"
    )
    assert typeset("S^-1 < a_(i<j)") == (
        "<var>S</var><sup>\N{MINUS SIGN}1</sup> &lt; <var>a</var><sub><var>i</var>&lt;<var>j</var></sub>"
    )
    assert typeset("p_ij") == "<var>p</var><sub><var>ij</var></sub>"
    assert typeset("learning_rate") == "learning_rate"
    assert displayed("Objective: ``min f_i(v) + g_i(v) + h``.") == (
        'Objective:\n\n<p class="equation">' + typeset("min f_i(v) + g_i(v) + h") + "</p>"
    )
    assert displayed("The slot ``personal`` stays.") == "The slot ``personal`` stays."


def test_reference_shows_every_public_name_once(made):
    for room, names in shown().items():
        assert names, room
        for name in names:
            assert made[f"reference/{room}.md"].count(f"::: {path(room, name)}\n") == 1
    everything = [path(room, name) for room, names in shown().items() for name in names]
    assert len(everything) == len(set(everything))


def test_a_function_called_as_its_module_is_meant():
    assert path("run", "onboard") == "plures.run.onboard.onboard"
    assert path("evaluate", "fit") == "plures.evaluate.fit.fit"
    assert path("method", "head") == "plures.method.head"


def test_cross_references_of_docstrings():
    assert linked("see :func:`~a.b.c`, :class:`D`", "m.n") == (
        'see <autoref identifier="a.b.c" optional><code>c</code></autoref>, '
        '<autoref identifier="m.n.D" optional><code>D</code></autoref>'
    )


def test_every_diagram_is_drawn_and_nothing_else_is_kept():
    wanted = {digest(s) for f in DOCS.rglob("*.md") for s in BLOCK.findall(f.read_text(encoding="utf-8"))}
    assert {file.stem for file in DRAWINGS.glob("*.svg")} == wanted
    page = drawn((DOCS / "architecture.md").read_text(encoding="utf-8"))
    assert "```mermaid" not in page
    assert page.count('<figure class="diagram"><svg') == 2
    with pytest.raises(SystemExit, match=r"is not drawn: run python -m tools\.diagrams"):
        drawn("```mermaid\nflowchart LR\n  A --> B\n```")
