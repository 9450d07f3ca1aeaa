"""Which sites are admitted, and what a site refuses."""

from __future__ import annotations

import pytest
from sites import elsewhere, far
from torch import nn

from newcomers import clients
from plures.errors import PluresError
from plures.method import SGD
from plures.methods import ditto, fedavg, fedfomo, scaffold
from plures.remote.allowed import Allowed
from plures.remote.bounds import TooFewError
from plures.remote.message import ClientFacts, Order, Reply, digest, pack, unpack
from plures.remote.sites import Sites, population
from plures.remote.state import has_left, leave
from plures.report.catalogue import model
from plures.run import Training

pytestmark = pytest.mark.filterwarnings("ignore::plures.errors.PluresWarning")
FEDERATION, _ = clients()
TRAINING = Training(rounds=3, batch_size=8, steps=2, optimizer=SGD(0.05))


class Claims:
    """A transport whose sites give prescribed answers."""

    def __init__(self, said):
        self.said = said

    def addresses(self):
        return sorted(self.said)

    def exchange(self, messages, deadline):
        return {a: self.answer(self.said[a], message) for a, message in messages.items()}

    def answer(self, said, message):
        return said if isinstance(said, bytes) else pack(said.model_copy(update={"order": digest(message)}))


def says(client, **told):
    return Reply(client=client, facts=ClientFacts(**({"examples": 5} | told)))


def test_a_client_is_where_it_answered_last_with_the_facts_it_told_first():
    carrier = Claims({7: says("a"), 8: says("b")})
    sites = Sites(carrier, "abc")
    sites.meet()
    assert sites.where == {"a": 7, "b": 8}
    assert sites.missing == ["c"]
    carrier.said[9] = says("a", examples=6)
    sites.meet()
    assert sites.where == {"a": 9, "b": 8}
    sites.meet()
    assert sites.where == {"a": 9, "b": 8}
    del carrier.said[9]
    sites.meet()
    assert sites.where == {"a": 7, "b": 8}
    assert sites.facts["a"].examples == 5


def test_a_client_that_was_away_is_taken_in_without_being_asked_again():
    carrier = Claims({7: says("a")})
    sites = Sites(carrier, "a")
    sites.meet()
    carrier.said = {}
    sites.meet()
    assert sites.where == {}
    carrier.said = {7: b"not asked"}
    sites.meet()
    assert sites.where == {"a": 7}


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (says("zoe"), "client 'zoe' does not belong"),
        (Reply(client="a"), "client 'a' does not belong"),
        (Reply(client="a", status="refused", reason="no"), "no"),
        (b"", None),
        (b"\xff" * 300, None),
        (pack(Order(request="join")), None),
    ],
)
def test_who_does_not_belong_is_not_taken_in(answer, reason):
    sites = Sites(Claims({7: answer}), "ab")
    sites.meet()
    assert sites.where == {}
    assert sites.missing == ["a", "b"]
    if reason is not None:
        assert reason in sites.refused[7]


def test_a_greeting_that_answers_no_question_just_asked_is_not_taken_in(caplog):
    sites = Sites(Claims({7: pack(says("a")), 8: pack(says("b").model_copy(update={"order": "0" * 64}))}), "ab")
    sites.meet()
    assert sites.where == {}
    assert caplog.text.count("the answer is to another order than the one just sent") == 2


def test_every_question_is_unlike_any_other():
    carrier, asked = Claims({7: b"", 8: b""}), []
    carrier.answer = lambda said, message: asked.append(message) or said
    Sites(carrier, "ab").meet()
    assert len({unpack(message, Order)[0].nonce for message in asked}) == 2


def test_no_site_is_asked_about_what_it_was_trained_on():
    order = Order.model_construct(request="score", evaluate=("train",), nonce="0" * 32)
    with pytest.raises(PluresError, match="malformed: \\('evaluate', 0\\)"):
        unpack(pack(order), Order)


@pytest.mark.parametrize("told", [{"examples": 0}, {"examples": -3}, {"labels": [3, -1]}])
def test_impossible_facts_are_malformed(told):
    with pytest.raises(PluresError, match="malformed"):
        unpack(
            pack(Reply.model_construct(client="a", facts=ClientFacts.model_construct(**({"examples": 5} | told)))),
            Reply,
        )


def test_label_counts_must_fit_the_classes():
    declared = elsewhere(FEDERATION)
    told = [ClientFacts(examples=5, labels=[2, 3])] * 4 + [ClientFacts(examples=5, labels=[5])]
    with pytest.raises(PluresError, match="client 'e' tells 1 label counts for 2 classes"):
        population(declared, told)


@pytest.mark.parametrize(
    ("method", "allowed", "reason"),
    [
        (scaffold(), Allowed(), "the method sends 'control/"),
        (fedavg(), Allowed(send=()), "the method sends 'model/0.weight', and this site allows nothing"),
        (fedfomo(), Allowed(), "the method sends 'affinity/affinity'"),
        (ditto(), Allowed(max_steps=3), "a visit takes 4 steps, and this site allows 3"),
    ],
)
def test_a_site_refuses_what_it_does_not_allow(method, allowed, reason, tmp_path):
    tells = ("examples",)
    remote, _ = far(FEDERATION, model, method, TRAINING, tmp_path, allowed=allowed, tells=tells)
    with pytest.raises(TooFewError, match="0 of 5 clients") as error:
        remote.step()
    assert f"(a: refused: {reason}" in str(error.value)
    assert not list(tmp_path.rglob("state-*"))


def test_epochs_are_capped_by_what_a_phase_asks(tmp_path):
    training, tells = Training(rounds=1, batch_size=8, epochs=3, optimizer=SGD(0.05)), ("examples",)
    remote, _ = far(FEDERATION, model, fedavg(), training, tmp_path / "few", allowed=Allowed(max_epochs=2), tells=tells)
    with pytest.raises(TooFewError, match="a visit takes 3 epochs, and this site allows 2"):
        remote.step()
    remote, _ = far(
        FEDERATION, model, fedavg(), training, tmp_path / "more", allowed=Allowed(max_epochs=3), tells=tells
    )
    assert not remote.step().left_out


def test_what_is_told_needs_the_sites_consent(tmp_path):
    with pytest.raises(PluresError, match="never joined"):
        far(FEDERATION, model, fedavg(), TRAINING, tmp_path, allowed=Allowed(), tells=("examples", "labels"))


def test_an_order_of_another_method_is_refused(tmp_path):
    remote, carrier = far(FEDERATION, model, ditto(), TRAINING, tmp_path)
    carrier.sites[101].agreed = "another version"
    record = remote.step()
    assert record.cohort == ("a", "c", "d", "e")
    assert "the server runs another method" in record.left_out["b"]


def test_leaving_deletes_the_state_and_refuses_from_then_on(tmp_path):
    remote, _ = far(FEDERATION, model, ditto(), TRAINING, tmp_path)
    remote.step()
    assert (tmp_path / "b" / "state-00000001.safetensors").exists()
    deleted = leave(tmp_path / "b")
    assert tmp_path / "b" / "state-00000001.safetensors" in deleted
    assert has_left(tmp_path / "b")
    assert [file.name for file in (tmp_path / "b").iterdir()] == ["left"]
    record = remote.step()
    assert record.left_out == {"b": "refused: it has left the federation"}
    assert record.cohort == ("a", "c", "d", "e")


def test_a_site_builds_its_network_once_for_all_orders_of_a_run(tmp_path):
    federation, _ = clients()
    built = []

    def counted():
        built.append("network")
        return nn.Linear(8, 2)

    training = Training(rounds=3, batch_size=8, steps=1)
    remote, _ = far(federation, counted, fedavg(), training, tmp_path)
    for _ in remote.rounds():
        pass
    assert not remote.clients.ask(remote, "publish", "validation", "test")
    assert len(built) == 1 + len(federation)  # the coordinator's, and one at each site
