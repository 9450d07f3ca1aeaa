"""The server's part in secure sums: it carries keys and shares between members, and takes the masks out of the sum."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from plures.brief import brief
from plures.errors import PluresError
from plures.files import DamagedError, discard, read, write
from plures.method import joined, parted
from plures.models import Leaves
from plures.remote.bounds import TooFewError, check, expected
from plures.remote.masks import Notary, pledged
from plures.remote.message import Order, Reply, Request, Tensors
from plures.run.coordinator import Coordinator

if TYPE_CHECKING:
    from plures.secure import Public, Revealed  # they need a library that only secure sums need

UPLOADS = "sum.safetensors"
"""A round's masked uploads, from the moment at which members may have revealed shares until the round counts."""
Ask = Callable[[Request, Mapping[int, Mapping[str, Any]]], tuple[dict[int, tuple[Reply, Tensors]], dict[str, str]]]
"""``ask(request, fields)``: asks clients, by position, with these fields in their orders; returns the answers, and who
is left out with the reason."""
log = logging.getLogger(__name__)


@brief
@dataclass
class Pending:
    """A round whose uploads have come under masks.

    Attributes:
        round, attempt: number of rounds finished, and of the attempt.
        signed: by client that was asked for its upload or dealt shares: its signed keys.
        dealt: by dealer and receiver, by name: what it dealt, with digests of the shares.
        replies: what the clients answered whose uploads are in the sum, by position.
        left: clients that are left out, and why.
        revealed: what they have revealed so far, by position.
    """

    round: int
    attempt: int
    signed: Mapping[int, str]
    dealt: Mapping[str, Mapping[str, str]]
    replies: Mapping[int, tuple[Reply, Tensors]]
    left: dict[str, str]
    revealed: dict[int, Revealed] = field(default_factory=dict)


class Sums:
    """Secure sums of a run, with members at sites.

    An attempt at a round's sum has four exchanges: keys, shares, uploads, and what members reveal. Who does not answer
    one of them is not asked in the next. Until the uploads have come, an attempt that fails is repeated with new keys.
    From then on there is no other attempt, because members may have revealed shares: the uploads are on disk, and only
    the last exchange is repeated, also by a server that was restarted.

    Args:
        run_id: the run's fingerprint.
        notary: knows the members' keys that sign; ``None`` if there are none.
        folder: where uploads are kept; ``None`` to keep them in memory alone.
    """

    def __init__(self, run_id: str, notary: Notary | None, folder: Path | None) -> None:
        self.run_id, self.notary = run_id, notary
        self.file = None if folder is None else folder / UPLOADS
        self._attempt = 0
        self._pending: Pending | None = None

    def pending(self, run: Coordinator[Any]) -> Pending | None:
        """The uploads of the run's next round, if they have come."""
        if self._pending is None and self.file is not None and self.file.exists():
            self._pending = self._read(run, self.file)
        if self._pending is not None and self._pending.round != run.round:
            self._pending = None
        return self._pending

    def gathered(self, run: Coordinator[Any], clients: Collection[int], ask: Ask, least: int) -> Pending:
        """Let clients exchange keys and shares, and collect their uploads.

        Args:
            run: the coordinator, before the round.
            clients: who is asked.
            ask: asks them.
            least: fewest uploads for the round to count, besides those that a secure sum needs.

        Raises:
            TooFewError: if too few take part: nothing has been revealed then.
        """
        if self.notary is None:
            raise PluresError("a secure sum needs the members' keys: they sign the keys of their masks")
        names, left = run.setting.clients, dict[str, str]()
        least = max(least, run.bound.line.enough(len(run.asked(run.round))))
        self._attempt = max(self._attempt + 1, int(time.time() * 1000))  # later than any before, also after a restart
        order = Order(run=self.run_id, request="keys", round=run.round, attempt=self._attempt)

        def asked(request: Request, fields: Mapping[int, Mapping[str, Any]]) -> dict[int, tuple[Reply, Tensors]]:
            found, gone = ask(request, {i: {**some, "attempt": order.attempt} for i, some in fields.items()})
            left.update(gone)
            return found

        def enough(some: Collection[int], did: str) -> None:
            if len(some) < least:
                reasons = "; ".join(f"{name}: {reason}" for name, reason in left.items())
                raise TooFewError(
                    f"round {run.round + 1}: {len(some)} of {len(clients)} clients {did} for a secure sum, at least "
                    f"{least} must ({reasons})"
                )

        signed: dict[int, str] = {}
        for client, (reply, _) in asked("keys", {client: {} for client in clients}).items():
            try:
                pledged(self.notary, order, names[client], reply.keys)
                signed[client] = reply.keys
            except PluresError as error:
                left[names[client]] = str(error)
        enough(signed, "gave keys")
        keys = {names[client]: envelope for client, envelope in signed.items()}
        dealt: dict[int, Mapping[str, str]] = {}
        for client, (reply, _) in asked("deal", {client: {"keys": keys} for client in signed}).items():
            if reply.shares.keys() == keys.keys() - {names[client]}:
                dealt[client] = reply.shares
            else:
                left[names[client]] = "it did not deal a share to each of the others"
        enough(dealt, "dealt shares")
        boxes = {to: {names[by]: some[names[to]] for by, some in dealt.items() if by != to} for to in dealt}
        like, replies = expected(run), dict[int, tuple[Reply, Tensors]]()
        for client, (reply, tensors) in asked("train", {to: {"shares": some} for to, some in boxes.items()}).items():
            try:
                check(run, like, reply, tensors)
                replies[client] = reply, tensors
            except PluresError as error:
                left[names[client]] = str(error)
        enough(replies, "did their work")
        sealed = {names[client]: shares for client, shares in dealt.items()}
        self._pending = Pending(run.round, order.attempt, {i: signed[i] for i in dealt}, sealed, replies, left)
        self._write(run)
        return self._pending

    def unmask(self, run: Coordinator[Any], came: Collection[int], like: Leaves, ask: Ask) -> Leaves:
        """The masks in the sum of the uploads that came; see :meth:`plures.run.coordinator.Clients.unmask`.

        Raises:
            TooFewError: if too few reveal shares; those that have are not asked again.
        """
        from plures.secure import DealtError, remaining

        pending, names, threshold = (
            self.pending(run),
            run.setting.clients,
            run.bound.line.enough(len(run.asked(run.round))),
        )
        assert pending is not None, "uploads are unmasked after they have come"
        everybody = [names[client] for client in came]
        wanted = [client for client in came if client not in pending.revealed]
        found, left = ask("reveal", {i: {"attempt": pending.attempt, "came": tuple(everybody)} for i in wanted})
        gone = {names[client] for client in pending.signed} - {*everybody}
        for client, (reply, _) in found.items():
            try:
                said = self._opened(run, reply, {*everybody}, gone)
                self._insist(run, pending, client, said)
                pending.revealed[client] = said
            except PluresError as error:
                left[names[client]] = str(error)
                log.warning("round %d: client %r: %s", run.round, names[client], error)
        if len(pending.revealed) < threshold:
            reasons = "; ".join(f"{name}: {reason}" for name, reason in left.items())
            raise TooFewError(
                f"round {run.round + 1}: {len(pending.revealed)} clients revealed their shares of a secure sum, and "
                f"{threshold} must ({reasons})"
            )
        publics = {client + 1: self._public(run, pending, client) for client in pending.signed}
        revealed = {client + 1: shares for client, shares in pending.revealed.items()}
        dealt, arrived = [client + 1 for client in pending.signed], [client + 1 for client in came]
        try:
            words = remaining(publics, dealt, arrived, revealed, threshold, joined(like).shape[1])
        except DealtError as error:
            name = names[error.member - 1]
            raise PluresError(
                f"round {run.round + 1}: the shares that client {name!r} dealt in a secure sum do not fit together, so "
                "its masks stay in the sum, and nothing can be opened: start a new run without it"
            ) from error
        return parted(torch.from_numpy(words.view("int32")).unsqueeze(0).to(run.device), like)

    def _opened(self, run: Coordinator[Any], reply: Reply, came: set[str], gone: set[str]) -> Revealed:
        """The shares in a reply.

        Raises:
            PluresError: if they are not those that were asked for.
        """
        from plures.secure import Revealed

        said = reply.revealed
        if said is None or said.own.keys() != came or said.keys.keys() != gone:
            raise PluresError("it did not reveal the shares that it was asked for")
        own, keys = (
            {run.setting.index(name) + 1: int(share, 16) for name, share in some.items()}
            for some in (said.own, said.keys)
        )
        return Revealed(own, keys)

    def _insist(self, run: Coordinator[Any], pending: Pending, client: int, said: Revealed) -> None:
        """Refuse shares that are not those that the client was dealt, by the dealers' digests.

        Raises:
            PluresError: it names the client, and whose share it is.
        """
        from plures.secure import faithful

        place = run.setting.index
        boxes = {
            place(by) + 1: {place(to) + 1: bytes.fromhex(box) for to, box in some.items()}
            for by, some in pending.dealt.items()
        }
        dealer = faithful(client + 1, said, boxes)
        if dealer is not None:
            raise PluresError(
                f"it revealed a share that is not the one that client {run.setting.clients[dealer - 1]!r} dealt to it"
            )

    def _public(self, run: Coordinator[Any], pending: Pending, client: int) -> Public:
        order = Order(run=self.run_id, request="keys", round=pending.round, attempt=pending.attempt)
        assert self.notary is not None
        return pledged(self.notary, order, run.setting.clients[client], pending.signed[client])

    # --- on disk ------------------------------------------------------------------------------------------------

    def _write(self, run: Coordinator[Any]) -> None:
        if self.file is None or (one := self._pending) is None:
            return
        names = run.setting.clients
        tensors = {f"{client}/{label}": t for client, (_, held) in one.replies.items() for label, t in held.items()}
        about = {
            "run": self.run_id,
            "round": one.round,
            "attempt": one.attempt,
            "dealt": one.dealt,
            "signed": {names[client]: envelope for client, envelope in one.signed.items()},
            "replies": {names[client]: reply.model_dump_json() for client, (reply, _) in one.replies.items()},
            "left": one.left,
        }
        write(self.file, tensors, about)

    def _read(self, run: Coordinator[Any], file: Path) -> Pending | None:
        try:
            tensors, about = read(file, "the round is tried again, and members that have revealed shares refuse it")
        except DamagedError as error:
            log.warning("%s", error)
            return None
        if about["run"] != self.run_id:
            return None
        held: dict[int, dict[str, Tensor]] = {}
        for name, t in tensors.items():
            client, _, label = name.partition("/")
            held.setdefault(int(client), {})[label] = t
        place = run.setting.index
        replies = {place(name): Reply.model_validate_json(text) for name, text in about["replies"].items()}
        return Pending(
            about["round"],
            about["attempt"],
            {place(name): envelope for name, envelope in about["signed"].items()},
            about["dealt"],
            {client: (reply, held.get(client, {})) for client, reply in sorted(replies.items())},
            about["left"],
        )

    def forget(self) -> None:
        """Delete the uploads of the last round."""
        self._pending = None
        if self.file is not None:
            discard(self.file)
