"""How a run uses the machine: backend, chunk size, compilation, precision, device."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

import torch

from plures.devices import find
from plures.errors import PluresError
from plures.run.capture import RECORDERS
from plures.signature import checked

Precision = Literal["auto", "float32", "float64", "bfloat16", "tf32"]


@checked
@dataclass(frozen=True)
class Execution:
    """Choices that change speed and memory, and results only within rounding.

    Attributes:
        backend: ``vmap`` trains a stack of clients at once, ``loop`` one client at a time; ``auto`` measures.
        chunk: clients trained at once; ``auto`` measures.
        compile: compile the training step with ``torch.compile``; ``auto`` does so if the run is long enough to make up
            for the compilation.
        precision: floating-point type of leaves and arithmetic; ``auto`` is ``float32``. With ``tf32``, on a CUDA
            device, matrix products and convolutions of ``float32`` leaves round their factors to 10 bits of mantissa;
            with ``float32`` they never do, whatever PyTorch's own settings. ``bfloat16`` means mixed precision: leaves
            stay ``float32``.
        device: ``cpu``, ``cuda``, ``cuda:1``, or ``auto`` for a CUDA device if there is one.
        processes: number of CPU processes that train clients, each a chunk at a time
            (:class:`~plures.run.pool.Pool`); needs ``plures[pool]``. The chunk size that ``auto`` chooses depends on
            it: for bit-identical results with any number of processes, fix ``chunk`` and ``backend``. ``auto`` is 1, or
            with ``ray`` one for each core or GPU of the cluster.
        ray: the Ray cluster whose processes train clients (:mod:`plures.run.rays`): ``local`` starts one on this
            machine, ``auto`` is the one that this machine belongs to, or ``HOST:PORT`` of its head node; needs
            ``plures[ray]``. On GPUs, more ``processes`` than there are GPUs share them.
        convolutions: how stacked clients convolve. ``grouped`` is what ``torch.func.vmap`` produces, one convolution
            with groups; ``patches`` copies patches and multiplies them in one batched product
            (:mod:`plures.run.convolution`). ``auto`` uses patches on CUDA, where cuDNN runs groups one after the
            other, and groups on a CPU, where they are faster.
        clients_on_disk: folder for the personal leaves of large populations; ``None`` keeps them in memory.
        capture: record steps of stacked clients and replay them (:mod:`plures.run.capture`). On a CUDA device, ``auto``
            measures. On a CPU it captures where it chooses stacks by itself, and compiled steps are not captured.
        features: compute what the frozen first part of a network gives once for each example, keep it in memory, and
            train on it (:mod:`plures.run.features`); ``auto`` does so where the numbers are the same, it saves work and
            takes at most 1 GB. Sites compute them in every step.
        threads: number of threads of this process that train and evaluate clients, each a chunk at a time
            (:mod:`plures.run.crew`), on a CPU; PyTorch's own threads are divided among them. ``auto`` is 1: small
            networks are slower in two threads, and the CNN of FedAvg a tenth faster (``benchmarks/README.md``).

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
    processes: int | Literal["auto"] = "auto"
    convolutions: Literal["auto", "grouped", "patches"] = "auto"
    clients_on_disk: Path | None = None
    capture: bool | Literal["auto"] = "auto"
    features: bool | Literal["auto"] = "auto"
    threads: int | Literal["auto"] = "auto"
    ray: str | None = None

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any], **own: Any) -> Execution:
        """An execution stored in a file, with options of the reader's own.

        On a device that is not a GPU, ``tf32`` becomes ``float32``, and a compiled step is not captured.

        Raises:
            PluresError: if the file names a folder to write to, a cluster, or an option that does not exist.
        """
        for name in stored.keys() - {field.name for field in fields(cls)} | stored.keys() & {"clients_on_disk", "ray"}:
            raise PluresError(f"an execution's {name!r} is not read from a file")
        asked = dict(**stored, **own)
        if find(asked.get("device", "cpu")).type != "cuda":
            asked |= {"capture": False} if asked.get("capture") is True and asked.get("compile") is True else {}
            asked |= {"precision": "float32"} if asked.get("precision") == "tf32" else {}
        return cls(**asked)

    def __post_init__(self) -> None:
        if isinstance(self.chunk, int) and self.chunk < 1:
            raise PluresError(f"chunk={self.chunk}: give at least 1, or 'auto'")
        if self.processes != "auto" and self.processes < 1:
            raise PluresError(f"processes={self.processes}: give at least 1")
        self._check_threads()
        if self.backend == "loop" and self.compile is True:
            raise PluresError("compile=True is not used by backend='loop': take backend='vmap', or leave it out")
        if self.backend == "loop" and self.convolutions != "auto":
            said = f"convolutions={self.convolutions!r} is not used by backend='loop'"
            raise PluresError(f"{said}: take backend='vmap', or leave it out")
        kind = find(self.device).type
        if self.backend == "loop" and self.capture is True:
            raise PluresError("capture=True is not used by backend='loop': take backend='vmap', or leave it out")
        if self.capture is True and kind not in RECORDERS:
            raise PluresError(
                f"capture=True records steps on a CPU or a CUDA device, not on {self.device!r}: leave it out"
            )
        if self.capture is True and self.compile is True and kind == "cpu":
            raise PluresError("capture=True and compile=True exclude each other on a CPU: leave one of them out")
        if self.precision == "tf32" and kind != "cuda":
            raise PluresError(f"precision='tf32' is arithmetic of CUDA devices, not of {self.device!r}: take 'float32'")
        if kind != "cpu" and self.side > 1 and self.ray is None:
            raise PluresError(f"processes={self.processes} share a CPU, not {self.device!r}: take device='cpu'")

    def _check_threads(self) -> None:
        """Refuse numbers of threads that cannot be, and threads where something else divides the work."""
        if self.threads == "auto" or self.threads == 1:
            return
        if self.threads < 1:
            raise PluresError(f"threads={self.threads}: give at least 1, or 'auto'")
        others = {"processes": self.side > 1, "ray": self.ray is not None, "compile=True": self.compile is True}
        for name in [name for name, taken in others.items() if taken]:
            raise PluresError(f"threads={self.threads} and {name} exclude each other: leave one of them out")
        if find(self.device).type != "cpu":
            raise PluresError(f"threads={self.threads} share a CPU, not {self.device!r}: take device='cpu'")

    @property
    def side(self) -> int:
        """Number of processes side by side, as far as it is known: 1 for ``auto``."""
        return 1 if self.processes == "auto" else self.processes

    def alone(self, ray: str | None = None) -> Execution:
        """The same execution for one of several processes, which has the Ray cluster at an address if there is one."""
        return replace(self, processes=1 if ray is None else "auto", ray=ray)

    @property
    def torch_device(self) -> torch.device:
        return find(self.device)

    @property
    def dtype(self) -> torch.dtype:
        return torch.float64 if self.precision == "float64" else torch.float32

    @property
    def patches(self) -> bool:
        """Whether convolutions of stacked clients are computed as products of patches."""
        wanted = self.convolutions
        return self.backend != "loop" and (
            wanted == "patches" or (wanted == "auto" and self.torch_device.type == "cuda")
        )

    @property
    def settled(self) -> bool:
        """Whether all choices are made, so that nothing needs measuring."""
        capturing = self.backend != "loop" and self.torch_device.type == "cuda"
        chosen = self.backend, self.chunk, self.compile, self.precision, *[self.capture] * capturing
        return "auto" not in chosen
