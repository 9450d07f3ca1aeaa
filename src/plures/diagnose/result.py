"""The results of a diagnosis, as typed objects that can be written as JSON and read back."""

from __future__ import annotations

from plures.evaluate.results import Result

LEVEL = 0.01
"""Largest p-value at which a difference counts as significant."""


class LabelSkew(Result):
    """Differences of label frequencies, over all train rows.

    Attributes:
        distance: mean total variation distance to the pooled frequencies, 0 for identical to 1 for disjoint.
        chance: the same with labels assigned at random.
        excess: distance above chance.
        p: p-value of the permutation test.
        labels: labels that occur (tenths of the target for regression).
        labels_present: of them, how many a client has on average.
        clients: distance of every client.
    """

    distance: float
    chance: float
    excess: float
    p: float
    labels: int
    labels_present: float
    clients: list[float | None]


class Quantity(Result):
    """Sizes of the clients' train splits: Gini coefficient, largest by smallest, share of the largest tenth."""

    gini: float
    ratio: float
    least: int
    median: float
    most: int
    top_tenth: float


class Quality(Result):
    """Missing values and noise.

    Attributes:
        missing: share of missing input values of every client's train rows; None if unknown.
        missing_from: source: ``indicators``, ``metadata`` or ``nothing``.
        missing_spread: largest minus smallest share.
        missing_p: p-value of the permutation test; None if from metadata only.
        noise: share of every client's variance that looks like noise between neighbouring values; None for tables.
        noise_spread: 90 % quantile minus 10 % quantile over clients.
        noise_p: p-value of the permutation test within labels.
        reliability_spread: largest minus smallest reliability in the metadata; None if absent.
    """

    missing: list[float] | None
    missing_from: str
    missing_spread: float
    missing_p: float | None
    noise: list[float] | None
    noise_spread: float
    noise_p: float | None
    reliability_spread: float | None


class ColumnShift(Result):
    """A column and the share of its variance within labels that lies between clients."""

    name: str
    share: float


class FeatureShift(Result):
    """Differences of the inputs within labels.

    Attributes:
        share: share of the kernel-space variance that lies between clients, corrected for chance; 0 to 1.
        chance: the share that chance alone gives.
        p: p-value of the permutation test within labels.
        mmd: root mean squared distance over clients from what labels explain, corrected for chance.
        aligned: the share that remains when each client scales its own columns; None for tokens.
        removed: the part of the shift that this removes.
        columns: named columns that differ most.
        clients: distance of every examined client.
    """

    share: float
    chance: float
    p: float
    mmd: float
    aligned: float | None
    removed: float | None
    columns: list[ColumnShift]
    clients: list[float]


class ConceptShift(Result):
    """Differences of targets given inputs.

    Attributes:
        gain: held-out loss saved by a correction for each client, relative to one shared model that knows each
            client's label frequencies (or mean target) only; below 0 if correcting costs more than it gains.
        shared: held-out loss of the shared model, cross-entropy or half a squared error.
        corrected: the same with corrections.
        p: p-value of a sign-flip test that rows gain nothing.
        clients: gain in loss of every examined client.
    """

    gain: float
    shared: float
    corrected: float
    p: float
    clients: list[float]


class Match(Result):
    """Association of a metadata column with the clients' gradients.

    Attributes:
        column: its name.
        groups: distinct values, or 0 for a column read as numbers.
        explained: share of the gradients' differences that it explains beyond chance.
        p: p-value of the permutation test, times the number of columns.
        rand: adjusted Rand index between its groups and the clusters found; None for numbers.
    """

    column: str
    groups: int
    explained: float
    p: float
    rand: float | None


class Clusters(Result):
    """Groups among the clients' gradients at the initial model.

    Attributes:
        model: name of the model.
        count: clusters with the largest mean silhouette.
        silhouette: that silhouette.
        chance: mean over clients drawn from one Gaussian with the same covariance.
        p: share of these draws with at least that silhouette; None with fewer than six clients.
        beyond_labels: whether these are groups within labels, of inputs or of targets given inputs; else label skew
            counts, and they may be chance.
        sizes: clients in each cluster.
        members: cluster of every examined client.
        matches: metadata columns, best first.
        outliers: clients whose gradients are far from the others'.
    """

    model: str
    count: int
    silhouette: float
    chance: float
    p: float | None
    beyond_labels: bool
    sizes: list[int]
    members: list[int]
    matches: list[Match]
    outliers: list[str]


class LearningPoint(Result):
    """Error on validation data of models trained on a part of each client's sampled train rows.

    Attributes:
        part: 0.25, 0.5 or 1.
        rows: mean number of train rows of a client.
        error: mean over clients: share of errors, or root mean squared error in standard deviations of the target.
    """

    part: float
    rows: float
    error: float


class Learning(Result):
    """What clients learn alone and together, with a small probe model.

    Attributes:
        local: errors alone, by part of the rows.
        pooled: error of one model trained on all rows.
        personal: error of that model corrected for each client (pooled fine-tuning).
        pooling: share of the error of learning alone that the pooled model saves; below 0 if its error is larger.
        pooling_p: p-value of the paired test over clients.
        personalising: share of the pooled model's error that the correction saves.
        personalising_p: p-value of the paired test over clients.
        alone_better: share of clients with lower error alone than with the corrected pooled model.
        slope: share of the error alone that the second half of the rows saved.
        capped: whether some client has more rows than were used.
    """

    local: list[LearningPoint]
    pooled: float
    personal: float
    pooling: float
    pooling_p: float
    personalising: float
    personalising_p: float
    alone_better: float
    slope: float
    capped: bool


class Reason(Result):
    """A rule that applied: its sentence, the numbers it read, and the source of its threshold."""

    rule: str
    says: str
    source: str


class FamilyAdvice(Result):
    """The evidence for a family of methods.

    Attributes:
        family: its key.
        title: its title.
        methods: names in the catalogue.
        points: sum over the rules that applied.
        confidence: ``high``, ``medium`` or ``low``.
        why: the rules that applied.
    """

    family: str
    title: str
    methods: list[str]
    points: float
    confidence: str
    why: list[Reason]


class Advice(Result):
    """The advice that follows from the numbers.

    Attributes:
        summary: one or two sentences.
        ranking: competing families, best first.
        besides: families for other purposes (unseen clients, broken clients) that a rule named.
        nothing_beats_fedavg: whether no family is expected to beat the shared model, fine-tuned or not.
        cannot_know: limits of this diagnosis.
    """

    summary: str
    ranking: list[FamilyAdvice]
    besides: list[FamilyAdvice]
    nothing_beats_fedavg: bool
    cannot_know: list[str]


class Looked(Result):
    """The examined sample: clients, their train rows, and validation rows for the learning curve."""

    clients: list[str]
    train_rows: int
    validation_rows: int
    of_clients: int
    of_train_rows: int


class Findings(Result):
    """How the clients of a federation differ.

    Attributes:
        federation: its name.
        kind: of its task.
        classes: whether every example has exactly one of several classes.
        named: whether targets are classes or labels, which have names and can be counted; otherwise they are numbers.
    """

    federation: str
    kind: str
    classes: bool
    named: bool
    looked: Looked
    seed: int
    seconds: float
    labels: LabelSkew
    quantity: Quantity
    quality: Quality
    features: FeatureShift
    concept: ConceptShift
    clusters: Clusters
    learning: Learning
