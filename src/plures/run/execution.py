"""How a run uses the machine: backend, chunk size, compilation, precision, device."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

import torch

from plures.devices import find
from plures.errors import PluresError
from plures.signature import checked

Precision = Literal["auto", "float32", "float64", "bfloat16"]


@checked
@dataclass(frozen=True)
class Execution:
    """Choices that change speed and memory, and results only within rounding.

    Attributes:
        backend: ``vmap`` trains a stack of clients at once, ``loop`` one client at a time; ``auto`` measures.
        chunk: clients trained at once; ``auto`` measures.
        compile: compile the training step with ``torch.compile``; ``auto`` does so when the measured length of the
            run makes up for the compilation.
        precision: floating-point type. ``bfloat16`` means mixed precision: leaves stay ``float32``. ``auto`` measures
            it against ``float32`` on an accelerator that has it; on a CPU it takes ``float32``.
        device: ``cpu``, ``cuda``, ``cuda:1``, or ``auto`` for a CUDA device where there is one.
        processes: processes on the CPU that visit clients, each a chunk at a time
            (:class:`~plures.run.pool.Pool`); needs ``plures[pool]``.
        convolutions: how clients that are stacked convolve. ``grouped`` is what ``torch.func.vmap`` makes of it, one
            convolution with groups; ``patches`` copies patches and multiplies them in one batched product
            (:mod:`plures.run.convolution`). ``auto`` takes patches on CUDA, where cuDNN runs groups one after the
            other, and groups on a CPU, where they are faster.
        clients_on_disk: folder for the personal leaves of large populations; ``None`` keeps them in memory.

    Examples:
        >>> heart, method = plures.load("heart"), plures.METHODS["fedavg"]()
        >>> work = plures.Execution(backend="loop", chunk=2, compile=False, precision="float64")
        >>> run = plures.Run(heart, plures.default_model(heart), method, plures.Training(rounds=1), execution=work)
        >>> run.execution.backend, run.step().round
        ('loop', 1)
    """

    backend: Literal["auto", "loop", "vmap"] = "auto"
    chunk: int | Literal["auto"] = "auto"
    compile: bool | Literal["auto"] = "auto"
    precision: Precision = "auto"
    device: str = "cpu"
    processes: int = 1
    convolutions: Literal["auto", "grouped", "patches"] = "auto"
    clients_on_disk: Path | None = None

    @classmethod
    def told(cls, told: Mapping[str, Any], **own: Any) -> Execution:
        """What a file tells of an execution, and what the reader says himself.

        Raises:
            PluresError: if the file names a folder to write to, or what there is not.
        """
        for name in told.keys() - {field.name for field in fields(cls) if field.name != "clients_on_disk"}:
            raise PluresError(f"an execution's {name!r} is not read from a file")
        return cls(**told, **own)

    def __post_init__(self) -> None:
        if isinstance(self.chunk, int) and self.chunk < 1:
            raise PluresError(f"chunk={self.chunk}: give at least 1, or 'auto'")
        if self.processes < 1:
            raise PluresError(f"processes={self.processes}: give at least 1")
        if self.backend == "loop" and self.compile is True:
            raise PluresError("compile=True is not used by backend='loop': take backend='vmap', or leave it out")
        if self.backend == "loop" and self.convolutions != "auto":
            said = f"convolutions={self.convolutions!r} is not used by backend='loop'"
            raise PluresError(f"{said}: take backend='vmap', or leave it out")
        if find(self.device).type != "cpu" and self.processes > 1:
            raise PluresError(f"processes={self.processes} share a CPU, not {self.device!r}: take device='cpu'")

    @property
    def torch_device(self) -> torch.device:
        return find(self.device)

    @property
    def dtype(self) -> torch.dtype:
        return torch.float64 if self.precision == "float64" else torch.float32

    @property
    def patches(self) -> bool:
        """Whether stacked clients convolve by products of patches."""
        wanted = self.convolutions
        return self.backend != "loop" and (
            wanted == "patches" or (wanted == "auto" and self.torch_device.type == "cuda")
        )

    @property
    def settled(self) -> bool:
        """Whether nothing is left to be measured."""
        return "auto" not in (self.backend, self.chunk, self.compile, self.precision)
