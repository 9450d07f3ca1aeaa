"""The model card: what a personal model is, its training data, and how well it performs for its client."""

from __future__ import annotations

from typing import Any, Literal, NotRequired

from pydantic import ConfigDict, Field, model_validator
from typing_extensions import TypedDict

from plures.errors import PluresError
from plures.evaluate import RunSpec
from plures.evaluate.code import NOTHING, Code
from plures.evaluate.results import PrivacyCard, Result
from plures.federation import SPLITS
from plures.federation.inputs import Features, Kind, shape_text
from plures.tasks import Task, from_dict
from plures.texts import markdown

FORMAT = 2
"""Current format of model folders. Format 1 can still be read; it stored only the scaling of the preparation."""


UNCOVERED = (
    "That protects a client from whoever sees what is shared. It does not protect this client from whoever gets this "
    "model, of which parts were trained on its data alone."
)
COVERED = "That protects each example of this client from everybody, whoever gets this model included."
OUTSIDE = "Not covered: numbers of examples and labels, scores, the choice of the round by them, and tuning."


class ColumnDict(TypedDict):
    """A column of a table, the fields of :class:`~plures.federation.encode.Column`."""

    name: str
    levels: list[str] | None
    gap: NotRequired[bool]
    lenient: NotRequired[bool]


class PreparationDict(TypedDict):
    """A preparation without its tensors (:class:`~plures.federation.preparation.Preparation`)."""

    table: list[ColumnDict]
    ignored: list[str]
    gaps: list[int]


class Part(Result):
    """One block of the method's layout.

    Attributes:
        name: name of the block.
        share: with whom it is shared.
        numbers: its number of parameters.
        travels: how many of them a client sends per round.
        served: whether the server holds it; otherwise it never leaves the client.
    """

    name: str
    share: str
    numbers: int
    travels: int
    served: bool


class Card(Result):
    """Description of one client's personal model.

    Attributes:
        format: format of the folder that holds model and card.
        client: name of the client.
        federation: name of the federation.
        source: where the data come from.
        kind: of the task: ``classification``, ``regression``, ...; ``module:name`` for a user's own task.
        classes: names of the classes, in the order of the outputs.
        outputs: number of outputs.
        options: the task's other options (:func:`plures.tasks.to_dict`).
        features: shape of one example's input; of several inputs, by name.
        dtype: type of the inputs; of several, by name.
        columns: names of the entries of the first feature dimension; may be empty.
        preparation: how raw rows become complete numbers: the columns of a table, those to ignore, and the positions
            of the columns that may lack a value; ``None`` if rows are complete numbers. Means and scales are with
            the model's values.
        spec: method, network and training of the model.
        precision: precision of the run.
        round: number of rounds finished.
        version: the round, and the beginning of ``digest``.
        digest: SHA-256 of all the model's tensors.
        created: when the model was taken from the run, in UTC.
        rows: the client's own examples in each split.
        carries: number of its own examples per split in the model's file, because it predicts with them.
        labels: its training examples of each class or label; empty for regression.
        metrics: scores on its own validation examples; ``None`` if it has none.
        fitted_to: splits used to build the predictor from the trained leaves.
        threshold: probability of the second of two classes above which the model predicts it; ``None`` for other
            tasks, and if the rule is not a threshold.
        calibration: values fitted to the finished outputs: slot, name, value.
        parts: the blocks of the method's layout.
        privacy: what the rounds of its run spent of differential privacy; ``None`` without.
        sheet: the data sheet written by the check of the site's data; may be empty.
        table: the declared schema of raw rows; ``None`` if rows are given as numbers.
        versions: of the libraries that made it.
    """

    model_config = ConfigDict(ser_json_inf_nan="strings")

    format: Literal[1, 2] = 2
    client: str
    federation: str
    source: str = ""
    kind: str
    classes: tuple[str, ...]
    outputs: int
    options: dict[str, Any] = Field(default_factory=dict)
    features: Features
    dtype: Kind
    columns: tuple[str, ...] = ()
    preparation: PreparationDict | None = None
    spec: RunSpec
    precision: Literal["float32", "float64", "bfloat16"] = "float32"
    round: int
    version: str = ""
    digest: str = ""
    created: str
    rows: dict[str, int]
    carries: dict[str, int] = Field(default_factory=dict)
    labels: dict[str, int]
    metrics: dict[str, float | None] = Field(default_factory=dict)
    fitted_to: tuple[str, ...] = ()
    threshold: float | None = None
    calibration: dict[str, dict[str, float | list[float]]] = Field(default_factory=dict)
    parts: tuple[Part, ...] = ()
    privacy: PrivacyCard | None = None
    sheet: dict[str, Any] = Field(default_factory=dict)
    table: dict[str, Any] | None = None
    versions: dict[str, str]

    @model_validator(mode="after")
    def _fits(self) -> Card:
        """Refuse an inconsistent card."""
        try:
            self._known  # noqa: B018
        except PluresError as error:
            raise ValueError(str(error)) from error
        if lacking := [split for split in SPLITS if split not in self.rows]:
            raise ValueError(f"rows of {', '.join(lacking)} are missing")
        several = self.features if isinstance(self.features, dict) else {"": self.features}
        if not several or any(size < 1 for features in several.values() for size in features):
            raise ValueError(f"examples of shape {self.features}")
        if isinstance(self.features, dict) != isinstance(self.dtype, dict) or (
            isinstance(self.dtype, dict) and self.dtype.keys() != several.keys()
        ):
            raise ValueError(f"examples of shape {self.features} and type {self.dtype}")
        if self.columns and (isinstance(self.features, dict) or self.features[:1] != (len(self.columns),)):
            raise ValueError(f"{len(self.columns)} columns of examples of shape {self.features}")
        if self.preparation is not None and not set(self.preparation["gaps"]) <= set(range(len(self.columns))):
            raise ValueError(f"gaps {self.preparation['gaps']} in {len(self.columns)} columns")
        return self

    def task(self, code: Code) -> Task:
        """What is predicted.

        Args:
            code: user tasks that it may name.
        """
        known = {"classes": self.classes} if self.classes else {"outputs": self.outputs}
        options = self.options or ({} if ":" in self.kind else known)
        made = from_dict({"kind": self.kind, **options}, lambda name: code.load(name, "task"))
        if (made.outputs, made.classes) != (self.outputs, self.classes) or self.outputs < 1:
            raise PluresError(f"{self.kind} with {self.outputs} outputs and {len(self.classes)} classes")
        return made

    @property
    def _known(self) -> Task | None:
        """What is predicted, if the card alone determines it, without running code."""
        return None if ":" in self.kind else self.task(NOTHING)

    def text(self) -> str:
        """The card in Markdown; names in it are escaped."""
        return "\n".join(_line(line) for block in self._blocks() for line in (*block, ""))

    def _blocks(self) -> list[list[str]]:
        spec = self.spec
        size = f"{self.rows['train']} training, {self.rows['validation']} validation, {self.rows['test']} test"
        counts = ", ".join(f"{name} {count}" for name, count in self.labels.items())
        sheet = [f"- {key}: {_plain(value)}" for key, value in self.sheet.items()]
        blocks = [
            [f"# The model of {self.client} in {self.federation}"],
            [
                f"- version: {self.version}, made {self.created}",
                f"- method: {spec.title()}, {self.round} rounds, seed {spec.seed}",
                f"- network: {self._network()}",
                f"- predicts: {self._outputs()}",
                f"- reads: {self._inputs()}",
                *([f"- data from: {self.source}"] if self.source else []),
            ],
            *self._prepared(),
            ["## The client's own data", f"- examples: {size}", *([f"- in training: {counts}"] if counts else [])],
            *([["## Its data sheet", *sheet]] if sheet else []),
            ["## On its own validation examples", *self._scores()],
        ]
        if self.threshold is not None:
            blocks.append([f"It decides for {self.classes[1]} where its probability is above {self.threshold:.4f}."])
        if self.calibration:
            found = [(slot, name, value) for slot, ls in self.calibration.items() for name, value in ls.items()]
            lines = [f"- {name if name == slot else f'{slot} {name}'}: {value}" for slot, name, value in found]
            blocks.append(["## Fitted to the finished outputs", *lines])
        blocks.append(["## What is personal", *map(_share, self.parts)])
        if self.privacy is not None:
            spent, silo = (
                f"epsilon {self.privacy.epsilon:.3g}. {self.privacy.spent.plan}.",
                self.privacy.unit == "example",
            )
            what = "What left the client, and this model, are" if silo else "What the server sent out in the run is"
            who = COVERED if silo else UNCOVERED
            blocks.append(["## Privacy", f"{what} private: {spent}", "", f"{who} {OUTSIDE}"])
        if any(self.carries.values()):
            held = ", ".join(f"{count} {split}" for split, count in self.carries.items())
            blocks.append(
                [
                    "## Examples in the model",
                    f"It predicts with the client's own examples ({held}), so its file contains them.",
                ]
            )
        blocks.append(["Made with " + ", ".join(f"{name} {number}" for name, number in self.versions.items()) + "."])
        return blocks

    def _network(self) -> str:
        options = "".join(f" {name}={value}" for name, value in self.spec.model_options.items())
        return f"{self.spec.model or 'the default one for its inputs'}{options}"

    def _outputs(self) -> str:
        task = self._known
        numbers = "a number" if self.outputs == 1 else f"{self.outputs} numbers"
        if task is None:
            return f"{', '.join(self.classes) or numbers} (task {self.kind})"
        return ", ".join(task.names) if task.probable else numbers

    def _inputs(self) -> str:
        if self.table is not None:
            return "rows of a table"
        if isinstance(self.features, dict) and isinstance(self.dtype, dict):
            return "; ".join(f"{name} {shape_text(s)} {self.dtype[name]}" for name, s in self.features.items())
        shape = shape_text(self.features)
        return f"{shape} {self.dtype} ({', '.join(self.columns)})" if self.columns else f"{shape} {self.dtype}"

    def _prepared(self) -> list[list[str]]:
        """How raw rows become inputs."""
        if self.preparation is None:
            return []
        table, lines = self.preparation["table"], []
        for column in table:
            if column["levels"] is not None:
                lines.append(f"- {column['name']}: one of {', '.join(column['levels'])}; others are refused")
        may = [self.columns[place] for place in self.preparation["gaps"]]
        may += [column["name"] for column in table if column["gap"]]
        if may:
            lines.append(f"- may be missing: {', '.join(may)}")
        if self.preparation["ignored"]:
            lines.append(f"- is not read: {', '.join(self.preparation['ignored'])}")
        return [["## How rows are prepared", *lines]] if lines else []

    def _scores(self) -> list[str]:
        if not self.rows["validation"]:
            return ["It has none, so it is unknown how well the model performs here."]
        titles = {} if self._known is None else {metric.name: metric.title for metric in self._known.metrics}
        lines = [f"- {titles.get(name, name)}: {'-' if v is None else f'{v:.4f}'}" for name, v in self.metrics.items()]
        if "validation" in self.fitted_to:
            lines += ["", "The predictor was fitted to these same examples after training, so the scores flatter it."]
        return lines


def _line(words: str) -> str:
    """A line of the card in which only the first character is Markdown."""
    sign = next((sign for sign in ("## ", "# ", "- ") if words.startswith(sign)), "")
    return sign + markdown(words.removeprefix(sign))


def _share(part: Part) -> str:
    sent = "never sent" if not part.travels else "all of it travels" if part.travels == part.numbers else None
    return f"- {part.name}: {part.share}, size {part.numbers}, {sent or f'{part.travels} of it travel'}"


def _plain(value: object) -> str:
    """A value of the data sheet as text: pairs separated by commas, a dash if empty."""
    if isinstance(value, dict):
        return ", ".join(f"{key} {_plain(one)}" for key, one in value.items())
    if isinstance(value, list):
        return " to ".join(map(_plain, value))
    return "-" if value is None else f"{value:.3g}" if isinstance(value, float) else str(value)
