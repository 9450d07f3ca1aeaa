"""What a user installs: the pins resolve for every supported Python, and the wheel is complete on its own."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import venv
from importlib.metadata import distribution
from pathlib import Path
from zipfile import ZipFile

import pytest
from packaging.requirements import Requirement

import plures
from plures.evaluate.results import BASELINES, Comparison
from plures.run import Execution

ROOT = Path(__file__).parent.parent
PINS = ROOT / "constraints.txt"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PYTHONS = ("3.11.0", "3.12", "3.13")
INSTALLED = ("", *re.findall(r'"\.\[(dev.*?)\]"', (ROOT / "Makefile").read_text()))
"""Extras that are installed together: for users none, and those of `make test` and `make test-extras`."""
ARCHIVES = ("antlr4-python3-runtime",)
"""Packages that are released as source archives alone, and built where they are installed."""
CUDA = ("cuda-", "nvidia-", "triton")
"""Prefixes of the packages that PyTorch's CUDA builds bring along. PyTorch itself pins their versions."""
UNREACHABLE = ("Failed to fetch", "Could not connect", "error sending request", "Request failed", "timed out")
HOW = Execution("vmap", 4, False)
PROXY = ("http_proxy", "https_proxy", "all_proxy", "no_proxy", "ssl_cert_file", "uv_index_url", "uv_default_index")
PATIENCE = 120.0
"""Seconds after which a package index counts as unreachable."""


def resolved(requirements: list[str], python: str, folder: Path, pins: Path = PINS) -> dict[str, str]:
    """The version of every package that some requirements install under the pins.

    Only names and versions are looked up: no package is downloaded, but for those of ``ARCHIVES``.
    """
    uv = pytest.importorskip("uv", reason="resolving for another Python needs uv: pip install 'plures[dev]'")
    wanted = folder / "wanted.txt"
    wanted.write_text("\n".join(requirements))
    how = ["--constraint", str(pins), "--python-version", python, "--only-binary", ":all:"]
    how += [word for name in ARCHIVES for word in ("--no-binary", name)]
    plain = ["--no-config", "--quiet", "--no-annotate", "--no-header", "--cache-dir", str(folder.parent / "uv")]
    reach = {name: value for name, value in os.environ.items() if name.lower() in PROXY}
    env = {"PATH": os.defpath, "HOME": str(folder), "UV_HTTP_TIMEOUT": "20", **reach}
    command = [uv.find_uv_bin(), "pip", "compile", str(wanted), *how, *plain, "--python", sys.executable]
    try:
        done = subprocess.run(command, capture_output=True, text=True, env=env, cwd=folder, timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        pytest.skip(f"no answer of the package index within {PATIENCE:g} s")
    if done.returncode and any(sign in done.stderr for sign in UNREACHABLE):
        pytest.skip(f"no package index can be reached: {done.stderr.splitlines()[0]}")
    assert done.returncode == 0, done.stderr
    return dict(line.split(" ;")[0].split("==") for line in done.stdout.splitlines())


def pins() -> dict[str, str]:
    lines = PINS.read_text().splitlines()
    return dict(line.split("==") for line in lines if not line.startswith("#"))


def normal(name: str) -> str:
    return name.lower().replace("_", "-").replace(".", "-")


@pytest.mark.parametrize("python", PYTHONS)
def test_every_pin_exists_for_every_python(python, tmp_path):
    found = resolved([f"{name}=={version}" for name, version in pins().items()], python, tmp_path)
    missing = {normal(name) for name in pins()} - {normal(name) for name in found}
    assert not missing


@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize("together", INSTALLED)
def test_what_is_installed_is_pinned(python, together, tmp_path):
    extras = PROJECT["optional-dependencies"]
    wanted, todo = list(PROJECT["dependencies"]), together.split(",") if together else []
    while todo:
        for line in extras[todo.pop()]:
            requirement = Requirement(line)
            if requirement.name == PROJECT["name"]:
                todo += requirement.extras
            else:
                wanted.append(line)
    found = resolved(wanted, python, tmp_path)
    pinned = {normal(name): version for name, version in pins().items()}
    loose = {name for name in found if not name.startswith(CUDA)} - pinned.keys()
    assert not loose, "no pin in constraints.txt"
    assert {name: found[name] for name in found.keys() & pinned} == {
        name: pinned[name] for name in found.keys() & pinned
    }
    assert {normal(Requirement(line).name) for line in wanted} <= {normal(name) for name in found}


def test_a_pin_that_a_promised_python_cannot_install_is_found(tmp_path):
    """Version 13.1 of pymdown-extensions needs Python 3.11.5."""
    pins = tmp_path / "pins.txt"
    pins.write_text("pymdown-extensions==13.1\n")
    assert resolved(["pymdown-extensions"], "3.11.5", tmp_path, pins)["pymdown-extensions"] == "13.1"
    with pytest.raises(AssertionError, match=r"does not satisfy Python>=3\.11\.5"):
        resolved(["pymdown-extensions"], "3.11.0", tmp_path, pins)


# The wheel ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The wheel, built from the source archive, as a release is."""
    pytest.importorskip("hatchling", reason="building the wheel needs hatchling: pip install 'plures[dev]'")
    folder = tmp_path_factory.mktemp("wheel")
    clone = folder / "clone"
    clone.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE", ".gitignore"):
        shutil.copy(ROOT / name, clone)
    shutil.copytree(ROOT / "src", clone / "src", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    build("sdist", clone, folder)
    (archive,) = folder.glob("*.tar.gz")
    with tarfile.open(archive) as packed:
        packed.extractall(folder / "source")
    (source,) = (folder / "source").iterdir()
    build("wheel", source, folder)
    (made,) = folder.glob("*.whl")
    return made


def build(kind: str, source: Path, out: Path) -> None:
    code = f"import hatchling.build, sys; hatchling.build.build_{kind}(sys.argv[1])"
    done = subprocess.run([sys.executable, "-c", code, str(out)], cwd=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def needed(name: str) -> set[str]:
    """The distributions that a package needs without extras, including indirect ones."""
    found, todo = set(), [Requirement(name)]
    while todo:
        wanted = todo.pop()
        for line in distribution(wanted.name).requires or ():
            requirement = Requirement(line)
            contexts = [{"extra": extra} for extra in wanted.extras or {""}]
            if requirement.marker and not any(requirement.marker.evaluate(context) for context in contexts):
                continue
            if normal(requirement.name) not in found or requirement.extras:
                found.add(normal(requirement.name))
                todo.append(requirement)
    return found


@pytest.fixture(scope="module")
def alone(wheel, tmp_path_factory) -> Path:
    """An environment with only the wheel and what it needs.

    What it needs is linked from the environment of the tests, so that nothing is downloaded.
    """
    folder = tmp_path_factory.mktemp("alone") / "env"
    venv.create(folder, symlinks=True)
    (packages,) = folder.glob("lib/python*/site-packages")
    install = [sys.executable, "-m", "pip", "--python", str(folder / "bin" / "python"), "install", "--no-index"]
    done = subprocess.run([*install, "--no-deps", "--quiet", str(wheel)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for name in needed("plures"):
        package = distribution(name)
        for top in {file.parts[0] for file in package.files or () if file.parts[0] not in ("..", "__pycache__")}:
            if not (packages / top).exists():
                (packages / top).symlink_to(Path(str(package.locate_file(top))).resolve())
    return folder


def test_the_wheel_holds_every_file_of_the_package(wheel):
    source = ROOT / "src"
    files = {path.relative_to(source).as_posix() for path in (source / "plures").rglob("*") if path.is_file()}
    with ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert held == {name for name in files if "__pycache__" not in name}
    assert len([name for name in held if not name.endswith(".py")]) > 20


def test_the_wheel_alone_runs_a_comparison(alone, tmp_path):
    """In an empty folder, with hardly any environment variables: the same numbers as from the clone."""
    quiet = {"OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    env = {"PATH": os.defpath, "HOME": str(tmp_path / "home"), **quiet}
    empty = tmp_path / "empty"
    empty.mkdir()

    def call(*words: str) -> str:
        command = [str(alone / "bin" / words[0]), *words[1:]]
        done = subprocess.run(command, cwd=empty, env=env, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stderr
        return done.stdout

    where = "from importlib.util import find_spec; print(find_spec('plures').origin, find_spec('pytest'))"
    origin, other = call("python", "-c", where).split()
    assert Path(origin).is_relative_to(alone)
    assert other == "None"
    options = ["--rounds", "2", "--seeds", "1", "--tune-rounds", "0", "--lr", "0.05", "--out", "results"]
    engine = ["--backend", "vmap", "--chunk", "4", "--no-compile-step"]
    call("plures", "compare", "heart", "--method", "ditto", *options, *engine)
    assert (empty / "results" / "report.html").read_text().rstrip().endswith("</html>")
    found = Comparison.from_json(empty / "results" / "results.json")
    mine = plures.compare("heart", ["ditto"], rounds=2, seeds=1, tune_rounds=0, learning_rates=[0.05], execution=HOW)
    assert [method.name for method in found.methods] == [*BASELINES, "ditto"]
    for theirs, ours in zip(found.methods, mine.methods, strict=True):
        losses = [method.seeds[0].test.metrics["loss"] for method in (theirs, ours)]
        assert losses[0] == pytest.approx(losses[1], abs=1e-5)
