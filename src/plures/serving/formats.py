"""A personal model as a graph for other runtimes: ONNX, int8, ExecuTorch; and a runner for each."""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from plures.errors import PluresError
from plures.extras import needed
from plures.federation.inputs import Inputs, parts
from plures.federation.preparation import Preparation, restored
from plures.federation.scaling import Scaling, scaled
from plures.files import first_line
from plures.serving.personal import SCALING, PersonalModel

OUTPUTS = ("outputs", "probabilities", "decided")
QUANTIZED = ("Conv", "Gemm", "MatMul")
"""Operations computed in int8."""
CALIBRATION = 200
"""Most examples for measuring ranges."""

Raw = Tensor | Inputs
Runner = Callable[[Raw], tuple[Tensor, Tensor | None]]
"""Raw inputs to outputs and decided classes."""


class Read(nn.Module):
    """Raw inputs, several as arguments, as the network reads them: missing values filled in, on its scale."""

    def __init__(self, model: PersonalModel) -> None:
        super().__init__()
        self.card, self.like = model.card, model.federation.inputs
        self.places: dict[str, str] = {}
        for number, (name, value) in enumerate(model.tensors().items()):
            if name.startswith(SCALING):
                self.places[name.removeprefix(SCALING)] = f"value{number}"
                self.register_buffer(f"value{number}", value.clone())

    def fitted(self) -> tuple[Scaling | None, Preparation | None]:
        """What was fitted to the data, of the module's buffers."""
        return restored(self.card.preparation, {name: getattr(self, place) for name, place in self.places.items()})

    def forward(self, *inputs: Tensor) -> Raw:
        scaling, preparation = self.fitted()
        like = self.like
        raw: Raw = inputs[0] if isinstance(like, Tensor) else Inputs(dict(zip(like.parts, inputs, strict=True)))
        if preparation is not None and isinstance(raw, Tensor):
            raw = preparation.filled(raw)
        return scaled(raw, scaling)


class Graph(nn.Module):
    """A personal model as one module: raw inputs to outputs, class probabilities and decided classes.

    Several inputs are its arguments in their order.

    It includes imputation of missing values (NaN), scaling, composition of leaves, calibration and decision; regression
    has outputs alone, in the target's own units. Text is excluded: a graph reads the numbers that
    :meth:`PersonalModel.encode` makes of a table.
    """

    def __init__(self, model: PersonalModel) -> None:
        super().__init__()
        self.model, self.read = model, Read(model)
        self.places: dict[str, str] = {}
        for number, (name, value) in enumerate(model.tensors().items()):
            if not name.startswith(SCALING):
                self.places[name] = f"value{number}"
                self.register_buffer(self.places[name], value.clone())

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        model = self.model.holding({name: getattr(self, place) for name, place in self.places.items()})
        outputs = model.outputs(self.read(*inputs))
        _, preparation = self.read.fitted()
        outputs = outputs if preparation is None else preparation.in_units(outputs)
        decided = model.decided(outputs)
        chances = model.probabilities(outputs)
        return (outputs,) if decided is None or chances is None else (outputs, chances, decided)


def names_of(inputs: Raw) -> list[str]:
    """Names of a graph's inputs: those of several, ``input0``, ``input1``, ... if they have positions alone."""
    if isinstance(inputs, Tensor):
        return ["inputs"]
    return [f"input{name}" if name.isdecimal() else name for name in inputs.parts]


def traced(model: PersonalModel, example: Raw, dynamic: bool) -> ExportedProgram:
    """The model's graph.

    Args:
        model: the model to export.
        example: raw inputs ``(n, *features)``.
        dynamic: whether any number of examples may be given at once; otherwise it is that of ``example``.

    Raises:
        PluresError: if the predictor cannot be expressed as a graph.
    """
    each = tuple(
        t[:1].to(like.dtype).repeat(3 if dynamic else 1, *(1,) * (t.dim() - 1))
        for t, like in zip(parts(example), parts(model.federation.inputs), strict=True)
    )
    try:
        with torch.no_grad(), quiet():
            program = torch.export.export(
                Graph(model).eval(), each, dynamic_shapes=_open(each) if dynamic else None, strict=False
            )
            known = torch.export.default_decompositions()
            known[torch.ops.aten._cdist_forward.default] = _distances
            plain: ExportedProgram = program.run_decompositions(known)
            return plain
    except Exception as error:
        raise PluresError(f"{refusal(model)}: {first_line(error)}; use `plures serve`, or another method") from error


def _open(inputs: tuple[Tensor, ...]) -> tuple[tuple[dict[int, Any], ...], ...]:
    """That any number of examples may be given, the same of each input."""
    count = Dim("batch")
    return (tuple({0: count} for _ in inputs),)


def _distances(one: Tensor, two: Tensor, p: float, mode: int | None) -> Tensor:
    """Euclidean distances of all pairs of rows, in operations that every runtime supports."""
    if p != 2:
        raise PluresError(f"distances with p={p} cannot be exported: use p=2")
    return (one.unsqueeze(-2) - two.unsqueeze(-3)).square().sum(-1).sqrt()


def refusal(model: PersonalModel) -> str:
    return f"the predictor of {model.card.spec.title()} cannot be exported"


def to_onnx(model: PersonalModel, example: Raw) -> bytes:
    """An ONNX model with any number of examples: ``inputs`` to ``outputs``, ``probabilities``, ``decided``.

    Inputs are raw; several have their own names.
    """
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
                input_names=names_of(example),
                output_names=list(names),
                dynamic_shapes=_open(tuple(parts(example))),
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


def to_static_int8(graph: bytes, calibration: Raw) -> bytes:
    """An ONNX model with int8 weights and activations, whose ranges were measured once.

    Args:
        graph: the ONNX model.
        calibration: raw inputs to measure the ranges on.
    """
    tools = needed("onnxruntime.quantization", "int8", "export")
    shapes = needed("onnxruntime.quantization.shape_inference", "int8", "export")
    rows = iter([_fed(calibration[row : row + 1]) for row in range(min(len(calibration), CALIBRATION))])

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


def _fed(raw: Raw) -> dict[str, Any]:
    """Rows as ONNX Runtime takes them."""
    return {name: t.numpy() for name, t in zip(names_of(raw), parts(raw), strict=True)}


@dataclass(frozen=True)
class Program:
    """A portable ExecuTorch program.

    Attributes:
        content: bytes of its file.
        memory: bytes that it plans for everything that is not in the file: inputs, outputs, temporaries.
    """

    content: bytes
    memory: int


def to_executorch(model: PersonalModel, example: Raw) -> Program:
    """A program that predicts one example at a time."""
    mobile("executorch.exir", "the export to ExecuTorch")
    return as_program(traced(model, example, dynamic=False), refusal(model))


def as_program(graph: ExportedProgram, refused: str) -> Program:
    """An exported graph as a program.

    Raises:
        PluresError: if ExecuTorch cannot express it; begins with what is ``refused``.
    """
    exir = mobile("executorch.exir", "the export to ExecuTorch")
    try:
        with quiet():
            made = exir.to_edge(graph).to_executorch()
            plans = made.executorch_program.execution_plan
            return Program(bytes(made.buffer), max(sum(plan.non_const_buffer_sizes) for plan in plans))
    except Exception as error:
        raise PluresError(f"{refused} to ExecuTorch: {first_line(error)}; try --to onnx") from error


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


def mobile(module: str, what: str) -> Any:
    """A module of ExecuTorch, whose libraries log that they lack kernels for GPUs."""
    with quiet():
        return needed(module, what, "mobile")


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

    def run(raw: Raw) -> tuple[Tensor, Tensor | None]:
        found = [torch.from_numpy(np.asarray(value)) for value in session.run(None, _fed(raw))]
        return found[0], found[2] if len(found) > 1 else None

    return run


def executorch_runner(file: Path) -> Runner:
    """An ExecuTorch program in its own runtime, one example at a time."""
    runtime = mobile("executorch.runtime", "running ExecuTorch")
    method = runtime.Runtime.get().load_program(file).load_method("forward")

    def run(raw: Raw) -> tuple[Tensor, Tensor | None]:
        rows = [parts(raw[place : place + 1]) for place in range(len(raw))]
        found = [[value.clone() for value in method.execute(row)] for row in rows]
        outputs, *rest = (torch.cat(parts) for parts in zip(*found, strict=True))
        return outputs, rest[1] if rest else None

    return run


def convolves(graph: bytes) -> bool:
    """Whether an ONNX model has convolutions."""
    loaded = needed("onnx", "int8", "export").load_model_from_string(graph)
    return any(node.op_type == "Conv" for node in loaded.graph.node)
