"""Shared by all commands: the application, the terminal, common options."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import click
import typer
from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from typer.core import TyperCommand, TyperGroup

from plures.augment import AUGMENTATIONS
from plures.errors import PluresError, suggestion
from plures.evaluate.code import Code
from plures.evaluate.own import ROBUST, network_kinds
from plures.evaluate.results import BASELINES
from plures.evaluate.spec import OPTIMIZER_NAMES, SCHEDULE_NAMES, find_method
from plures.models import NETWORKS
from plures.run.execution import Precision
from plures.signature import Kinds, read
from plures.texts import visible_lines
from plures.track import TRACKERS


class Commands(TyperGroup):
    """Commands, of which one that does not exist is refused with the name that was probably meant."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if not args[0].startswith("-") and self.get_command(ctx, args[0]) is None:
            raise PluresError(f"{ctx.command_path}: no command {args[0]!r}; {suggestion(args[0], self.commands)}")
        return super().resolve_command(ctx, args)


class OneData(TyperCommand):
    """A command of one data set, which says how methods are named where they were written behind it."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        ctx.allow_extra_args = True
        rest = super().parse_args(ctx, args)
        if rest:
            named = " ".join(f"--method {name}" for name in rest)
            raise PluresError(f"{ctx.command_path} takes one data set, and then options: for methods, give {named}")
        return rest


app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Personalized federated learning: a model for every client, learned from all of them.",
)


class Terminal(Console):
    """Prints every text verbatim: no markup is interpreted, and terminal control characters are escaped."""

    def __init__(self, *, stderr: bool = False) -> None:
        super().__init__(stderr=stderr, markup=False, emoji=False)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterator[Segment]:
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(visible_lines(segment.text), segment.style)


console = Terminal()


def say(text: str) -> None:
    """Print plain lines."""
    typer.echo(visible_lines(text))


Data = Annotated[
    str,
    typer.Argument(
        help="Name of a data set (see `plures datasets`), a CSV or Parquet file, a folder with such a file or an .npz "
        "file per client, or module:function."
    ),
]
ClientColumn = Annotated[
    str | None, typer.Option("--client", help="Of a table: the column with the client of each row.")
]
Target = Annotated[
    list[str] | None, typer.Option(help="Of a table: the column to predict; repeatable for several labels or numbers.")
]
Group = Annotated[
    str | None, typer.Option(help="Of a table: the column whose equal values stay in one split, such as a patient.")
]
Time = Annotated[
    str | None,
    typer.Option(help="Of a table: the column of dates or numbers; the earliest rows train, the latest test."),
]
TestRows = Annotated[str | None, typer.Option("--test", help="Of a table: a file with the rows for test.")]
SplitColumn = Annotated[
    str | None,
    typer.Option(help="Of a table: the column that says train, validation or test, or holds folds (see --fold)."),
]
Fold = Annotated[str | None, typer.Option(help="The fold for test, with --split-column.")]
SchemaFile = Annotated[
    str | None, typer.Option("--schema", help="Of a table: a file that says what the columns are, such as schema.toml.")
]
Out = Annotated[Path, typer.Option(help="Folder for results; an interrupted command resumes from it.")]
Rounds = Annotated[int, typer.Option(help="Number of rounds.")]
Model = Annotated[
    str | None,
    typer.Option(help=f"Network: {', '.join(NETWORKS)}, or module:function; default: one that fits the data."),
]
ModelOptions = Annotated[
    list[str] | None, typer.Option("--model-set", help="Option of the network, NAME=VALUE; repeatable.")
]
Options = Annotated[
    list[str] | None,
    typer.Option(
        "--data",
        help="Option of the data loader, NAME=VALUE; repeatable. donate=SHARE, with any data, makes a share of every "
        "client's training examples public (needed by dapper and fedmd).",
    ),
]
BatchSize = Annotated[int, typer.Option(help="Examples in a batch; 0 for all.")]
Epochs = Annotated[float | None, typer.Option(help="Passes over a client's data per visit; default: 1.")]
Unseen = Annotated[list[str] | None, typer.Option(help="Client held out of training; repeatable.")]
Fraction = Annotated[float | None, typer.Option(help="Share of the clients, redrawn each round; default: all.")]
DropOuts = Annotated[
    float,
    typer.Option(
        "--drop-out", help="Simulated drop-outs: the probability that a client that is drawn stays away in a round."
    ),
]
EvaluateClients = Annotated[
    int | None,
    typer.Option(help="How many clients are scored, drawn once at random; default: all. For large populations."),
]
TaskName = Annotated[
    str | None,
    typer.Option(
        "--task",
        help="The task, which also sets the loss of all methods: module:name of a task of your own, such as "
        "Classification(class_weights=...), or the name of a kind; default: the task of the data.",
    ),
]
MetricName = Annotated[
    list[str] | None,
    typer.Option(
        "--metric",
        help="The metric by which rounds and settings are chosen, and clients are called harmed: a metric of the task, "
        "such as auroc or sensitivity, or module:name of your own; default: the task's first. Repeatable: the others "
        "are reported beside the first.",
    ),
]
SubgroupColumn = Annotated[
    list[str] | None,
    typer.Option(
        "--subgroup",
        metavar="COLUMN",
        help="Column by which results are reported, too, such as sex, or age:40,60 with the edges of bands: of a "
        "table, and then no input unless --data features=... names it; of other data, an input column; repeatable.",
    ),
]
OptimizerName = Annotated[
    str,
    typer.Option(
        "--optimizer",
        help=f"Local optimizer: {', '.join(OPTIMIZER_NAMES)}; with options as in 'sgd(nesterov=true)'.",
    ),
]
Momentum = Annotated[float, typer.Option(help="Momentum of SGD.")]
WeightDecay = Annotated[float, typer.Option(help="Weight decay of the local optimizer.")]
ScheduleName = Annotated[
    str,
    typer.Option(
        "--schedule",
        help=f"Schedule of the learning rate: {', '.join(SCHEDULE_NAMES)}; with options as in 'cosine(final=0.1)'.",
    ),
]
Clip = Annotated[float | None, typer.Option(help="Largest norm of a client's gradient; default: no clipping.")]
Steps = Annotated[int | None, typer.Option(help="Gradient steps per visit, instead of --epochs.")]
Drawn = Annotated[
    Literal["full", "uniform", "size", "poisson"] | None,
    typer.Option(
        "--participation",
        help="Who takes part in a round: all clients, or a --fraction drawn uniformly or by size, or each client with "
        "the probability --fraction (poisson); default: uniform if --fraction is given.",
    ),
]
Privacy = Annotated[
    str | None,
    typer.Option(
        "--dp",
        metavar="OPTIONS",
        help="Differential privacy of clients: 'clip=0.5,noise=1,delta=1e-5', or 'epsilon=8' in place of noise; "
        "clip bounds a client's whole change, noise is on the sum in units of it. Best with --participation poisson.",
    ),
]
AtMost = Annotated[int | None, typer.Option(help="Largest cohort of --participation poisson; default: no limit.")]
FleetName = Annotated[
    str | None,
    typer.Option(
        "--fleet",
        help="Simulated devices, with time and energy: phones, hospitals or sensors, with options as in "
        "'phones(seed=1)'; metadata for columns of the data; or a CSV file with a row for each client.",
    ),
]
Deadline = Annotated[float | None, typer.Option(help="Simulated seconds that a round waits; default: no deadline.")]
Late = Annotated[
    Literal["drop", "partial"],
    typer.Option(help="Clients too slow for the deadline are left out, or do as many steps as they have time for."),
]
OverSelect = Annotated[
    float, typer.Option(help="How many times as many clients are asked as a round needs, such as 1.3.")
]
BufferSize = Annotated[
    int | None,
    typer.Option(help="Buffered asynchronous aggregation (FedBuff): the server steps with every so many changes."),
]
Staleness = Annotated[
    float | None, typer.Option(help="Exponent by which old changes count less with --buffer; default: 0.5.")
]
SelectName = Annotated[
    str | None,
    typer.Option("--select", help="Choose clients by what is known: oort, or 'power_of_choice(candidates=20)'."),
]
AugmentName = Annotated[
    str | None,
    typer.Option(
        "--augment",
        help=f"Random changes of training batches, such as 'crop(4)+flip': {', '.join(sorted(AUGMENTATIONS))}.",
    ),
]
AttackName = Annotated[
    str | None,
    typer.Option(
        "--attack",
        help="Simulated attack: sign_flip, gaussian, replacement, alie, inner_product, min_max, min_sum, mimic, "
        "free_rider on uploads, label_flip, random_labels, backdoor, column_backdoor, edge_case on data; with "
        "options as in 'alie(z=1)', one of each as in 'label_flip+replacement'. Only honest clients are scored.",
    ),
]
Attackers = Annotated[
    list[str] | None,
    typer.Option(
        help="Who attacks: a share of the clients below 1, a number of them, or a name, then repeatable; default: 0.2."
    ),
]
AttackFrom = Annotated[int, typer.Option(help="First round with forged uploads.")]
AttackKnows = Annotated[
    Literal["own", "colluders", "all"],
    typer.Option(help="What forged uploads are computed from: the own change, the attackers', or all honest ones."),
]
CombineName = Annotated[
    str | None,
    typer.Option(
        "--combine",
        help=f"Robust combination, added to every method that takes it: {', '.join(ROBUST)}; with options as in "
        "'bucketing(size=2)+krum(f=1)'.",
    ),
]
Backend = Annotated[Literal["auto", "loop", "vmap"], typer.Option(help="How clients are trained; auto measures.")]
Chunk = Annotated[int, typer.Option(help="Clients trained at once; 0 measures.")]
Compile = Annotated[bool | None, typer.Option(help="Compile the training step; default: measure.")]
Capture = Annotated[
    bool | None, typer.Option(help="Record steps as CUDA graphs and replay them; default: measure, on a CUDA device.")
]
FeaturesOnce = Annotated[
    bool | None,
    typer.Option(
        "--features/--no-features",
        help="Compute what a network's frozen first part gives once for each example; default: where it saves work.",
    ),
]
Numbers = Annotated[
    Precision,
    typer.Option(
        "--precision",
        help="Arithmetic: auto is float32; tf32, on a CUDA device, rounds the factors of products; bfloat16 is mixed.",
    ),
]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:1, or auto: a CUDA device if available.")]
Processes = Annotated[
    int | None,
    typer.Option(
        help="Processes that train clients, side by side; needs plures[pool]. Default: 1, or with --ray all "
        "that it has room for."
    ),
]
RayAddress = Annotated[
    str | None,
    typer.Option(
        "--ray",
        metavar="local|auto|HOST:PORT",
        help="Train clients on a Ray cluster: one started on this machine, the one it belongs to, or the one with this "
        "head node; needs plures[ray].",
    ),
]
Patience = Annotated[
    int | None,
    typer.Option(help="End a run after this many rounds without a better validation score; default: run all rounds."),
]
Track = Annotated[
    list[str] | None,
    typer.Option(help=f"Also write every run for {', '.join(TRACKERS)}, into the folder of --out; repeatable."),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print no progress: only results, notes and errors.")]
AllowCode = Annotated[
    list[str] | None,
    typer.Option(
        "--allow-code",
        metavar="MODULE:FUNCTION",
        help="Code of your own that the file may name as data, network or method; repeatable. It runs with all your "
        "rights, so read it first.",
    ),
]


def settings(pairs: list[str] | None, option: str, owner: str, kinds: Kinds) -> dict[str, Any]:
    """``NAME=VALUE`` pairs, each value parsed as the type declared for its name.

    Args:
        pairs: the texts that the user typed.
        option: the option that they were given to, for messages.
        owner: the object that they belong to, for messages.
        kinds: the valid names, with their types.

    Raises:
        PluresError: a pair has no ``=``, a name is unknown or given twice, or a value does not fit its type.
    """
    found: dict[str, Any] = {}
    for pair in pairs or []:
        name, sign, text = pair.partition("=")
        if not sign:
            raise PluresError(f"{option} {pair!r}: write NAME=VALUE")
        if name not in kinds:
            raise PluresError(f"{option}: {owner} has no option {name!r}; {suggestion(name, kinds, 'its options are')}")
        if name in found:
            raise PluresError(f"{option}: {name} is given twice; give it once")
        found[name] = read(option, name, text, kinds[name])
    return found


def spaces(texts: list[str] | None, methods: Sequence[str], code: Code) -> dict[str, dict[str, list[Any]]] | None:
    """Values to try, by method and parameter, of ``METHOD.NAME=VALUES``.

    Args:
        texts: what the user typed.
        methods: the methods that are compared.
        code: user code that they may name.
    """
    entries = {name: find_method(name, code) for name in (*BASELINES, *methods)}
    found = dict[str, dict[str, list[Any]]]()
    for text in texts or ():
        parts = re.fullmatch(r"(.+)\.(\w+)=(.+)", text, re.DOTALL)
        if parts is None:
            raise PluresError(f"--space {text!r}: write METHOD.NAME=VALUES, such as ditto.lam=0.01,0.1")
        method, name, values = parts.groups()
        if method not in entries:
            raise PluresError(f"--space {text!r}: no method {method!r} is compared; {suggestion(method, entries)}")
        kinds = {"lr": float, **entries[method].kinds}
        if name not in kinds:
            known = suggestion(name, kinds, "its parameters are")
            raise PluresError(f"--space: method {method!r} has no parameter {name!r}; {known}")
        own = found.setdefault(entries[method].name, {})
        if name in own:
            raise PluresError(f"--space: {method}.{name} is given twice; give all values at once")
        several = re.split(r",(?![^\[]*\])", values)
        own[name] = [read("--space", f"{method}.{name}", one.strip(), kinds[name]) for one in several]
    return found or None


def model_settings(pairs: list[str] | None, model: str | None) -> dict[str, Any]:
    """Options of ``--model-set`` for a network."""
    if pairs and model is None:
        raise PluresError("--model-set gives options, but no network is named: name it with --model")
    return settings(
        pairs, "--model-set", f"network {model!r}", network_kinds(model, Code.typed(model)) if pairs and model else {}
    )


def who(attackers: list[str] | None) -> float | int | list[str] | None:
    """Attackers as a run states them: a single number as a share or a count, everything else as names."""
    if not attackers or len(attackers) > 1:
        return attackers or None
    for kind in (int, float):
        try:
            return kind(attackers[0])
        except ValueError:
            continue
    return attackers


def consent(allowed: list[str] | None) -> Code:
    """Consent to the code that ``--allow-code`` names."""
    code = Code.of(*(allowed or ()), by="option")
    current_folder(*code.allowed)
    return code


def typed(*said: str | None) -> Code:
    """Consent to names of the form ``module:function`` that the user types on the command line."""
    code = Code.typed(*said)
    current_folder(*code.allowed)
    return code


def current_folder(*names: str) -> None:
    """Add the current folder to the path if ``module:function`` was named, for this command only.

    Without such a name the folder stays off the path, so that no file in it can replace a missing library.
    """
    folder = os.getcwd()
    if not names or folder in sys.path or "" in sys.path:
        return
    sys.path.append(folder)
    click.get_current_context().call_on_close(lambda: sys.path.remove(folder))
