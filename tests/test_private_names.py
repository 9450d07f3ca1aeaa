"""plures uses PyTorch's public names; exceptions are listed here, each with the reason."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
import torch

from plures.models import Marked, nested

SOURCE = Path(__file__).parents[1] / "src" / "plures"

FUSED = "optimizers of PyTorch own their parameters; a pure step of many tensors at once has no public name"
REGISTERED = "torch.func looks into a class only if it is registered"
FILE = "a tensor whose rows stay in a file has no storage, and PyTorch documents its subclasses under these names only"
NEEDED = {
    "method/optimizer.py: torch._foreach_add": FUSED,
    "method/optimizer.py: torch._foreach_add_": FUSED,
    "method/optimizer.py: torch._foreach_mul_": FUSED,
    "run/capture.py: torch._foreach_copy_": FUSED,
    "federation/inputs.py: torch.utils._pytree": REGISTERED,
    "federation/mapped.py: torch.Tensor._make_wrapper_subclass": FILE,
    "federation/mapped.py: torch._C": FILE,
    "models/network.py: torch.utils._pytree": REGISTERED,
    "run/script.py: torch._C": "a graph of TorchScript can be made from its text under these names only",
    "serving/formats.py: torch.ops.aten._cdist_forward": "the operator in an exported graph has no other name",
    "models/modes.py: torch.utils._python_dispatch": "operations are seen below vmap and autograd alone",
    "serving/step.py: torch.export.experimental._export_forward_backward": "a step for ExecuTorch has no other way",
}


def private(tree: ast.AST) -> set[str]:
    """Dotted names below ``torch`` up to the first private part, whatever name they were imported as."""
    known, found = {"torch": "torch"}, set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            known |= {name.asname: name.name for name in node.names if name.asname and name.name.startswith("torch")}
            found |= {name.name for name in node.names}
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "torch":
            known |= {name.asname or name.name: f"{node.module}.{name.name}" for name in node.names}
            found |= {f"{node.module}.{name.name}" for name in node.names}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            first, *rest = ast.unparse(node).split(".")
            if first in known and all(map(str.isidentifier, rest)):
                found.add(".".join([known[first], *rest]))
    names = set()
    for name in found:
        parts = name.split(".")
        hidden = [place for place, part in enumerate(parts) if part.startswith("_") and not part.endswith("__")]
        if parts[0] == "torch" and hidden:
            names.add(".".join(parts[: hidden[0] + 1]))
    return names


def test_private_names_of_pytorch_are_those_without_a_public_one():
    files = {file.relative_to(SOURCE).as_posix(): ast.parse(file.read_text("utf-8")) for file in SOURCE.rglob("*.py")}
    assert {f"{file}: {name}" for file, tree in files.items() for name in private(tree)} == NEEDED.keys()


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("import torch\ntorch.utils._pytree.tree_map(f, x)", {"torch.utils._pytree"}),
        ("from torch.utils import _pytree as p\np.tree_map", {"torch.utils._pytree"}),
        ("import torch.utils._pytree as p", {"torch.utils._pytree"}),
        ("from torch import nn\nnn.modules.batchnorm._NormBase", {"torch.nn.modules.batchnorm._NormBase"}),
        ("from torch._dynamo import reset", {"torch._dynamo"}),
        ("import torch\ntorch.__version__\nself._torch", set()),
    ],
)
def test_a_private_name_would_be_found(text, names):
    assert private(ast.parse(text)) == names


def test_a_nested_structure_keeps_its_form():
    leaves = Marked({"w": torch.tensor([1.0, 2.0]), "n": torch.tensor([3.0])}, frozenset({"n"}))
    whole = ({"model": leaves}, [torch.tensor([4.0])], None)
    assert [end.tolist() if end is not None else None for end in nested.ends(whole)] == [[1.0, 2.0], [3.0], [4.0], None]
    (state, [last]) = nested.mapped(torch.sub, whole[:2], ({"model": {"n": 1.0, "w": 10.0}}, [2.0]))
    assert {path: t.tolist() for path, t in state["model"].items()} == {"w": [-9.0, -8.0], "n": [2.0]}
    assert (state["model"].fixed, last.tolist()) == (frozenset({"n"}), [2.0])
    values, places = nested.mapped(lambda t: t[0], torch.max(torch.tensor([[5.0, 7.0]]), dim=1))
    assert (values.item(), places.item()) == (7.0, 1)


def test_structures_of_different_forms_are_refused():
    one = {"a": torch.ones(1)}
    with pytest.raises(ValueError, match=r"different forms: \['a'\] and \[\['a', 'b'\]\]"):
        nested.mapped(torch.add, one, {"a": 1.0, "b": 2.0})
    with pytest.raises(ValueError, match="shorter"):
        nested.mapped(torch.add, (one, one), (one,))
