"""A site's record of its answers in a run: each order is worked on once, and a repeat is answered from disk."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from pydantic import BaseModel, ValidationError

from plures.errors import PluresError
from plures.files import read, read_json, write, write_json
from plures.remote.message import MASKING, Held, Order, Reply, Request, Scored, Tensors
from plures.remote.state import PUBLISHED, RefusedError, writing
from plures.version import __version__

LEDGER = "ledger.json"
KEPT = 3
"""How many of the latest answers are kept, in case the server asks again."""
TRIES = 3
"""Most different orders for one question. All but the last must have failed: a server may have to correct what it
sent."""
SPLITS: dict[Request, tuple[Held, ...]] = {
    "train": ("validation",),
    "score": ("validation",),
    "publish": ("validation", "test"),
}
"""The splits that a request may measure."""
CONSENT = "to take part anew, leave the federation and join it again: `plures deploy leave`, `plures deploy join`"


class Question(BaseModel):
    """A question of the plan.

    Attributes:
        request, round: what identifies the question.
        contents: digests of the orders that asked it. All but the last failed; they are dropped once it is answered.
        answered: whether the answer is on disk.
    """

    request: Request
    round: int
    contents: list[str]
    answered: bool = False


class Opened(BaseModel):
    """Shares that a site revealed, so that masks could be taken out of a secure sum.

    Attributes:
        round: the round of the sum.
        content: digest of its attempt, and of the members whose uploads were in it.
    """

    round: int
    content: str


class Book(BaseModel):
    """Contents of the ledger's file.

    Attributes:
        run: fingerprint of the run.
        population: digest of the facts that the members reported, as the first order gave them.
        version: version of plures when the run began; empty in files of earlier versions.
        asked: the last questions.
        validation: scores reported on the validation examples, by round.
        named: versions of the personal state that the last orders named.
        opened: the last secure sum for which the site revealed shares.
    """

    run: str
    population: str
    version: str = ""
    asked: list[Question] = []
    validation: dict[int, Scored] = {}
    named: list[tuple[int, int]] = []
    opened: Opened | None = None


class Ledger:
    """The questions that a site has answered. Only one order may use it at a time.

    A question is recorded before any work is done for it, and its answer before it is sent. So whatever a server
    sends, and whenever the site is killed, no question gets two different answers.

    Args:
        folder: folder of the federation and method.
        run: fingerprint of the run; a folder belongs to one run.
        rounds: number of rounds that were agreed on.
        probes: whether the method asks for gradients.

    Raises:
        RefusedError: if the record of past answers is missing or damaged, or belongs to another run.
    """

    def __init__(self, folder: Path, run: str, rounds: int, *, probes: bool) -> None:
        self.folder, self.run, self.rounds, self.probes = folder, run, rounds, probes
        self.book = self._read()

    def _read(self) -> Book | None:
        file = self.folder / LEDGER
        if not file.exists():
            left = [*self.folder.glob("state-*"), *self.folder.glob("answer-*"), *self.folder.glob(PUBLISHED)]
            if left:
                own = PluresError(f"{file} is missing, but {left[0].name} shows that orders were answered; {CONSENT}")
                raise RefusedError("it no longer knows what it answered") from own
            return None
        try:
            book = Book.model_validate(read_json(file, CONSENT))
        except (PluresError, ValidationError) as error:
            raise RefusedError("it no longer knows what it answered") from error
        if book.run != self.run:
            own = PluresError(f"{file} belongs to another run ({book.run}, not {self.run}); {CONSENT}")
            raise RefusedError("it took part in another run of this federation, and was not told of a new one") from own
        return book

    # --- questions and answers ----------------------------------------------------------------------------------

    def answer(self, order: Order, content: str) -> tuple[Reply, Tensors] | None:
        """The stored answer if the question was answered before; ``None`` if the site may work on it now.

        Args:
            order: the order.
            content: digest of the order and its tensors, without the nonce.

        Raises:
            RefusedError: if the order is not part of the plan, or comes too late or too often.
        """
        self._agreed(order)
        asked = self.book.asked if self.book else []
        last = asked[-1] if asked else None
        known = next((one for one in asked if (one.request, one.round) == (order.request, order.round)), None)
        if known and known.answered and content in known.contents:
            return self._stored(known)
        if last and known is not last and self._place(order) <= self._place(last):
            why = "the run has ended here" if last.request == "publish" else "it has answered later orders"
            raise RefusedError(f"{why}: rounds never go back")
        if order.request == "publish" and (last is None or self._place(last) < (self.rounds - 1, 1)):
            raise RefusedError(f"a model is published at the end of the {self.rounds} agreed rounds")
        if known and known.answered:
            raise RefusedError(f"it has answered another order of round {order.round + 1}")
        if known and content not in known.contents and len(known.contents) == TRIES:
            raise RefusedError(f"round {order.round + 1} was asked for in {TRIES} ways, and none of them worked")
        return None

    def claim(self, order: Order, content: str, versions: int) -> None:
        """Record that a question is being worked on. Call this before doing any work for it.

        Args:
            order: the order.
            content: its digest.
            versions: number of latest orders whose named versions are remembered.
        """
        book = self.book or Book(run=self.run, population=people(order), version=__version__)
        last = book.asked[-1] if book.asked else None
        if last is None or (last.request, last.round) != (order.request, order.round):
            book.asked = [*book.asked, Question(request=order.request, round=order.round, contents=[content])][-KEPT:]
        elif last.contents[-1] != content:
            last.contents = [*(one for one in last.contents if one != content), content]
        else:
            return
        book.named = [*book.named, (order.accepted, order.keep)][-versions:]
        self.book = book
        self._write()

    def close(self, order: Order, reply: Reply, tensors: Tensors) -> None:
        """Record the answer to the question claimed last. Call this before sending it."""
        assert self.book is not None
        one, kept = self.book.asked[-1], [self._file(one) for one in self.book.asked]
        for file in self.folder.glob("answer-*"):
            if file not in kept:
                file.unlink(missing_ok=True)
        with writing():
            write(self._file(one), tensors, {"reply": reply.model_dump_json()})
        one.contents, one.answered = one.contents[-1:], True
        if "validation" in reply.scores:
            self.book.validation.setdefault(order.round, reply.scores["validation"])
        self._write()

    def measured(self, round: int) -> Scored | None:
        """The validation scores already reported for a round, which are not measured again; else ``None``."""
        return self.book.validation.get(round) if self.book else None

    # --- secure sums --------------------------------------------------------------------------------------------

    def summing(self, order: Order) -> None:
        """Refuse an order for a round's secure sum that comes too late.

        Once a site has revealed shares in a round, it gives no further keys and no further upload of that round: so
        members reveal for at most one attempt, and because more than half of them must, only one can be opened.
        """
        self._agreed(order)
        if self.book is None:
            return
        if self.book.asked and self._place(order) < self._place(self.book.asked[-1]):
            raise RefusedError("it has answered later orders: rounds never go back")
        if self.book.opened and order.round <= self.book.opened.round and order.request != "reveal":
            raise RefusedError(
                f"it has revealed shares in round {self.book.opened.round + 1}, and gives no further keys and no "
                "further upload of it"
            )

    def reveals(self, order: Order) -> None:
        """Record whose masks the site is about to reveal shares of. Call this before sending them.

        Raises:
            RefusedError: if it has revealed shares of this round for other uploads, or of a later round.
        """
        content = hashlib.sha256(json.dumps([order.attempt, sorted(set(order.came))]).encode()).hexdigest()
        assert self.book is not None, "it has sent its upload"
        made = self.book.opened
        if made and order.round <= made.round and (order.round, content) != (made.round, made.content):
            raise RefusedError(f"it has revealed shares in round {made.round + 1}, for other uploads")
        if made is None or order.round > made.round:
            self.book.opened = Opened(round=order.round, content=content)
            self._write()

    @property
    def named(self) -> set[int]:
        """Versions of the personal state that the last orders named."""
        return {version for pair in self.book.named for version in pair} if self.book else set()

    # --- the agreed plan ----------------------------------------------------------------------------------------

    def _agreed(self, order: Order) -> None:
        """Refuse orders that have no place in the agreed plan."""
        request, round = order.request, order.round
        if not (0 <= round <= self.rounds and 0 <= order.accepted <= round and 0 <= order.keep <= self.rounds):
            raise RefusedError(
                f"the order is for round {round + 1}, with versions {order.accepted} and {order.keep}: "
                f"{self.rounds} rounds were agreed"
            )
        if request in ("train", *MASKING) and round == self.rounds:
            raise RefusedError(f"{self.rounds} rounds were agreed, and the order is for round {round + 1}")
        if request == "score" and round < self.rounds:
            raise RefusedError(f"scores without training are given only at the end of the {self.rounds} agreed rounds")
        if request == "gradients" and not (self.probes and round == 0):
            why = "this method asks for gradients only before the first round"
            raise RefusedError(why if self.probes else "this method does not ask for gradients")
        if odd := [split for split in order.evaluate if split not in SPLITS.get(request, ())]:
            raise RefusedError(f"{odd[0]} examples are not measured with {request!r}")
        if self.book and people(order) != self.book.population:
            raise RefusedError("the members' facts are not those of its first order")

    def _place(self, question: Order | Question) -> tuple[int, int]:
        """A question's position in the plan."""
        if question.request == "publish":
            return self.rounds + 1, 0
        return question.round, 0 if question.request == "gradients" else 1

    # --- files --------------------------------------------------------------------------------------------------

    def _file(self, question: Question) -> Path:
        return self.folder / f"answer-{question.round:08d}-{question.request}.safetensors"

    def _write(self) -> None:
        assert self.book is not None
        with writing():
            write_json(self.folder / LEDGER, self.book.model_dump(mode="json"))

    def _stored(self, question: Question) -> tuple[Reply, Tensors]:
        try:
            tensors, about = read(self._file(question))
            return Reply.model_validate_json(about["reply"]), tensors
        except (PluresError, KeyError, ValidationError) as error:
            raise RefusedError("the answer that it gave is no longer on its disk") from error


def people(order: Order) -> str:
    """Digest of the members' facts in an order."""
    return hashlib.sha256(json.dumps([one.model_dump() for one in order.population]).encode()).hexdigest()
