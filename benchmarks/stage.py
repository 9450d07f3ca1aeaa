"""A run over real Flower processes in which failures happen in the middle of a round."""

from __future__ import annotations

import math
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from benchmarks.aftermath import AT_WORK, CLIENTS, HOLD, lost, prepared
from benchmarks.cable import Cable
from plures.deploy.fleet.loopback import Fleet
from plures.deploy.fleet.process import until
from plures.deploy.journal import LOG, Journal

APP = Path(__file__).parents[1] / "tests" / "deploy" / "app"
SMALL = 2**20
"""Size in bytes of a disk that is to fill up."""


@dataclass(frozen=True)
class Failure:
    """A failure of a site or of the server in the middle of a round, and how it is ended.

    Attributes:
        title: what happens, in a few words.
        done: the same in more words.
        strike: makes it happen.
        mend: ends it.
        server: whether it happens to the server.
        afresh: whether the site starts afresh afterwards.
    """

    title: str
    done: str
    strike: Callable[[Stage, str], None]
    mend: Callable[[Stage, str], None] = lambda stage, client: None
    server: bool = False
    afresh: bool = False


@dataclass(frozen=True)
class Outcome:
    """The outcome of a failure.

    Attributes:
        failure: what happened.
        done: the same in more words.
        to: the site or server that it happened to.
        missed: rounds that counted without that site.
        reasons: the reasons in the run's log, without repetitions.
        back: seconds from the failure's end until a round counted with the site; ``None`` if it does not come back.
        lost: what differs from the simulation.
    """

    failure: str
    done: str
    to: str
    missed: list[int]
    reasons: list[str]
    back: float | None
    lost: list[str]


@dataclass
class Suffered:
    """A failure that happened: to whom, after how many rounds and when, when it ended, and when work counted again."""

    of: Failure
    to: str
    after: int
    at: float
    over: float | None = None
    back: float | None = None


@dataclass
class Stage:
    """A run over real processes, and the failures that happen to them.

    As a context manager, it ends the run on exit and undoes all failures.

    Args:
        fleet: the processes, with relays; sites are folders of ``home``.
        home: folder of the sites' files, which are written anew.
        out: the run's folder.
        rules: rules of the federation.
        run: settings that differ from :data:`benchmarks.aftermath.RUN`.
        small: folders to turn into disks of :data:`SMALL` bytes, which only root can do.
        cables: cables of nodes in networks of their own.
        patience: seconds to wait for anything.
    """

    fleet: Fleet
    home: Path
    out: Path
    rules: Mapping[str, float]
    run: Mapping[str, Any]
    small: Sequence[Path] = ()
    cables: Mapping[str, Cable] = field(default_factory=dict)
    patience: float = 300.0
    suffered: dict[str, Suffered] = field(default_factory=dict)
    number: int = 0

    def __enter__(self) -> Self:
        self.file = prepared(self.home, self.rules, **self.run)
        self.stack = ExitStack()
        for folder in self.small:
            self.stack.enter_context(small_disk(folder))
        self.journal = Journal(self.out)
        self.submit()
        return self

    def __exit__(self, *error: object) -> None:
        with self.stack:
            self.release(*CLIENTS)
            for client in CLIENTS:
                self.fleet.relays[client].heal()
                self.fleet.nodes[client].resume()
            for cable in self.cables.values():
                cable.plug()
            if not self.fleet.superlink.alive:
                self.fleet.start_superlink()
            if not self.fleet.control.status(self.number).startswith("finished"):
                self.fleet.control.stop(self.number)
            for client in CLIENTS:
                if not self.fleet.nodes[client].wanted:
                    self.fleet.start_node(client)
                shutil.rmtree(self.home / client / "state", ignore_errors=True)

    # --- the run ------------------------------------------------------------------------------------------------

    def submit(self) -> None:
        """Start or resume the run."""
        self.number = self.fleet.conduct(APP, self.file, self.out)

    def wait(self, done: Callable[[], bool], what: str) -> float:
        """Wait until a condition holds, and return the seconds that it took."""

        def late() -> str:
            log = self.out / LOG
            last = log.read_text().splitlines()[-8:] if log.exists() else []
            return "\n".join([f"{what}: not within {self.patience:g} s; the end of {log}:", *last])

        return until(done, self.patience, late, poll=0.05)

    def rounds(self) -> list[dict[str, Any]]:
        """The log's entries of the rounds that counted."""
        return self.journal.events("round")

    def after(self, number: int) -> None:
        """Wait until the given number of rounds have counted."""
        self.wait(lambda: len(self.rounds()) >= number, f"round {number}")

    def ended(self) -> str:
        """Wait until the run has ended, successfully or not, and return Flower's status."""
        return self.fleet.wait(self.number, self.patience)

    def insist(self, times: int = 5) -> None:
        """Resume the run until it is completed."""
        for _ in range(times):
            if self.ended() == "finished:completed":
                return
            self.submit()
        assert self.ended() == "finished:completed", self.fleet.superlink.tail(40)

    def stop(self) -> None:
        """Stop the run."""
        self.fleet.control.stop(self.number)
        self.wait(lambda: not self.fleet.superlink.members("flwr-serverapp"), "the end of the ServerApp")

    # --- failures -----------------------------------------------------------------------------------------------

    def hold(self, *clients: str) -> None:
        """Wait until clients are at work, and keep them there."""
        for client in clients:
            (self.home / client / HOLD).touch()
            (self.home / client / AT_WORK).unlink(missing_ok=True)
        self.wait(lambda: all((self.home / c / AT_WORK).exists() for c in clients), f"work of {', '.join(clients)}")

    def release(self, *clients: str) -> None:
        for client in clients:
            (self.home / client / HOLD).unlink(missing_ok=True)

    def strike(self, *failures: tuple[Failure, str]) -> None:
        """Make failures happen, each to one client, in the middle of a round."""
        clients = [client for _, client in failures]
        self.hold(*clients)
        for failure, client in failures:
            self.suffered[failure.title] = Suffered(failure, client, len(self.rounds()), time.time())
            failure.strike(self, client)
        self.release(*clients)

    def missed(self, failure: Failure, rounds: int = 1) -> None:
        """Wait until a number of rounds have counted without the client that a failure happened to."""
        suffered = self.suffered[failure.title]

        def without() -> int:
            return sum(suffered.to not in event["clients"] for event in self.rounds()[suffered.after :])

        self.wait(lambda: without() >= rounds, f"rounds without {suffered.to} after {failure.title!r}")

    def mend(self, *failures: Failure) -> None:
        """End some failures."""
        for failure in failures:
            self.suffered[failure.title].over = time.time()
            failure.mend(self, self.suffered[failure.title].to)

    def recovered(self, *failures: Failure) -> None:
        """Wait until a round has counted with each client that a failure happened to.

        If the run fails again in the meantime, it is resumed, as an operator would do.
        """
        for failure in failures:
            suffered = self.suffered[failure.title]

            def back(suffered: Suffered = suffered) -> bool:
                rounds = [e["time"] for e in self.rounds() if suffered.of.server or suffered.to in e["clients"]]
                suffered.back = next((at for at in rounds if at > (suffered.over or at)), None)
                if suffered.back is None and self.fleet.control.status(self.number) == "finished:failed":
                    self.submit()
                return suffered.back is not None

            self.wait(back, f"a round with {suffered.to} after {failure.title!r}")

    def outcomes(self) -> list[Outcome]:
        """The outcomes of all failures, once the run has ended."""
        different = lost(self.file, self.out, {s.to: s.after for s in self.suffered.values() if s.of.afresh})
        return [self._outcome(suffered, different) for suffered in self.suffered.values()]

    def _outcome(self, suffered: Suffered, different: list[str]) -> Outcome:
        until_then = suffered.back or math.inf
        back = None if suffered.back is None or suffered.over is None else round(suffered.back - suffered.over, 1)
        if suffered.of.server:
            events = [e for e in self.journal.events("failed round") if suffered.at < e["time"] < until_then]
            to, missed, reasons = "server", [], [event["reason"] for event in events]
        else:
            rounds = [e for e in self.rounds()[suffered.after :] if e["time"] < until_then]
            without = [event for event in rounds if suffered.to in event["left_out"]]
            to, missed = suffered.to, [event["round"] for event in without]
            reasons = [event["left_out"][to] for event in without]
        return Outcome(suffered.of.title, suffered.of.done, to, missed, list(dict.fromkeys(reasons)), back, different)


@contextmanager
def small_disk(folder: Path) -> Iterator[None]:
    """Turn a folder into a separate disk of :data:`SMALL` bytes."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={SMALL}", "tmpfs", str(folder)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def soon() -> float:
    """Seconds that a round of four sites needs on this machine under its current load, with quick programs."""
    begun = time.monotonic()
    subprocess.run([sys.executable, "-c", "import plures.deploy.app"], check=True)
    return max(4.0, round(time.monotonic() - begun))
