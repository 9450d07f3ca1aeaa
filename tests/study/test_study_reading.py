"""Every error in a study.toml is reported with its key and its line."""

from __future__ import annotations

from pathlib import Path

import pytest

from plures.errors import PluresError
from plures.study import parse_study, read_study

HEAD = 'name = "s"\n'
DATA = '[[data]]\nname = "heart"\n'

FAULTS = [
    ("seeds = 2\n[[data]]\nname = 'heart'", 1, "name", "is missing"),
    (HEAD + "seeds = 2", 1, "data", "is missing"),
    (HEAD + "seed = 2\n" + DATA, 2, "seed", "is not a key here"),
    (HEAD + "seeds = 'a'\n" + DATA, 2, "seeds", "valid list, not 'a'"),
    (HEAD + "seeds = [0,\n -1]\n" + DATA, 3, "seeds[1]", "greater than or equal to 0, not -1"),
    (HEAD + "seeds = []\n" + DATA, 2, "seeds", "at least 1 item"),
    (HEAD + "seeds = [1, 1]\n" + DATA, 2, "seeds[1]", "'1' occurs twice"),
    (HEAD + "data = ['heart',\n 'hart']", 3, "data[1].name", "neither a data set"),
    (HEAD + DATA + "labl = 'x'", 4, "data[0].labl", "is not a key here"),
    (HEAD + DATA + "options = { speed = 3 }", 4, "data[0].options.speed", "is not an option of 'heart'"),
    (HEAD + DATA + "[data.options]\nseed = 1\ndonate = 2.0", 6, "data[0].options.donate", "give a share"),
    (HEAD + DATA + "model = 'mpl'", 4, "data[0].model", "no network 'mpl'"),
    (HEAD + DATA + "model_options = { hidden = [8] }", 4, "data[0].model_options", "name the model"),
    (
        HEAD + DATA + "model = 'mlp'\nmodel_options.hiden = [8]",
        5,
        "data[0].model_options.hiden",
        "is not an option of mlp",
    ),
    (HEAD + DATA + "max_examples = 2", 4, "data[0].max_examples", "greater than or equal to 3"),
    (HEAD + DATA + "partitions = ['natural',\n'x']", 5, "data[0].partitions[1]", "no partition 'x'"),
    (HEAD + DATA + "split = { validation = 0.5, test = 0.5 }", 4, "data[0].split", "leave something"),
    (HEAD + DATA + DATA, 4, "data[1].label", "'heart' occurs twice"),
    (HEAD + DATA + "[[partitions]]\nhow = 'dirichlt'", 5, "partitions[0].how", "not 'dirichlt'"),
    (HEAD + DATA + "[[partitions]]\nhow = 'iid'", 4, "partitions[0].clients", "is missing"),
    (HEAD + DATA + "[[partitions]]\nhow = 'iid'\nclients = 3\nalpha = 1.0", 7, "partitions[0].alpha", "is not read by"),
    (HEAD + DATA + "[[partitions]]\nshift = { rotat = [1.0] }", 5, "partitions[0].shift.rotat", "is not a key here"),
    (HEAD + "methods = ['ditto', 'dito']\n" + DATA, 2, "methods[1].name", "no method 'dito'"),
    (HEAD + "methods = ['ditto', { name = 'ditto' }]\n" + DATA, 2, "methods[1].label", "occurs twice"),
    (
        HEAD + DATA + "[[methods]]\nname = 'ditto'\nparameters = { mu = 1 }",
        6,
        "methods[0].parameters.mu",
        "not a parameter",
    ),
    (
        HEAD + DATA + "[[methods]]\nname = 'ditto'\nparameters.lam = 'x'",
        6,
        "methods[0].parameters.lam",
        "give a number",
    ),
    (
        HEAD + DATA + "[[methods]]\nname = 'ditto'\nspace.mu = [1]",
        6,
        "methods[0].space.mu",
        "neither lr nor a parameter",
    ),
    (HEAD + DATA + "[[methods]]\nname = 'ditto'\nspace.lam = [1, 'x']", 6, "methods[0].space.lam", "lam='x'"),
    (HEAD + DATA + "[[methods]]\nname = 'ditto'\nspace.lam = []", 6, "methods[0].space.lam", "at least 1 item"),
    (
        HEAD + DATA + "[[methods]]\nname = 'ditto'\nspace.lam = { low = 1 }",
        6,
        "methods[0].space.lam.high",
        "is missing",
    ),
    (
        HEAD + DATA + "[[methods]]\nname = 'ditto'\n[methods.space]\nlam = { low = 1, high = 0.5 }",
        7,
        "methods[0].space.lam.high",
        "must be above low",
    ),
    (
        HEAD + DATA + "[[methods]]\nname = 'ditto'\n[methods.space.lam]\nlow = 0\nhigh = 1\nlog = true",
        7,
        "methods[0].space.lam.low",
        "must be above 0",
    ),
    (
        HEAD + DATA + "[[methods]]\nname = 'ditto'\nparameters.lam = 1.0\nspace.lam = [1.0]",
        7,
        "methods[0].space.lam",
        "is fixed in parameters",
    ),
    (
        HEAD + DATA + "[[methods]]\nname = 'ditto'\nlr = 0.1\nspace.lr = [0.1]",
        7,
        "methods[0].space.lr",
        "is fixed as lr",
    ),
    (HEAD + DATA + "[[methods]]\nname = 'ditto'\nlr = 0.0", 6, "methods[0].lr", "greater than 0, not 0.0"),
    (HEAD + DATA + "[[methods]]\nname = 'ditto'\nlabel = 'local'", 6, "methods[0].label", "baseline of every study"),
    (HEAD + DATA + "[[methods]]\nname = 'ditto'\ndata = ['har']", 6, "methods[0].data[0]", "no data set 'har' here"),
    (HEAD + DATA + "[[methods]]\nname = 'intercept'\nlr = 0.1", 6, "methods[0].lr", "has the learning rate of fedavg"),
    (
        HEAD + DATA + "[[methods]]\nname = 'constant'\nspace = { lr = [0.1] }",
        6,
        "methods[0].space",
        "nothing to choose",
    ),
    (HEAD + DATA + "[[methods]]\nname = 'local'\ndata = ['heart']", 6, "methods[0].data[0]", "takes part everywhere"),
    (HEAD + DATA + "[[budgets]]\nrounds = 0", 5, "budgets[0].rounds", "greater than or equal to 1"),
    (HEAD + DATA + "[[budgets]]\nrounds = 2.5", 5, "budgets[0].rounds", "valid integer, not 2.5"),
    (HEAD + DATA + "[[budgets]]\nepochs = 1.0\nsteps = 3", 6, "budgets[0].steps", "give epochs or steps"),
    (HEAD + DATA + "[[budgets]]\nfraction = 1.5", 5, "budgets[0].fraction", "less than or equal to 1"),
    (HEAD + DATA + "[[budgets]]\n[[budgets]]\n", 5, "budgets[1].label", "'20 rounds' occurs twice"),
    (HEAD + DATA + "[tuning]\nlr = [0.1, -0.1]", 5, "tuning.lr[1]", "learning rate above 0"),
    (HEAD + DATA + "[tuning]\nlr = { low = 1.0, high = 0.1 }", 5, "tuning.lr.high", "must be above low"),
    (HEAD + DATA + "[tuning]\npruning = true", 5, "tuning.pruning", "not True"),
    (HEAD + DATA + "[execution]\nthreads = '2'", 5, "execution.threads", "valid integer, not '2'"),
]


@pytest.mark.parametrize(("text", "line", "key", "words"), FAULTS)
def test_a_fault_is_told_with_key_and_line(text: str, line: int, key: str, words: str) -> None:
    with pytest.raises(PluresError) as caught:
        parse_study(text, "study.toml", Path())
    first = str(caught.value).split("\n")[0]
    assert first.startswith(f"study.toml, line {line}: {key}: "), first
    assert words in first


def test_parameters_that_need_each_other_are_judged_together() -> None:
    def read(parameters: str) -> None:
        parse_study(f"{HEAD}{DATA}[[methods]]\nname = 'heterofl'\nparameters = {parameters}", "study.toml", Path())

    read("{ budget = 'bytes', limit = 1e6 }")
    with pytest.raises(PluresError, match=r"methods\[0\]\.parameters\.budget: .*needs one of column"):
        read("{ budget = 'bytes', scaler = false }")
    with pytest.raises(PluresError) as caught:
        read("{ budget = 'bytes', limit = 1e6, rates = [2.0] }")
    assert str(caught.value).count("\n") == 0
    assert "methods[0].parameters.rates: rates=(2.0,): give shares" in str(caught.value)
    with pytest.raises(PluresError, match=r"methods\[0\]\.parameters: .*needs one of column"):
        read("{ budget = 'bytes', limit = 1e6, column = 'a' }")


def test_all_faults_at_once_in_the_order_of_their_lines() -> None:
    text = HEAD + "methods = ['dito']\n" + DATA + "model = 'mpl'\n[tuning]\nlr = [0]\n"
    with pytest.raises(PluresError) as caught:
        parse_study(text, "study.toml", Path())
    heads = [line.split(": ")[:2] for line in str(caught.value).split("\n")]
    assert heads == [
        ["study.toml, line 2", "methods[0].name"],
        ["study.toml, line 5", "data[0].model"],
        ["study.toml, line 7", "tuning.lr[0]"],
    ]


def test_what_is_no_toml_is_told_with_its_line(tmp_path: Path) -> None:
    file = tmp_path / "study.toml"
    file.write_text('name = "s"\ndata = = 1')
    with pytest.raises(PluresError, match=r"study\.toml is not TOML: .*line 2"):
        read_study(file)
    with pytest.raises(PluresError, match="cannot be read"):
        read_study(tmp_path / "none.toml")


def test_short_forms_mean_the_long_ones() -> None:
    short = parse_study(HEAD + "seeds = 2\ndata = ['heart']\nmethods = ['ditto']", "s", Path())
    long = parse_study(HEAD + "seeds = [0, 1]\n" + DATA + "[[methods]]\nname = 'ditto'\n[[budgets]]", "s", Path())
    assert short.document == long.document
