"""A federation from arrays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Unpack

from numpy.typing import ArrayLike
from torch import Tensor

from plures.federation.build.assemble import assemble
from plures.federation.build.examples import Several, as_array, of_arrays
from plures.federation.build.options import Options
from plures.federation.federation import Federation


def from_arrays(
    inputs: Several,
    targets: ArrayLike | Tensor,
    client: ArrayLike | Tensor,
    *,
    groups: ArrayLike | Tensor | None = None,
    time: ArrayLike | Tensor | None = None,
    key: ArrayLike | Tensor | None = None,
    weights: ArrayLike | Tensor | None = None,
    columns: Sequence[str] = (),
    subgroups: Mapping[str, ArrayLike | Tensor] | None = None,
    **options: Unpack[Options],
) -> Federation:
    """A federation from arrays and the client of each row.

    A row's split does not depend on the order of the rows, the type of the numbers, or the other clients. Without
    ``key`` the split changes when an input column is added or removed, since rows are then identified by their
    inputs.

    Args:
        inputs: ``(n, *features)`` numbers; NaN is a missing value, infinity an error. Several inputs as a mapping of
            names to arrays, all with ``n`` rows, such as ``{"input_ids": ..., "attention_mask": ...}``: the network
            gets them as keyword arguments; or a tuple of arrays: it gets them by position. Integers then stay integers.
        targets: ``(n,)`` integers, booleans or strings (classification); ``(n,)`` or ``(n, outputs)`` floating point
            (regression); or ``(n, labels)`` of 0 and 1, with ``task="multilabel"`` or ``MultiLabel(labels)``, which
            names them; for a task of your own, what it reads.
        client: ``(n,)`` names, or numbers that become names; a negative number leaves the row out (see the
            partitioners, whose result goes here).
        groups: ``(n,)`` rows of one client with the same value stay in one split.
        time: ``(n,)`` order of the rows, with ``split=SplitRule(by="time")``.
        key: ``(n,)`` row identifiers, such as case numbers: different for all rows of a client.
        weights: ``(n,)`` how much each example counts in losses and metrics, relative to the others of its client: one
            of weight 2 as two alike. A row of weight 0 is left out, as if it had not been given; the others
            are numbers above 0. Splits, standardisation and the numbers of examples, by which most methods
            weight clients, do not depend on positive weights.
        columns: names of the entries of the inputs' first feature dimension, for messages and reports.
        subgroups: column -> ``(n,)`` a value of each row, such as sex or age, that is no input: results are reported by
            it. Numbers are cut into bands, at edges behind the name if it has any: ``age:40,60``
            (:meth:`Federation.with_subgroups`).

    Options:
        name: of the federation (default ``data``).
        task: a :class:`plures.tasks.Task`, such as ``Classification(class_weights={"ill": 3})``; or a name,
            ``classification``, ``multilabel`` or ``regression``; inferred from the targets' type if not given.
        classes: class names in order; default: the values that occur, sorted. An integer is the class of that name if
            all names are integers, else the position of its class.
        metadata: client -> its row (a mapping), column -> client -> value, or column -> values with a column
            ``client`` that gives their order. Numbers may stand for clients that are numbers. Without that column,
            lists are accepted only if every order of the clients (by first row, as text, as numbers) is the same.
        split: shares of the splits and how they are drawn (default ``SplitRule()``).
        seed: of random splits (default 0).
        missing: ``error`` (default), or ``impute`` for inputs ``(n, columns)``: a missing value becomes the column's
            mean over the train rows of all clients, and a 0/1 column "<column> is missing" is added for each column
            that has any; metadata column "missing values" counts them per client.
        standardize: inputs to mean 0 and standard deviation 1 over the train rows of all clients, per entry of the
            first feature dimension (column or channel). A constant becomes 0, indicator columns are unchanged. Like
            the means of ``impute``, these are sums that clients can compute together without revealing a row.
        standardize_targets: the same for regression targets. Losses and errors are then on the standardised scale,
            but predictions for new rows in the target's own units; ``source`` gives mean and scale.
        dtype: of the inputs (default ``torch.float32``; an integer type keeps tokens).
        copies: ``warn`` (default) about validation and test rows that are copies of training rows, or ``allow``.
        source: origin and licence, for reports.

    Raises:
        PluresError: names the client, row and column at fault and the remedy; also for an option that has no effect.

    Warns:
        PluresWarning: for what is valid but probably unintended: clients with hardly any data, test rows that are
            copies of train rows, integers that may be amounts or classes.

    Examples:
        >>> import numpy as np
        >>> x, y = np.random.default_rng(0).normal(size=(60, 4)), np.arange(60) % 3
        >>> hospital = np.array(["Basel", "Graz", "Pisa"]).repeat(20)
        >>> federation = from_arrays(x, y, hospital, name="hospitals")
        >>> federation.clients
        ('Basel', 'Graz', 'Pisa')
    """
    given = of_arrays(inputs, targets, client, groups, time, key, weights, columns)
    apart = {str(name): as_array(values, f"subgroups {name!r}") for name, values in (subgroups or {}).items()}
    return assemble(replace(given, subgroups=apart), options, "from_arrays")
