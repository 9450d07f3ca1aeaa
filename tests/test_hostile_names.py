"""Names with a meaning elsewhere (to a file system, a terminal, a spreadsheet) are shown literally, or refused."""

from __future__ import annotations

import csv
import io
import json
import logging
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.table import Table
from typer.testing import CliRunner

import plures
from plures import from_table
from plures.cli import app
from plures.cli.common import Terminal, say
from plures.cli.models import predictions, read_examples
from plures.deploy.journal import Journal
from plures.errors import PluresError
from plures.evaluate import finish, fit
from plures.evaluate.spec import RunSpec
from plures.federation import Federation, from_arrays
from plures.files import filed
from plures.methods import fedavg
from plures.report import console_table, markdown_table
from plures.run import Execution
from plures.run.checkpoint import read
from plures.serving.personal import PersonalModel
from plures.study import parse_study
from plures.tables.table import read_table, write_table
from plures.tasks import Classification, Regression
from plures.texts import cell, csv_text, markdown, uncelled

X, Y = [0.0] * 18, [0, 1, 1] * 6
FIXED = Execution("vmap", 8, False)
SHOWN = (
    "..", "../..", "/abs", "a/b", "a", "a\\b", "C:x", "con", "models", "[red]", "[/red]", ":smile:", "=1+1", "-rf", "~",
    '"', "O'Brien", "</script>", "${x}", "👩‍⚕️", "نص", "{x}", "%s", "a,b", "a;b", "-3", "own:test:inputs:a", "x" * 100,
)  # fmt: skip
OBEYED = ("a\nb", "a\rb", "a\0b", "a\x1b[31mb", "a\x9b31mb", "a\u202eb", "a\u2028b", "\ufeffa")
RUN = (
    "=1+1", "+1+1", "-1+1", "@x", "\t=1", "\r=1", " =1", '"=1', "' =1", "'=1", "=", "-", "-a", "\uff1d1+1", "a;=1",
    "a\t=1", "-1|x", "+",
)  # fmt: skip
QUIET = ("", "a", "3", "-3", "-0.5", "+1e-7", "1e5", "-inf", "a=1", "a-b", "a, -b", "'a", "''", "a;b", "x@y", "a b=0.3")


def arrays(names: tuple[str, ...], **options: Any) -> Federation:
    generator = np.random.default_rng(0)
    client = np.repeat(np.array(names, dtype=object), 20)
    x = generator.normal(size=(len(client), 3)).astype(np.float32)
    return from_arrays(x, (x[:, 0] > 0).astype(np.int64), client, **options)


def call(*words: object) -> Any:
    return CliRunner().invoke(app, [str(word) for word in words])


def everything(folder: Path) -> set[Path]:
    return {file for file in folder.rglob("*") if file.is_file()}


# Where a name is first read -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", OBEYED)
@pytest.mark.parametrize(
    ("what", "make"),
    [
        ("client", lambda name: arrays(("b", name))),
        ("federation", lambda name: arrays(("a", "b"), name=name)),
        ("class", lambda name: arrays(("a", "b"), classes=(name, "no"))),
        ("class", lambda name: Classification((name, "no"))),
        ("column", lambda name: arrays(("a", "b"), columns=("age", name, "sex"))),
        ("metadata column", lambda name: arrays(("a", "b"), metadata={name: {"a": 1, "b": 2}})),
        ("client", lambda name: replace(arrays(("a",)), clients=(name,))),
        ("client", lambda name: from_table({"c": ["b", name] * 9, "x": [1, 2, 3] * 6, "y": Y}, client="c", target="y")),
    ],
)  # fmt: skip
def test_a_name_that_would_be_obeyed_is_refused_with_what_it_names(
    name: str, what: str, make: Callable[[str], Any]
) -> None:
    with pytest.raises(PluresError) as caught:
        make(name)
    said = str(caught.value)
    assert said.startswith(f"{what} {name!r}: a name may not contain line breaks")
    assert said.isprintable()


@pytest.mark.parametrize("name", ["", " ", " a", "a ", "x" * 101])
def test_a_client_needs_a_name_of_its_own(name: str) -> None:
    with pytest.raises(
        PluresError, match=r"client '.*': a name (must|may|has)|cannot name a client|no client; give every row"
    ):
        arrays(("b", name))


def test_data_in_files_are_held_to_the_same_rule(tmp_path: Path) -> None:
    for name in ("a", "b\x1b[2J"):
        np.savez(tmp_path / f"{name}.npz", x=np.zeros((9, 2)), y=np.arange(9) % 2)
    done = call("run", tmp_path, "fedavg", "--out", tmp_path / "out")
    assert "client 'b\\x1b[2J': a name may not contain line breaks" in str(done.exception)


def test_an_array_that_claims_more_than_its_file_holds_is_one_sentence(tmp_path: Path) -> None:
    head = {"descr": "<f8", "fortran_order": False, "shape": (2**45,)}
    for name, content in (("bomb", head), ("cut", None)):
        file = tmp_path / name / "a.npz"
        file.parent.mkdir()
        if content is None:
            np.savez(file, x=np.zeros((9, 2)), y=np.arange(9))
            file.write_bytes(file.read_bytes()[:-40])
        else:
            with zipfile.ZipFile(file, "w") as archive, archive.open("x.npy", "w") as array:
                np.lib.format.write_array_header_1_0(array, content)
        with pytest.raises(PluresError, match=r"a\.npz: cannot be read as \.npz without pickled objects"):
            plures.from_folder(file.parent)
        with pytest.raises(PluresError, match=r"a\.npz: .*; give an \.npz file with an array x"):
            read_examples(file)


STUDY = """
name = {name}
seeds = 1
[[data]]
name = "heart"
label = {label}
[[methods]]
name = "fedavg"
"""


@pytest.mark.parametrize("name", [*OBEYED[3:4], "a\nb", "a\u202eb", " a", "x" * 101])
def test_names_in_a_study_are_refused_where_they_stand(tmp_path: Path, name: str) -> None:
    told = json.dumps(name, ensure_ascii=True)
    for text in (STUDY.format(name=told, label='"h"'), STUDY.format(name='"s"', label=told)):
        with pytest.raises(PluresError, match=r"a name (must not|may not|has) ") as caught:
            parse_study(text, "study.toml", tmp_path)
        assert str(caught.value).isprintable()


@pytest.mark.parametrize("name", ["../../gone", "..", "/abs", "a/b", "CON"])
def test_a_study_stays_below_the_folder_of_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    home = tmp_path / "deep" / "home"
    home.mkdir(parents=True)
    monkeypatch.chdir(home)
    (tmp_path / "study.toml").write_text(
        STUDY.format(name=json.dumps(name), label='"../../h/.."')
        + '[tuning]\ntrials = 0\n[[budgets]]\nrounds = 1\n[execution]\nbackend = "vmap"\nchunk = 4\n'
    )
    done = call("study", tmp_path / "study.toml")
    assert done.exit_code == 0, done.output
    made = everything(tmp_path) - {tmp_path / "study.toml"}
    assert all(file.is_relative_to(home / "runs" / filed(name)) for file in made)
    assert {"study.db", "report.html", "run.json", "models.safetensors"} <= {file.name for file in made}


# Folders of runs ----------------------------------------------------------------------------------------------------


def test_models_of_clients_whose_names_are_paths_are_kept_apart(tmp_path: Path) -> None:
    data = arrays(tuple(sorted(set(SHOWN))), name='../[red] "of" </script>', metadata=None)
    spec = RunSpec(data="heart", method="local", rounds=1, lr=0.5)
    run = plures.Run(data, lambda: torch.nn.Linear(3, 2), plures.methods.local(), spec.training(), execution=FIXED)
    kept = plures.RunFolder(tmp_path / "deep" / "run")
    kept.write(run, None, finish(fit(run, "local"), 0))
    for client in SHOWN:
        mine, (row,) = kept.model(client), run.chunks([data.index(client)])
        assert set(mine) == {"weight", "bias"}
        for path, value in run.deployed(row)["model"].items():
            assert torch.equal(mine[path], value[0]), client
    assert everything(tmp_path) == {
        tmp_path / "deep" / "run" / n for n in ("run.json", "state.safetensors", "models.safetensors")
    }


def test_newcomers_of_any_name_get_a_file_in_their_folder(tmp_path: Path) -> None:
    home = tmp_path / "deep"
    spec = RunSpec(data="heart", method="fedavg", rounds=1)
    run = spec.run(spec.federation(), FIXED)
    kept = plures.RunFolder(home / "run")
    kept.write(run, spec, finish(fit(run, "fedavg"), 0))
    before = {file: file.read_bytes() for file in everything(tmp_path)}
    names = ("..", "../models", "../../x", "/abs", "models", "con", "a/b", "A", "[red]", "state")
    whole = run.federation
    for name in names:
        guest = plures.run.onboard(kept.run(), replace(whole.subset([whole.clients[0]]), clients=(name,)))
        kept.add(guest)
        for path, value in guest.deployed([0])["model"].items():
            assert torch.equal(kept.model(name)[path], value[0])
        assert kept.counted(name)["rows"]["test"] > 0
        assert set(kept.validation(name)) == set(kept.validation(whole.clients[0]))
        outputs, _ = kept.predict(name, whole.inputs[:3])
        assert len(outputs) == 3
    made = everything(tmp_path) - before.keys()
    assert made == {home / "run" / "newcomers" / f"{filed(name)}.safetensors" for name in names}
    assert {file: file.read_bytes() for file in before} == before
    assert read(home / "run" / "models.safetensors")[1]["clients"] == list(whole.clients)


def test_trackers_stay_in_their_folder(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from plures.track import TensorBoard

    for name in ("..", ".", "../..", "/abs", "Ward"):
        run = plures.Run(
            arrays(("a", "b"), name=name),
            lambda: torch.nn.Linear(3, 2),
            fedavg(),
            RunSpec(data="x", rounds=1).training(),
            execution=FIXED,
        )
        fitted = fit(run, "..", callbacks=[TensorBoard(tmp_path / "deep" / "tensorboard")])
        fitted.callbacks.on_end(None)
    files = everything(tmp_path)
    assert len(files) == 5
    assert len({file.parent for file in files}) == 5
    assert all(len(file.relative_to(tmp_path / "deep" / "tensorboard").parts) == 3 for file in files)


# Tables -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("words", RUN)
def test_a_cell_that_a_spreadsheet_would_run_is_a_text(words: str) -> None:
    written = cell(words)
    assert written != words
    assert written.startswith("'") or ";'" in written or "\t'" in written
    assert uncelled(written) == words
    assert uncelled(cell(written)) == written


@pytest.mark.parametrize("words", QUIET)
def test_other_cells_and_numbers_stay(words: str) -> None:
    assert cell(words) == uncelled(words) == words


def test_csv_keeps_numbers_and_quotes_texts() -> None:
    told = csv_text([["a,b", '"q"', "x\ny", "=1"], [-0.5, 3, None, True]])
    assert told == '"a,b","""q""","x\ny",\'=1\n-0.5,3,,True\n'


def test_a_table_that_was_written_is_read_again(tmp_path: Path) -> None:
    names = [name for name in (*RUN, *QUIET) if name == name.strip() and name and '"' not in name]
    table = {"=name": names, "-n": [-1.5] * len(names)}
    write_table(tmp_path / "rows.csv", table)
    again = read_table(tmp_path / "rows.csv")
    assert again == {"=name": names, "-n": ["-1.5"] * len(names)}
    lines = list(csv.reader(io.StringIO((tmp_path / "rows.csv").read_text())))
    assert not [words for line in lines for words in line if cell(words) != words and uncelled(words) == words]


def test_predictions_quote_classes() -> None:
    classes = ("a,b", 'say "no"', "=1+1", "-3")
    outputs = torch.tensor([[9.0, 0, 0, 0], [0, 9, 0, 0], [0, 0, 9, 0], [0, 0, 0, 9]])
    head, *lines = csv.reader(io.StringIO(predictions(outputs, outputs.argmax(1), Classification(classes))))
    assert head == ["class", "a,b", 'say "no"', "'=1+1", "-3"]
    assert [line[0] for line in lines] == head[1:]
    assert all(len(line) == 5 and max(map(float, line[1:])) > 0.99 for line in lines)
    numbers = torch.tensor([[-0.5, 1e-9], [1.0, -2.0]])
    assert predictions(numbers, None, Regression(2)) == "y0,y1\n-0.5,1e-09\n1,-2\n"


def test_a_comparison_as_csv_runs_nothing_and_keeps_its_numbers() -> None:
    names = ("=1+1", "-a", "@b", "-3", "a,b")
    done = plures.compare(
        arrays(names), ["local"], model=lambda: torch.nn.Linear(3, 2), rounds=1, seeds=1, tune_rounds=0, execution=FIXED
    )
    rows = list(csv.DictReader(io.StringIO(done.to_csv())))
    clients = {row["client"] for row in rows}
    assert clients == {"'=1+1", "'-a", "'@b", "-3", "a,b"}
    assert {uncelled(client) for client in clients} == set(names)
    assert all(0 <= float(row["accuracy"]) <= 1 for row in rows)


# Terminal, Markdown, numbers for Prometheus -------------------------------------------------------------------------


def test_a_terminal_shows_markup_and_obeys_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    text = "[red]a[/red] [/x] :smile: \x1b[2J\x1b]0;title\x07\x9b31m\u202e\r[link=http://x]b[/link] é 👩‍⚕️"
    table = Table(text, title=text)
    table.add_row(text)
    terminal = Terminal()
    terminal.print(text, soft_wrap=True)
    terminal.print(table)
    say(f"{text}\nsecond line")
    Terminal(stderr=True).print(text, style="red")
    told = "".join(capsys.readouterr())
    for part in ("[red]a[/red] [/x] :smile: \\x1b[2J\\x1b]0;title\\x07\\x9b31m\\u202e\\r", "é 👩‍⚕️", "second line"):
        assert part in told
    assert not set(told) & set("\x1b\x07\x9b\u202e\r")


def test_commands_print_names_as_they_are(tmp_path: Path) -> None:
    names = ("[red]x", "[bold", ":smile:", "=1+1")
    for name, seed in zip(names, range(4), strict=True):
        x = np.random.default_rng(seed).normal(size=(40, 3))
        np.savez(tmp_path / f"{name}.npz", x=x, y=(x[:, 0] > 0).astype(int))
    options = ["--rounds", 1, "--backend", "vmap", "--chunk", 4]
    done = call(
        "compare", tmp_path, "--method", "local", "--seeds", 1, "--tune-rounds", 0, "--out", tmp_path / "out", *options
    )
    assert done.exit_code == 0, done.output
    for name in names:
        page = call("client", tmp_path / "out", name)
        assert page.exit_code == 0, page.output
        assert f"{name}, a client of" in page.output
    assert "no client '[/red' in" in str(call("client", tmp_path / "out", "[/red").exception)


def test_results_of_others_are_cleaned_when_they_are_read(tmp_path: Path) -> None:
    done = plures.compare(
        arrays(("a", "b"), name="ours"),
        ["local"],
        model=lambda: torch.nn.Linear(3, 2),
        rounds=1,
        seeds=1,
        tune_rounds=0,
        execution=FIXED,
    )
    evil = "\\u001b]0;x\\u0007\\u009b31m\\u202e"
    (tmp_path / "results.json").write_text(
        done.to_json()
        .replace('"ours"', f'"ours{evil}"')
        .replace('"a"', f'"a{evil}"')
        .replace("Local only", f"Local {evil}")
    )
    again = plures.evaluate.Comparison.from_json(tmp_path / "results.json")
    shown = "\\x1b]0;x\\x07\\x9b31m\\u202e"
    assert again.federation.name == f"ours{shown}"
    assert again.federation.clients == [f"a{shown}", "b"]
    assert again.methods[0].seeds[0].test.clients == [f"a{shown}", "b"]
    assert f"Local {shown}" in [method.title for method in again.methods]
    out = io.StringIO()
    plain = Terminal()
    plain.file = out
    plain.print(console_table(again), width=200)
    assert shown in out.getvalue()
    for text in (out.getvalue(), again.to_csv(), markdown_table(again), plures.report.html_report(again)):
        assert not set(text) & set("\x1b\x07\x9b\u202e")


def test_markdown_makes_nothing_of_a_name() -> None:
    assert markdown("a|b") == "a\\|b"
    assert markdown("[x](javascript:1)") == "[x\\](javascript:1)"
    assert (
        markdown("![x][y] <img src=x> **b** `c` \n# \x1bd")
        == "![x\\][y] &lt;img src=x> \\*\\*b\\*\\* \\`c\\` # \\\\x1bd"
    )
    assert markdown("ward_3 [red]") == "ward_3 [red]"


def test_a_model_card_makes_nothing_of_a_name() -> None:
    spec = RunSpec(data="heart", method="local", rounds=1)
    run = spec.run(spec.federation(), FIXED)
    card = PersonalModel.of(run, run.federation.clients[0], spec).card
    evil = "[x](javascript:1) <img src=x> `a`\n## b\n- c | d\x1b[2J"
    classes = ("[x](javascript:1) <img src=x> `a` | d", "no")  # a class with a control character is refused
    evils = {"client": evil, "classes": classes, "options": card.options | {"classes": classes}, "source": evil}
    told = card.model_copy(update=evils | {"sheet": {evil: evil}})
    before, after = card.text().split("\n"), told.text().split("\n")
    assert after[0] == f"# The model of {markdown(evil)} in heart"
    assert sum(line.startswith("#") for line in after) == sum(line.startswith("#") for line in before) + 1
    assert len(after) == len(before) + 3  # the sheet: its heading, its line and the empty one
    assert not [line for line in after if "](" in line.replace("\\](", "") or "<" in line or "\x1b" in line]


def test_metrics_and_log_of_a_run_hold_any_name(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.metrics({"client_validation": dict.fromkeys((*SHOWN, 'a"} 1\n# b', "a\\"), 0.5)})
    lines = (tmp_path / "metrics.prom").read_text(encoding="utf-8").split("\n")
    assert len([line for line in lines if line and not line.startswith("#")]) == len(SHOWN) + 2
    assert all(line.endswith("} 0.5") for line in lines if line and not line.startswith("#"))
    journal.event("joined", clients=list(SHOWN))
    assert journal.events("joined")[0]["clients"] == list(SHOWN)


def test_the_log_of_a_node_is_plain(capsys: pytest.CaptureFixture[str]) -> None:
    from plures.deploy.app import Plain

    record = logging.LogRecord("plures", logging.ERROR, "", 0, "%s", ("a\x1b[2J\x9b\u202e",), None)
    assert Plain("%(message)s").format(record) == "a\\x1b[2J\\x9b\\u202e"
