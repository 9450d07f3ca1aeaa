"""A user's mistake gives one sentence that names the problem and the remedy, before the first training step."""

from __future__ import annotations

import errno
import os
import sys
import types
import warnings
from pathlib import Path

import pytest
import torch
from torch import nn

import plures
from plures import PluresError, Run, RunFolder, RunSpec, Training, compare, fit, score
from plures.cli import main
from plures.evaluate import BASELINES
from plures.files import check_folder
from plures.method import SGD, Assign, Method, Phase, Predict, Shared
from plures.methods import ditto
from plures.run import Cosine, Execution, Uniform, onboard
from plures.signature import read
from problems import EXACT, quadratic, scalar

QUICK = {"rounds": 1, "seeds": 1, "tune_rounds": 0, "learning_rates": 0.1, "execution": EXACT}


def made(method=None, *, model=None, **options):
    return Run(
        quadratic(), model or scalar(), method or Method(), Training(rounds=1), **({"execution": EXACT} | options)
    )


def trained(objective):
    return lambda: Method(schedule=(Phase(objective=objective),))


def vector(x, received, batch):
    return batch.losses(x.model)


def misshapen(x, received, batch):
    return (x.model["weight"] @ torch.zeros(7, 7, dtype=torch.float64)).sum()


def compared(methods="local", **options):
    return compare(quadratic(), methods, **({"model": scalar()} | QUICK | options))


def giving(value):
    """A model that returns something other than its outputs."""

    class Other(nn.Linear):
        def forward(self, x):
            return value(super().forward(x))

    return lambda: Other(1, 1)


class Cohorts:
    def __init__(self, cohort):
        self.chosen = cohort

    def cohort(self, setting, seed, round):
        return self.chosen


PYTHON = {
    # keywords and types of public functions
    "metric": (lambda: compared(metric="accuracy"), r"no metric 'accuracy'; there are .*rmse, mae, loss, r2"),
    "metrics": (lambda: compared(metrics=["mae"]), r"metrics=.*metric=\[\.\.\.\] names the one"),
    "keyword": (lambda: compared(round=3), "compare: no parameter 'round'; did you mean 'rounds'"),
    "lr": (lambda: compared(lr=0.1), "lr=0.1 is an option of a single run.*learning_rates"),
    "unseen": (lambda: compared(unseen=[3]), "no client '3' in federation 'Q3'; clients are a, b, c"),
    "unseen of another type": (lambda: compared(unseen=[0.5]), r"compare: unseen=\[0.5\]; give a list \[text"),
    "rounds": (lambda: compared(rounds="3"), "compare: rounds='3'; give a whole number"),
    "no round": (lambda: compared(rounds=0), "rounds=0: give at least 1"),
    "seeds": (lambda: compared(seeds=[0, 1]), r"compare: seeds=\[0, 1\]; give a whole number"),
    "truth": (lambda: compared(seeds=True), "compare: seeds=True; give a whole number"),
    "rate": (lambda: compared(learning_rates=-1.0), "learning_rates: -1.0 cannot train"),
    "nan": (lambda: compared(learning_rates=float("nan")), "learning_rates=nan; give a list"),
    "every": (lambda: compared(every=0), "every=0: give at least 1"),
    "tune": (lambda: compared(tune_rounds=-1), "tune_rounds=-1: give at least 0"),
    "out": (lambda: compared(out=3), "out=3; give a Path, text or None"),
    "callback": (lambda: compared(callbacks=[3]), r"callbacks=\[3\]; give a list \[a Callback"),
    "listener": (lambda: compared(listener="x"), "listener='x'; give a function or None"),
    "optimizer": (lambda: compared(optimizer="adamax"), "no optimizer 'adamax'; did you mean 'adam'?"),
    "epochs": (lambda: compared(epochs="two"), "epochs: .*valid number.*not 'two'"),
    "data": (lambda: compare(3), "compare: data=3; give the name of a data set, a folder"),
    "spec": (lambda: RunSpec(data="heart", metod="x"), "metod: is unknown here; did you mean 'method'"),
    "spec rounds": (lambda: RunSpec(data="heart", rounds="ten"), "rounds: .*not 'ten'"),
    "spec missing": (lambda: RunSpec(), "data: is missing"),
    "training optimizer": (lambda: Training(optimizer="adam"), r"optimizer='adam'; give an optimizer, .*SGD\("),
    "training class": (lambda: Training(optimizer=SGD), "optimizer=the class SGD; give an optimizer"),
    "training schedule": (lambda: Training(schedule="cosine"), r"schedule='cosine'; give a schedule .*Cosine\(\)"),
    "schedule class": (lambda: Training(schedule=Cosine), "schedule=the class Cosine; give a schedule"),
    "training keyword": (lambda: Training(batchsize=3), "Training: no parameter 'batchsize'; did you mean"),
    "uniform": (lambda: Uniform("half"), "Uniform: fraction='half'; give a number"),
    "backend": (lambda: Execution(backend="lop"), "Execution: backend='lop'; give 'auto', 'loop' or 'vmap'"),
    "device": (lambda: Execution(device="gpu"), "no device 'gpu': did you mean 'cuda'"),
    "participation": (lambda: made(participation="uniform"), r"='uniform'; give a rule such as Full\(\)"),
    "execution": (lambda: made(execution="cpu"), "execution='cpu'; give an Execution or None"),
    "run method": (lambda: made("ditto"), r"method='ditto'; give a Method, such as plures"),
    "run model": (lambda: made(model="mlp"), "Run: model='mlp'; give a Module or a function"),
    "fit": (lambda: fit(made(), "x", every=0), "every=0: give at least 1"),
    "score": (lambda: score(made(), "tests"), "score: split='tests'; give 'train', 'validation' or 'test'"),
    "score run": (lambda: score(quadratic(), "test"), "score: run=a Federation; give a Run"),
    "onboard": (lambda: onboard(made(), "x"), "onboard: newcomers='x'; give a Federation"),
    "network": (lambda: plures.default_model("heart"), "default_model: federation='heart'; give a Federation"),
    # methods by name
    "misspelled": (lambda: compared(["ditta"]), r"^no method 'ditta'; did you mean 'ditto'\? [^,]*$"),
    "unlike": (lambda: compared(["xyzzy"]), "no method 'xyzzy'; there are constant, local, fedavg, .* and [0-9]+ more"),
    "a Method": (lambda: compared([ditto(lam=0.1)]), r"a Method object was given .*partial\(ditto, lam=0.1\)"),
    "no method": (lambda: compared([3]), r"methods=\[3\]; give a list \[text"),
    "returns": (lambda: compared([lambda: None]), "its function returns None; let it return a Method"),
    "needs": (lambda: compared([lambda lam: Method()]), "missing a required argument: 'lam'"),
    # parts of a method
    "schedule": (lambda: Method(schedule=("train",)), r"Method: schedule=.*give a list \[a Phase or an Assign"),
    "layout": (lambda: Method(layout={"model": "shared"}), "layout=.*give a mapping {text or a Selector: a Share"),
    "layout class": (lambda: Method(layout={"model": Shared}), "layout=.*give a mapping"),
    "predict": (lambda: made(Method(predict="personel")), "predict: no slot 'personel'; slots are model"),
    "adapt": (lambda: made(Method(predict=Predict(adapt=(Phase(train="modle"),)))), "no slot 'modle'; did you mean"),
    "keeps": (lambda: made(Method(schedule=(Phase(keeps=("p",)),))), "keeps: no slot 'p'; slots are model"),
    "assign": (
        lambda: made(Method(schedule=(Phase(), Assign(("modle",), lambda x, r, v: {})))),
        "assignment: writes: no slot 'modle'; did you mean 'model'",
    ),
    "assigned": (
        lambda: made(Method(schedule=(Phase(), Assign(("model",), lambda x, r, v: {})))),
        "assignment '<lambda>' on client 'a': KeyError: 'model'",
    ),
    "outputs": (
        lambda: made(Method(predict=Predict(outputs=lambda x, b: b.outputs(x.modle)))),
        "x.modle: the state has no slot 'modle'; did you mean 'model'",
    ),
    "vector": (lambda: made(trained(vector)()), r"objective 'vector' returns a tensor of shape \(8,\); .*batch.mean"),
    "nothing": (lambda: made(trained(lambda x, r, b: None)()), "objective '<lambda>' returns None; return one number"),
    "shapes": (
        lambda: made(trained(misshapen)()),
        r"objective 'misshapen' on client 'a': RuntimeError: mat1 and mat2 .* \(test_messages.py, line [0-9]+\)$",
    ),
    "slot": (lambda: made(trained(lambda x, r, b: b.loss(x.personel))()), "x.personel: the state has no slot"),
    "empty cohort": (lambda: made(participation=Cohorts([])), "Cohorts, round 1: nobody takes part"),
    "cohort": (lambda: made(participation=Cohorts([7])), "7 is not a client; give positions from 0 to 2"),
    # models
    "outputs object": (
        lambda: made(model=giving(lambda y: types.SimpleNamespace(scores=y))),
        "the model gives SimpleNamespace, not a tensor: wrap it in a module .*logits",
    ),
    "tuple": (lambda: made(model=giving(lambda y: (y, y))), "the model gives tuple, not a tensor"),
    "forward": (lambda: made(model=giving(lambda y: {}["x"])), r"cannot read examples of shape \(1,\): KeyError: 'x'"),
    "class": (lambda: made(model=nn.Linear), "the model's factory failed .*give a function without parameters"),
    "no module": (lambda: made(model=lambda: 3), "the model's factory returns 3: let it return a torch.nn.Module"),
    "role": (lambda: plures.with_roles(nn.Sequential(nn.Linear(1, 1)), head="1"), "has no part '1'; parts are 0"),
    "network name": (lambda: compared(model="mpl"), "no network 'mpl'; did you mean 'mlp'"),
    # data by name
    "csv": (lambda: compare("patients.csv"), "patients.csv: no such file; give the path of a table"),
    "path": (lambda: compare(Path("nowhere/data")), "no data set 'nowhere/data': there is no folder of this name"),
    "text for a boolean": (
        lambda: compare("heart", data_options={"standardize": "maybe"}),
        "data set 'heart': standardize='maybe'; give true or false",
    ),
    "option": (lambda: plures.load("heart", standardise=True), "'heart' has no option 'standardise'; did you mean"),
    "seed": (lambda: plures.load("heart", seed="a"), "data set 'heart': seed='a'; give a whole number"),
}  # fmt: skip


@pytest.mark.parametrize(("act", "message"), PYTHON.values(), ids=PYTHON)
def test_one_sentence_in_python(act, message):
    with pytest.raises(PluresError, match=message) as caught:
        act()
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("wrong", [trained(vector), trained(misshapen), lambda: Method(predict="personel")])
def test_a_method_that_cannot_work_is_refused_before_the_first_step(wrong, tmp_path):
    """The wrong one comes last; the ones before it were neither tuned nor trained, and the folder stays empty."""
    told = []
    with pytest.raises(PluresError, match=r"vector|misshapen|personel"):
        compared(["ditto", wrong], tune_rounds=2, learning_rates=(0.1, 0.2), listener=told.append, out=tmp_path / "c")
    assert told == []
    assert not (tmp_path / "c").exists()


def test_what_a_list_and_a_single_value_mean():
    """A list works as a tuple, a name as a list of one, NumPy's numbers as Python's."""
    import numpy as np

    assert Method(schedule=[Phase()]) == Method(schedule=(Phase(),)) == Method(schedule=Phase())
    assert [m.name for m in compared("ditto").methods] == [*BASELINES, "ditto"]
    assert Training(rounds=np.int64(3)) == Training(rounds=3)
    assert type(Training(rounds=np.int64(3)).rounds) is int


@pytest.mark.parametrize(
    ("text", "kind", "value"),
    [
        ("False", bool, False), ("false", bool, False), ("no", bool, False), ("0", bool, False), ("ON", bool, True),
        ("3", int, 3), ("3", float, 3), ("1e-3", float, 1e-3), ("3", str, "3"), ("False", str, "False"),
        ("null", int | None, None), ("None", float | None, None), ("[1, 2]", tuple[int, ...], [1, 2]),
        ("none", str, "none"), ("7", int | str, 7),
    ],
)  # fmt: skip
def test_an_option_is_read_as_the_type_that_is_declared_for_it(text, kind, value):
    found = read("--data", "name", text, kind)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(("text", "kind"), [("maybe", bool), ("2.5", int), ("nan", int), ("x", float), ("True", int)])
def test_an_option_of_another_type_is_refused(text, kind):
    with pytest.raises(PluresError, match=f"--data name={text}: give"):
        read("--data", "name", text, kind)


def test_a_folder_that_cannot_be_written_is_refused_at_once(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(PluresError, match=r"cannot write to .*x: .*file is not a folder; choose another one"):
        check_folder(tmp_path / "file" / "x")
    check_folder(tmp_path / "new" / "folder")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file"]

    def refuse(*args, **options):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(os, "mkdir", refuse)
    told = []
    with pytest.raises(PluresError, match=r"cannot write to .*c: Read-only file system in .*choose another one"):
        compared(out=tmp_path / "c", listener=told.append)
    assert told == []


def test_results_that_are_damaged_or_of_another_version(tmp_path):
    file = tmp_path / "results.json"
    for content, message in (
        (b"{}", r"is not a comparison that plures .* can read \(federation: is missing\)"),
        (b'{"future": 1}', "of another version; run `plures compare` again"),
        (b"{", "Invalid JSON"),
        (b"\xff\xfe", "is not a comparison: it is not UTF-8 text"),
    ):
        file.write_bytes(content)
        with pytest.raises(PluresError, match=message) as caught:
            plures.Comparison.from_json(str(file))
        assert "\n" not in str(caught.value)
    with pytest.raises(PluresError, match=r"is not a comparison: it cannot be read \(Is a directory\)"):
        plures.Comparison.from_json(tmp_path)
    run = tmp_path / "run.json"
    for told, message in (
        ("[1]", "is not the description of a run"),
        ("{", "is damaged"),
        (
            '{"spec": {"data": "heart", "future": 1}, "execution": {}, "result": {}}',
            "future: is unknown here",
        ),
    ):
        run.write_text(told)
        with pytest.raises(PluresError, match=message):
            RunFolder(str(tmp_path)).spec()


OWN = """
from plures.method import Method, Phase
def own(lam: float = 1.0, fast: bool = False):
    assert fast is False
    return Method()
def wrong():
    return Method(schedule=(Phase(objective=lambda x, received, batch: batch.losses(x.model)),))
made = Method()
"""


@pytest.fixture
def user(tmp_path, monkeypatch, capsys):
    """A user at a terminal in a folder with a module, a table, an empty file and a folder."""
    (tmp_path / "mymod.py").write_text(OWN)
    (tmp_path / "table.csv").write_text("a,b\n1,2\n")
    (tmp_path / "empty").write_text("")
    (tmp_path / "bytes.toml").write_bytes(b"\xff\xfe")
    (tmp_path / "study.toml").write_text('name = "s"\nseeds = 1\ndata = ["hart"]\nmethods = ["ditta"]\n')
    (tmp_path / "folder").mkdir()
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "run.json").write_text("{")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path not in ("", str(tmp_path))])

    def says(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["plures", *words])
        before = list(sys.path)
        with warnings.catch_warnings():
            try:
                main()
                code = 0
            except SystemExit as end:
                code = int(end.code or 0)
        sys.modules.pop("mymod", None)
        assert sys.path == before, "the current folder stays on the path"
        told = capsys.readouterr()
        return code, told.out, " ".join(told.err.split())

    return says


FAST = ["--rounds", "1", "--backend", "loop", "--chunk", "4", "--no-compile-step"]


def test_a_method_of_the_current_folder_is_found(user):
    code, out, err = user("run", "heart", "mymod:own", "--set", "lam=2", "--set", "fast=False", *FAST, "--out", "r")
    assert (code, err) == (0, "")
    assert "mymod:own lam=2 fast=False on heart" in " ".join(out.split())
    code, out, _ = user("methods", "mymod:own")
    assert code == 0
    assert "parameters: lam=1.0, fast=False" in " ".join(out.split())


COMMANDS = {
    "run heart mymod:owm": "method 'mymod:owm' cannot be imported: did you mean 'own'?",
    "run heart mymod.py:own": "method 'mymod.py:own': name the module, not its file: mymod:own",
    "run heart mymod:made": "a Method object was given instead of a name",
    "run heart nowhere:own": "'nowhere' is not on the path; put the folder of nowhere.py into PYTHONPATH",
    "run heart mymod:": "method 'mymod:': write module:function",
    "run heart mymod:wrong --out r": "objective '<lambda>' returns a tensor of shape (8,)",
    "compare heart --method mymod:wrong --out r": "objective '<lambda>' returns a tensor of shape (8,)",
    "run heart dito": "no method 'dito'; did you mean 'ditto'?",
    "run hart ditto": "no data set 'hart': did you mean 'heart'?",
    "run table.csv ditto": "table.csv: target: name the column to predict; columns are a, b",
    "run empty ditto": "a table is not a data set by itself",
    "run nowhere/x ditto": "no data set 'nowhere/x': there is no folder of this name",
    "run folder ditto": "no .npz file in folder",
    "run heart ditto --data standardize=maybe": "--data standardize=maybe: give true or false",
    "run heart ditto --data standardise=true": "data 'heart' has no option 'standardise'; did you mean 'standardize'?",
    "run heart ditto --data seed=1 --data seed=2": "seed is given twice",
    "run heart ditto --data donate=x": "--data donate=x: give a number",
    "run heart ditto --set lam=two": "--set lam=two: give a number",
    "run heart ditto --set lma=2": "method 'ditto' has no option 'lma'; did you mean 'lam'?",
    "run heart ditto --model mlp --model-set hiden=3": "network 'mlp' has no option 'hiden'; did you mean 'hidden'?",
    "run heart ditto --model-set hidden=3": "name it with --model",
    "run heart ditto --rounds 0": "--rounds 0: give at least 1",
    "run heart ditto --rounds ten": "'ten' is not a valid int",
    "run heart ditto --lr nan": "lr=nan; give a number",
    "run heart ditto --device gpu": "no device 'gpu': did you mean 'cuda'",
    "run heart ditto --out empty": "cannot write to empty: empty is not a folder",
    "run heart ditto --out empty/x": "cannot write to empty/x: empty is not a folder",
    "run heart ditto --track tensorbord": "there is no such tracker",
    "compare heart --out empty": "cannot write to empty",
    "compare heart --lr 0": "learning_rates: 0.0 cannot train",
    "compare heart --model mpl": "no network 'mpl'; did you mean 'mlp'?",
    "predict folder --client a": "folder is not a finished run, nor a folder with a personal model",
    "predict damaged --client a": "damaged/run.json is damaged",
    "predict damaged --client a --out folder": "cannot write folder: it is a folder",
    "onboard folder": "folder is not a finished run: it has no run.json",
    "export folder --client a --out empty": "cannot write to empty",
    "serve folder --client a": "folder is not a finished run",
    "serve folder --client a --port 99999": "99999 is not in the range",
    "client folder a": "folder holds neither a finished comparison nor a finished run",
    "device heart --method ditta": "no method 'ditta'; did you mean 'ditto'?",
    "device heart --batch-size -2": "--batch-size -2: give at least 1, or 0",
    "diagnose heart --out x.txt": "--out x.txt: give a file that ends with .json or .html",
    "diagnose heart --out empty/x.json": "cannot write to empty",
    "diagnose heart --clients 0": "--clients 0: give at least 1",
    "methods ditta": "no method 'ditta'; did you mean 'ditto'?",
    "study nowhere.toml": "nowhere.toml cannot be read (No such file or directory)",
    "study folder": "folder cannot be read (Is a directory)",
    "study bytes.toml": "bytes.toml cannot be read (it is not UTF-8 text)",
    "study study.toml": "data[0].name: 'hart' is neither a data set, nor a table, nor a folder; did you mean 'heart'?",
    "deploy check folder": "folder cannot be read: Is a directory",
    "deploy check empty": "empty: client: is missing",
    f"deploy init new --client {'x' * 101}": "a name has at most 100 characters, not 101",
    "deploy init new --host a:b": "--host 'a:b': give a DNS name in ASCII or an IP address, without a port",
    "deploy init empty": "cannot write empty/README.md",
    "deploy demo --method ditta": "no method 'ditta'; did you mean 'ditto'?",
}


@pytest.mark.parametrize(("command", "message"), COMMANDS.items(), ids=COMMANDS)
def test_one_sentence_at_the_terminal(user, command, message):
    before = sorted(str(path) for path in Path().rglob("*"))
    code, _, err = user(*command.split())
    assert code == 2
    assert message in err
    assert "Traceback" not in err
    left = [path for path in Path().rglob("*") if "__pycache__" not in path.parts]
    assert sorted(map(str, left)) == before, "nothing is left behind"
