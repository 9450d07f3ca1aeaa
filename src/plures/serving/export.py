"""Exports a personal model and reports size, speed and deviation from the original for each format."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from plures.errors import PluresError, suggestion
from plures.evaluate.code import NOTHING, Code
from plures.federation.inputs import Inputs, like
from plures.files import replacing
from plures.run.alive import Alive
from plures.serving.formats import (
    Program,
    Raw,
    Runner,
    convolves,
    executorch_runner,
    onnx_runner,
    to_executorch,
    to_int8,
    to_onnx,
    to_static_int8,
)
from plures.serving.personal import MODEL, PersonalModel
from plures.serving.step import Personalising, to_step

FORMATS = ("folder", "onnx", "executorch")
WARM_UP, REPEATS, LONGEST = 20, 200, 2.0
"""Calls before the measured ones, most of these, and most seconds of all."""


@dataclass(frozen=True)
class Exported:
    """One format, compared with the model in PyTorch on the same raw inputs.

    Attributes:
        format: its name.
        file: the written file; ``None`` for the model in PyTorch itself.
        size: bytes of the file; of the values alone, for the model in PyTorch.
        milliseconds: median time of a prediction for one example, or of a training step, on one thread.
        memory: bytes that a prediction or a step needs beyond the file: planned by ExecuTorch, measured in PyTorch by
            following every storage; ``None`` where the format does not say.
        largest: largest difference of an output; after a training step, of a trained value.
        mean: mean difference.
        changed: share of the examples whose decided class changed; ``None`` for regression and training steps.
        examples: number of examples compared.
    """

    format: str
    file: Path | None
    size: int
    milliseconds: float
    memory: int | None
    largest: float
    mean: float
    changed: float | None
    examples: int


def export(
    model: PersonalModel,
    folder: Path,
    inputs: Raw,
    *,
    to: tuple[str, ...] = ("onnx",),
    int8: bool = False,
    train: str | None = None,
    batch: int = 8,
    calibration: Raw | None = None,
    code: Code = NOTHING,
) -> list[Exported]:
    """Write a model in other formats and compare each with the model itself.

    Args:
        model: the model to export.
        folder: folder for the files: ``model.safetensors`` and the card, ``model.onnx``, ``model.int8.onnx``,
            ``model.int8-static.onnx``, ``model.pte``, ``model.features.pte``, ``model.step.pte``.
        inputs: raw inputs ``(n, *features)`` to compare on; several as ``Inputs``.
        to: ``folder`` (what ``PersonalModel.load`` reads), ``onnx``, ``executorch``.
        int8: also int8 versions of the ONNX model: with dynamic ranges, and, if it has convolutions, with
            ranges measured on ``calibration``.
        train: a part of the network that a device trains, such as ``head`` or ``lora``: adds programs for a training
            step to ExecuTorch's (:func:`~plures.serving.step.to_step`).
        batch: examples in such a step.
        calibration: raw inputs; default: ``inputs``.
        code: user functions that the model's method may name.

    Returns:
        The model in PyTorch first, then every file.
    """
    for name in to:
        if name not in FORMATS:
            raise PluresError(f"no format {name!r}; {suggestion(name, FORMATS, 'choose among')}")
    if train is not None and "executorch" not in to:
        raise PluresError(f"train={train!r}: a training step is a program of ExecuTorch: export to executorch, too")
    model.scaled(inputs)
    inputs = _typed(inputs, model)
    ranges = inputs if calibration is None else _typed(calibration, model)
    made: list[tuple[str, str, bytes | Program, Callable[[Path], Runner]]] = []
    if "onnx" in to or int8:
        graph = to_onnx(model, inputs)
        made.append(("ONNX", "model.onnx", graph, onnx_runner))
        if int8:
            made.append(("ONNX int8", "model.int8.onnx", to_int8(graph), onnx_runner))
            if convolves(graph):
                made.append(("ONNX int8, static", "model.int8-static.onnx", to_static_int8(graph, ranges), onnx_runner))
    if "executorch" in to:
        made.append(("ExecuTorch", "model.pte", to_executorch(model, inputs), executorch_runner))
    step = None if train is None else to_step(model, train, inputs, batch)
    moved = None if step is None else step.differences()
    size = sum(t.nbytes for t in model.tensors().values())
    with Alive() as alive:
        model.predict(inputs[:1])
    compared = [_compared("PyTorch", None, size, alive.peak, model.predict, model, inputs)]
    if "folder" in to:
        model.save(folder)
        file, again = folder / MODEL, PersonalModel.load(folder, code)
        compared.append(_compared("folder", file, file.stat().st_size, alive.peak, again.predict, model, inputs))
    for name, place, found, opened in made:
        content, memory = (found.content, found.memory) if isinstance(found, Program) else (found, None)
        _write(folder / place, content)
        compared.append(_compared(name, folder / place, len(content), memory, opened(folder / place), model, inputs))
    if step is not None and moved is not None:
        compared += _steps(step, moved, folder, inputs)
    return compared


def _write(file: Path, content: bytes) -> None:
    with replacing(file) as temporary:
        temporary.write_bytes(content)


def _steps(made: Personalising, moved: torch.Tensor, folder: Path, inputs: Raw) -> list[Exported]:
    """The programs of a training step, written; and by how much they differ from PyTorch."""
    found = []
    if made.first is not None and made.features is not None:
        file, program = folder / "model.features.pte", made.features
        _write(file, program.content)
        run = executorch_runner(file)
        far = (run(inputs)[0] - made.inputs[0]).abs()
        spent = _milliseconds(lambda: run(inputs[:1]))
        largest, mean = float(far.max()), float(far.mean())
        size, memory = len(program.content), program.memory
        found.append(Exported("ExecuTorch, features", file, size, spent, memory, largest, mean, None, len(inputs)))
    file, program = folder / "model.step.pte", made.program
    _write(file, program.content)
    spent = _milliseconds(made.once(file))
    name, size, memory = f"ExecuTorch, step of {made.batch}", len(program.content), program.memory
    largest, mean = float(moved.max()), float(moved.mean())
    return [*found, Exported(name, file, size, spent, memory, largest, mean, None, len(inputs))]


def _typed(raw: Any, model: PersonalModel) -> Raw:
    """Raw inputs in the types of the model's."""
    wanted = model.federation.inputs
    return like(raw, wanted, model.federation.name) if isinstance(wanted, Inputs) else raw.to(wanted)


def _compared(
    name: str, file: Path | None, size: int, memory: int | None, run: Runner, model: PersonalModel, inputs: Raw
) -> Exported:
    wanted, decided = model.predict(inputs)
    outputs, chosen = run(inputs)
    far = (outputs - wanted).abs()
    changed = None if decided is None or chosen is None else float((chosen != decided).to(torch.float64).mean())
    spent = _milliseconds(lambda: run(inputs[:1]))
    return Exported(name, file, size, spent, memory, float(far.max()), float(far.mean()), changed, len(inputs))


def _milliseconds(run: Callable[[], object]) -> float:
    """Median time of a call."""
    threads, first = torch.get_num_threads(), time.perf_counter()
    times: list[float] = []
    torch.set_num_threads(1)
    try:
        while len(times) < WARM_UP + REPEATS and (not times or time.perf_counter() - first < LONGEST):
            begun = time.perf_counter()
            run()
            times.append(time.perf_counter() - begun)
    finally:
        torch.set_num_threads(threads)
    return 1000 * float(np.median(times[min(WARM_UP, len(times) // 2) :]))
