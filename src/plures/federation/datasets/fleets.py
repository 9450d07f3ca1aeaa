"""Turbofan engines whose remaining life is predicted, owned by fleets."""

from __future__ import annotations

import numpy as np

from plures.errors import PluresError
from plures.federation.build.assemble import assemble
from plures.federation.build.examples import Array, Examples
from plures.federation.build.options import Options
from plures.federation.datasets.card import dataset
from plures.federation.datasets.folder import data_folder, read
from plures.federation.datasets.tabular import TURBOFANS
from plures.federation.federation import Federation
from plures.federation.splits import SPLITS, SplitRule

ENGINES = 100
"""Engines in each part."""
KEPT = 0.6
"""Share of the engines of an FD003 fleet that are not for test; FD001 has test engines of its own."""
CONSTANT = ("op3", "s1", "s5", "s16", "s18", "s19")
"""Channels that say nothing, because they have the same value in all cycles of these parts."""
TRAIN, TEST = SPLITS.index("train"), SPLITS.index("test")


@dataset(
    task="regression: cycles until a turbofan fails, from its last cycles and its first ones",
    clients="20 fleets of 2 populations",
    examples=30446,
    megabytes=1.9,
    **TURBOFANS,
)
def cmapss_fleets(
    *,
    seed: int = 0,
    split: SplitRule | None = None,
    fleets: int = 10,
    window: int = 15,
    own: bool = True,
    cap: int = 125,
    standardize: bool = True,
) -> Federation:
    """C-MAPSS turbofans (Saxena, Goebel, Simon, Eklund 2008) by fleet: whole engines train, and others are tested.

    An engine's remaining life is known once it has failed, so a model for an engine in use has only other engines to
    learn from. Fleets own engines with consecutive numbers and are of two populations (metadata ``population``): FD001
    with one kind of fault, whose test engines are the official ones, and FD003 with two, of which only the official
    test part is to be had: the last two fifths of a fleet's engines are for test. A test engine is one example, its
    last recorded cycle, as in the official protocol; other engines give one for each cycle.

    Args:
        seed: of the engines that validate.
        split: only ``validation`` has an effect, the share of a fleet's other engines that validate.
        fleets: number of fleets of each population, a divisor of 100 that leaves each at least five engines.
        window: each of the 18 channels that vary is its mean over this many cycles, or over all so far.
        own: add how far each channel has moved from the engine's mean over its first ``window`` cycles, and the number
            of cycles so far.
        cap: larger targets are reduced to this many cycles (piecewise linear target, after Heimes 2008).
        standardize: inputs to mean 0 and standard deviation 1 over all train cycles; targets stay cycles.
    """
    if not 0 < fleets <= ENGINES // 5 or ENGINES % fleets:
        raise PluresError(f"cmapss_fleets: fleets={fleets}; give a divisor of {ENGINES} from 1 to {ENGINES // 5}")
    if window < 1 or cap < 1:
        raise PluresError(f"cmapss_fleets: window={window}, cap={cap}; give at least 1 cycle")
    raw = read(data_folder() / "cmapss" / "cmapss.npz")
    size, found = ENGINES // fleets, []
    channels = [column for column in raw["columns"].tolist() if column not in CONSTANT]
    places = [raw["columns"].tolist().index(column) for column in channels]
    for number, part in enumerate(("train_fd001", "test_fd001", "test_fd003")):
        unit, cycle = raw[f"{part}_unit"].astype(np.int64) - 1, raw[f"{part}_cycle"].astype(np.int64)
        last = np.zeros(ENGINES, dtype=np.int64)
        np.maximum.at(last, unit, cycle)
        left = raw.get(f"{part}_rul", np.zeros(ENGINES)).astype(np.int64)
        tested = (part == "test_fd001") | ((part == "test_fd003") & (unit % size >= KEPT * size))
        used = ~tested | (cycle == last[unit])
        population = part.split("_")[1].upper()
        fleet = np.char.add(f"{population} fleet ", np.char.zfill((unit // size + 1).astype(str), 2))
        columns = (
            seen(raw[f"{part}_x"][:, places].astype(np.float64), cycle, window, own),
            np.minimum((last + left)[unit] - cycle, cap),
            fleet,
            number * ENGINES + unit,
            np.where(tested, TEST, TRAIN),
        )
        found.append([column[used] for column in columns])
    inputs, targets, client, engine, given = (np.concatenate(parts) for parts in zip(*found, strict=True))
    moved = (*(f"{channel} moved" for channel in channels), "cycles") if own else ()
    examples = Examples(
        inputs=inputs.astype(np.float32),
        targets=targets.astype(np.float32),
        client=client,
        groups=engine,
        columns=(*channels, *moved),
        given=given,
        ordered=True,
    )
    options: Options = {
        "name": "cmapss_fleets",
        "task": "regression",
        "metadata": {"population": {name: name.split()[0] for name in np.unique(client).tolist()}},
        "split": split or SplitRule(validation=0.2),
        "seed": seed,
        "standardize": standardize,
        "source": "NASA C-MAPSS, public domain",
    }
    return assemble(examples, options, "cmapss_fleets")


def seen(values: Array, cycle: Array, window: int, own: bool) -> Array:
    """What is known of each cycle from the cycles so far.

    Args:
        values: ``(rows, channels)``, engine after engine.
        cycle: ``(rows,)`` counted from 1 for each engine.
        window: cycles of a mean.
        own: whether to add how far the means have moved, and the number of cycles.
    """
    sums = np.concatenate([np.zeros((1, values.shape[1])), values.cumsum(0)])
    end = np.arange(len(values)) + 1
    width = np.minimum(cycle, window)
    means = (sums[end] - sums[end - width]) / width[:, None]
    begin = end - cycle
    first = (sums[begin + width] - sums[begin]) / width[:, None]
    return np.concatenate([means, means - first, cycle[:, None]], 1) if own else means
