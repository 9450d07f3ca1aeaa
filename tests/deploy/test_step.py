"""A part of a model that ExecuTorch trains on a device moves as in PyTorch; what cannot be trained there is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from plures.errors import PluresError
from plures.evaluate import RunSpec
from plures.federation import Federation, from_arrays
from plures.run import Execution
from plures.serving.export import export
from plures.serving.personal import PersonalModel
from plures.serving.step import to_step

LOOP = Execution("loop", 1, False, "float32")


def made(kind: str) -> Federation:
    rng = np.random.default_rng(0)
    x = 3 + 2 * rng.normal(size=(60, 1, 16, 16) if kind == "pictures" else (60, 4)).astype(np.float32)
    flat = x.reshape(60, -1)
    y = flat[:, :3].argmax(1) if kind == "pictures" else 5 + flat[:, :2] * [1, -2]
    return from_arrays(x, y, np.repeat(["a", "b"], 30), name=kind, standardize=True)


def trained(method: str, kind: str, model: str | None) -> tuple[PersonalModel, torch.Tensor]:
    """A client's model, and raw examples."""
    spec, data = RunSpec(data=kind, method=method, model=model, rounds=1), made(kind)
    run = spec.run(data, LOOP)
    run.step()
    assert data.scaling is not None
    mean, scale = (t.to(torch.float32).view(1, -1, *(1,) * (data.inputs.dim() - 2)) for t in data.scaling)  # type: ignore
    return PersonalModel.of(run, "a", spec), data.inputs[:20] * scale + mean  # type: ignore[operator]


@pytest.mark.extra("mobile")
@pytest.mark.parametrize(
    ("method", "kind", "model", "part", "names"),
    [
        ("fedper", "pictures", "fedavg_cnn", "head", ["ExecuTorch, features", "ExecuTorch, step of 6"]),
        ("lora", "numbers", "mlp", "lora", ["ExecuTorch, step of 6"]),
        ("fedavg", "numbers", "mlp", "all", ["ExecuTorch, step of 6"]),
    ],
)
def test_a_device_trains_as_pytorch_does(
    tmp_path: Path, method: str, kind: str, model: str, part: str, names: list[str]
) -> None:
    """The figures are true: the sizes are those of the files, and ten steps end where PyTorch's do."""
    found, raw = trained(method, kind, model)
    exported = export(found, tmp_path, raw, to=("executorch",), train=part, batch=6)
    assert [one.format for one in exported] == ["PyTorch", "ExecuTorch", *names]
    for one in exported[1:]:
        assert one.file is not None
        assert (one.size, one.changed) == (one.file.stat().st_size, None if one.format in names else one.changed)
        assert one.largest < 1e-5
        assert one.memory is not None
        assert one.memory > 0
    step = to_step(found, part, raw, 6)
    after = step.expected()
    before = dict(step.step.named_parameters())
    assert after.keys() == step.found(tmp_path / "model.step.pte").keys()
    assert max(float((after[name] - before[name]).abs().max()) for name in after) > 1e-3


@pytest.mark.extra("mobile")
def test_a_step_is_gradient_descent_on_the_task_by_hand() -> None:
    """The gradient of a logistic regression is ``(p - y) x`` over the examples that are no padding."""
    model, raw = trained("fedavg", "pictures", "logistic")
    step = to_step(model, "all", raw, 6)
    pixels, targets, weight = raw[:6], step.targets[:6], torch.tensor([1.0, 1, 1, 1, 0, 0])
    chances = model.predict(pixels)[0].softmax(-1) - nn.functional.one_hot(targets, 3)
    wanted = (chances * weight[:, None] / 4).T @ model.scaled(pixels).flatten(1)  # type: ignore[union-attr]
    step.step(pixels, targets, weight)[0].backward()
    (found,) = [p.grad for p in step.step.parameters() if p.dim() == 2]
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-6)


@pytest.mark.extra("mobile")
def test_a_program_that_trains_otherwise_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    """ExecuTorch's gradient of max pooling is not PyTorch's: a body with it is not trained on a device."""
    model, raw = trained("fedavg", "pictures", "fedavg_cnn")
    with pytest.raises(PluresError, match=r"otherwise than PyTorch: .* a value differs by .*, such as the head"):
        export(model, tmp_path, raw[:6], to=("executorch",), train="all", batch=2)
    assert list(tmp_path.iterdir()) == []


def test_what_a_device_cannot_train_is_refused(tmp_path: Path) -> None:
    model, raw = trained("fedper", "pictures", "fedavg_cnn")
    with pytest.raises(PluresError, match=r"training step is a program of ExecuTorch: export to executorch, too"):
        export(model, tmp_path, raw, train="head")
    with pytest.raises(PluresError, match=r"no part 'haed'; did you mean 'head'"):
        to_step(model, "haed", raw, 8)
    with pytest.raises(PluresError, match=r"batch=0: a training step has at least 1 example"):
        to_step(model, "head", raw, 0)
    several, rows = trained("fedem", "numbers", None)
    with pytest.raises(PluresError, match=r"composed of more than the leaves of one model; use a method that predicts"):
        to_step(several, "head", rows, 8)
