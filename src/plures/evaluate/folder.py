"""A finished run on disk: JSON and safetensors, no pickle."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from torch import Tensor

from plures.errors import PluresError, suggestion
from plures.evaluate.results import SeedResult
from plures.evaluate.spec import RunSpec
from plures.faults import M, text_of, unreadable
from plures.files import describe, read, write, write_text
from plures.models import Leaves
from plures.run import Execution, Run
from plures.run.checkpoint import restore, snapshot
from plures.run.engine import Stack
from plures.run.fingerprint import KEY, Fingerprint, of_run
from plures.signature import checked

DESCRIPTION, STATE, MODELS, NEWCOMERS = "run.json", "state.safetensors", "models.safetensors", "newcomers"
OWN, PARTS = "own", ("inputs", "targets", "weight")


def personal_models(run: Run) -> Iterator[tuple[str, Leaves]]:
    """Every client's name and what it predicts with: its personal model, or ``slot:path`` where that is composed."""
    for chunk in run.chunks(list(range(len(run.federation)))):
        stack = run.deployed(chunk)
        flat = {
            path if len(stack) == 1 else f"{slot}:{path}": t for slot, ls in stack.items() for path, t in ls.items()
        }
        for row, client in enumerate(chunk):
            yield run.federation.clients[client], {path: t[row].clone() for path, t in flat.items()}


@checked
@dataclass(frozen=True)
class RunFolder:
    """A folder that holds a finished run.

    Attributes:
        path: the folder; ``run.json`` says what the run was, how it scored and who changed cluster when;
            ``state.safetensors`` is the state at the chosen round, ``models.safetensors`` every client's personal model
            as ``client/path``.
    """

    path: Path

    @property
    def finished(self) -> bool:
        """Whether the folder holds a finished run; its description is written last."""
        return (self.path / DESCRIPTION).exists()

    def write(self, run: Run, spec: RunSpec | None, result: SeedResult, question: Fingerprint | None = None) -> None:
        """Write a run in the state it is in, with its description.

        Args:
            run: the run.
            spec: what it was in names and numbers; ``None`` for a run made from Python objects.
            result: how it scored.
            question: what it answers; default: what :func:`~plures.run.fingerprint.of_run` finds.
        """
        write(self.path / STATE, snapshot(run), {})
        models = {f"{client}/{path}": t for client, leaves in personal_models(run) for path, t in leaves.items()}
        write(self.path / MODELS, models, {"clients": list(run.federation.clients)})
        described = {
            "spec": None if spec is None else spec.model_dump(),
            KEY: of_run(run, "run" if spec is None else spec.title()) if question is None else question,
            "execution": {k: v for k, v in vars(run.execution).items() if k not in ("clients_on_disk", "device")},
            "result": result.model_dump(mode="json"),
            "moves": [
                {"round": round, "block": block, "client": client, "cluster": cluster}
                for round, block, client, cluster in run.history()
            ],
        }
        write_text(self.path / DESCRIPTION, json.dumps(described, indent=1))

    def add(self, guest: Run) -> None:
        """Keep the personal models of newcomers beside those of the clients, with the examples that they predict by."""
        present = describe(self.path / MODELS)["clients"]
        for client in guest.federation.clients:
            if client in present:
                raise PluresError(
                    f"client {client!r} took part in the run in {self.path} and has its model: rename the new client, "
                    "or choose others with --client"
                )
        for client, leaves in personal_models(guest):
            place = guest.federation.index(client)
            models = {f"{client}/{path}": t for path, t in leaves.items()}
            for split in guest.bound.method.predictor.reads:
                size = max(1, int(guest.federation.splits[split].sizes[place]))
                whole = guest.engine.whole([place], split)
                models |= {f"{OWN}:{split}:{part}": t[:, :size] for part, t in zip(PARTS, whole, strict=True)}
            write(self._newcomer(client), models, {"clients": [client]})

    def _description(self) -> dict[str, Any]:
        file = self.path / DESCRIPTION
        if not file.exists():
            raise PluresError(f"{self.path} is not a finished run: it has no {DESCRIPTION}; make one with `plures run`")
        text = text_of(file, "the description of a run")
        try:
            described = json.loads(text)
        except json.JSONDecodeError as error:
            raise PluresError(f"{file} is damaged ({error}): run again, into another folder") from error
        if not isinstance(described, dict) or not {"spec", "execution", "result"} <= described.keys():
            raise PluresError(f"{file} is not the description of a run: name the folder that `plures run` wrote")
        return described

    def question(self) -> Fingerprint | None:
        """What the run answers; ``None`` if an earlier version of plures wrote it, which did not keep that."""
        told: Fingerprint | None = self._description().get(KEY)
        return told

    def result(self) -> SeedResult:
        """How the run scored."""
        return self._read(SeedResult, "result")

    def spec(self) -> RunSpec:
        """What the run was."""
        spec = self._description()["spec"]
        if spec is None:
            raise PluresError(f"{self.path} was made from Python objects: use them to rebuild the run")
        return self._read(RunSpec, "spec")

    def _read(self, kind: type[M], key: str) -> M:
        """A part of the description."""
        try:
            return kind.model_validate(self._description()[key])
        except ValidationError as error:
            raise unreadable(error, self.path / DESCRIPTION, "a run", "run again, into another folder") from error

    def run(self, device: str = "cpu") -> Run:
        """The run in its saved state, on the clients it was trained with."""
        spec, execution = self.spec(), self._execution(device)
        federation = spec.federation()
        if spec.unseen:
            federation, _ = federation.hold_out(spec.unseen)
        rebuilt = spec.run(federation, execution)
        restore(rebuilt, read(self.path / STATE)[0])
        return rebuilt

    def _execution(self, device: str) -> Execution:
        described = self._description()["execution"]
        try:
            return Execution(**described, device=device)
        except (PluresError, TypeError) as error:
            raise PluresError(f"{self.path / DESCRIPTION} is damaged ({error}): run again") from error

    def predict(self, client: str, inputs: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Outputs of one client's predictor, and the classes that it decides for.

        Args:
            client: its name.
            inputs: raw examples ``(n, *features)``; default: the client's test examples.

        Raises:
            PluresError: among others if its model diverged.
        """
        spec, model = self.spec(), self.model(client)
        federation = spec.federation()
        run = spec.run(federation, self._execution("cpu"))
        federation = federation.to("cpu", run.execution.dtype)
        own: dict[str, Any] = {}
        if self._newcomer(client).exists():
            stored, _ = read(self._newcomer(client))
            reads = run.bound.method.predictor.reads
            own = {split: tuple(stored[f"{OWN}:{split}:{part}"] for part in PARTS) for split in reads}
        elif client in federation.clients:
            place = federation.index(client)
            own = {split: run.engine.whole([place], split) for split in run.bound.method.predictor.reads}
        if inputs is not None:
            inputs = federation.scaled(inputs)
        elif client in federation.clients:
            inputs = federation.inputs[federation.splits["test"][federation.index(client)]]
        else:
            raise PluresError(f"the examples of the new client {client!r} are not in the run's data: give --inputs")
        if not bool(inputs.isfinite().all()):
            raise PluresError(f"the inputs for client {client!r} hold a NaN or an infinite value: clean them")
        deployed: Stack = {}
        for key, value in model.items():
            slot, colon, path = key.partition(":")
            deployed.setdefault(slot if colon else "model", {})[path if colon else key] = value.unsqueeze(0)
        outputs = run.engine.forward(deployed, inputs.unsqueeze(0), own)
        if not bool((outputs.softmax(-1) if federation.task.classes else outputs).isfinite().all()):
            raise PluresError(
                f"the model of client {client!r} diverged in training: run again with a lower learning rate"
            )
        decided = run.engine.decisions(deployed, outputs)[0] if federation.task.classes else None
        return outputs[0], decided

    def _newcomer(self, client: str) -> Path:
        return self.path / NEWCOMERS / f"{client}.safetensors"

    def model(self, client: str) -> Leaves:
        """What one client predicts with: its personal model, or ``slot:path`` where that is composed."""
        newcomer = self._newcomer(client)
        tensors, about = read(newcomer if newcomer.exists() else self.path / MODELS)
        if client not in about["clients"]:
            near = suggestion(client, about["clients"], "clients are")
            raise PluresError(f"no client {client!r} in {self.path}; {near}")
        return {key.removeprefix(f"{client}/"): t for key, t in tensors.items() if key.startswith(f"{client}/")}
