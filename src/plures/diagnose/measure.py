"""All measurements of a diagnosis, in order."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from torch import nn

from plures.diagnose.advise import advise
from plures.diagnose.clusters import clusters
from plures.diagnose.concept import concept_shift
from plures.diagnose.diagnosis import Diagnosis
from plures.diagnose.features import feature_shift
from plures.diagnose.labels import label_skew
from plures.diagnose.learning import learning
from plures.diagnose.quality import quality
from plures.diagnose.result import Findings, Looked
from plures.diagnose.sample import MAX_CLIENTS, MAX_ROWS, MAX_ROWS_PER_CLIENT, chosen_clients, sample
from plures.diagnose.sizes import quantity
from plures.diagnose.suited import unsuitable
from plures.errors import PluresError
from plures.federation import Federation
from plures.models import ModelFactory
from plures.signature import checked

STEPS = ("rows", "labels", "sizes", "quality", "features", "targets given inputs", "clusters", "learning")
T = TypeVar("T")
Progress = Callable[[int, int, str], None]


@checked
def diagnose(
    federation: Federation,
    *,
    model: nn.Module | ModelFactory | None = None,
    seed: int = 0,
    clients: int = MAX_CLIENTS,
    rows: int = MAX_ROWS,
    rows_each: int = MAX_ROWS_PER_CLIENT,
    progress: Progress | None = None,
) -> Diagnosis:
    """How the clients differ and which families of methods should help, before any method is trained.

    Only train rows are read, and validation rows for the learning curve; never test rows. Except for the seconds, the
    result is a function of the federation, the model and the seed.

    Args:
        federation: at least two clients with train rows.
        model: the model whose initial gradients are clustered; default: the network that fits the data.
        seed: seed of samples, permutations and initial values.
        clients: most clients to examine; sizes and labels count all.
        rows: most train rows over all clients.
        rows_each: most train rows per client.
        progress: called with ``(done, total, what)`` before every step and at the end.

    Raises:
        PluresError: if fewer than two clients have train rows, nobody has validation rows, or a cap is too small.

    Examples:
        >>> x = np.array([[-1.0], [1.0]] * 30)
        >>> up = (x[:, 0] > 0).astype(int)
        >>> inputs, targets = np.concatenate([x, x]), np.concatenate([up, 1 - up])
        >>> hospitals = plures.from_arrays(inputs, targets, ["A"] * 60 + ["B"] * 60, copies="allow")
        >>> from plures.diagnose import diagnose
        >>> found = diagnose(hospitals)
        >>> print(str(found).splitlines()[0])
        Diagnosis of data: 2 clients, 72 train rows
        >>> found.concept.p < 0.01, found.concept.shared > found.concept.corrected
        (True, True)
    """
    for name, value, least in (("clients", clients, 2), ("rows", rows, 2), ("rows_each", rows_each, 2)):
        if value < least:
            raise PluresError(f"diagnose: {name}={value}; give at least {least}")
    begun, done = time.perf_counter(), 0

    def step(work: Callable[[], T]) -> T:
        nonlocal done
        if progress is not None:
            progress(done, len(STEPS), STEPS[done])
        done += 1
        return work()

    looked = chosen_clients(federation, seed, clients)
    if not int(looked.splits["validation"].sizes.sum()):
        raise PluresError(
            f"federation {federation.name!r} has no validation rows, which the learning curve needs; give its "
            "loader a split rule with a validation share"
        )
    some = step(lambda: sample(looked, seed, rows, rows_each))
    labels = step(lambda: label_skew(federation, seed))
    sizes = step(lambda: quantity(federation))
    values = step(lambda: quality(some, seed))
    features = step(lambda: feature_shift(some, seed))
    concept = step(lambda: concept_shift(some, seed))
    groups = step(lambda: clusters(some, model, seed))
    curve, validation = step(lambda: learning(some, seed))
    if progress is not None:
        progress(len(STEPS), len(STEPS), "done")
    found = Findings(
        federation=federation.name,
        kind=federation.task.kind,
        classes=bool(federation.task.classes),
        named=federation.task.probable,
        looked=Looked(
            clients=list(looked.clients),
            train_rows=len(some.rows),
            validation_rows=validation,
            of_clients=len(federation),
            of_train_rows=len(federation.splits["train"].rows),
        ),
        seed=seed,
        seconds=time.perf_counter() - begun,
        labels=labels,
        quantity=sizes,
        quality=values,
        features=features,
        concept=concept,
        clusters=groups,
        learning=curve,
    )
    return Diagnosis(**dict(found), advice=advise(found, unsuitable=unsuitable(looked, model, seed)))
