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
from plures.serving.formats import (
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

FORMATS = ("folder", "onnx", "executorch")
WARM_UP, REPEATS = 20, 200


@dataclass(frozen=True)
class Exported:
    """One format, compared with the model in PyTorch on the same raw inputs.

    Attributes:
        format: its name.
        file: the written file; ``None`` for the model in PyTorch itself.
        size: bytes of the file; of the values alone, for the model in PyTorch.
        milliseconds: median time of a prediction for one example, on one thread.
        largest: largest difference of an output.
        mean: mean difference of an output.
        changed: share of the examples whose decided class changed; ``None`` for regression.
        examples: number of examples compared.
    """

    format: str
    file: Path | None
    size: int
    milliseconds: float
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
    calibration: Raw | None = None,
    code: Code = NOTHING,
) -> list[Exported]:
    """Write a model in other formats and compare each with the model itself.

    Args:
        model: the model to export.
        folder: folder for the files: ``model.safetensors`` and the card, ``model.onnx``, ``model.int8.onnx``,
            ``model.int8-static.onnx``, ``model.pte``.
        inputs: raw inputs ``(n, *features)`` to compare on; several as ``Inputs``.
        to: ``folder`` (what ``PersonalModel.load`` reads), ``onnx``, ``executorch``.
        int8: also int8 versions of the ONNX model: with dynamic ranges, and, if it has convolutions, with
            ranges measured on ``calibration``.
        calibration: raw inputs; default: ``inputs``.
        code: user functions that the model's method may name.

    Returns:
        The model in PyTorch first, then every file.
    """
    for name in to:
        if name not in FORMATS:
            raise PluresError(f"no format {name!r}; {suggestion(name, FORMATS, 'choose among')}")
    model.scaled(inputs)
    inputs = _typed(inputs, model)
    ranges = inputs if calibration is None else _typed(calibration, model)
    made: list[tuple[str, str, bytes, Callable[[Path], Runner]]] = []
    if "onnx" in to or int8:
        graph = to_onnx(model, inputs)
        made.append(("ONNX", "model.onnx", graph, onnx_runner))
        if int8:
            made.append(("ONNX int8", "model.int8.onnx", to_int8(graph), onnx_runner))
            if convolves(graph):
                made.append(("ONNX int8, static", "model.int8-static.onnx", to_static_int8(graph, ranges), onnx_runner))
    if "executorch" in to:
        made.append(("ExecuTorch", "model.pte", to_executorch(model, inputs), executorch_runner))
    size = sum(t.nbytes for t in model.tensors().values())
    compared = [_compared("PyTorch", None, size, model.predict, model, inputs)]
    if "folder" in to:
        model.save(folder)
        file, again = folder / MODEL, PersonalModel.load(folder, code)
        compared.append(_compared("folder", file, file.stat().st_size, again.predict, model, inputs))
    for name, place, content, opened in made:
        with replacing(folder / place) as temporary:
            temporary.write_bytes(content)
        compared.append(_compared(name, folder / place, len(content), opened(folder / place), model, inputs))
    return compared


def _typed(raw: Any, model: PersonalModel) -> Raw:
    """Raw inputs in the types of the model's."""
    wanted = model.federation.inputs
    return like(raw, wanted, model.federation.name) if isinstance(wanted, Inputs) else raw.to(wanted)


def _compared(name: str, file: Path | None, size: int, run: Runner, model: PersonalModel, inputs: Raw) -> Exported:
    wanted, decided = model.predict(inputs)
    outputs, chosen = run(inputs)
    far = (outputs - wanted).abs()
    changed = None if decided is None or chosen is None else float((chosen != decided).to(torch.float64).mean())
    spent = _milliseconds(run, inputs[:1])
    return Exported(name, file, size, spent, float(far.max()), float(far.mean()), changed, len(inputs))


def _milliseconds(run: Runner, one: Raw) -> float:
    """Median time of a prediction."""
    threads, times = torch.get_num_threads(), []
    torch.set_num_threads(1)
    try:
        for _ in range(WARM_UP + REPEATS):
            begun = time.perf_counter()
            run(one)
            times.append(time.perf_counter() - begun)
    finally:
        torch.set_num_threads(threads)
    return 1000 * float(np.median(times[WARM_UP:]))
