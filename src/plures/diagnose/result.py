"""What a diagnosis found, as typed objects that are written as JSON and read back."""

from __future__ import annotations

from plures.evaluate.results import Result

LEVEL = 0.01
"""p-value from which a difference counts as more than chance."""


class LabelSkew(Result):
    """Differences of label frequencies, over all train rows.

    Attributes:
        distance: mean total variation distance to the pooled frequencies, 0 alike to 1 disjoint.
        chance: what the same sizes give when labels are dealt at random.
        excess: distance above chance.
        p: of the permutation test.
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
        missing: share of missing input values of every client's train rows; None where nothing tells.
        missing_from: what told: ``indicators``, ``metadata`` or ``nothing``.
        missing_spread: largest less smallest share.
        missing_p: of the permutation test; None if only metadata tell.
        noise: share of every client's variance that looks like noise between neighbouring values; None for tables.
        noise_spread: 90 % quantile less 10 % quantile over clients.
        noise_p: of the permutation test within labels.
        reliability_spread: largest less smallest reliability that the metadata report; None if they report none.
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
        share: of the variance in the kernel's space that lies between clients, chance taken out; 0 to 1.
        chance: the share that chance alone gives.
        p: of the permutation test within labels.
        mmd: root mean over clients of the squared distance from what labels explain, chance taken out.
        aligned: the share that is left when each client scales its own columns; None for tokens.
        removed: which part of the shift that removes.
        columns: named columns that differ most.
        clients: distance of every client looked at.
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
            client's label frequencies (or mean target) only; below 0 where correcting costs more than it brings.
        shared: held-out loss of the shared model, cross-entropy or half a squared error.
        corrected: with corrections.
        p: of the test that rows gain nothing, by random signs.
        clients: gain in loss of every client looked at.
    """

    gain: float
    shared: float
    corrected: float
    p: float
    clients: list[float]


class Match(Result):
    """How a metadata column goes with the clients' gradients.

    Attributes:
        column: its name.
        groups: distinct values, or 0 for a column read as numbers.
        explained: share of the gradients' differences that it explains beyond chance.
        p: of the permutation test, times the number of columns.
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
        model: whose gradients.
        count: clusters with the largest mean silhouette.
        silhouette: that silhouette.
        chance: mean over clients drawn from one Gaussian with the same covariance.
        p: share of these draws with at least that silhouette; None with fewer than six clients.
        beyond_labels: whether these are groups within labels, of inputs or of targets given inputs; else label skew
            counts, and they may be chance.
        sizes: clients in each cluster.
        members: cluster of every client looked at.
        matches: metadata columns, the best first.
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
        local: alone, by part of the rows.
        pooled: error of one model on the rows of all.
        personal: error of that model corrected for each client (pooled fine-tuning).
        pooling: share of the error of learning alone that the pooled model saves; below 0 if it errs more.
        pooling_p: of the paired test over clients.
        personalising: share of the pooled model's error that the correction saves.
        personalising_p: of the paired test over clients.
        alone_better: share of clients that err less alone than with the corrected pooled model.
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
    """A rule that applied: what it says, the numbers it read, and where its threshold comes from."""

    rule: str
    says: str
    source: str


class FamilyAdvice(Result):
    """How much speaks for a family of methods.

    Attributes:
        family: its key.
        title: in words.
        methods: of the catalogue.
        points: sum over the rules that applied.
        confidence: ``high``, ``medium`` or ``low``.
        why: the rules.
    """

    family: str
    title: str
    methods: list[str]
    points: float
    confidence: str
    why: list[Reason]


class Advice(Result):
    """What follows from the numbers.

    Attributes:
        summary: in one or two sentences.
        ranking: families that compete, the best first.
        besides: families for another need (unseen clients, broken clients), only those that a rule named.
        nothing_beats_fedavg: whether no family is expected to beat the shared model, fine-tuned or not.
        cannot_know: limits of this diagnosis.
    """

    summary: str
    ranking: list[FamilyAdvice]
    besides: list[FamilyAdvice]
    nothing_beats_fedavg: bool
    cannot_know: list[str]


class Looked(Result):
    """What was looked at: clients, their train rows, and validation rows for the learning curve."""

    clients: list[str]
    train_rows: int
    validation_rows: int
    of_clients: int
    of_train_rows: int


class Findings(Result):
    """How the clients of a federation differ."""

    federation: str
    kind: str
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
