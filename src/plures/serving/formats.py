"""A personal model as a graph for other runtimes: ONNX, int8, ExecuTorch; and a runner for each."""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from plures.errors import PluresError
from plures.extras import needed
from plures.federation.preparation import restored
from plures.files import first_line
from plures.serving.personal import SCALING, PersonalModel

OUTPUTS = ("outputs", "probabilities", "decided")
QUANTIZED = ("Conv", "Gemm", "MatMul")
"""Operations computed in int8."""
CALIBRATION = 200
"""Most examples for measuring ranges."""

Runner = Callable[[Tensor], tuple[Tensor, Tensor | None]]
"""Raw inputs to outputs and decided classes."""


class Graph(nn.Module):
    """A personal model as one module: raw inputs to outputs, class probabilities and decided classes.

    It includes imputation of missing values (NaN), scaling, composition of leaves, calibration and decision; regression
    has outputs alone, in the target's own units. Text is excluded: a graph reads the numbers that
    :meth:`PersonalModel.encode` makes of a table.
    """

    def __init__(self, model: PersonalModel) -> None:
        super().__init__()
        self.model = model
        self.places: dict[str, str] = {}
        for number, (name, value) in enumerate(model.tensors().items()):
            self.places[name] = f"value{number}"
            self.register_buffer(self.places[name], value.clone())

    def forward(self, raw: Tensor) -> tuple[Tensor, ...]:
        values = {name: getattr(self, place) for name, place in self.places.items()}
        given = {name.removeprefix(SCALING): value for name, value in values.items() if name.startswith(SCALING)}
        scaling, preparation = restored(self.model.card.preparation, given)
        model = self.model.holding(values)
        raw = raw if preparation is None else preparation.filled(raw)
        if scaling is not None:
            shape = (1, -1, *(1,) * (raw.dim() - 2))
            mean, scale = (t.to(raw).view(shape) for t in scaling)
            raw = (raw - mean) / scale
        outputs = model.outputs(raw)
        outputs = outputs if preparation is None else preparation.in_units(outputs)
        decided = model.decided(outputs)
        chances = model.probabilities(outputs)
        return (outputs,) if decided is None or chances is None else (outputs, chances, decided)


def traced(model: PersonalModel, example: Tensor, dynamic: bool) -> ExportedProgram:
    """The model's graph.

    Args:
        model: the model to export.
        example: raw inputs ``(n, *features)``.
        dynamic: whether any number of examples may be given at once; otherwise it is that of ``example``.

    Raises:
        PluresError: if the predictor cannot be expressed as a graph.
    """
    inputs = model.federation.one_input("export")
    shapes = ({0: Dim("batch")},) if dynamic else None
    example = example[:1].to(inputs.dtype).repeat(3 if dynamic else 1, *(1,) * (example.dim() - 1))
    try:
        with torch.no_grad(), quiet():
            program = torch.export.export(Graph(model).eval(), (example,), dynamic_shapes=shapes, strict=False)
            known = torch.export.default_decompositions()
            known[torch.ops.aten._cdist_forward.default] = _distances
            plain: ExportedProgram = program.run_decompositions(known)
            return plain
    except Exception as error:
        raise PluresError(f"{refusal(model)}: {first_line(error)}; use `plures serve`, or another method") from error


def _distances(one: Tensor, two: Tensor, p: float, mode: int | None) -> Tensor:
    """Euclidean distances of all pairs of rows, in operations that every runtime supports."""
    if p != 2:
        raise PluresError(f"distances with p={p} cannot be exported: use p=2")
    return (one.unsqueeze(-2) - two.unsqueeze(-3)).square().sum(-1).sqrt()


def refusal(model: PersonalModel) -> str:
    return f"the predictor of {model.card.spec.title()} cannot be exported"


def to_onnx(model: PersonalModel, example: Tensor) -> bytes:
    """An ONNX model with any number of examples: ``inputs`` (raw) to ``outputs``, ``probabilities``, ``decided``."""
    needed("onnx", "the export to ONNX", "export")
    needed("onnxscript", "the export to ONNX", "export")
    program = traced(model, example, dynamic=True)
    names = OUTPUTS if model.federation.task.probable else OUTPUTS[:1]
    try:
        with quiet():
            made = torch.onnx.export(
                program,
                dynamo=True,
                verbose=False,
                input_names=["inputs"],
                output_names=list(names),
                dynamic_shapes=({0: Dim("batch")},),
            )
    except torch.onnx.OnnxExporterError as error:
        cause = first_line(error.__cause__) if isinstance(error.__cause__, Exception) else first_line(error)
        raise PluresError(f"{refusal(model)} to ONNX: {cause}; use `plures serve`, or another method") from error
    assert made is not None
    return bytes(made.model_proto.SerializeToString())


def to_int8(graph: bytes) -> bytes:
    """An ONNX model with int8 weights; activation ranges are computed for every input."""
    tools = needed("onnxruntime.quantization", "int8", "export")
    with _bare(graph) as source, quiet():
        target = source.with_name("int8.onnx")
        tools.quantize_dynamic(
            source, target, weight_type=tools.QuantType.QInt8, per_channel=True, op_types_to_quantize=list(QUANTIZED)
        )
        return target.read_bytes()


def to_static_int8(graph: bytes, calibration: Tensor) -> bytes:
    """An ONNX model with int8 weights and activations, whose ranges were measured once.

    Args:
        graph: the ONNX model.
        calibration: raw inputs to measure the ranges on.
    """
    tools = needed("onnxruntime.quantization", "int8", "export")
    shapes = needed("onnxruntime.quantization.shape_inference", "int8", "export")
    rows = iter([{"inputs": row.numpy()} for row in torch.split(calibration[:CALIBRATION], 1)])

    class Rows(tools.CalibrationDataReader):  # type: ignore[misc, name-defined]
        def get_next(self) -> dict[str, Any] | None:
            return next(rows, None)

    with _bare(graph) as source, quiet():
        ready, target = source.with_name("ready.onnx"), source.with_name("int8.onnx")
        shapes.quant_pre_process(source, ready, skip_symbolic_shape=True)
        tools.quantize_static(
            ready,
            target,
            Rows(),
            quant_format=tools.QuantFormat.QDQ,
            per_channel=True,
            weight_type=tools.QuantType.QInt8,
            op_types_to_quantize=list(QUANTIZED),
        )
        return target.read_bytes()


def to_executorch(model: PersonalModel, example: Tensor) -> bytes:
    """A portable ExecuTorch program that predicts one example at a time."""
    exir = needed("executorch.exir", "the export to ExecuTorch", "mobile")
    program = traced(model, example, dynamic=False)
    try:
        with quiet():
            return bytes(exir.to_edge(program).to_executorch().buffer)
    except Exception as error:
        raise PluresError(f"{refusal(model)} to ExecuTorch: {first_line(error)}; try --to onnx") from error


@contextlib.contextmanager
def _bare(graph: bytes) -> Iterator[Path]:
    """A file with the model without inferred shapes, because the exporter's contradict the quantizer's."""
    onnx = needed("onnx", "int8", "export")
    with tempfile.TemporaryDirectory() as folder:
        loaded = onnx.load_model_from_string(graph)
        del loaded.graph.value_info[:]
        file = Path(folder) / "model.onnx"
        onnx.save(loaded, file)
        yield file


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence the exporters' log output, which is not for users."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def onnx_runner(file: Path) -> Runner:
    """An ONNX model in ONNX Runtime, on one thread."""
    runtime = needed("onnxruntime", "running ONNX", "export")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    try:
        session = runtime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise PluresError(
            f"{file}: ONNX Runtime cannot run this model: {first_line(error)}; it lacks some operations in float64, so "
            'train with precision="float32", or use `plures serve`'
        ) from error

    def run(raw: Tensor) -> tuple[Tensor, Tensor | None]:
        found = [torch.from_numpy(np.asarray(value)) for value in session.run(None, {"inputs": raw.numpy()})]
        return found[0], found[2] if len(found) > 1 else None

    return run


def executorch_runner(file: Path) -> Runner:
    """An ExecuTorch program in its own runtime, one example at a time."""
    runtime = needed("executorch.runtime", "running ExecuTorch", "mobile")
    method = runtime.Runtime.get().load_program(file).load_method("forward")

    def run(raw: Tensor) -> tuple[Tensor, Tensor | None]:
        found = [[value.clone() for value in method.execute([row])] for row in torch.split(raw, 1)]
        outputs, *rest = (torch.cat(parts) for parts in zip(*found, strict=True))
        return outputs, rest[1] if rest else None

    return run


def convolves(graph: bytes) -> bool:
    """Whether an ONNX model has convolutions."""
    loaded = needed("onnx", "int8", "export").load_model_from_string(graph)
    return any(node.op_type == "Conv" for node in loaded.graph.node)
