"""Signatures prove orders of the coordinator and answers of the members against the attempts of forgers."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from sites import far

from newcomers import clients
from plures.deploy import signing
from plures.deploy.keys import Keyring, with_pub
from plures.deploy.signing import BEGIN, MAGIC, POINT, Key, Signed, SignedTransport, fingerprint, public, verified
from plures.errors import PluresError
from plures.method import SGD
from plures.methods import ditto
from plures.remote.message import ClientFacts, Order, Reply, digest, pack, unpack
from plures.remote.sites import Sites
from plures.report.catalogue import model
from plures.run import Training

pytestmark = pytest.mark.filterwarnings("ignore::plures.errors.PluresWarning")


def made(curve: ec.EllipticCurve | None = None) -> Key:
    return Key(ec.generate_private_key(curve or ec.SECP384R1()))


COORDINATOR, A, B, STRANGER = made(), made(), made(), made()
MEMBERS = {"a": A.fingerprint, "b": B.fingerprint}


class Says:
    """A site that answers every order with a given answer, and counts the orders."""

    def __init__(self, client: str) -> None:
        self.client, self.orders = client, 0

    def answer(self, message: bytes) -> bytes:
        self.orders += 1
        order, _ = unpack(message, Order)
        return pack(Reply(client=self.client, order=digest(message), facts=ClientFacts(examples=5), round=order.round))


Place = Callable[[bytes], bytes | str]


class Carrier:
    """Carries orders to places."""

    def __init__(self, places: dict[int, Place]) -> None:
        self.places = places
        self.sent: list[bytes] = []

    def addresses(self) -> list[int]:
        return sorted(self.places)

    def exchange(self, messages: Mapping[int, bytes], deadline: float) -> dict[int, bytes | str]:
        self.sent += messages.values()
        return {address: self.places[address](message) for address, message in messages.items()}


def site(client: str, key: Key) -> Signed:
    return Signed(Says(client), key, COORDINATOR.fingerprint, client)


def asked(place: Place, message: bytes | None = None) -> bytes | str:
    """What the coordinator gets from one place."""
    carrier = SignedTransport(Carrier({7: place}), COORDINATOR, MEMBERS)
    return carrier.exchange({7: message or pack(Order(request="join"))}, 1.0)[7]


def test_a_member_is_heard_and_signs_for_itself_alone() -> None:
    order = pack(Order(request="train", round=3))
    heard = asked(site("a", A).answer, order)
    assert isinstance(heard, bytes)
    reply, _ = unpack(heard, Reply)
    assert (reply.client, reply.round, reply.order) == ("a", 3, digest(order))
    assert asked(site("b", A).answer) == "the answer of client 'b' is signed with the key of 'a'"
    assert asked(lambda order: "Flower: Node Unavailable") == "Flower: Node Unavailable"


def test_a_stranger_with_a_key_of_its_own_is_not_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signing, "head", lambda *_: pytest.fail("the body was parsed"))
    heard = asked(site("a", STRANGER).answer)
    assert heard == f"the answer is signed with a key that may not sign it, {STRANGER.fingerprint}"


@pytest.mark.parametrize(
    "forge",
    [
        lambda order: pack(Reply(client="a", facts=ClientFacts(examples=5))),
        lambda order: site("a", A).answer(order)[BEGIN:],
        lambda order: b"",
        lambda order: site("a", A).answer(order)[: BEGIN - 1],
        lambda order: MAGIC.replace(b"1", b"2") + site("a", A).answer(order)[len(MAGIC) :],
        lambda order: order[len(MAGIC) :],
    ],
    ids=["bare", "stripped", "nothing", "cut", "another form", "half of the order"],
)
def test_an_answer_without_a_signature_is_named_as_such(forge: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signing, "head", lambda *_: pytest.fail("the body was parsed"))
    assert asked(forge) == "the answer is not signed"


def test_no_bit_of_an_envelope_can_be_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signing, "head", lambda *_: pytest.fail("the body was parsed"))
    order, role = COORDINATOR.sign("order", b"question"), "answer"
    envelope = A.sign(role, b"answer", order)
    assert verified(role, envelope, MEMBERS.values(), order) == (A.fingerprint, b"answer")
    for place in range(8 * len(envelope)):
        changed = bytearray(envelope)
        changed[place // 8] ^= 1 << place % 8
        with pytest.raises(PluresError, match=r"^the answer is (not signed|signed with a key that may not)"):
            verified(role, bytes(changed), MEMBERS.values(), order)
    for wrong in (envelope + b"x", envelope[:-1]):
        with pytest.raises(PluresError, match="was changed on the way"):
            verified(role, wrong, MEMBERS.values(), order)


def test_an_answer_fits_one_order() -> None:
    member = site("a", A)
    order = pack(Order(request="join"))
    first, second = COORDINATOR.sign("order", order), COORDINATOR.sign("order", order)
    assert first != second
    old = member.answer(first)
    assert verified("answer", old, MEMBERS.values(), first)[0] == A.fingerprint
    with pytest.raises(PluresError, match=r"not signed by SHA256:.*, or was changed"):
        verified("answer", old, MEMBERS.values(), second)
    assert "was changed on the way" in str(asked(lambda order: old))


@pytest.mark.parametrize("signer", [A, STRANGER], ids=["a member", "a stranger"])
def test_a_site_obeys_its_coordinator_alone(signer: Key) -> None:
    member = site("a", A)
    order = pack(Order(request="train"))
    for envelope in (signer.sign("order", order), order, A.sign("answer", order), COORDINATOR.sign("answer", order)):
        answer = member.answer(envelope)
        reply, tensors = unpack(verified("answer", answer, MEMBERS.values(), envelope)[1], Reply)
        assert (reply.status, reply.client, reply.facts, tensors) == ("refused", "a", None, {})
        assert "the order is " in reply.reason
    assert isinstance(member.site, Says)
    assert member.site.orders == 0
    member.answer(COORDINATOR.sign("order", order))
    assert member.site.orders == 1


def test_a_refusal_of_a_forged_order_does_not_answer_the_true_one() -> None:
    """Anyone who reaches a node can make it refuse; that refusal cannot be used against the order that was sent."""
    member, order = site("a", A), pack(Order(request="train"))
    refusal = member.answer(STRANGER.sign("order", order))
    assert "was changed on the way" in str(asked(lambda _: refusal, order))


def test_a_key_of_another_curve_signs_nothing() -> None:
    other = ec.generate_private_key(ec.SECP256R1())
    point = other.public_key().public_bytes(serialization.Encoding.X962, serialization.PublicFormat.UncompressedPoint)
    envelope = MAGIC + point.ljust(POINT, b"\0") + bytes(96) + b"answer"
    with pytest.raises(PluresError, match="a key that may not sign it"):
        verified("answer", envelope, MEMBERS.values())
    nowhere = b"\x04" + bytes(96)
    with pytest.raises(PluresError, match="is not signed by"):
        verified("answer", MAGIC + nowhere + bytes(96) + b"answer", {fingerprint(nowhere)})


def test_a_gigantic_envelope_of_a_stranger_is_not_even_read_through() -> None:
    envelope = bytearray(2**28)
    envelope[:BEGIN] = STRANGER.sign("answer", b"")
    with pytest.raises(PluresError, match="a key that may not sign it"):
        verified("answer", bytes(envelope), MEMBERS.values())


def test_the_first_who_says_a_name_does_not_have_it() -> None:
    """A stranger and another member claim first to be client a; the holder of the key is a, wherever it moves."""
    places: dict[int, Place] = {
        1: site("a", STRANGER).answer,
        2: site("a", B).answer,
        3: lambda order: pack(Reply(client="a", facts=ClientFacts(examples=5))),
    }
    carrier = Carrier(places)
    sites = Sites(SignedTransport(carrier, COORDINATOR, MEMBERS), ["a", "b"])
    sites.meet()
    assert sites.where == {}
    assert sites.refused == {
        1: f"the answer is signed with a key that may not sign it, {STRANGER.fingerprint}",
        2: "the answer of client 'a' is signed with the key of 'b'",
        3: "the answer is not signed",
    }
    places[4] = site("a", A).answer
    sites.meet()
    assert sites.where == {"a": 4}
    places[5] = site("a", A).answer
    sites.meet()
    assert sites.where == {"a": 5}
    sites.meet()
    assert sites.where == {"a": 5}
    del places[5]
    sites.meet()
    assert sites.where == {"a": 4}
    assert [
        unpack(verified("order", sent, {COORDINATOR.fingerprint})[1], Order)[0].request for sent in carrier.sent
    ] == ["join"] * 5


def test_rounds_over_signed_messages_are_those_without(tmp_path: Path) -> None:
    """A forger takes the place of one site; the round of the others equals that of a run without that site."""
    federation, _ = clients()
    training = Training(rounds=2, batch_size=8, steps=2, optimizer=SGD(0.05))
    plain, _ = far(federation, model, ditto(), training, tmp_path / "plain")
    remote, carrier = far(federation, model, ditto(), training, tmp_path / "signed")
    keys = {client: made() for client in federation.clients}
    signed = {
        address: Signed(own, keys[own.client], COORDINATOR.fingerprint, own.client)
        for address, own in carrier.sites.items()
    }
    members = {client: key.fingerprint for client, key in keys.items()}
    places: dict[int, Place] = {address: own.answer for address, own in signed.items()}
    remote.clients.sites.transport = SignedTransport(Carrier(places), COORDINATOR, members)

    def forged(order: bytes) -> bytes:
        """A true answer, changed by a forger without the key to carry other weights."""
        reply, tensors = unpack(verified("answer", signed[101].answer(order), members.values(), order)[1], Reply)
        return STRANGER.sign("answer", pack(reply, {name: 1e3 * t for name, t in tensors.items()}), order)

    assert remote.step().loss == plain.step().loss
    places[101] = forged
    record = remote.step()
    assert record.cohort == ("a", "c", "d", "e")
    assert record.left_out == {"b": f"the answer is signed with a key that may not sign it, {STRANGER.fingerprint}"}
    assert all(bool(t.isfinite().all()) and float(t.abs().max()) < 10 for t in remote.server["model"].values.values())


def test_fingerprints_are_those_of_openssh(tmp_path: Path) -> None:
    keys = Keyring(tmp_path)
    keys.make_coordinator()
    file = with_pub(keys.coordinator)
    assert public(file) == Key.load(keys.coordinator).fingerprint
    assert stat.S_IMODE(keys.coordinator.stat().st_mode) == 0o600
    if shutil.which("ssh-keygen"):
        done = subprocess.run(["ssh-keygen", "-lf", file], capture_output=True, text=True, check=True)
        assert done.stdout.split()[1] == public(file)


def test_files_that_are_no_key_of_a_member(tmp_path: Path) -> None:
    keys = Keyring(tmp_path)
    keys.make_node("mercy")
    with pytest.raises(PluresError, match=r"mercy is a private key, which must never be sent"):
        public(keys.node("mercy"))
    line = keys.node_public("mercy").read_text()
    other = ec.generate_private_key(ec.SECP256R1()).public_key()
    encoding, form = serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
    wrong = {
        "empty": "",
        "words": "not a key",
        "curve": other.public_bytes(encoding, form).decode(),
        "two": line + line,
        "cut": line[:-20],
        "nowhere": line.replace(line.split()[1][-20:], "A" * 20),
        "emoji": "🏥",
    }
    for name, text in wrong.items():
        file = tmp_path / f"{name}.pub"
        file.write_text(text)
        with pytest.raises(PluresError, match=rf"{name}\.pub is not a public key"):
            public(file)
    with pytest.raises(PluresError, match=r"nobody\.pub is not a public key: .*No such file"):
        public(tmp_path / "nobody.pub")


def test_private_keys_that_cannot_be_used(tmp_path: Path) -> None:
    keys = Keyring(tmp_path)
    keys.make_node("mercy")
    file = keys.node("mercy")
    expected = public(keys.node_public("mercy"))
    assert Key.of(file, "mercy", expected).fingerprint == expected
    for other, words in ((STRANGER.fingerprint, "names SHA256:"), (None, "names none")):
        with pytest.raises(PluresError, match=f"as the key of mercy federation.toml {words}"):
            Key.of(file, "mercy", other)
    if os.name == "posix":
        file.chmod(0o644)
        with pytest.raises(PluresError, match="is not private: other users may read or change it; run `chmod 600"):
            Key.load(file)
        file.chmod(0o600)
    file.write_text("words")
    with pytest.raises(PluresError, match="mercy is not a usable private key"):
        Key.load(file)
    with pytest.raises(PluresError, match="nobody is not a usable private key: No such file"):
        Key.load(tmp_path / "nobody")
    encoding, none = serialization.Encoding.PEM, serialization.NoEncryption()
    other_curve = ec.generate_private_key(ec.SECP256R1()).private_bytes(
        encoding, serialization.PrivateFormat.OpenSSH, none
    )
    file.write_bytes(other_curve)
    with pytest.raises(PluresError, match="is not a key of the curve P-384"):
        Key.load(file)


def test_a_signature_made_for_something_else_is_none_of_ours() -> None:
    """Flower lets the same key sign times at the reverse proxy; a signature of a file is not valid for an answer."""
    message = pack(Reply(client="a"))
    elsewhere = A.private.sign(message, ec.ECDSA(hashes.SHA384()))
    numbers = signing.decode_dss_signature(elsewhere)
    envelope = MAGIC + A.point + b"".join(n.to_bytes(48, "big") for n in numbers) + message
    assert "was changed on the way" in str(asked(lambda order: envelope))
