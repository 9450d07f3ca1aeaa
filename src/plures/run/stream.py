"""Streams of experiences: one method learns them in order and carries its state along."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from torch import nn

from plures.errors import PluresError
from plures.federation import Federation, Stream
from plures.method import Method, Setting
from plures.models import ModelFactory
from plures.run.checkpoint import restore, snapshot
from plures.run.execution import Execution
from plures.run.participation import Participation
from plures.run.run import Run
from plures.run.states import working
from plures.run.training import RateSchedule, Training


@dataclass(frozen=True)
class Anew:
    """A learning-rate schedule that restarts with every experience.

    Attributes:
        schedule: the schedule within an experience.
        rounds: number of rounds of each experience.
    """

    schedule: RateSchedule
    rounds: int

    def __call__(self, round: int, rounds: int) -> float:
        return self.schedule(round % self.rounds, self.rounds)


def learn(
    stream: Stream,
    model: nn.Module | ModelFactory,
    method: Method,
    training: Training | None = None,
    *,
    participation: Participation | None = None,
    seed: int = 0,
    execution: Execution | None = None,
) -> Iterator[Run]:
    """Train one method over the experiences of a stream in order.

    Every experience is a run that starts with the state of the server and the clients at the end of the previous run.
    Rounds are counted on, so batches and cohorts do not repeat. When an experience ends, the clients that have taken
    part so far do the method's work ``between`` experiences, with the data of that experience.

    Args:
        stream: the experiences.
        model: a factory of modules, or a module.
        method: what to run.
        training: local work; ``rounds`` are those of each experience.
        participation: who takes part in each round.
        seed: root of initial values, batches, cohorts and dropout.
        execution: how to use the machine; what is ``auto`` is measured in the first experience.

    Yields:
        The run of each experience after its last round. The next experience starts when the next run is requested.
    """
    training = training or Training()
    anew, before = Anew(training.schedule, training.rounds), None
    for number, experience in enumerate(stream):
        span = replace(training, rounds=(number + 1) * training.rounds, schedule=anew)
        run = Run(experience, model, method, span, participation=participation, seed=seed, execution=execution)
        if before is not None:
            conclude(before)
            restore(run, snapshot(before))
        execution, before = run.execution, run
        for _ in run.rounds():
            pass
        yield run


def conclude(run: Run) -> None:
    """Let the clients that took part do the method's work ``between`` experiences, when an experience ends."""
    work, own = run.method.between, set(run.stored_leaves())
    written = run.bound.written_by(work)
    for leaf in sorted(written - own):
        raise PluresError(f"between experiences nothing travels, so {leaf} cannot change: make it Personal()")
    present: list[int] = run.participated.nonzero().squeeze(1).tolist()
    for chunk in run.chunks(present) if work else ():
        received = run.states(chunk)
        x = working(received, written)
        run.engine.visit(x, received, chunk, run.round, work)
        run.commit(chunk, {leaf: x[leaf.slot][leaf.path] for leaf in run.stored_leaves()})


def on_experience(run: Run, experience: Federation) -> Run:
    """A copy of a run in its current state, with the data of another experience of its stream, to score it there."""
    experience = experience.to(run.federation.inputs.device, run.execution.dtype)
    return run.on(experience, Setting.of(experience))
