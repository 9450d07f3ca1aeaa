"""Every method of a comparison has its own name, row and files."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from functools import partial

import pytest

import plures
from people import FAST, net, people
from plures.codecs import CODECS, Clip, Quantize, TopK
from plures.errors import PluresError
from plures.evaluate import BASELINES, Code, compare
from plures.evaluate.spec import distinct, find_method
from plures.files import filed
from plures.method import Codec, Method, Personal, head
from plures.methods import METHODS, ditto, fedper, local
from plures.run import Execution


def own(share: float = 0.5) -> Method:
    return Method(layout={"model": Personal()})


def named(*methods):
    return list(distinct(find_method(method, Code.typed(method)) for method in methods))


def test_parameters_given_beforehand_are_part_of_the_name():
    names = named(partial(ditto, lam=0.1), partial(ditto, lam=1.0), ditto, partial(partial(ditto, 0.2), visits=3))
    assert names == ["ditto lam=0.1", "ditto lam=1.0", "ditto", "ditto lam=0.2 visits=3"]
    assert named(partial(fedper, head), partial(fedper, "body")) == ["fedper personal=head", "fedper personal=body"]
    assert named(partial(own, 0.1), own, partial(own, share=0.2)) == ["own share=0.1", "own", "own share=0.2"]
    assert named(partial(ditto)) == ["ditto"]


def test_a_fixed_parameter_is_not_tuned_and_is_checked():
    entry = find_method(partial(ditto, lam=0.1))
    assert (entry.space, entry.defaults["lam"], entry.title) == ({}, 0.1, "Ditto lam=0.1")
    with pytest.raises(PluresError, match="method 'ditto': lam='much'; give a number"):
        find_method(partial(ditto, lam="much"))
    with pytest.raises(PluresError, match="lamb"):
        find_method(partial(ditto, lamb=1.0))


def test_the_same_method_twice_is_one():
    assert named("ditto", ditto, "local", own, own, "test_method_names:own") == ["ditto", "local", "own"]
    assert named(partial(ditto, lam=0.1), partial(ditto, lam=0.1)) == ["ditto lam=0.1"]
    assert named("ifca+fedrep", "ifca+fedrep") == ["ifca+fedrep"]


def test_options_behind_a_name_are_fixed():
    assert named("ditto(lam=0.1)", "ditto(0.2, visits=3)", "fedper(body)", "ditto") == [
        *("ditto lam=0.1", "ditto lam=0.2 visits=3", "fedper personal=body", "ditto"),
    ]
    assert named("ditto(lam=0.1)", partial(ditto, lam=0.1)) == ["ditto lam=0.1"]
    assert named("fedavg+topk(0.1)", "fedavg+topk(keep=0.2)", "fedavg+topk(0.1)") == [
        *("fedavg+topk keep=0.1", "fedavg+topk keep=0.2"),
    ]
    assert find_method("ditto(lam=0.1)").space == {}
    assert find_method('ditto+clip(0.5, passes=["buffers"])')().wire == (Clip(0.5, ("buffers",)),)
    code = Code.typed("test_method_names:own(share=1e+3)+ditto(lam=2)")
    assert [*code.allowed] == ["test_method_names:own"]
    assert find_method("test_method_names:own(share=1e+3)", code).fixed == {"share": 1000.0}


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("ditto(lamb=3)", "method 'ditto': no parameter 'lamb'; did you mean 'lam'?"),
        ("ditto(lam=much)", "method 'ditto': lam=much: give a number"),
        ("ditto(0.1, lam=3)", "method 'ditto': lam is given twice; give it once"),
        ("ditto(1, 2, 3)", "method 'ditto': '3' belongs to no option; write name=value"),
        ("ditto(lam=1, 2)", "method 'ditto': '2' belongs to no option; write name=value"),
        ("ditto(lam=0.1", "method 'ditto(lam=0.1': write name(option=value, ...)"),
        ("topl+ditto", "no method 'topl'; did you mean 'topk'?"),
    ],
)
def test_options_that_do_not_fit_are_refused(name, told):
    with pytest.raises(PluresError) as error:
        find_method(name)
    assert str(error.value).startswith(told)


def test_stages_of_the_wire_are_parts_by_name():
    """Each has its class's name; a user's own is named ``module:Class``."""
    assert not METHODS.keys() & CODECS.keys()
    for name, codec in CODECS.items():
        assert find_method(name)() == Method(wire=(codec(),))
        assert find_method(f"fedbn+{name}")() == replace(METHODS["fedbn"](), wire=(codec(),))
    composed = find_method("clip+ditto+topk+quantize")
    assert composed(norm=0.5, keep=3, levels=7, lam=0.1).wire == (Clip(0.5), TopK(3), Quantize(7))
    mine = find_method("fedavg+test_method_names:Halved(0.25)", Code.typed("test_method_names:Halved"))
    assert mine().wire == (Halved(0.25),)
    assert mine.name == "fedavg+Halved part=0.25"


@dataclass(frozen=True)
class Halved(Codec):
    part: float = 0.5

    def encode(self, change, memory, sending):
        return {k: t * self.part for k, t in change.items()}, memory


def other(name: str, module: str):
    def made() -> Method:
        return Method(layout={"model": Personal()})

    made.__name__ = made.__qualname__ = name
    made.__module__ = module
    return made


def test_functions_of_one_name_are_told_apart_by_their_modules():
    first, second = other("own", "first"), other("own", "second")
    assert named(first, second) == ["first:own", "second:own"]
    assert named(first) == ["own"]
    assert named("ditto", other("ditto", "mine")) == ["ditto", "mine:ditto"]
    assert named(other("ditto", "mine")) == ["mine:ditto"]
    assert named("fedavg", other("fedavg", "mine")) == ["fedavg", "mine:fedavg"]


@pytest.mark.parametrize(
    "methods",
    [
        [lambda: own(), lambda: own(0.1)],
        [other("own", "m"), other("own", "m")],
        ["ditto", replace(METHODS["ditto"], build=partial(ditto.build, lam=3.0))],
        [replace(METHODS["ditto"], build=partial(ditto.build, lam=3.0), fixed={"lam": 3.0})],
        [partial(lambda share: own(share), 0.1), partial(lambda share: own(share), share=0.1)],
    ],
)
def test_methods_that_nothing_tells_apart_are_refused(methods):
    with pytest.raises(PluresError, match=r"two different methods are called .* another name"):
        distinct(map(find_method, methods))


def test_a_comparison_has_a_row_and_a_folder_for_each(tmp_path):
    methods = [partial(ditto, lam=0.01), partial(ditto, lam=5.0), partial(fedper, head | ~head)]
    options = {"rounds": 3, "seeds": 1, "learning_rates": (0.3,), "tune_rounds": 1, "batch_size": 8}
    result = compare(people(), methods, model=net, execution=FAST, out=tmp_path, **options)
    names = ["ditto lam=0.01", "ditto lam=5.0", "fedper personal=head|not head"]
    assert [m.name for m in result.methods] == [*BASELINES, *names]
    assert [m.parameters for m in result.methods[5:]] == [{"lam": 0.01}, {"lam": 5.0}, {"personal": "head|not head"}]
    alone, free, tied, same = (result.method(name).per_client("loss") for name in ("local", *names))
    assert abs(free - alone).max() < 0.05 < abs(tied - alone).max()
    assert same.tolist() == alone.tolist()
    assert len(list((tmp_path / "runs").iterdir())) == 8
    assert json.loads((tmp_path / "results.json").read_text())["methods"][5]["name"] == names[0]


def test_a_run_of_fixed_parameters_is_found_again(tmp_path):
    options = {"rounds": 1, "seeds": 1, "tune_rounds": 0, "execution": Execution("vmap", 4, False)}
    compare("heart", [partial(ditto, lam=0.3), local], out=tmp_path, **options)
    spec = plures.RunFolder(tmp_path / "runs" / "ditto lam=0.3-seed0").spec()
    assert (spec.method, spec.parameters) == ("ditto", {"lam": 0.3})


def test_a_composition_with_options_is_found_again(tmp_path):
    options = {"rounds": 2, "seeds": 1, "tune_rounds": 0, "execution": Execution("vmap", 4, False)}
    result = compare("heart", ["ditto(lam=0.3)+topk(0.2)", "fedavg+topk(0.2)"], out=tmp_path, **options)
    assert [m.name for m in result.methods[5:]] == ["ditto lam=0.3+topk keep=0.2", "fedavg+topk keep=0.2"]
    spec = plures.RunFolder(tmp_path / "runs" / "ditto lam=0.3+topk keep=0.2-seed0").spec()
    assert (spec.method, spec.entry()().wire) == ("ditto(lam=0.3)+topk(0.2)", (TopK(0.2),))
    assert [part.fixed for part in spec.entry().parts] == [{"lam": 0.3}, {"keep": 0.2}]
    sparse, whole = (result.method(name).per_client("loss") for name in ("fedavg+topk keep=0.2", "fedavg"))
    assert abs(sparse - whole).min() > 1e-4


def test_two_names_never_share_a_file():
    names = ["own", "a/b", "a-b", "a:b", "<lambda>", "<lambda>-", "ditto lam=0.1", ".x", "../x", "a" * 300, "a" * 301]
    names += ["Own", "OWN", "scaffold option=I", "scaffold option=i"]
    files = [filed(name) for name in names]
    assert len({file.lower() for file in files}) == len(names)
    assert (files[0], files[6]) == ("own", "ditto lam=0.1")
    assert all("/" not in file and not file.startswith(".") and len(file) < 120 for file in files)
