"""Status of a member, from its own folder alone."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from plures.deploy.operate.renew import ending
from plures.deploy.plan import Plan, SiteFile
from plures.errors import PluresError, suggestion
from plures.evaluate import Code
from plures.files import inside, read_json
from plures.remote.ledger import LEDGER, Book
from plures.remote.state import PUBLISHED, Versions, has_left
from plures.version import __version__


@dataclass(frozen=True)
class Answered:
    """A question that the site was asked: ``round`` counts finished rounds; ``done`` says whether it was answered."""

    request: str
    round: int
    done: bool


@dataclass(frozen=True)
class MemberStatus:
    """Status of a site, from its own disk.

    Attributes:
        client: its name.
        federation: the federation's name.
        version: of plures, here.
        flower: version of Flower, here; empty if it is not installed.
        left: whether it has left the federation.
        rounds: rounds that were agreed on.
        answered: the last questions that it was asked, the newest last.
        asked: seconds since 1970 when it was asked last.
        versions: versions of its personal state on the disk.
        published: its model: ``version``, ``round`` and ``created``; ``None`` for none.
        folder: of its state.
        notes: problems that need its operator's attention.
    """

    client: str
    federation: str
    version: str
    flower: str
    left: bool
    rounds: int
    answered: tuple[Answered, ...]
    asked: float | None
    versions: tuple[int, ...]
    published: dict[str, Any] | None
    folder: str
    notes: tuple[str, ...]


def look(file: Path) -> MemberStatus:
    """Status of the site of a ``site.toml``."""
    own = SiteFile.load(file)
    plan = Plan.load(file.parent / own.federation)
    state = file.parent / own.state
    folder = inside(state, plan.name, plan.label)
    remedy = "ask the coordinator for the next one, and `plures deploy join` with it"
    notes = ending(file.parent / own.authority, remedy)
    if own.client not in plan.clients:
        near = suggestion(own.client, plan.clients, "they are")
        notes.append(f"{own.client!r} is not one of the federation's members; {near}")
    answered, asked = book(folder / LEDGER, notes)
    return MemberStatus(
        client=own.client,
        federation=plan.name,
        version=__version__,
        flower=installed("flwr"),
        left=has_left(inside(state, plan.name)),
        rounds=plan.spec.rounds,
        answered=answered,
        asked=asked,
        versions=tuple(Versions(folder, "").present()),
        published=model(folder / PUBLISHED, notes, own.code),
        folder=str(folder),
        notes=tuple(notes),
    )


def book(file: Path, notes: list[str]) -> tuple[tuple[Answered, ...], float | None]:
    """The site's ledger: the last questions, and when the newest arrived."""
    if not file.exists():
        return (), None
    try:
        own = Book.model_validate(read_json(file))
    except (PluresError, ValidationError) as error:
        notes.append(f"{file} cannot be read ({error}): the site answers nothing until it leaves and joins again")
        return (), None
    answered = tuple(Answered(one.request, one.round, one.answered) for one in own.asked)
    ended = bool(answered) and answered[-1].request == "publish" and answered[-1].done
    if not ended and own.version != __version__:
        began = f"plures {own.version}" if own.version else "an earlier version of plures"
        notes.append(
            f"the run that {began} began here is unfinished, and this version, {__version__}, refuses every "
            "order of it: install that version again until it has ended, or give it up: the coordinator gives "
            "federation.toml another name, and you run `plures deploy join` with it"
        )
    return answered, file.stat().st_mtime


def model(folder: Path, notes: list[str], code: Code) -> dict[str, Any] | None:
    """The published model's card, in short."""
    from plures.serving.personal import MODEL, PersonalModel

    if not (folder / MODEL).exists():
        return None
    try:
        card = PersonalModel.load(folder, code).card
        return {"version": card.version, "round": card.round, "created": card.created, "folder": str(folder)}
    except PluresError as error:
        notes.append(str(error))
        return None


def installed(package: str) -> str:
    """The version of a package, or nothing."""
    try:
        return version(package)
    except PackageNotFoundError:
        return ""
