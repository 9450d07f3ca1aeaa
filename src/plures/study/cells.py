"""The federation of a cell: loaded, subsampled, repartitioned, shifted."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from plures.brief import brief
from plures.errors import PluresError
from plures.evaluate.spec import RunSpec
from plures.federation import SPLITS, Federation, Split, SplitName, SplitRule, brightness, degrade, noise, rotate
from plures.federation import partition as deal
from plures.federation.build import Examples, assemble
from plures.federation.inputs import Inputs, parts
from plures.federation.scaling import Moments, Scaling, scaled, unscaled
from plures.federation.seeding import generator
from plures.models import ModelFactory
from plures.run.fingerprint import DATA, Fingerprint, of_data
from plures.study.document import PartitionPart
from plures.study.plan import Cell
from plures.study.reading import Source
from plures.tables import is_table


@brief
@dataclass(frozen=True)
class Loaded:
    """A cell in memory.

    Attributes:
        cell: the cell.
        spec: the settings shared by all methods.
        federation: the clients that train.
        unseen: the clients held out of training.
        factory: of the model.
        fingerprint: fingerprint of the data of all clients.
    """

    cell: Cell
    spec: RunSpec
    federation: Federation
    unseen: Federation | None
    factory: nn.Module | ModelFactory
    fingerprint: Fingerprint


def load_cell(source: Source, cell: Cell) -> Loaded:
    """Load a cell's data.

    Raises:
        PluresError: with the line of the document, if the data are missing or cannot be partitioned this way.
    """
    folder = source.data_path(cell.data)
    spec = cell.spec(cell.data.name if folder is None else str(folder))
    own, dealt = ("data", cell.path[0]), ("partitions", cell.path[1])
    options = {key: value for key, value in spec.data_options.items() if key != "donate"}
    if folder is not None and is_table(spec.data):  # its files are relative to the study, too
        options |= {key: str(source.folder / options[key]) for key in ("test", "schema") if key in options}
    try:
        whole = RunSpec(data=spec.data, data_options=options, task=spec.task).federation(source.code)
        whole = spec.judged(limited(whole, cell.data.max_clients, cell.data.max_examples), source.code)
    except PluresError as error:
        raise source.error(own, str(error)) from error
    try:
        rule = None if cell.data.split is None else SplitRule(**cell.data.split.model_dump())
        whole = changed(dealt_anew(whole, cell.partition, rule), cell.partition)
    except PluresError as error:
        raise source.error(dealt, str(error)) from error
    try:
        seen, unseen = whole.hold_out(cell.data.unseen) if cell.data.unseen else (whole, None)
        if "donate" in spec.data_options:
            seen = seen.donate(spec.data_options["donate"])
        spec = spec.calibrated(seen)
        factory = spec.network(seen, source.code)
    except PluresError as error:
        raise source.error(own, str(error)) from error
    return Loaded(cell, spec, seen, unseen, factory, {DATA: of_data(whole)})


def limited(federation: Federation, clients: int | None, examples: int | None) -> Federation:
    """Limit the number of clients and the examples of each, drawn by the names of federation and client."""
    if clients is not None and clients < len(federation):
        drawn = generator("study clients", federation.name).permutation(len(federation))[:clients]
        federation = federation.subset([federation.clients[i] for i in drawn])
    if examples is None:
        return federation
    kept: dict[SplitName, list[Tensor]] = {split: [] for split in SPLITS}
    for place, client in enumerate(federation.clients):
        total = sum(len(federation.splits[split][place]) for split in SPLITS)
        share = min(1.0, examples / max(total, 1))
        for split in SPLITS:
            rows = federation.splits[split][place]
            order = generator("study examples", client, split).permutation(len(rows))
            chosen = np.sort(order[: max(1, int(share * len(rows)))])
            kept[split].append(rows[torch.from_numpy(chosen)])
    return compact(replace(federation, splits={split: Split.of(rows) for split, rows in kept.items()}))


def compact(federation: Federation) -> Federation:
    """The same federation without unused rows."""
    rows = once(torch.cat([*(federation.splits[split].rows for split in SPLITS), federation.public]))
    place = torch.full((len(federation.inputs),), -1, dtype=torch.int64)
    place[rows] = torch.arange(len(rows))
    return replace(
        federation,
        inputs=federation.inputs[rows],
        targets=federation.targets[rows],
        weights=None if federation.weights is None else federation.weights[rows],
        splits={name: Split(place[split.rows], split.offsets) for name, split in federation.splits.items()},
        public=place[federation.public],
    )


def once(rows: Tensor) -> Tensor:
    """The distinct rows in ascending order."""
    return torch.from_numpy(np.unique(rows.numpy()))


def dealt_anew(federation: Federation, part: PartitionPart, rule: SplitRule | None) -> Federation:
    """Repartition the pooled rows of all clients.

    Inputs that the loader standardised are unscaled and standardised over the new train rows. Imputed values
    stay as they are.
    """
    if part.how == "natural":
        return federation
    rows = once(torch.cat([federation.splits[split].rows for split in SPLITS]))
    classes = federation.task.classes
    if not classes and part.how not in ("iid", "quantity"):
        raise PluresError(
            f"how = {part.how!r} needs classes; {federation.name!r} is {federation.task.kind}: use iid or quantity"
        )
    targets = federation.targets[rows]
    labels = targets if classes else torch.zeros(len(rows), dtype=torch.int64)
    owner = deal(labels, part.how, seed=part.seed, **part.dealing)
    inputs = unscaled(federation.inputs[rows], federation.scaling)
    whole = torch.float32 if isinstance(inputs, Inputs) else inputs.dtype
    used = owner >= 0
    names = np.char.add("client ", np.char.zfill(owner[used].astype(str), len(str(max(1, int(owner.max()))))))
    dealt = torch.from_numpy(used)
    rows_of_clients = Examples(
        {name: t.numpy() for name, t in inputs[dealt].parts.items()}
        if isinstance(inputs, Inputs)
        else inputs[dealt].numpy(),
        targets[dealt].numpy(),
        names,
        weights=None if federation.weights is None else federation.weights[rows][dealt].numpy(),
        columns=federation.columns,
        learned=federation.task,
    )
    fresh = assemble(
        rows_of_clients,
        {
            "name": federation.name,
            "split": rule or SplitRule(),
            "seed": part.seed,
            "dtype": next((t.dtype for t in parts(inputs) if t.is_floating_point()), whole),
            "copies": "allow",
            "source": federation.source,
        },
        "partition",
    )
    fresh = replace(
        fresh,
        preparation=federation.preparation,
        metric=federation.metric,
        beside=federation.beside,
        augment=federation.augment,
    )
    return fresh if federation.scaling is None else _scaled_again(fresh, federation.scaling)


def _scaled_again(federation: Federation, scaling: Scaling) -> Federation:
    """Entries that were scaled before, to mean 0 and standard deviation 1 over the train rows of these clients."""
    rows = federation.splits["train"].rows

    def again(given: Tensor, moments: Moments) -> Moments:
        mean, scale = moments
        train = given[rows].double().transpose(0, 1).flatten(1)
        own = train.std(1, correction=0)
        before = (mean != 0) | (scale != 1)
        return torch.where(before, train.mean(1), 0.0), torch.where(before & (own > 0), own, 1.0)

    found: Scaling
    if isinstance(scaling, tuple):
        found = again(federation.one_input("a new partition"), scaling)
    else:
        assert isinstance(federation.inputs, Inputs)
        found = {name: again(federation.inputs[name], moments) for name, moments in scaling.items()}
    return replace(federation, inputs=scaled(federation.inputs, found), scaling=found)


def changed(federation: Federation, part: PartitionPart) -> Federation:
    """Apply the partition's feature shift and quality degradation, if any."""
    if part.shift is not None:
        if part.shift.rotate is not None:
            federation = rotate(federation, part.shift.rotate)
        if part.shift.brightness is not None:
            federation = brightness(federation, part.shift.brightness)
        if part.shift.noise is not None:
            federation = noise(federation, part.shift.noise, seed=part.seed)
    return federation if part.quality is None else degrade(federation, seed=part.seed, **part.quality.model_dump())
