"""Every block of code in the documents runs, at a smaller budget.

Python blocks of a document share a namespace, and a folder with its commands, in the order of the document. Commands
run in this process; the command line only reads those in ELSEWHERE (words, options and the types of their values), and
of all cases only that of the hospitals runs, once: they are data for the same code.
"""

from __future__ import annotations

import re
import shlex
import shutil
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import typer
from tools.usage import COMMANDS, PYTHON, use, word
from typer.testing import CliRunner

from plures import METHODS, RunSpec
from plures.cases import CASES
from plures.cli import app
from plures.evaluate import BASELINES, Code, Comparison, RunFolder
from plures.evaluate.compare import DEFAULT
from plures.evaluate.results import POOLED
from plures.evaluate.spec import find_method
from plures.serving import PersonalModel
from plures.study import read_study
from plures.tables import write_table
from plures.tables.heart import heart_schema, heart_tables

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
CHOOSE, DEPLOYMENT = DOCS / "guides" / "choose.md", DOCS / "deployment.md"
DOCUMENTS = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted(DOCS.glob("*.md")),
    *sorted((DOCS / "guides").rglob("*.md")),
]
FENCE = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)

ELSEWHERE = {
    ("serve",): "test_serve.py",
    ("deploy", "demo"): "test_demo.py",
    ("deploy", "run"): "test_operate_fleet.py",
    ("deploy", "stop"): "test_operate_fleet.py",
    ("deploy", "remove"): "test_members.py",
}
"""Commands that run until they are stopped, or start processes, with the file of tests/deploy that runs them.

Programs for ExecuTorch are made by ``test_step.py``, with an extra.
"""

FOREIGN = ("torchvision", "albumentations")
"""Packages that no extra installs: without them, a block that imports one is compiled and not run."""

SMALLER = [
    (r"\brounds=\d+", "rounds=1"),
    (r"\bseeds=\d+", "seeds=1"),
    (r"\btune_rounds=\d+", "tune_rounds=0"),
    (r"\bseeds=1\b(?!.*\btune_rounds)", "seeds=1, tune_rounds=0"),
    (r"--rounds \d+", "--rounds 1"),
    (r"--seeds \d+", "--seeds 1"),
    (r"--tune-rounds \d+", "--tune-rounds 0"),
    (r"(plures (?:run|compare) \S+)(?!.*--rounds)", r"\1 --rounds 1"),
    (r"(plures compare \S+)(?!.*--seeds)", r"\1 --seeds 1"),
    (r"(plures compare \S+)(?!.*--tune-rounds)", r"\1 --tune-rounds 0"),
    (r"(?m)^plures case hospitals$", "plures case hospitals --quick"),
    (r'"se": True', '"se": True, "width": 4'),
    (r'"har"|(?<= )har(?= )', lambda har: har[0].replace("har", "heart")),
]
"""The smaller budget: a round, a seed, no tuning, small data, a narrow network."""


def commands(text: str) -> list[list[str]]:
    """The words of every command of plures in a block."""
    read = [shlex.split(line, comments=True) for line in text.splitlines()]
    other = {words[0] for words in read if words} - {"plures", "pip"}
    assert not other, f"a document shows commands that no test knows: {other}"
    return [words[1:] for words in read if words and words[0] == "plures"]


def smaller(text: str) -> str:
    for wanted, less in SMALLER:
        text = re.sub(wanted, less, text)
    return text


def understood(words: list[str]) -> None:
    """The command line reads a command: its words, options and values; nothing runs."""
    root = typer.main.get_command(app)
    context = root.make_context("plures", words)
    while hasattr(root, "resolve_command"):
        rest = [*context._protected_args, *context.args]
        name, root, rest = root.resolve_command(context, rest)
        context = root.make_context(name, rest, parent=context)


def run(words: list[str]) -> None:
    understood(words)
    if words[0] == "case" and words[1:] and "--quick" not in words:
        assert words[1] in CASES
    elif "executorch" not in words and not any(tuple(words[: len(known)]) == known for known in ELSEWHERE):
        done = CliRunner().invoke(app, words, catch_exceptions=False)
        assert done.exit_code == 0, f"plures {shlex.join(words)}\n{done.output}"
        if words[0] in ("run", "compare"):
            did(words, " ".join(done.output.split()))


def given(words: list[str], option: str) -> list[str]:
    return [value for name, value in pairwise(words) if name == option]


def did(words: list[str], printed: str) -> None:
    """The files of a run or a comparison match its command line, and its output matches the files."""
    [out] = given(words, "--out") or [f"runs/{words[0]}"]
    if words[0] == "compare":
        result = Comparison.from_json(Path(out) / "results.json")
        names = [method.name for method in result.methods]
        asked = [find_method(name, Code.typed(name)).name for name in given(words, "--method")]
        beside = [POOLED] if "--pooled" in words else []
        assert names == list(dict.fromkeys([*BASELINES, *beside, *(asked or DEFAULT)]))
        title, shown = ("accuracy, %", 100.0) if not given(words, "--metric") else ("AUROC", 1.0)
        assert f"{Path(words[1]).stem}: {title} on test data" in printed
        for name in names:
            mean = shown * result.row(name).mean
            assert f" {mean:.1f} " in printed or f" {mean:.3f} " in printed
        return
    folder = RunFolder(Path(out))
    spec = folder.spec()
    options = {place for place, part in enumerate(words) if part.startswith("--")}
    data, method = [part for place, part in enumerate(words) if not {place, place - 1} & options][1:]
    settings = [setting.partition("=") for setting in given(words, "--set")]
    assert (spec.data, spec.method) == (data, method)
    assert {key: word(value) for key, value in spec.parameters.items()} == {k: value for k, _, value in settings}
    assert list(spec.unseen) == given(words, "--unseen")
    found = folder.result().test
    for metric in ("accuracy", "rmse"):
        if metric in found.metrics:
            assert f" on {Path(data).stem}: test {metric} {np.mean(found.metrics[metric]):.4f} on average" in printed


def run_all(text: str, name: str) -> dict[str, object]:
    """Run every code block that names its language; returns the names that the Python blocks define."""
    names = {"__name__": "__main__"}
    for number, (language, block) in enumerate(FENCE.findall(text), 1):
        if language == "python":
            code = compile(smaller(block), f"{name} block {number}", "exec")
            if all(
                find_spec(needed) for needed in FOREIGN if re.search(rf"^(import|from) {needed}\b", block, re.MULTILINE)
            ):
                exec(code, names)
        elif language == "sh":
            for words in commands(smaller(block)):
                run(words)
        elif language == "toml":
            assert read_study(Path("study.toml")).document.name == "mine"
        else:
            assert language == "mermaid", f"{name}: no test knows blocks of {language}"
    return names


def publish(folder: Path) -> None:
    """What a site has after a federation's run: its model and rows."""
    spec = RunSpec(data="heart", method="ditto+threshold", rounds=1)
    trained = spec.run(heart_schema().federation("hospitals", heart_tables()))
    for _ in trained.rounds():
        pass
    PersonalModel.of(trained, "va", spec, schema=heart_schema()).save(folder / "state/heart/ditto+threshold/published")
    write_table(folder / "patients.csv", heart_tables()["va"])


@pytest.mark.usefixtures("forked")
@pytest.mark.filterwarnings("ignore::plures.errors.PluresWarning")
@pytest.mark.parametrize("file", DOCUMENTS, ids=lambda file: file.stem)
def test_blocks_of_a_document_run_in_order(file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    study = next(text for language, text in FENCE.findall(CHOOSE.read_text(encoding="utf-8")) if language == "toml")
    Path("study.toml").write_text(smaller(study), encoding="utf-8")
    if file == DEPLOYMENT:
        publish(tmp_path)
    run_all(file.read_text(encoding="utf-8"), file.name)


@pytest.fixture(scope="module")
def baselines(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Finished runs of the methods that are in every comparison; a comparison that finds them does not repeat them."""
    folder = tmp_path_factory.mktemp("baselines")
    words = shlex.split(smaller("plures compare har --method fedavg"))[1:]
    assert CliRunner().invoke(app, [*words, "--out", str(folder)]).exit_code == 0
    return folder / "runs"


@pytest.mark.filterwarnings("ignore::plures.errors.PluresWarning")
@pytest.mark.parametrize("name", METHODS)
def test_what_a_methods_page_shows_runs(name, baselines, tmp_path, monkeypatch, capsys):
    """It trains this method with its settings, and prints its results: see ``did`` for commands."""
    monkeypatch.chdir(tmp_path)
    text = use(METHODS[name])
    if name not in COMMANDS:
        shutil.copytree(baselines, Path("runs", "compare", "runs"))
    names = run_all(text, name)
    if name in PYTHON:
        tried = [method.name for method in names["result"].methods]
        assert tried == list(dict.fromkeys([*BASELINES, name]))
        values = names["result"].method(name).per_client("accuracy")
        assert float(capsys.readouterr().out) == pytest.approx(np.mean(values), abs=1e-12)


def test_a_block_that_is_wrong_would_be_found():
    for wrong in ("compare heart --methd ditto", "run heart ditto --rounds many", "trian heart"):
        with pytest.raises(Exception, match=r"No such|not a valid|no command"):
            understood(wrong.split())


def test_what_does_not_run_here_runs_elsewhere():
    for words, file in ELSEWHERE.items():
        text = (ROOT / "tests" / "deploy" / file).read_text(encoding="utf-8")
        assert re.search(rf'"{words[-1]}"|\b{words[-1]}\(', text), f"{file} does not run plures {' '.join(words)}"
