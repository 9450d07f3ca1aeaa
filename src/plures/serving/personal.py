"""A personal model: one client's predictor, self-contained, as a site stores and deploys it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from plures.brief import brief
from plures.errors import PluresError
from plures.evaluate import RunFolder, RunSpec
from plures.evaluate.code import NOTHING, Code
from plures.evaluate.folder import RERUN, counts, stored_example, told_examples
from plures.evaluate.results import PrivacyCard
from plures.faults import explain
from plures.federation import SPLITS, Federation, Split
from plures.federation.federation import given_by_name
from plures.federation.inputs import Inputs, as_named, lead, parts, shape_text, zeros
from plures.federation.preparation import numbers, restored
from plures.files import read, understood, write, write_text
from plures.method import Batch, Leaf, Predict, Problem, Setting, State
from plures.method.leaf import by_leaf, by_slot
from plures.method.sizes import sizes_of
from plures.models import Leaves, Network, nested
from plures.models.units import Widths
from plures.models.widths import narrowed
from plures.run import Run
from plures.run.engine import Stack
from plures.run.kernels import kernels
from plures.run.predict import said
from plures.serving import describe
from plures.serving.card import FORMAT, Card
from plures.serving.watched import Watched
from plures.tables.schema import Schema
from plures.tables.table import Table
from plures.tasks import Task
from plures.version import __version__

MODEL, CARD = "model.safetensors", "card.json"
REPUBLISH = "publish the model again"
OWN, SCALING = "own:", "scaling:"
Examples = tuple[Tensor | Inputs, Tensor, Tensor]
"""Inputs, targets and weights of some of the client's own examples."""


@brief
@dataclass(frozen=True, eq=False)
class PersonalModel:
    """One client's predictor, with everything that it needs.

    Outputs are those of :meth:`plures.evaluate.RunFolder.predict`: bit for bit if the run trained one client at a
    time (``backend="loop"``, as a site does) or predicts with the leaves of one model; within rounding for a composed
    predictor of a run that maps its clients.

    Attributes:
        card: its model card.
        federation: task, inputs and scaling of the client's federation, without any row.
        network: the model as a function of its leaves.
        predictor: how the leaves predict.
        leaves: slot -> path -> value of all that the predictor reads.
        own: the client's own examples of the splits that the predictor reads.

    Examples:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from plures.serving import PersonalModel
        >>> spec = plures.RunSpec(data="heart", method="fedper", rounds=1)
        >>> run = spec.run(spec.federation())
        >>> record = run.step()
        >>> folder = Path(tempfile.mkdtemp()) / "va"
        >>> PersonalModel.of(run, "va", spec).save(folder)
        >>> outputs, classes = PersonalModel.load(folder).predict(run.federation.inputs[:5])
        >>> tuple(outputs.shape), torch.equal(outputs.argmax(1), classes)
        ((5, 2), True)
    """

    card: Card
    federation: Federation
    network: Network
    predictor: Predict
    leaves: Mapping[str, Leaves]
    own: Mapping[str, Examples]

    @classmethod
    def of(
        cls,
        run: Run,
        client: str,
        spec: RunSpec,
        *,
        schema: Schema | None = None,
        sheet: Mapping[str, Any] | None = None,
        code: Code = NOTHING,
        privacy: PrivacyCard | None = None,
    ) -> PersonalModel:
        """The model that a client would deploy in the run's current state, with its card.

        Args:
            run: the run, or the result of :func:`plures.run.onboard` for a newcomer.
            client: its name.
            spec: the run's settings, to rebuild network and method.
            schema: format of raw table rows, so the model can read them; default: that of the federation's data.
            sheet: the data sheet of the client's data.
            code: user functions that the method may name.
            privacy: what the whole run spent of differential privacy; default: what its rounds so far did.

        Raises:
            PluresError: if the spec gives another network than the run's, or no file can name the run's task.
        """
        place, predict = run.federation.index(client), run.bound.method.predictor
        federation = run.federation
        own: dict[str, Examples] = {}
        for split in predict.reads:
            inputs, targets, weight = run.engine.whole([place], split)
            size = max(1, int(federation.splits[split].sizes[place]))
            own[split] = nested.mapped(lambda t, size=size: t[:, :size], (inputs, targets, weight))
        card = describe.described(
            federation,
            run.bound,
            federation.clients[place],
            spec,
            counts(federation, place),
            round=run.round,
            execution=run.execution,
            schema=schema,
            sheet=sheet,
            privacy=privacy or (None if (spent := run.spent()) is None else PrivacyCard.of(spent)),
        )
        leaves = {
            slot: {
                path: held.unsqueeze(0)
                for path, t in some.items()
                if (held := run.held_by(Leaf(slot, path), t[0], place)) is not None
            }
            for slot, some in run.deployed([place]).items()
        }
        return _of(card, leaves, own, federation, lambda model: model._scores(federation, place), code)

    @classmethod
    def stored(cls, kept: RunFolder, client: str) -> PersonalModel:
        """The model of a client in a run's folder; does not read the run's data, which may have changed or moved."""
        with understood(kept.path, RERUN):
            return _stored(kept, client)

    # --- prediction ---------------------------------------------------------------------------------------------

    def predict(self, examples: Tensor | Inputs | Table) -> tuple[Tensor, Tensor | None]:
        """Outputs for raw examples, and the client's decisions.

        Args:
            examples: ``(n, *features)`` raw, before any scaling; or rows of a table with the columns that the
                federation's schema declares, or that its data had. Several inputs as ``Inputs``, or as a mapping of
                their names to tensors or arrays.

        Returns:
            Outputs ``(n, outputs)``: log-probabilities of classes up to a constant, log-odds of labels, or the
            predicted numbers in the target's own units; classes ``(n,)`` int64 or labels ``(n, labels)`` of 0 and 1,
            ``None`` for regression.

        Raises:
            PluresError: if examples have another shape or type or are not finite, or if the model diverged.
        """
        several = self.federation.inputs
        named = isinstance(several, Inputs) and (self.schema is None or given_by_name(examples, several))
        numbers = named or isinstance(examples, Tensor | Inputs)
        inputs = self.scaled(examples) if numbers else self.encode(cast(Table, examples))
        with torch.no_grad():
            try:
                outputs = self.outputs(inputs)
            except IndexError as error:
                raise PluresError(
                    f"the network of client {self.card.client!r} cannot read one of the numbers: {error}; give numbers "
                    "like those it was trained on"
                ) from error
            if not bool(self.federation.task.expected(outputs).isfinite().all()):
                raise PluresError(
                    f"the model of client {self.card.client!r} diverged in training: run again with a lower learning "
                    "rate"
                )
            return self.federation.in_units(outputs), self.decided(outputs)

    def probabilities(self, outputs: Tensor) -> Tensor | None:
        """Probability of every class or label ``(n, outputs)``; ``None`` where numbers are predicted."""
        return self.federation.task.probabilities(outputs)

    @cached_property
    def schema(self) -> Schema | None:
        """Format of raw table rows; ``None`` if examples are given as numbers."""
        if self.card.table is None:
            return None
        return Schema.model_validate_json(json.dumps(self.card.table))

    def encode(self, table: Table, *, scaled: bool = True) -> Tensor | Inputs:
        """Inputs ``(n, *features)`` of raw rows of a table.

        Args:
            table: column -> values, or a frame, as the federation's schema declares it, or with the columns of its
                data; no target is needed.
            scaled: on the scale that the network reads; otherwise as :meth:`predict` expects them.
        """
        if self.schema is not None:
            return self.schema.encode(table, scaled=scaled)
        if not self.raw_columns:
            raise PluresError(
                f"the model of client {self.card.client!r} has no schema of raw rows: give examples as numbers, "
                f"{shape_text(self.card.features)} each"
            )
        raw = self.federation.encoded(table)
        return self.scaled(raw) if scaled else raw

    @property
    def tabular(self) -> bool:
        """Whether raw rows may contain text or missing values, so a program must give them cell by cell."""
        made = self.federation.preparation
        return self.schema is not None or (made is not None and (bool(made.table) or made.fill is not None))

    @property
    def raw_columns(self) -> tuple[str, ...]:
        """Names of the columns of raw rows; empty if examples have none."""
        if self.schema is not None:
            return tuple(column.name for column in self.schema.columns)
        if isinstance(self.card.features, dict) or len(self.card.features) != 1:
            return ()
        made = self.federation.preparation
        return self.federation.columns if made is None else made.names(self.federation.columns)

    def scaled(self, raw: Any) -> Tensor | Inputs:
        """Raw inputs ``(n, *features)`` on the scale that the network reads, refused if they cannot be right."""
        client, like = self.card.client, self.federation.inputs
        given: Mapping[str, Any] = {"": raw}
        if isinstance(like, Inputs):
            given = as_named(raw, like, self.federation.name)
        if any(t.dim() == 0 or not len(t) for t in given.values()):
            raise PluresError(f"no example to predict for client {client!r}: give at least one row")
        for name, t in given.items():
            wanted = like if isinstance(like, Tensor) else like[name]
            if t.is_floating_point() and not wanted.is_floating_point() and bool((t != t.round()).any()):
                whole = str(wanted.dtype).removeprefix("torch.")
                of = f" as {name}" if name else ""
                raise PluresError(f"the model of client {client!r} reads integers ({whole}){of}: round the inputs")
        scaled = self.federation.scaled(raw.to(like.device) if isinstance(raw, Tensor) else raw)
        count = len(scaled)
        finite = torch.ones(count, dtype=torch.bool, device=scaled.device)
        for t in given.values():
            finite &= ~t.to(scaled.device).isinf().reshape(count, -1).any(1)
        for t in parts(scaled):
            finite &= t.isfinite().reshape(count, -1).all(1)
        if not bool(finite.all()):
            row = int((~finite).nonzero()[0]) + 1
            raise PluresError(
                f"the inputs for client {client!r} hold a NaN or an infinite value (row {row}): clean them"
            )
        return scaled

    def outputs(self, inputs: Tensor | Inputs) -> Tensor:
        """Outputs ``(n, outputs)`` for inputs ``(n, *features)`` on the scale of the federation's."""
        with kernels(self.network.module, self.card.precision, "cpu"):
            if not self.predictor.composed:
                (model,) = self.leaves.values()
                return self.network(model, inputs, train=False)[0]
            problem = Problem(self.network, self.federation.task)
            own = {split: Batch(*examples, problem, train=False) for split, examples in self.own.items()}
            # An exported graph keeps the number of examples open; len() would fix it.
            batch = Batch(
                inputs, self.federation.task.blank(lead(inputs).shape[0]), None, problem, train=False, own=own
            )
            return self.predictor.predicted(State(self.leaves, self.network.fixed), batch)

    def decided(self, outputs: Tensor) -> Tensor | None:
        """The client's decisions, ``(n, *target)``; ``None`` where numbers are predicted."""
        task, decide = self.federation.task, self.predictor.decide
        if not task.probable:
            return None
        return task.decide(outputs) if decide is None else decide(State(self.leaves), outputs)

    def _scores(self, federation: Federation, place: int) -> dict[str, float | None]:
        """Metrics on the client's own validation examples."""
        rows = federation.splits["validation"][place]
        if not len(rows):
            return {}
        inputs, targets = nested.mapped(Tensor.cpu, federation.inputs[rows]), federation.targets[rows].cpu()
        with torch.no_grad():
            outputs = self.outputs(inputs)
        decided, task = self.decided(outputs), federation.task
        weight = torch.ones(len(rows)) if federation.weights is None else federation.weights[rows].cpu()
        found = said(task, outputs, targets, weight, decided)
        values = {metric.name: metric.of(found) for metric in task.metrics}
        return {name: value if math.isfinite(value) else None for name, value in values.items()}

    def zeros(self, rows: int) -> Tensor | Inputs:
        """Inputs of zeros."""
        made = zeros(rows, self.card.features, self.card.dtype)
        assert made is not None
        return made

    # --- on disk ------------------------------------------------------------------------------------------------

    def tensors(self) -> dict[str, Tensor]:
        """All tensors of the model, by name."""
        named = {str(leaf): t for leaf, t in by_leaf(self.leaves).items()}
        for split, examples in self.own.items():
            named |= told_examples(f"{OWN}{split}:", examples)
        return named | _fitted(self.federation)

    def holding(self, tensors: Mapping[str, Tensor]) -> PersonalModel:
        """The same model with other values of :meth:`tensors`, except those fitted to the data."""
        leaves = {Leaf.parse(name): t for name, t in tensors.items() if not name.startswith((OWN, SCALING))}
        own: dict[str, Examples] = {}
        for split in self.predictor.reads:
            own[split] = stored_example(f"{OWN}{split}:", tensors)
        return replace(self, leaves=by_slot(leaves), own=own)

    def save(self, folder: Path) -> None:
        """Write the model to a folder, replacing an earlier one.

        ``model.safetensors`` holds model and card and is renamed into place, so the folder always has one complete
        model; ``card.json`` and ``card.md`` repeat the card for people and other programs.
        """
        document = json.loads(self.card.model_dump_json())
        write(folder / MODEL, self.tensors(), {"card": document})
        write_text(folder / CARD, json.dumps(document, indent=1))
        write_text((folder / CARD).with_suffix(".md"), self.card.text())

    @classmethod
    def load(cls, folder: Path, code: Code = NOTHING) -> PersonalModel:
        """Read a model that was saved. Nothing is trained or measured.

        Args:
            folder: where it was saved.
            code: user functions that its method may name; a card alone runs none.
        """
        file = folder / MODEL
        if not file.exists():
            raise PluresError(
                f"{folder} holds no personal model ({MODEL} is missing): name a folder with a saved model"
            )
        tensors, about = read(file, REPUBLISH, earlier=True)
        document = about.get("card")
        if not isinstance(document, dict) or "format" not in document:
            raise PluresError(f"{file} is another kind of plures file, not a personal model")
        if document["format"] not in (1, FORMAT):
            raise PluresError(
                f"{file} has format {document['format']}, and this version of plures ({__version__}) reads format "
                f"{FORMAT}: install the plures that wrote it, {document.get('versions', {}).get('plures', 'unknown')}"
            )
        if document["format"] == 1 and "targets standardised (" in str(document.get("source")):
            raise PluresError(
                f"{file} is of an earlier version of plures, which did not keep the units of the target: publish the "
                "model again"
            )
        try:
            card = Card.model_validate(document)
        except ValidationError as error:
            raise PluresError(f"{file}: the card is damaged ({explain(error, document)}); {REPUBLISH}") from error
        if describe.digest(tensors) != card.digest:
            raise PluresError(f"{file} is damaged: its values are not those that were saved; {REPUBLISH}")
        with understood(file, REPUBLISH), torch.no_grad():
            model = _assembled(card, tensors, card.task(code.reading(file)), code.reading(file))
            model.decided(model.outputs(model.federation.scaled(model.zeros(1))))
        return model


def opened(folder: Path, client: str | None = None, code: Code = NOTHING) -> PersonalModel:
    """The personal model in a folder, or a client's in the folder of a finished run.

    Args:
        folder: a model folder, or a run folder.
        client: its name; may be omitted for a model folder.
        code: user functions that the method may name.
    """
    kept = RunFolder(folder, code)
    if not kept.finished:
        if not (folder / MODEL).exists():
            raise PluresError(f"{folder} is not a finished run, nor a folder with a personal model: check the path")
        model = PersonalModel.load(folder, code)
        if client not in (None, model.card.client):
            raise PluresError(
                f"{folder} holds the model of {model.card.client!r}, not of {client!r}: leave --client out"
            )
        return model
    if client is None:
        raise PluresError(f"{folder} is a run with several clients: name one with --client")
    return PersonalModel.stored(kept, client)


def _stored(kept: RunFolder, client: str) -> PersonalModel:
    """The model of a client in a run's folder."""
    federation, bound = kept.fitted(), kept.bound()
    card = describe.described(
        federation,
        bound,
        client,
        kept.spec(),
        kept.counted(client),
        round=kept.result().chosen_round,
        execution=kept.execution(),
        privacy=kept.result().privacy,
    )
    own: dict[str, Examples] = {}
    for split, (inputs, targets, weight) in kept.own(client, bound).items():
        own[split] = inputs, targets, weight
    return _of(card, kept.stack(client), own, federation, lambda model: kept.validation(client), kept.code)


def _of(
    card: Card,
    leaves: Stack,
    own: Mapping[str, Examples],
    federation: Federation,
    scores: Callable[[PersonalModel], dict[str, float | None]],
    code: Code,
) -> PersonalModel:
    """Build a model from its parts, each with a first dimension of 1, and complete its card."""
    tensors = {str(leaf): t[0].detach().cpu() for leaf, t in by_leaf(leaves).items()}
    for split, examples in own.items():
        tensors |= {name: t[0].cpu() for name, t in told_examples(f"{OWN}{split}:", examples).items()}
    model = _narrowed(_assembled(card, tensors | _fitted(federation), federation.task, code))
    found = {
        "metrics": scores(model),
        "threshold": describe.threshold(model.predictor, model.leaves, federation.task),
        "calibration": describe.fitted(model.predictor, model.leaves),
        "digest": (digest := describe.digest(model.tensors())),
        "version": f"{card.round}-{digest[:12]}",
    }
    return replace(model, card=card.model_copy(update=found))


def _assembled(card: Card, tensors: Mapping[str, Tensor], task: Task, code: Code) -> PersonalModel:
    """Build a model from its card and tensors: rebuild network and method, and load the values."""
    inputs = zeros(0, card.features, card.dtype)
    if inputs is None:
        raise PluresError(f"the card of client {card.client!r} is damaged: {card.dtype!r} is not a numeric type")
    found = {name.removeprefix(SCALING): value for name, value in tensors.items() if name.startswith(SCALING)}
    scaling, preparation = restored(card.preparation, found)
    federation = Federation(
        name=card.federation,
        task=task,
        inputs=inputs,
        targets=task.blank(),
        clients=(card.client,),
        splits=dict.fromkeys(SPLITS, Split.of([torch.empty(0)])),
        columns=card.columns,
        scaling=scaling,
        preparation=preparation,
    )
    method = card.spec.built(code)
    module = method.prepare(card.spec.network(federation, code), Setting.of(federation), card.spec.seed)
    sizes = sizes_of(method.sizes, module)
    if sizes is not None:
        module = _of_size(module, sizes.widths(Network(module), Setting.of(federation)), tensors)
    network = Network(module.to(torch.float64 if card.precision == "float64" else torch.float32))
    model = PersonalModel(card, federation, network, method.predictor, {}, {}).holding(tensors)
    _check(card, network, model.leaves)
    return model


def _of_size(module: nn.Module, widths: Widths, tensors: Mapping[str, Tensor]) -> nn.Module:
    """The part of a network that a client holds, by the sizes of its leaves."""
    units = [width.size for width in widths.widths]
    there = {name.partition("/")[2] for name in tensors}
    for path, axes in widths.leaves.items():
        for along in axes:
            if along.axis is None and path not in there:
                units[along.width] = 0
    for name, t in tensors.items():
        path = name.partition("/")[2]
        for along in widths.leaves.get(path, ()):
            if along.axis is not None and t.dim() > along.axis:
                units[along.width] = min(units[along.width], t.shape[along.axis] // along.each)
    return narrowed(module, widths, units)


def _fitted(federation: Federation) -> dict[str, Tensor]:
    return {f"{SCALING}{n}": t for n, t in numbers(federation.scaling, federation.preparation).items()}


def _check(card: Card, network: Network, leaves: Mapping[str, Leaves]) -> None:
    """Refuse a model whose network differs from the card's."""
    wanted, given = network.leaves(), leaves.get("model", {})
    odd = [
        f"{path} is {'missing' if path not in given else 'unknown'}" for path in wanted.keys() ^ given.keys() if given
    ]
    odd += [
        f"{path} has shape {tuple(t.shape)}"
        for path, t in given.items()
        if path in wanted and t.shape != wanted[path].shape
    ]
    if odd:
        raise PluresError(
            f"the model of client {card.client!r} does not fit the network that its card describes "
            f"({card.spec.model or 'by default'} {card.spec.model_options or ''}, {card.spec.title()}): {odd[0]}"
        )


def _narrowed(model: PersonalModel) -> PersonalModel:
    """The model without slots that its predictor never reads, determined by one prediction."""
    if not model.predictor.composed:
        return model
    watched = Watched(model.leaves)
    seen = replace(model, leaves=watched)
    with torch.no_grad():
        seen.decided(seen.outputs(model.zeros(2)))
    return replace(model, leaves={s: ls for s, ls in model.leaves.items() if s in watched.read})
