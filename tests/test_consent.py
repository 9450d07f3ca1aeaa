"""A file may name a method of the catalogue, or code that its reader consented to; nothing else runs."""

from __future__ import annotations

import ast
import hashlib
import importlib
import json
import os
import py_compile
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from plures import METHODS, Code, cli
from plures.deploy import app
from plures.deploy.plan import Plan, SiteFile
from plures.deploy.promise import promise
from plures.errors import PluresError
from plures.evaluate import RunFolder, RunSpec, finish, fit
from plures.evaluate.spec import find_method
from plures.files import read, write, write_json
from plures.models import NETWORKS
from plures.run import Execution, Run, choose
from plures.serving.export import export
from plures.serving.personal import MODEL, PersonalModel, opened
from plures.signature import fits, kinds, readings
from plures.study import Study, parse_study, plan_of
from plures.tables.heart import heart_schema, heart_tables
from plures.tables.table import write_table
from saying import Says

LOOP = Execution("loop", 1, False, "float32", "cpu")
OWN = "from plures.methods import fedavg\n\ndef own():\n    return fedavg()\n"
LEAVES_A_MARK = "from pathlib import Path\nPath({mark!r}).touch()\n" + OWN


@pytest.fixture
def mark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A file that code of an attacker makes, and such code on the path: a module and a package."""
    mark, code = tmp_path / "mark", tmp_path / "code"
    (code / "evilpack").mkdir(parents=True)
    for file in (code / "evil.py", code / "evilpack" / "__init__.py"):
        file.write_text(LEAVES_A_MARK.format(mark=str(mark)))
    (code / "evilpack" / "inner.py").write_text(OWN)
    monkeypatch.syspath_prepend(code)
    yield mark
    for name in [
        name for name in sys.modules if name.partition(".")[0] in ("evil", "evilpack", "mine", "pack", "beside")
    ]:
        del sys.modules[name]


ATTACKS: dict[str, Callable[[Path], dict[str, object]]] = {
    "subprocess:check_call": lambda mark: {"args": ["touch", str(mark)]},
    "os:system": lambda mark: {"command": f"touch {mark}"},
    "runpy:run_path": lambda mark: {"path_name": str(mark.parent / "code" / "evil.py")},
    "evil:own": lambda mark: {},
    "evilpack.inner:own": lambda mark: {},
    "fedavg+evil:own": lambda mark: {},
    "evil:own+fedavg": lambda mark: {},
    "evilpack:own+evil:own": lambda mark: {},
    " evil:own": lambda mark: {},
    "evil :own": lambda mark: {},
    "evil: own": lambda mark: {},
    "evil:own ": lambda mark: {},
    "evil:own\n": lambda mark: {},
    "evil::own": lambda mark: {},
    "evil.:own": lambda mark: {},
    ".evil:own": lambda mark: {},
    "evilpack.inner.own": lambda mark: {},
    "evil\N{FULLWIDTH COLON}own": lambda mark: {},
    "\N{LATIN SMALL LETTER E WITH ACUTE}vil:own": lambda mark: {},
    "EVIL:own": lambda mark: {},
    "evil.py:own": lambda mark: {},
    "./evil.py:own": lambda mark: {},
}
FEW = ("subprocess:check_call", "evilpack.inner:own", "fedavg+evil:own")


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run, next to a published model and a file of inputs."""
    home = tmp_path_factory.mktemp("honest")
    spec = RunSpec(data="heart", method="fedavg", rounds=1)
    run = spec.run(spec.federation(), LOOP)
    RunFolder(home / "run").write(run, spec, finish(fit(run, "honest"), 0))
    opened(home / "run", "va").save(home / "published")
    write_table(home / "rows.csv", {name: values[:2] for name, values in heart_tables()["va"].items()})
    return home


def poisoned(honest: Path, home: Path, method: str, parameters: dict[str, object]) -> Path:
    """The same with another method in the description and in the card."""
    shutil.copytree(honest, home)
    description = home / "run" / "run.json"
    told = json.loads(description.read_text())
    told["spec"] |= {"method": method, "parameters": parameters}
    told.pop("sha256", None)
    write_json(description, told)
    tensors, about = read(home / "published" / MODEL)
    about["card"]["spec"] |= {"method": method, "parameters": parameters}
    write(home / "published" / MODEL, tensors, about)
    return home


def federation(home: Path, method: str, parameters: dict[str, object], code: str = "") -> Path:
    """A federation's file, next to one of its sites."""
    home.mkdir(parents=True, exist_ok=True)
    run = f"method = {json.dumps(method)}\nrounds = 1\nparameters = {{ {inline(parameters)} }}"
    plan = f'name = "heart"\nclients = {json.dumps(list(heart_tables()))}\n\n[run]\n{run}\n\n'
    (home / "federation.toml").write_text(plan + heart_schema().to_toml())
    write_table(home / "data.csv", heart_tables()["va"])
    (home / "site.toml").write_text(f'client = "va"\ndata = "data.csv"\n\n[allow]\n{code}\n')
    return home / "federation.toml"


def inline(values: dict[str, object]) -> str:
    return ", ".join(f"{key} = {json.dumps(value)}" for key, value in values.items())


def study(method: str, parameters: dict[str, object]) -> str:
    told = f"[[methods]]\nname = {json.dumps(method)}\nparameters = {{ {inline(parameters)} }}\n"
    return f'name = "s"\n[[data]]\nname = "heart"\n{told}[[budgets]]\nrounds = 1\n[tuning]\ntrials = 0\n'


class Nobody:
    """A transport that reaches nobody."""

    def addresses(self) -> list[int]:
        return []

    def exchange(self, messages: object, deadline: float) -> dict[int, bytes | str]:
        return {}


@pytest.mark.parametrize("method", ATTACKS)
def test_a_name_that_is_read_runs_nothing(method: str, mark: Path):
    parameters = ATTACKS[method](mark)
    spec = RunSpec.model_validate({"data": "heart", "method": method, "parameters": parameters})
    for run in (lambda: spec.entry()(**parameters), lambda: spec.run(spec.federation(), LOOP)):
        with pytest.raises(PluresError, match=r"consent|catalogue|no method"):
            run()
    with pytest.raises(PluresError, match=r"consent|catalogue|no method"):
        parse_study(study(method, parameters), "study.toml", Path())
    assert not mark.exists()


@pytest.mark.parametrize("method", FEW)
def test_no_file_of_a_run_or_of_a_model_runs_code(method: str, honest: Path, mark: Path, tmp_path: Path):
    home = poisoned(honest, tmp_path / "sent", method, ATTACKS[method](mark))
    run, inputs = RunFolder(home / "run"), torch.zeros(1, *RunFolder(honest / "run").fitted().features)
    attempts: list[Callable[[], object]] = [
        lambda: run.predict("va", inputs),
        lambda: run.run(),
        lambda: run.bound(),
        lambda: opened(run.path, "va"),
    ]
    for attempt in attempts:
        with pytest.raises(PluresError, match=r"run\.json: method .* your consent: read .*--|run\.json: method"):
            attempt()
    with pytest.raises(PluresError, match=r"model\.safetensors: method '.*' is code"):
        PersonalModel.load(home / "published")
    assert not mark.exists()


@pytest.mark.parametrize("method", FEW)
def test_the_agreed_file_runs_no_code_at_a_site_or_at_the_coordinator(method: str, mark: Path, tmp_path: Path):
    file = federation(tmp_path / "site", method, ATTACKS[method](mark))
    own, plan = SiteFile.load(tmp_path / "site" / "site.toml"), Plan.load(file)
    with pytest.raises(PluresError, match=r"^federation\.toml: method .* is code"):
        promise(plan, own, own.table(tmp_path / "site"))
    with pytest.raises(PluresError, match=r"^federation\.toml: method .* is code"):
        app.opened(tmp_path / "site" / "site.toml")
    assert isinstance(app.site({"site": str(tmp_path / "site" / "site.toml")}), app.Closed)
    with pytest.raises(PluresError, match=r"federation.toml"):
        conducted(file, tmp_path / "out")
    assert not mark.exists()


def conducted(file: Path, out: Path, **more: str) -> None:
    """What the coordinator's process does before it needs sites."""
    app.conducted(Nobody(), {"plan": str(file), "out": str(out)} | more)


def test_the_database_of_a_study_runs_no_code(mark: Path, tmp_path: Path):
    from plures.study import Store, begin

    store, plan = Store(tmp_path / "s"), plan_of(parse_study(study("ditto", {}), "study.toml", Path()), "grid")
    begin(replace(plan, source=replace(plan.source, text=study("evil:own", {}))), store)
    store.close()
    with pytest.raises(PluresError, match=r"study\.db: method 'evil:own' is code"):
        Study(tmp_path / "s")
    assert not mark.exists()


COMMANDS: dict[str, Callable[[Path], list[object]]] = {
    "predict a run": lambda home: ["predict", home / "run", "--client", "va"],
    "predict a card": lambda home: ["predict", home / "published", "--inputs", home / "rows.csv"],
    "show a card": lambda home: ["predict", home / "published", "--card"],
    "serve a run": lambda home: ["serve", home / "run", "--client", "va", "--port", 0],
    "serve a card": lambda home: ["serve", home / "published", "--port", 0],
    "export a run": lambda home: ["export", home / "run", "--client", "va", "--out", home / "out"],
    "export a card": lambda home: ["export", home / "published", "--inputs", home / "rows.csv", "--out", home / "o"],
    "onboard": lambda home: ["onboard", home / "run", "--data", "heart"],
    "study": lambda home: ["study", home / "study.toml", "--out", home / "out"],
    "study --plan": lambda home: ["study", home / "study.toml", "--plan", "--out", home / "out"],
    "deploy check": lambda home: ["deploy", "check", home / "site" / "site.toml"],
}


@pytest.mark.parametrize("command", COMMANDS)
def test_no_command_runs_code_that_a_file_names(command: str, says: Says, honest: Path, mark: Path, tmp_path: Path):
    for number, method in enumerate(FEW):
        parameters = ATTACKS[method](mark)
        home = poisoned(honest, tmp_path / str(number), method, parameters)
        (home / "study.toml").write_text(study(method, parameters))
        federation(home / "site", method, parameters)
        status, told = says(*COMMANDS[command](home))
        part = method.removeprefix("fedavg+")
        assert status == 2
        assert f"method '{part}' is code, not a method of the catalogue, and runs only with your consent" in told
        assert re.search(r"(run\.json|model\.safetensors|study\.toml, line \d+|federation\.toml): ", told), told
        how = f'code = ["{part} sha256:' if command == "deploy check" else f"--allow-code {part}"
        assert how in told, told
        assert not mark.exists()


def test_a_process_in_the_folder_that_was_sent_runs_nothing_of_it(honest: Path, mark: Path, tmp_path: Path):
    """Neither what the card names nor a file named like a library."""
    home = poisoned(honest, tmp_path / "sent", "evil:own", {})
    for library in ("evil", "torch", "numpy", "pandas", "optuna", "typer", "sitecustomize"):
        (home / f"{library}.py").write_text(LEAVES_A_MARK.format(mark=str(mark)))
    environment = os.environ | {"PYTHONPATH": str(Path(cli.__file__).parents[2])}
    done = subprocess.run(
        [sys.executable, "-P", "-m", "plures.cli", "predict", "published", "--card"],
        cwd=home,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert (done.returncode, "--allow-code evil:own" in " ".join(done.stderr.split())) == (2, True), done.stderr
    assert not mark.exists()


def test_a_client_s_page_runs_no_code(says: Says, honest: Path, mark: Path, tmp_path: Path):
    home = poisoned(honest, tmp_path / "sent", "evil:own", {})
    status, told = says("client", home / "run", "va")
    assert (status, told.startswith("va, a client of heart Its data train examples 120 ")) == (0, True), told
    assert not mark.exists()


RUNS = {
    *(
        "import_module",
        "__import__",
        "exec",
        "eval",
        "spec_from_file_location",
        "exec_module",
        "load_module",
        "run_path",
    ),
    *("run_module", "Popen", "check_call", "check_output", "execv", "execve", "execvp", "popen", "Unpickler", "CDLL"),
    *("load_library", "load_inline", "read_pickle", "load_extension", "enable_load_extension", "unsafe_load"),
}
"""Calls that run code or a program."""
MODULES = {"pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib", "runpy", "code", "codeop", "yaml", "pty"}
UNPICKLES = {
    "run/packed.py": "messages between a process and those that do its tasks",
    "run/processes.py": "messages between a process and those that it has started, through a pipe",
    "evaluate/workers.py": "messages between a comparison and the processes that it has started, through a pipe",
}
KNOWN = {
    ("evaluate/code.py", "import_module"): "after the reader's consent",
    ("extras.py", "import_module"): "libraries that plures names",
    ("discover.py", "import_module"): "files of plures' own catalogues",
    ("tables/table.py", "import_module"): "pandas and pyarrow",
    ("cli/deploy.py", "execve"): "the node",
    ("cli/study.py", "Popen"): "processes of the same study",
    ("deploy/fleet/process.py", "Popen"): "Flower's programs",
    ("deploy/fleet/programs.py", "Popen"): "Flower's programs",
    ("deploy/fleet/programs.py", "import_module"): "Flower's programs",
    ("deploy/fleet/programs.py", "spec_from_file_location"): "inbox.py, layers.py and outbox.py beside it",
    ("deploy/fleet/programs.py", "exec_module"): "inbox.py, layers.py and outbox.py beside it",
    ("deploy/fleet/inbox.py", "import_module"): "two modules of Flower's node",
    ("deploy/fleet/layers.py", "import_module"): "modules of Flower's SuperLink and node",
    ("deploy/fleet/outbox.py", "import_module"): "modules of Flower's SuperLink",
    ("deploy/plan.py", "spec_from_file_location"): "the loader of the site's own file",
    ("deploy/plan.py", "exec_module"): "the loader of the site's own file",
    ("run/allocator.py", "CDLL"): "the C library",
}


def test_every_place_that_runs_code_is_known():
    """Every such place must be listed here, with the reason why it is safe."""
    sources, found = Path(cli.__file__).parents[1], set()
    for file in sources.rglob("*.py"):
        name = file.relative_to(sources).as_posix()
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            match node:
                case ast.Name(id=called) if called in RUNS:
                    found.add((name, called))
                case ast.Attribute(value=ast.Name(id="os" | "torch"), attr="system" | "load" | "hub" as called):
                    found.add((name, called))
                case ast.Attribute(attr=called) if called in RUNS - {"exec", "eval"}:  # nn.Module has an eval
                    found.add((name, called))
                case ast.Import(names=names):
                    assert name in UNPICKLES or not MODULES & {alias.name.partition(".")[0] for alias in names}, name
                case ast.ImportFrom(module=str(module)):
                    assert module.partition(".")[0] not in MODULES, name
                case ast.Call(func=ast.Attribute(value=ast.Name(id="np"), attr="load"), keywords=given):
                    assert {k.arg: ast.unparse(k.value) for k in given}.get("allow_pickle") == "False", name
                case ast.keyword(arg="shell" | "weights_only"):
                    found.add((name, str(node.arg)))
    assert found == set(KNOWN)


# --- consent ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def mine(tmp_path: Path, mark: Path) -> Path:
    """A user's module on the path."""
    file = tmp_path / "code" / "mine.py"
    file.write_text(LEAVES_A_MARK.format(mark=str(mark)))
    return file


def test_the_hash_is_that_of_the_file(mine: Path):
    from plures.evaluate.code import pin

    assert pin(mine) == f"sha256:{hashlib.sha256(mine.read_bytes()).hexdigest()}"


def test_the_command_line_consents(says: Says, mine: Path, mark: Path, tmp_path: Path):
    spec = RunSpec(data="heart", method="mine:own", rounds=1)
    code = Code.of("mine:own")
    run = spec.run(spec.federation(), LOOP, code)
    folder = RunFolder(tmp_path / "run", code)
    folder.write(run, spec, finish(fit(run, "own"), 0))
    wanted = RunFolder(tmp_path / "run", code).predict("va")[0]
    status, told = says("predict", tmp_path / "run", "--client", "va")
    assert (status, "--allow-code mine:own" in told) == (2, True)
    assert says("predict", tmp_path / "run", "--client", "va", "--allow-code", "mine:other")[0] == 2
    assert says("predict", tmp_path / "run", "--client", "va", "--allow-code", "mine:own")[0] == 0
    opened(tmp_path / "run", "va", code).save(tmp_path / "published")
    with pytest.raises(PluresError, match="consent"):
        PersonalModel.load(tmp_path / "published")
    model = PersonalModel.load(tmp_path / "published", code)
    data = spec.federation()
    torch.testing.assert_close(model.outputs(data.inputs[data.splits["test"][data.index("va")]]), wanted)
    (found,) = export(model, tmp_path / "o", torch.zeros(1, *data.features), to=("folder",), code=code)[1:]
    assert found.largest == 0


def test_a_hash_on_the_command_line_is_checked(says: Says, mine: Path, mark: Path):
    text = study("mine:own", {})
    (mine.parent / "study.toml").write_text(text)
    words = ["study", mine.parent / "study.toml", "--plan", "--out", mine.parent / "out", "--allow-code"]
    status, told = says(*words, f"mine:own sha256:{'0' * 64}")
    assert (status, "is not the code that was allowed" in told, mark.exists()) == (2, True, False)


def test_the_refusal_names_what_to_read_in_the_current_folder(
    says: Says, honest: Path, mark: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    home = poisoned(honest, tmp_path / "sent", "lying_here:own", {})
    (home / "lying_here.py").write_text(LEAVES_A_MARK.format(mark=str(mark)))
    monkeypatch.chdir(home)
    status, told = says("predict", "published", "--card")
    assert status == 2
    assert f"read {home / 'lying_here.py'}, and if you trust it, allow it with --allow-code lying_here:own" in told
    assert not mark.exists()
    assert says("predict", "published", "--card", "--allow-code", "lying_here:own")[0] == 0
    assert mark.exists()


@pytest.mark.parametrize("wrong", ["mine", "mine:", ":own", "./mine.py:own", "sha256:00", "mine:own md5:00", "a b:c"])
def test_consent_names_a_function(wrong: str, says: Says, honest: Path):
    status, told = says("predict", honest / "run", "--client", "va", "--allow-code", wrong)
    assert (status, "write package.module:function" in told) == (2, True)


def joined(folder: Path, code: str) -> object:
    federation(folder, "mine:own" if "pack" not in code else "pack.inner:own", {}, code)
    return app.opened(folder / "site.toml")


def line_of(folder: Path, method: str) -> str:
    """The line that the error message says to write."""
    federation(folder, method, {})
    with pytest.raises(PluresError) as refused:
        app.opened(folder / "site.toml")
    (line,) = re.findall(r'code = \[".*?"\]', str(refused.value))
    return str(line)


def test_a_site_consents_by_name_and_hash(mine: Path, mark: Path, tmp_path: Path):
    line = line_of(tmp_path / "site", "mine:own")
    assert not mark.exists()
    for wrong in ('code = ["mine:own"]', f'code = ["mine:own sha256:{"0" * 64}"]', line.replace("own", "other")):
        with pytest.raises(PluresError, match=r"federation.toml: method 'mine:own'"):
            joined(tmp_path / "site", wrong)
        assert not mark.exists()
    assert joined(tmp_path / "site", line)
    assert mark.exists()
    mark.unlink()
    del sys.modules["mine"]
    mine.write_text(mine.read_text() + "# changed\n")
    with pytest.raises(PluresError, match=r"is not the code that was allowed: .*mine.py has sha256:"):
        joined(tmp_path / "site", line)
    assert not mark.exists()


def test_the_coordinator_consents_in_its_run_s_configuration(mine: Path, mark: Path, tmp_path: Path):
    file = federation(tmp_path / "c", "mine:own", {})
    with pytest.raises(PluresError) as refused:
        conducted(file, tmp_path / "out", code=f"mine:own sha256:{'0' * 64}")
    (said,) = re.findall(r'--allow-code "(.*?)"', str(refused.value))
    for wrong in ("", "mine:own"):
        with pytest.raises(PluresError, match=r"federation\.toml: method 'mine:own' is code"):
            conducted(file, tmp_path / "out", code=wrong)
    assert not mark.exists()
    with pytest.raises(PluresError, match="keys"):  # the next consent that it asks for
        conducted(file, tmp_path / "out", code=said)
    assert mark.exists()


@pytest.fixture
def pack(tmp_path: Path, mark: Path) -> Path:
    """A user's package, with the method in a module that imports another one."""
    folder = tmp_path / "code" / "pack"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    (folder / "helper.py").write_text("from plures.methods import fedavg\n")
    (folder / "inner.py").write_text("from pack.helper import fedavg\n\ndef own():\n    return fedavg()\n")
    return folder


@pytest.mark.parametrize("changed", ["__init__.py", "inner.py", "helper.py", "another.py"])
def test_the_hash_of_a_package_is_of_all_its_code(changed: str, pack: Path, mark: Path, tmp_path: Path):
    line = line_of(tmp_path / "site", "pack.inner:own")
    assert joined(tmp_path / "site", line)
    for name in ("pack", "pack.inner", "pack.helper"):
        del sys.modules[name]
    with (pack / changed).open("a") as file:
        file.write(LEAVES_A_MARK.format(mark=str(mark)))
    with pytest.raises(PluresError, match="is not the code that was allowed"):
        joined(tmp_path / "site", line)
    assert not mark.exists()


@pytest.mark.parametrize("pinned", [True, False])
def test_a_compiled_file_beside_the_source_is_not_what_runs(pinned: bool, mine: Path, mark: Path, tmp_path: Path):
    evil = mine.read_text()
    mine.write_text(OWN)
    line = line_of(tmp_path / "site", "mine:own")
    source = tmp_path / "evil_source.py"
    source.write_text(evil)
    compiled = importlib.util.cache_from_source(str(mine))
    py_compile.compile(str(source), compiled, invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH)
    prefix = sys.pycache_prefix
    if pinned:
        assert joined(tmp_path / "site", line)
    else:
        assert parse_study(study("mine:own", {}), "study.toml", Path(), code=Code.of("mine:own", by="option"))
    assert not mark.exists()
    assert sys.pycache_prefix == prefix
    del sys.modules["mine"]
    importlib.import_module("mine")
    assert mark.exists(), "Python itself runs the compiled file"


@pytest.mark.parametrize("module", ["os", "sys", "builtins", "torch", "nowhere", "mine.inner", "space", "pack"])
def test_a_module_that_cannot_be_hashed_is_not_allowed_at_a_site(module: str, pack: Path, mark: Path, tmp_path: Path):
    (tmp_path / "code" / "mine.py").write_text(OWN)
    (tmp_path / "code" / "space").mkdir()
    (tmp_path / "else").mkdir()
    (pack / "linked").symlink_to(tmp_path / "else", target_is_directory=True)
    federation(tmp_path / "site", f"{module}:own", {}, f'code = ["{module}:own sha256:{"0" * 64}"]')
    with pytest.raises(PluresError, match=f"federation.toml: method '{module}:own' has no hash, because "):
        app.opened(tmp_path / "site" / "site.toml")
    federation(tmp_path / "site", f"{module}:own", {})
    with pytest.raises(PluresError, match=r"which is not possible here, because .*: use a method of the catalogue"):
        app.opened(tmp_path / "site" / "site.toml")


def test_a_module_that_was_loaded_from_elsewhere_is_not_the_allowed_one(mine: Path, mark: Path, tmp_path: Path):
    line = line_of(tmp_path / "site", "mine:own")
    (tmp_path / "else").mkdir()
    (tmp_path / "else" / "mine.py").write_text(OWN)
    sys.path.insert(0, str(tmp_path / "else"))
    try:
        importlib.import_module("mine")
    finally:
        sys.path.remove(str(tmp_path / "else"))
    with pytest.raises(PluresError, match=r"does not come from .*mine.py, which was allowed"):
        joined(tmp_path / "site", line)
    assert not mark.exists()


def test_a_text_that_code_holds_is_not_followed(mine: Path, mark: Path):
    mine.write_text('own = "evil:own"\n')
    with pytest.raises(PluresError, match="method 'evil:own' is code"):
        find_method("mine:own", Code.of("mine:own"))
    assert not mark.exists()


def test_helpers_of_a_study_get_the_consent_and_nothing_of_the_current_folder(monkeypatch: pytest.MonkeyPatch):
    started: list[list[str]] = []

    class Child:
        def __init__(self, words: list[str], **options: object) -> None:
            started.append(words)

        def wait(self) -> int:
            return 0

    from plures.cli import study as command

    monkeypatch.setattr(command.subprocess, "Popen", Child)
    with command.helpers(["s.toml", "--allow-code", "mine:own"], 1):
        pass
    assert started == [[sys.executable, "-P", "-m", "plures.cli", "study", "s.toml", "--allow-code", "mine:own"]]


def test_the_current_folder_stands_in_for_no_library(
    says: Says, mark: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """A folder from someone else may hold a file named like a library that is not installed."""
    from plures.extras import needed

    (tmp_path / "sent").mkdir()
    (tmp_path / "sent" / "no_such_library.py").write_text(LEAVES_A_MARK.format(mark=str(mark)))
    monkeypatch.chdir(tmp_path / "sent")

    def tracked(*given: object) -> Any:
        return needed("no_such_library", "a tracker", "track")

    monkeypatch.setattr("plures.cli.research.trackers", tracked)
    monkeypatch.setattr("plures.cli.study.trackers", tracked)
    (tmp_path / "sent" / "study.toml").write_text(study("ditto", {}))
    for words in (["run", "heart", "fedavg"], ["compare", "heart"], ["study", "study.toml"]):
        status, told = says(*words)
        assert (status, "no_such_library" in told) == (2, True), told
    assert not mark.exists()


def test_what_the_user_types_is_consent(says: Says, mine: Path, mark: Path, tmp_path: Path):
    status, _ = says("run", "heart", "mine:own", "--rounds", 1, "--backend", "loop", "--out", tmp_path / "run")
    assert (status, mark.exists()) == (0, True)
    assert says("methods", "mine:own")[0] == 0


@pytest.mark.parametrize("dtype", ["os", "hub", "torch.load", "no_type", "__name__"])
def test_a_type_of_numbers_is_nothing_else_of_pytorch(dtype: str, honest: Path, tmp_path: Path):
    home = tmp_path / "sent"
    shutil.copytree(honest, home)
    tensors, about = read(home / "published" / MODEL)
    about["card"]["dtype"] = dtype
    write(home / "published" / MODEL, tensors, about)
    with pytest.raises(PluresError, match="is not a numeric type"):
        PersonalModel.load(home / "published")
    tensors, about = read(home / "run" / "models.safetensors")
    about["fitted"]["dtype"] = dtype
    write(home / "run" / "models.safetensors", tensors, about)
    with pytest.raises(PluresError, match="is not a numeric type"):
        opened(home / "run", "va")


ODD_CARDS: dict[str, dict[str, Any]] = {
    "classes of nothing": {"classes": []},
    "more classes than outputs": {"outputs": 3},
    "no example": {"features": [0]},
    "less than no example": {"features": [-1]},
    "columns of other examples": {"features": [3]},
    "a preparation of nothing": {"preparation": {}},
    "a table of nothing": {"preparation": {"table": [{}], "ignored": [], "gaps": []}},
    "levels that are none": {"preparation": {"table": [{"name": "a", "levels": 3}], "ignored": [], "gaps": []}},
    "a gap elsewhere": {"preparation": {"table": [], "ignored": [], "gaps": [10**9]}},
    "a gap before": {"preparation": {"table": [], "ignored": [], "gaps": [-1]}},
    "what is ignored": {"preparation": {"table": [], "ignored": [None], "gaps": []}},
}


@pytest.mark.parametrize("odd", ODD_CARDS)
def test_a_card_whose_parts_do_not_belong_together_is_refused_in_a_sentence(odd: str, honest: Path, tmp_path: Path):
    tensors, about = read(honest / "published" / MODEL)
    write(tmp_path / MODEL, tensors, about | {"card": about["card"] | ODD_CARDS[odd]})
    with pytest.raises(PluresError, match="the card is damaged"):
        PersonalModel.load(tmp_path)


@pytest.mark.parametrize("name", ["clients_on_disk", "device", "other"])
def test_a_run_names_no_folder_to_write_to(name: str, honest: Path, tmp_path: Path):
    home = tmp_path / "sent"
    shutil.copytree(honest, home)
    told = json.loads((home / "run" / "run.json").read_text())
    told["execution"][name] = str(tmp_path / "elsewhere")
    told.pop("sha256", None)
    write_json(home / "run" / "run.json", told)
    with pytest.raises(PluresError, match=r"run\.json is damaged .*: run again"):
        RunFolder(home / "run").run()
    assert not (tmp_path / "elsewhere").exists()


def test_a_measured_execution_names_no_folder_to_write_to(tmp_path: Path):
    told = {"backend": "loop", "chunk": 1, "compile": False, "precision": "float32", "device": "cpu"}
    assert Execution.from_dict(told) == LOOP
    with pytest.raises(PluresError, match="'clients_on_disk' is not read from a file"):
        Execution.from_dict(told | {"clients_on_disk": str(tmp_path)})


VALUES: list[Any] = ["builtins:exec", "os.system", "lambda: 0", {"func": "os:system"}, ["os:system"], {}, True, 1, None]


def test_no_parameter_that_takes_a_function_takes_what_a_file_can_say():
    taking = [(name, key, kind) for name, entry in METHODS.items() for key, kind in entry.kinds.items()]
    taking += [(name, key, kind) for name, build in NETWORKS.items() for key, kind in kinds(build).items()]
    taking = [about for about in taking if "Callable" in str(about[2]) or about[2] is Any]
    assert {(name, key) for name, key, _ in taking} == {
        ("fedsimclr", "views"),
        ("threshold", "utility"),
        ("digital_twin", "groups"),
    }, "a parameter that takes a function is new: see that no text becomes one"
    for name, key, kind in taking:
        for value in VALUES:
            for reading in filter(lambda reading: fits(reading, kind), readings(value)):
                assert not callable(reading), (name, key, value)
                assert (name, key) == ("digital_twin", "groups"), (name, key, value)  # a column's name, or none


@pytest.mark.skipif(sys.platform == "win32", reason="users by number")
def test_compiled_steps_come_from_a_folder_of_one_s_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Another user of the machine may create the folder first, because its name is predictable."""
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    from torch._inductor.runtime.cache_dir_utils import default_cache_dir  # imports PyTorch's compiler

    folder = Path(default_cache_dir())
    assert folder.parent == tmp_path
    assert choose.own_cache()
    assert folder.stat().st_mode & 0o777 == 0o700
    folder.chmod(0o777)
    assert not choose.own_cache()
    monkeypatch.setattr(shutil, "which", lambda name: name)
    monkeypatch.setattr(Path, "is_file", lambda self: True)
    assert "others may write where PyTorch keeps compiled steps" in (choose.uncompilable() or "")
    folder.chmod(0o755)
    assert choose.own_cache()
    me = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: me + 1)
    assert not choose.own_cache()
    monkeypatch.undo()
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    folder.rmdir()
    folder.symlink_to(tmp_path / "else")
    assert not choose.own_cache()


def test_a_run_of_python_objects_has_no_code_to_consent_to(tmp_path: Path):
    from plures.methods import fedavg

    data = RunSpec(data="heart").federation()
    run = Run(data, RunSpec(data="heart").network(data), fedavg(), RunSpec(data="heart", rounds=1).training())
    assert run.step().round == 1
