"""Every block of code in the documentation site runs, at a smaller budget.

Python blocks of a page share a namespace and a folder with its commands, in the order of the page. Commands run in this
process. Those in PARSED are only read by the command line (words, options and the types of their values are checked).
"""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import typer
from tools.pages import use
from typer.testing import CliRunner

from plures import METHODS
from plures.cli import app
from plures.study import read_study

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = [DOCS / "index.md", DOCS / "tutorial.md", *sorted((DOCS / "guides").glob("*.md"))]
FENCE = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)

PARSED = {
    "serve": "it answers until it is stopped",
    "diagnose": "the same runs in Python on the page",
    "device": "it measures each method's memory anew",
    "export": "it needs the extra for ONNX",
    "study": "the file of the page is read by itself",
    "deploy": "it needs processes and keys",
}
"""Commands that are read and not run, and why."""

SMALLER = [
    (r"\brounds=\d+", "rounds=1"),
    (r"\bseeds=\d+", "seeds=1"),
    (r"\btune_rounds=\d+", "tune_rounds=0"),
    (r"--rounds \d+", "--rounds 1"),
    (r"--seeds \d+", "--seeds 1"),
    (r"--tune-rounds \d+", "--tune-rounds 0"),
    (r"(plures compare \w+)(?!.*--seeds)", r"\1 --seeds 1 --tune-rounds 0"),
]
"""The smaller budget: a round, a seed, no tuning."""


def blocks(file: Path) -> list[tuple[str, str]]:
    """Language and text of every block of a page that names a language."""
    return FENCE.findall(file.read_text(encoding="utf-8"))


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


@pytest.mark.filterwarnings("ignore::plures.errors.PluresWarning")
@pytest.mark.parametrize("file", PAGES, ids=lambda file: file.stem)
def test_blocks_of_a_page_run_in_order(file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "__main__"}
    for number, (language, text) in enumerate(blocks(file), 1):
        if language == "python":
            exec(compile(smaller(text), f"{file.name} block {number}", "exec"), names)
        elif language == "sh":
            for words in commands(smaller(text)):
                understood(words)
                if words[0] not in PARSED:
                    done = CliRunner().invoke(app, words, catch_exceptions=False)
                    assert done.exit_code == 0, done.output
        elif language == "toml":
            Path("study.toml").write_text(text, encoding="utf-8")
            assert read_study(Path("study.toml")).document.name == "mine"
        else:
            assert language == "mermaid", f"{file.name}: no test knows blocks of {language}"


@pytest.mark.parametrize("file", [DOCS / "deployment.md", DOCS / "composition.md"], ids=lambda file: file.stem)
def test_commands_of_other_documents_are_understood(file):
    known = typer.main.get_command(app).commands
    for words in (w for language, text in blocks(file) if language == "sh" for w in commands(text)):
        if words[0] == "deploy" and "deploy" not in known:
            pytest.skip("this version has no command `plures deploy`")
        understood(words)


@pytest.mark.parametrize("name", METHODS)
def test_commands_of_a_methods_page_are_understood(name):
    """And what they set is a parameter of the method."""
    (language, text), *_ = FENCE.findall(use(METHODS[name]))
    assert language == "sh"
    for words in commands(text):
        understood(words)
    for parameter in re.findall(r"--set (\w+)=", text):
        assert parameter in METHODS[name].defaults


def test_a_block_that_is_wrong_would_be_found():
    for wrong in ("compare heart --methd ditto", "run heart ditto --rounds many", "trian heart"):
        with pytest.raises(Exception, match=r"No such|not a valid"):
            understood(wrong.split())


def test_commands_that_do_not_run_are_few_and_still_there():
    shown = {w[0] for file in PAGES for language, text in blocks(file) if language == "sh" for w in commands(text)}
    assert shown - PARSED.keys() >= {"compare", "run", "onboard", "predict", "client"}
