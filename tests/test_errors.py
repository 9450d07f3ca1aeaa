"""Messages about unknown names: the name that was probably meant, or the known names."""

from collections.abc import Callable

import numpy as np
import pytest

import plures
from plures.errors import PluresError, check_choice, closest, suggestion
from plures.federation import SplitRule, degrade
from plures.models import resnet


def test_the_closest_name_is_named_whatever_its_case():
    assert closest("Standardise", ["seed", "standardize"]) == "standardize"
    assert closest("x", ["seed", "standardize"]) is None
    assert suggestion("sead", ["seed", "name"]) == "did you mean 'seed'?"


def test_without_a_close_name_at_most_twelve_are_listed():
    assert suggestion("x", ["seed", "name"]) == "there are seed, name"
    assert suggestion("x", []) == "there is none"
    told = suggestion("x", [f"method{number}" for number in range(60)])
    assert told.count("method") == 12
    assert told.endswith("method11 and 48 more")


def test_numbers_count_as_their_text():
    assert suggestion(31, [1, 3]) == "did you mean '3'?"


def test_an_option_with_few_values_is_used_or_refused_with_the_nearest_one():
    check_choice("cake: taste", "sweet", ("sweet", "sour"))
    with pytest.raises(PluresError, match=r"^cake: taste='swet' is unknown; did you mean 'sweet'\?$"):
        check_choice("cake: taste", "swet", ("sweet", "sour"))
    with pytest.raises(PluresError, match=r"^cake: taste='bitter' is unknown; use sweet, sour$"):
        check_choice("cake: taste", "bitter", ("sweet", "sour"))


ROWS, CLASSES, CLIENTS = np.arange(12.0)[:, None], np.arange(12) % 2, np.repeat(["a", "b"], 6)
MISSPELLED: dict[str, tuple[Callable[[], object], str]] = {
    "split": (lambda: SplitRule(by="tim"), "split rule: by='tim' is unknown; did you mean 'time'"),
    "norm": (lambda: resnet((3, 8, 8), 2, norm="grup"), "resnet: norm='grup' is unknown; did you mean 'group'"),
    "task": (
        lambda: plures.from_arrays(ROWS, CLASSES, CLIENTS, task="clasification"),
        "task='clasification' is unknown; did you mean 'classification'",
    ),
    "option": (
        lambda: plures.from_arrays(ROWS, CLASSES, CLIENTS, missing="imput"),
        "missing='imput' is unknown; did you mean 'impute'",
    ),
    "column": (
        lambda: degrade(plures.load("heart"), completeness=0.5, columns=["trestbp"]),
        "degrade: no column 'trestbp'; did you mean 'trestbps'",
    ),
    "client": (lambda: plures.load("heart").hold_out(["clevland"]), "no client 'clevland'.*did you mean 'cleveland'"),
    "metric": (lambda: plures.load("heart").judged_by("aurroc"), "no metric 'aurroc'.*did you mean 'auroc'"),
    "method": (lambda: plures.compare("heart", ["dito"], rounds=1), "no method 'dito'; did you mean 'ditto'"),
    "methods": (
        lambda: plures.compare("heart", ["ditto,fedrep"], rounds=1),
        "method 'ditto,fedrep': give each on its own, by repeating the option or in a list",
    ),
    "subgroup": (lambda: plures.load("heart").with_subgroups(["sexx"]), "no input column 'sexx'; did you mean 'sex'"),
}


@pytest.mark.parametrize("key", MISSPELLED)
def test_a_misspelled_value_gets_a_suggestion(key: str):
    call, said = MISSPELLED[key]
    with pytest.raises(PluresError, match=said):
        call()
