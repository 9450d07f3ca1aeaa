"""Secure sums over sites: the result of the simulation, whoever drops out; and what a lying coordinator gets."""

from __future__ import annotations

import json
import math
import stat
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sites import KEYS, far
from torch import nn

from catalogued import WHOLE
from newcomers import clients, linear
from plures import files, from_arrays
from plures.codecs import Clip, SecureSum
from plures.deploy.signing import BEGIN, Notary
from plures.entropy import Secret
from plures.errors import PluresError
from plures.evaluate.spec import find_method
from plures.federation import Federation
from plures.files import read
from plures.method import SGD, Method
from plures.methods import METHODS, ditto, fedavg
from plures.models import with_roles
from plures.remote.bounds import TooFewError
from plures.remote.clients import ONE_CLIENT, Remote, Rules
from plures.remote.ledger import LEDGER
from plures.remote.message import Order, Pledge, Reply, pack, unpack
from plures.remote.site import Site
from plures.remote.state import SUM
from plures.remote.sums import UPLOADS
from plures.report.catalogue import model
from plures.run import DropOut, Fixed, Full, Poisson, Run, Training
from plures.run.coordinator import Coordinator

pytestmark = pytest.mark.filterwarnings("ignore::plures.errors.PluresWarning")
TRAINED = Training(rounds=3, batch_size=16, steps=2, optimizer=SGD(0.05))
SECURE = SecureSum()
STEP = SECURE.step
NAMES = ("a", "b", "c", "d")
Tensors = dict[str, torch.Tensor]


def people() -> Federation:
    generator = np.random.default_rng(4)
    owner = np.repeat(NAMES, (60, 50, 40, 30))
    x = generator.normal(size=(len(owner), 5))
    return from_arrays(x, (x[:, 0] + generator.normal(size=len(owner)) > 0).astype(int), owner, seed=0)


def five() -> Federation:
    generator = np.random.default_rng(4)
    owner = np.repeat(list("abcde"), 30)
    x = generator.normal(size=(len(owner), 5))
    return from_arrays(x, (x[:, 0] > 0).astype(int), owner, seed=0)


def net() -> nn.Module:
    return with_roles(nn.Sequential(nn.Linear(5, 4), nn.Linear(4, 2)), head="1")


def secured(method: Method, **changes: Any) -> Method:
    return replace(method, wire=(*method.wire, replace(SECURE, **changes)))


def federated(folder: Path, method: Method | None = None, **given: Any) -> tuple[Coordinator[Remote], Any]:
    return far(people(), net, method or secured(fedavg()), TRAINED, folder, **given)


def here(method: Method, rounds: int, **given: Any) -> Run:
    run = Run(people(), net, method, TRAINED, execution=ONE_CLIENT, **given)
    for _ in range(rounds):
        run.step()
    return run


def numbers(run: Coordinator[Any]) -> Tensors:
    return {leaf: value for kept in run.server.values() for leaf, value in kept.values.items()}


def assert_near(one: Coordinator[Any], other: Coordinator[Any], atol: float = 2e-6) -> None:
    for leaf, value in numbers(other).items():
        torch.testing.assert_close(numbers(one)[leaf], value, atol=atol, rtol=0, msg=lambda m, n=leaf: f"{n}: {m}")


# --- the result -----------------------------------------------------------------------------------------------------


@pytest.mark.oracle("SP0")
@pytest.mark.parametrize("name", WHOLE)
def test_every_method_that_needs_a_sum_alone_runs_over_sites_and_the_others_say_why_not(name, tmp_path):
    federation, module = clients((20, 24, 18, 21, 20), ("e",), "four")[0], linear if name == "mocha" else model
    rounds = 2 if name in ("scaffold", "feddyn", "fedopt") else 1  # what is remembered
    training = Training(rounds=rounds, batch_size=8, steps=1, optimizer=SGD(0.05))
    plain = Run(federation, module, METHODS[name](), training, seed=1, execution=ONE_CLIENT)
    method = secured(METHODS[name](), passes=("buffers",))
    if not plain.bound.secure_aggregation:
        with pytest.raises(PluresError, match=r"gives the server a sum alone, but block '.*': its|cannot be added up"):
            far(federation, module, method, training, tmp_path, seed=1)
        return
    simulated = Run(federation, module, method, training, seed=1, execution=ONE_CLIENT)
    remote, _ = far(federation, module, method, training, tmp_path, seed=1)
    for _ in range(training.rounds):
        record, same = remote.step(), simulated.step()
        assert not record.left_out
        assert (record.bytes_down, record.bytes_up) == (same.bytes_down, same.bytes_up)
        assert record.loss == pytest.approx(same.loss, rel=1e-5)
        plain.step()
    assert_near(remote, simulated)
    assert_near(simulated, plain, atol=1e-5)
    assert not remote.clients.ask(remote, "publish", "validation")


def test_a_sum_over_sites_is_the_plain_mean_within_half_a_step_of_each(tmp_path):
    remote, _ = federated(tmp_path)
    for _ in range(3):
        remote.step()
    assert_near(remote, here(fedavg(), 3), atol=3 * 4 * STEP + 1e-6)


def test_numbers_about_training_are_those_that_the_sites_allow(tmp_path):
    """Losses and scores are told beside the sum, as in a simulation; lengths of single updates are not known."""
    remote, _ = federated(tmp_path)
    remote.clients.evaluate = ("validation",)
    record = remote.step()
    assert record.loss == pytest.approx(here(secured(fedavg()), 0).step().loss, rel=1e-5)
    assert sorted(remote.clients.scores["validation"]) == [0, 1, 2, 3]
    assert remote.moved.by == {}
    assert {channel.name for channel in remote.bound.channels} >= {"keys", "shares", "revealed", "loss", "scores"}


# --- drop-outs ------------------------------------------------------------------------------------------------------


def asks(message: bytes) -> Order:
    return unpack(message, Order)[0]


def silent(carrier: Any, who: str, *when: str) -> None:
    """Some clients do not answer requests of these kinds."""
    true = carrier.exchange

    def exchange(messages: Mapping[int, bytes], deadline: float) -> dict[int, bytes | str]:
        kept = {a: m for a, m in messages.items() if not (asks(m).request in when and asks(m).client in who)}
        return true(kept, deadline)

    carrier.exchange = exchange


THREE = Fixed([list("abc")])


class Dropping(DropOut):
    def cohort(self, setting, seed, round):
        return [0, 1, 2]


@pytest.mark.parametrize("when", ["keys", "deal", "train"])
def test_who_drops_out_before_it_sends_its_upload_is_not_in_the_sum(when, tmp_path):
    """Its masks are in it if it has dealt. The mean is that of the others."""
    remote, carrier = federated(tmp_path)
    silent(carrier, "d", when)
    record = remote.step()
    assert record.cohort == ("a", "b", "c")
    assert list(record.left_out) == ["d"]
    assert_near(remote, here(secured(fedavg()), 1, participation=Dropping(Full(), 0.1)))
    assert_near(remote, here(fedavg(), 1, participation=THREE), atol=4 * STEP + 1e-6)
    assert remote.last.tolist() == [1, 1, 1, 0]


def test_who_drops_out_after_its_upload_is_in_the_sum(tmp_path):
    remote, carrier = federated(tmp_path)
    silent(carrier, "d", "reveal")
    record = remote.step()
    assert (record.cohort, record.left_out) == (NAMES, {})
    assert_near(remote, here(secured(fedavg()), 1))


@pytest.mark.parametrize(
    ("when", "told"),
    [
        ("keys", r"round 1: 2 of 4 clients gave keys for a secure sum, at least 3 must \(c: no answer .*; d: "),
        ("deal", "round 1: 2 of 4 clients dealt shares for a secure sum, at least 3 must"),
        ("train", "round 1: 2 of 4 clients did their work for a secure sum, at least 3 must"),
        ("reveal", "round 1: 2 clients revealed their shares of a secure sum, and 3 must"),
    ],
)
def test_too_few_are_no_sum_and_the_round_is_repeated(when, told, tmp_path, monkeypatch):
    """Uploads of the attempt that failed are hidden for ever: no member has revealed anything, nor will it."""
    remote, carrier = federated(tmp_path)
    true, before = carrier.exchange, numbers(remote)
    silent(carrier, "cd", when)
    with pytest.raises(TooFewError, match=told):
        remote.step()
    assert (remote.round, remote.last.tolist()) == (0, [0] * 4)
    assert all(torch.equal(value, before[leaf]) for leaf, value in numbers(remote).items())
    carrier.exchange = true
    carrier.log.clear()
    remote.step()
    repeated = [asks(message).request for _, message in carrier.log]
    assert repeated == (["reveal"] * 2 if when == "reveal" else [r for r in STEPS for _ in NAMES])
    assert_near(remote, here(secured(fedavg()), 1))


STEPS = ("keys", "deal", "train", "reveal")


def test_an_upload_that_was_repeated_has_new_masks_and_the_same_content(tmp_path):
    """The site trains once. Both uploads look like noise, and the sum of the attempt that counts is right."""
    remote, carrier = federated(tmp_path)
    true = carrier.exchange
    silent(carrier, "bcd", "train")
    with pytest.raises(TooFewError):
        remote.step()
    carrier.exchange = true
    remote.step()
    sent = [unpack(m, Reply)[1]["update:words"] for a, m in carrier.answers if a == 100 and unpack(m, Reply)[1]]
    assert len(sent) == 2
    bare = unpacked(tmp_path / "a")
    for one in (*sent, sent[0] - sent[1]):
        spread = one.double().std() / 2**31  # that of uniform words is 0.58
        assert 0.3 < spread < 0.9
    assert bare.double().abs().max() < 2**30


def unpacked(folder: Path) -> torch.Tensor:
    """The upload without masks, as a site keeps it on its own disk until it is asked again."""
    (file,) = folder.glob("answer-*-train.safetensors")
    return read(file)[0]["update:words"]


# --- a lying coordinator --------------------------------------------------------------------------------------------


class Liar:
    """A coordinator that asks the sites itself, step by step."""

    def __init__(self, folder: Path, **given: Any) -> None:
        self.remote, self.carrier = federated(folder, **given)
        self.sites: dict[str, Site] = {site.client: site for site in self.carrier.sites.values()}
        self.attempt = 1

    def ask(self, client: str, request: str, tensors: Tensors | None = None, **fields: Any) -> tuple[Reply, Tensors]:
        place = self.remote.setting.index(client)
        order, sent = self.remote.clients.order(self.remote, place, request, self.remote.server)
        order = order.model_copy(update={"attempt": self.attempt, **fields})
        return unpack(self.sites[client].answer(pack(order, sent if tensors is None else tensors)), Reply)

    def refused(self, client: str, request: str, told: str, tensors: Tensors | None = None, **fields: Any) -> None:
        reply, sent = self.ask(client, request, tensors, **fields)
        assert (reply.status, sent) == ("refused", {}), reply
        assert told in reply.reason, reply.reason
        assert (reply.keys, reply.shares, reply.revealed) == ("", {}, None)

    def keys(self, who: str = "abcd", **fields: Any) -> dict[str, str]:
        return {client: self.ask(client, "keys", **fields)[0].keys for client in who}

    def dealt(self, who: str = "abcd", **fields: Any) -> dict[str, dict[str, str]]:
        """For each client, what the others dealt to it."""
        keys = self.keys(who, **fields)
        boxes = {client: self.ask(client, "deal", keys=keys, **fields)[0].shares for client in who}
        return {to: {by: boxes[by][to] for by in who if by != to} for to in who}

    def sent(self, who: str = "abcd", **fields: Any) -> dict[str, tuple[Reply, Tensors]]:
        shares = self.dealt(who, **fields)
        return {client: self.ask(client, "train", shares=shares[client], **fields) for client in who}


@pytest.fixture
def liar(tmp_path: Path) -> Liar:
    return Liar(tmp_path)


def test_shares_are_revealed_for_one_set_of_uploads(liar, tmp_path):
    """Two sets would give both kinds of share for one member, and so its single upload."""
    liar.sent()
    first, _ = liar.ask("a", "reveal", came=("a", "b", "c"))
    assert first.revealed is not None
    assert (sorted(first.revealed.own), sorted(first.revealed.keys)) == (["a", "b", "c"], ["d"])
    liar.refused("a", "reveal", "it has revealed shares in round 1, for other uploads", came=("a", "b", "d"))
    liar.refused("a", "reveal", "it has revealed shares in round 1, for other uploads", came=NAMES)
    assert liar.ask("a", "reveal", came=("c", "b", "a"))[0].revealed == first.revealed
    assert "seed" not in {k for k, v in json.loads((tmp_path / "a" / SUM).read_text()).items() if v}


def test_after_it_has_revealed_a_site_gives_no_keys_and_no_upload_of_the_round(liar):
    liar.sent()
    shares = json.loads((liar.sites["a"].folder / SUM).read_text())["shares"]
    liar.ask("a", "reveal", came=("a", "b", "c"))
    told = "it has revealed shares in round 1, and gives no further keys and no further upload of it"
    liar.refused("a", "train", told, shares=shares)
    liar.attempt = 2
    for request in ("keys", "deal", "train"):
        liar.refused("a", request, told)
    liar.refused("a", "reveal", "it has no secrets for this attempt", came=("a", "b", "c"))
    lost = liar.sites["a"].folder / SUM
    lost.unlink()
    liar.refused("a", "keys", told)
    liar.attempt = 1
    liar.refused(
        "a", "reveal", "it has no secrets for this attempt at a secure sum, or no longer", came=("a", "b", "c")
    )


def test_too_few_uploads_open_nothing(liar):
    liar.sent()
    liar.refused("a", "reveal", "uploads of 2 clients came, and 3 must: nothing is revealed", came=("a", "b"))
    liar.refused("a", "reveal", "its own upload is not in the sum", came=("b", "c", "d"))
    liar.refused("a", "reveal", "'nobody' has not dealt shares", came=("a", "b", "c", "nobody"))
    assert liar.ask("a", "reveal", came=("a", "b", "c"))[0].revealed is not None


UNSIGNED = "the keys of client 'b' are not signed with the key that federation.toml names for it"


def forged(liar: Liar, name: str, signer: int, **changes: Any) -> str:
    """Keys that the coordinator made up, in the name of a client."""
    public = "ab" * 32
    fields = {"run": liar.remote.clients.run_id, "round": 0, "attempt": 1, "client": name} | changes
    pledge = Pledge(seal=public, mask=public, **fields)
    return KEYS[signer].sign("keys", pledge.model_dump_json().encode()).hex()


def test_keys_that_a_member_has_not_signed_are_refused(liar):
    """The coordinator can be nobody: not with a key of its own, nor with another member's, nor with an old message."""
    keys = liar.keys()
    other = "the keys of client 'b' are for another round or attempt"
    for envelope, told in (
        (forged(liar, "b", 7), UNSIGNED),
        (forged(liar, "b", 0), UNSIGNED),
        (keys["c"], UNSIGNED),
        (keys["b"][:-2], UNSIGNED),
        (keys["b"][2:], UNSIGNED),
        ("", UNSIGNED),
        (KEYS[1].sign("answer", b"{}").hex(), UNSIGNED),
        (KEYS[1].sign("keys", b"{}").hex(), "the keys of client 'b' are malformed"),
        (forged(liar, "b", 1, attempt=2), other),
        (forged(liar, "b", 1, round=1), other),
        (forged(liar, "b", 1, client="c"), other),
        (forged(liar, "b", 1, run="other"), other),
    ):
        liar.refused("a", "deal", told, keys=keys | {"b": envelope})
    liar.refused(
        "a",
        "deal",
        "the keys of 'nobody' do not belong to a client that this round asks",
        keys=keys | {"nobody": keys["b"]},
    )
    liar.refused("a", "deal", "keys that are not this client's", keys={k: v for k, v in keys.items() if k != "a"})
    liar.refused("a", "deal", "keys of 2 clients came, and 3 must", keys={k: keys[k] for k in "ab"})
    liar.refused("a", "deal", "keys of 1 clients came, and 3 must", keys={"a": keys["a"]})
    assert sorted(liar.ask("a", "deal", keys=keys)[0].shares) == ["b", "c", "d"]


def test_in_one_attempt_other_keys_and_other_shares_are_refused(liar):
    shares = liar.dealt()
    keys = liar.keys()  # signed anew, the same keys
    liar.refused("a", "deal", "it has dealt shares in this attempt, for other keys", keys=keys)
    few = {"b": shares["a"]["b"], "c": shares["a"]["c"]}
    liar.refused("a", "train", "2 clients dealt shares, and 3 must: nothing is sent", shares={"b": few["b"]})
    liar.refused("a", "train", "a share of 'nobody', who is not one of the others", shares=few | {"nobody": few["b"]})
    liar.refused("a", "train", "what member 2 dealt was changed on its way", shares=few | {"b": few["c"]})
    first = liar.ask("a", "train", shares=few)
    liar.refused("a", "train", "it was asked for its upload in this attempt, with other shares", shares=shares["a"])
    again = liar.ask("a", "train", shares=few)
    assert first[0].status == "done"
    assert torch.equal(first[1]["update:words"], again[1]["update:words"])
    liar.refused("a", "reveal", "'d' has not dealt shares", came=NAMES)


def masks(keys: dict[str, str]) -> set[str]:
    return {Pledge.model_validate_json(bytes.fromhex(one)[BEGIN:]).mask for one in keys.values()}


def test_a_new_attempt_has_new_keys_and_the_training_part_of_its_order_stays(liar):
    """Another model in the same round would give another upload: two equations for one client."""
    one = liar.sent()
    old = liar.keys()
    liar.attempt = 2
    new = liar.keys()
    assert not masks(old) & masks(new)
    liar.refused("a", "reveal", "it has no secrets for this attempt", came=NAMES, attempt=1)
    liar.refused("a", "keys", "it has begun a later attempt", attempt=1)
    shares = liar.dealt()
    _, tensors = liar.remote.clients.order(liar.remote, 0, "train", liar.remote.server)
    moved = {label: torch.ones_like(t) for label, t in tensors.items()}
    liar.refused("a", "train", "it has answered another order of round 1", tensors=moved, shares=shares["a"])
    liar.refused("a", "train", "it has answered another order of round 1", evaluate=("validation",), shares=shares["a"])
    two = liar.ask("a", "train", shares=shares["a"])
    assert not torch.equal(one["a"][1]["update:words"], two[1]["update:words"])
    assert one["a"][0].loss == two[0].loss


def test_no_step_is_skipped(liar):
    for request in ("deal", "train", "reveal"):
        liar.refused("a", request, "it has no secrets for this attempt", came=NAMES, keys={"a": ""})
    liar.keys()
    liar.refused("a", "train", "it has not dealt shares in this attempt")
    liar.refused("a", "reveal", "it was not asked for its upload in this attempt", came=NAMES)
    shares = liar.dealt()
    liar.refused("a", "reveal", "it was not asked for its upload in this attempt", came=NAMES)
    liar.refused("a", "train", "it has no secrets for this attempt", attempt=0, shares=shares["a"])


def test_rounds_never_go_back_and_end(liar):
    liar.remote.step(), liar.remote.step()
    liar.attempt = 2**50
    for request in STEPS:
        liar.refused("a", request, "rounds never go back", round=0, accepted=0)
    liar.refused("a", "keys", "it has revealed shares in round 2", round=1, accepted=1)
    liar.refused("a", "keys", "3 rounds were agreed, and the order is for round 4", round=3)


def test_only_who_is_drawn_is_asked(tmp_path):
    liar = Liar(tmp_path, participation=Fixed([list("abc")]))
    liar.refused("d", "keys", "round 1 does not ask this client")
    keys = liar.keys("abc")
    liar.refused("a", "deal", "the keys of 'd' do not belong to a client", keys=keys | {"d": forged(liar, "d", 3)})


def test_a_sum_of_one_is_refused_at_the_server_and_at_a_site(tmp_path):
    with pytest.raises(PluresError, match="a secure sum of one client hides nothing"):
        federated(tmp_path, participation=Fixed([["a"]]))
    liar = Liar(tmp_path)
    site = liar.sites["a"]
    site.participation = Fixed([["a"]])
    reply, _ = liar.ask("a", "keys")
    assert reply.status == "failed"  # its log says why: the agreed file draws one client alone


def test_methods_without_a_secure_sum_know_no_such_order(tmp_path):
    liar = Liar(tmp_path, method=ditto())
    for request in ("keys", "deal", "reveal", "train"):
        liar.refused("a", request, "this order belongs to no secure sum")
    assert not (tmp_path / "a" / SUM).exists()


def test_without_keys_there_is_no_secure_sum(tmp_path):
    liar = Liar(tmp_path)
    liar.sites["a"].notary = None
    liar.refused("a", "keys", "this site has no key to sign with, and a secure sum needs one")
    liar.remote.clients.sums.notary = None
    with pytest.raises(PluresError, match="a secure sum needs the members' keys"):
        liar.remote.step()


# --- what the server cannot check -----------------------------------------------------------------------------------


def test_a_site_checks_what_the_server_cannot_see(tmp_path):
    """The length of its update, and the range of its numbers. The server is not told how long it was."""
    for number, (method, rules, told) in enumerate(
        (
            (
                secured(fedavg()),
                Rules(max_norm=1e-3),
                "failed: its update is too long, and [rules] max_norm allows 0.001",
            ),
            (secured(fedavg(), bound=1e-4), None, "failed: a number of its update is beyond what a secure sum carries"),
        )
    ):
        remote, carrier = federated(tmp_path / str(number), method)
        for site in carrier.sites.values():
            site.max_norm = (rules or Rules()).max_norm
        with pytest.raises(TooFewError, match="0 of 4 clients did their work for a secure sum") as error:
            remote.step()
        assert f"a: {told}" in str(error.value)
    clipped, _ = federated(tmp_path / "clipped", replace(fedavg(), wire=(Clip(1e-4), SecureSum(1e-4))))
    assert not clipped.step().left_out


def test_a_member_whose_keys_are_not_its_own_is_named_and_left_out(tmp_path):
    remote, carrier = federated(tmp_path)
    carrier.sites[101].notary = Notary({}, KEYS[6])
    record = remote.step()
    assert record.cohort == ("a", "c", "d")
    assert UNSIGNED in record.left_out["b"]


@pytest.mark.parametrize(
    ("request_", "change", "told"),
    [
        ("deal", {"shares": {"a": "00"}}, "it did not deal a share to each of the others"),
        ("deal", {"shares": {}}, "it did not deal a share to each of the others"),
        ("keys", {"keys": ""}, UNSIGNED),
    ],
)
def test_a_member_that_answers_something_else_is_left_out(request_, change, told, tmp_path):
    remote, carrier = federated(tmp_path)
    spoil(carrier, 101, request_, change)
    record = remote.step()
    assert record.cohort == ("a", "c", "d")
    assert told in record.left_out["b"]
    assert_near(remote, here(fedavg(), 1, participation=Fixed([list("acd")])), atol=4 * STEP + 1e-6)


def spoil(carrier: Any, address: int, request: str, change: dict[str, Any]) -> None:
    true = carrier.exchange

    def exchange(messages: Mapping[int, bytes], deadline: float) -> dict[int, bytes | str]:
        answers = true(messages, deadline)
        if address in messages and asks(messages[address]).request == request:
            reply, tensors = unpack(answers[address], Reply)
            answers[address] = pack(reply.model_copy(update=change), tensors)
        return answers

    carrier.exchange = exchange


def test_shares_that_were_not_asked_for_do_not_count(tmp_path):
    remote, carrier = federated(tmp_path)
    spoil(carrier, 101, "reveal", {"revealed": None})
    assert len(remote.step().cohort) == 4
    assert_near(remote, here(secured(fedavg()), 1))


@pytest.mark.parametrize("kind", ["own", "keys"])
def test_a_member_that_reveals_a_wrong_share_is_named_and_the_sum_opens_without_it(kind, tmp_path, caplog):
    """Of five, the last goes away after it has dealt; the second lies about the first's share, or about the last's."""
    federation = five()
    run, carrier = far(federation, net, secured(fedavg()), TRAINED, tmp_path)
    silent(carrier, "e", "train")
    true = carrier.exchange

    def lies(messages: Mapping[int, bytes], deadline: float) -> dict[int, bytes | str]:
        answers = true(messages, deadline)
        if 101 in answers and (reply := unpack(answers[101], Reply)[0]).revealed is not None:
            shares = dict(getattr(reply.revealed, kind))
            name = {"own": "a", "keys": "e"}[kind]
            shares[name] = f"{int(shares[name], 16) ^ 1:0132x}"
            revealed = reply.revealed.model_copy(update={kind: shares})
            answers[101] = pack(reply.model_copy(update={"revealed": revealed}))
        return answers

    carrier.exchange = lies
    assert run.step().cohort == ("a", "b", "c", "d")
    whose = {"own": "a", "keys": "e"}[kind]
    assert f"client 'b': it revealed a share that is not the one that client '{whose}' dealt to it" in caplog.text
    plain = Run(federation, net, fedavg(), TRAINED, execution=ONE_CLIENT, participation=Fixed([list("abcd")]))
    plain.step()
    assert_near(run, plain, atol=5 * STEP + 1e-6)


# --- killed between messages ----------------------------------------------------------------------------------------


class KilledError(BaseException):
    """The process is gone."""


@pytest.mark.parametrize("request_", STEPS)
@pytest.mark.parametrize("before", [True, False])
def test_a_coordinator_that_was_killed_goes_on_to_the_same_sum(request_, before, tmp_path):
    """Killed before or after the sites have answered, or with half of the answers: never two sums of one round."""
    remote, carrier = federated(tmp_path)
    remote.step()
    server, last = remote.server, remote.last
    true = carrier.exchange

    def exchange(messages: Mapping[int, bytes], deadline: float) -> dict[int, bytes | str]:
        asked = {asks(message).request for message in messages.values()}
        if request_ in asked:
            true({a: m for a, m in messages.items() if a != 102 or not before}, deadline)
            raise KilledError
        return true(messages, deadline)

    carrier.exchange = exchange
    with pytest.raises(KilledError):
        remote.step()
    carrier.exchange = true
    again = revived(remote, carrier, tmp_path, server, last)
    record = again.step()
    assert record.cohort == NAMES
    assert_near(again, here(secured(fedavg()), 2))
    again.step()
    assert_near(again, here(secured(fedavg()), 3))


def revived(remote: Coordinator[Remote], carrier: Any, folder: Path, server: Any, last: torch.Tensor) -> Any:
    """A new coordinator with the state of a checkpoint, over the same sites."""
    other, _ = federated(folder)
    other.clients.sites.transport = carrier
    other.round, other.server, other.last = 1, server, last
    return other


def test_a_coordinator_that_was_killed_after_the_sum_gets_the_same_sum(tmp_path):
    """The round had not been written: the uploads on disk are the same, and so are the answers of the sites."""
    remote, carrier = federated(tmp_path)
    remote.step()
    server, last = remote.server, remote.last.clone()
    remote.step()
    expected = numbers(remote)
    carrier.log.clear()
    again = revived(remote, carrier, tmp_path, server, last)
    again.step()
    assert [asks(m).request for _, m in carrier.log if asks(m).request != "join"] == ["reveal"] * 4
    assert all(torch.equal(value, expected[leaf]) for leaf, value in numbers(again).items())


def test_uploads_that_are_damaged_are_not_used(tmp_path):
    remote, carrier = federated(tmp_path)
    silent(carrier, "cd", "reveal")
    with pytest.raises(TooFewError):
        remote.step()
    (tmp_path / UPLOADS).write_bytes((tmp_path / UPLOADS).read_bytes()[:-1] + b"\1")
    again, _ = federated(tmp_path)
    with pytest.raises(TooFewError, match="a: refused: it has revealed shares in round 1, and gives no further keys"):
        again.step()


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("file", [SUM, LEDGER])
def test_a_site_that_was_killed_while_it_wrote_answers_the_same_later(step, file, tmp_path, monkeypatch):
    """Whatever it had written when it was killed, the same order gets its answer, and the sum is right."""
    remote, carrier = federated(tmp_path)
    true, dying, dead = files.write_text, [True], carrier.exchange

    def dies(path: Path, text: str, **given: Any) -> None:
        true(path, text, **given)
        if dying and path.name == file and path.parent.name == "b" and now[-1] == step:
            dying.clear()
            raise KilledError

    now = [""]

    def exchange(messages: Mapping[int, bytes], deadline: float) -> dict[int, bytes | str]:
        found: dict[int, bytes | str] = {}
        for address, message in messages.items():
            now.append(asks(message).request)
            try:
                found |= dead({address: message}, deadline)
            except KilledError:
                found |= dead({address: message}, deadline)  # the same order, to a new process
        return found

    carrier.exchange = exchange
    monkeypatch.setattr(files, "write_text", dies)
    assert remote.step().cohort == NAMES
    assert_near(remote, here(secured(fedavg()), 1))


# --- on its disk ----------------------------------------------------------------------------------------------------


def test_secrets_are_their_users_alone_and_gone_after_the_sum(tmp_path):
    remote, carrier = federated(tmp_path)
    seen: list[tuple[int, bool]] = []
    true = carrier.exchange

    def exchange(messages: Mapping[int, bytes], deadline: float) -> dict[int, bytes | str]:
        answers = true(messages, deadline)
        for name in NAMES if messages else ():
            file = tmp_path / name / SUM
            seen.append((stat.S_IMODE(file.stat().st_mode), bool(json.loads(file.read_text())["seed"])))
        return answers

    carrier.exchange = exchange
    remote.step()
    assert seen == [(0o600, True)] * 12 + [(0o600, False)] * 4
    remote.step(), remote.step()
    carrier.exchange = true
    remote.clients.ask(remote, "score", "validation")
    assert not any((tmp_path / name / SUM).exists() for name in NAMES)


def test_what_is_sent_are_neither_uploads_nor_personal_leaves(tmp_path):
    """Every message is searched for each leaf that a site keeps, and for each number of its upload without masks."""
    method = secured(ditto())
    remote, carrier = federated(tmp_path, method)
    for _ in range(2):
        remote.step()
    sent = b"".join(m for _, m in (*carrier.log, *carrier.answers) if isinstance(m, bytes))
    for name in NAMES:
        stored = [read(file)[0] for file in (tmp_path / name).glob("*.safetensors")]
        leaves = [t for found in stored for t in found.values() if t.numel() >= 8]
        assert len(leaves) >= 4
        assert {t.dtype for t in leaves} == {torch.float32, torch.int32}
        for t in leaves:
            assert t.numpy().tobytes() not in sent


# --- with differential privacy --------------------------------------------------------------------------------------


def test_noise_of_the_sites_is_in_the_sum_and_secret_cohorts_are_not_for_sums(tmp_path):
    """Members must know who is asked, and privacy by sampling counts on nobody knowing it."""
    private = "fedavg+dp(clip=1,noise=0.1,delta=1e-3{})+secure_sum"
    local = federated(tmp_path / "local", find_method(private.format(",trust=nobody"))())[0]
    plain = here(find_method("fedavg+dp(clip=1,noise=0,delta=1e-3)")(), 1)
    assert len(local.step().cohort) == 4
    moved = max(float((numbers(local)[leaf] - value).abs().max()) for leaf, value in numbers(plain).items())
    assert 0.01 < moved < 1  # noise of a twentieth for each number of the mean
    with pytest.raises(PluresError, match="dp beside secure_sum: this privacy counts on nobody knowing who is drawn"):
        federated(tmp_path, find_method(private.format(""))(), participation=Poisson(0.9), secret=Secret(bytes(32)))


def test_discrete_noise_of_all_sites_is_in_the_sum(tmp_path):
    """Each of four adds 1 / sqrt(3) of the deviation, for three must come: the mean has 0.2 sqrt(4 / 3) / 4."""

    def wide() -> nn.Module:
        return with_roles(nn.Sequential(nn.Linear(5, 150), nn.Linear(150, 2)), head="1")

    def after(noise: float, folder: Path, entropy: bytes) -> Tensors:
        method = find_method(f"fedavg+dp(clip=1,noise={noise},delta=1e-3,trust=sum,accountant=rdp)+secure_sum")()
        drawn = Secret(entropy * 32)
        run, _ = far(people(), wide, method, TRAINED, folder, entropy=lambda client: drawn.of(client))
        assert len(run.step().cohort) == 4
        assert run.spent().trust == "sum"
        return numbers(run)

    quiet, noisy, other = (
        after(z, tmp_path / str(i), e) for i, (z, e) in enumerate([(0, b"a"), (0.2, b"a"), (0.2, b"b")])
    )
    parts = [torch.cat([(made[k] - t).flatten() for k, t in quiet.items()]).double() for made in (noisy, other)]
    wanted = 0.2 * (4 / 3) ** 0.5 / 4
    for part in parts:
        assert len(part) > 1000
        assert float(part.std()) == pytest.approx(wanted, rel=0.1)
        assert abs(float(part.mean())) < 4 * wanted / len(part) ** 0.5
    assert abs(float(torch.corrcoef(torch.stack(parts))[0, 1])) < 0.15  # what sites draw is their own


@pytest.mark.parametrize("when", ["deal", "train"])
def test_discrete_noise_is_enough_if_one_site_goes_away(when, tmp_path):
    """The plan counts what the fewest add; a site that goes away takes its part with it, and the sum still opens."""
    method = find_method("fedavg+dp(clip=1,noise=0.2,delta=1e-3,trust=sum,accountant=rdp)+secure_sum")()
    run, carrier = federated(tmp_path, method)
    silent(carrier, "d", when)
    record = run.step()
    assert record.cohort == ("a", "b", "c")
    assert math.isfinite(run.spent().epsilon)
