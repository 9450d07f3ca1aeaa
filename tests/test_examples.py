"""Functions that people call from a notebook have an example that runs and gives the output shown."""

from __future__ import annotations

import ast
import doctest
import importlib
import inspect
from pathlib import Path

import numpy as np
import pytest
import torch

import plures

SOURCE = Path(plures.__file__).parent
ROOMS = ("federation", "models", "run", "evaluate", "diagnose", "report", "serving", "study", "tables")
"""Rooms whose functions people call directly; everything that ``plures`` exports has an example."""

WITHOUT = {
    "federation": """
        attenuation blend brightness by_column by_label by_time communities completeness_report
        dirichlet_per_class dirichlet_per_client from_graph iid imputed_slopes locate movie_titles noise
        pathological permuted quantity_skew rotate rotated seasons split_rows
    """,
    "models": """
        autoencoder_classifier build char_lstm char_transformer fedavg_cnn fedbn_cnn fedrep_cnn gcn har_cnn
        logistic matrix_factorization merged mixture_of_experts mlp moe redrawn resnet sage with_adapters
        with_lora
    """,
    "run": "experts_of learn",
    "evaluate": "cold_start_curve follow primary with_labels",
    "diagnose": "diagnosis_page diagnosis_section fires",
    "serving": "export",
    "study": "ahead begin conduct duration parse_study plan_of read_study recover resolved",
    "tables": "check draft is_table keep_schema read_schema schema_of write_schema",
}
"""Functions without an example yet, by room. New functions need an example; remove those that have got one."""


def called(room: str) -> dict[str, object]:
    """Functions that a room exports."""
    module = importlib.import_module(f"plures.{room}")
    return {name: value for name in module.__all__ if inspect.isfunction(value := getattr(module, name))}


def shown(value: object) -> bool:
    return ">>> " in (inspect.getdoc(value) or "")


def blocks() -> list[pytest.ParameterSet]:
    """The docstrings with examples of every file."""
    found = []
    for file in sorted(SOURCE.rglob("*.py")):
        text = file.read_text(encoding="utf-8")
        if ">>> " not in text:
            continue
        place = file.relative_to(SOURCE).with_suffix("").as_posix()
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and ">>> " in (ast.get_docstring(node) or ""):
                found.append(pytest.param(place, node.name, ast.get_docstring(node), id=f"{place}: {node.name}"))
    return found


@pytest.mark.parametrize(("place", "name", "text"), blocks())
def test_an_example_prints_what_it_shows(place: str, name: str, text: str, monkeypatch: pytest.MonkeyPatch, tmp_path):
    """Without the folder of data sets; NumPy, PyTorch and plures are imported, as in a notebook."""
    monkeypatch.delenv("PLURES_DATA", raising=False)
    monkeypatch.chdir(tmp_path)
    module = importlib.import_module(f"plures.{place.replace('/', '.')}")
    names = {**vars(module), "np": np, "torch": torch, "plures": plures}
    example = doctest.DocTestParser().get_doctest(text, names, name, place, 0)
    said: list[str] = []
    found = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE).run(example, out=said.append)
    assert found.failed == 0, "".join(said)
    assert found.attempted > 0


def test_everything_that_plures_offers_has_an_example():
    offered = {name: getattr(plures, name) for name in plures.__all__}
    assert [name for name, value in offered.items() if callable(value) and not shown(value)] == []


def test_functions_of_rooms_without_an_example_are_known():
    for room in ROOMS:
        known, functions = set(WITHOUT.get(room, "").split()), called(room)
        assert {name for name, value in functions.items() if shown(value) == (name in known)} == set(), room


def test_an_example_that_is_wrong_is_found():
    example = doctest.DocTestParser().get_doctest(">>> 1 + 1\n3\n", {}, "wrong", "here", 0)
    assert doctest.DocTestRunner().run(example, out=lambda text: None).failed == 1
