"""Members leave, keys and certificates are replaced: what each command does at the SuperLink and in the agreed file."""

from __future__ import annotations

import datetime
from pathlib import Path

import pytest
from hospitals import written
from superlink import SuperLink
from typer.testing import CliRunner, Result

from plures.cli import app
from plures.deploy import keys as keymaking
from plures.deploy.conduct import CHECKPOINT, RESULT
from plures.deploy.fleet.control import Node
from plures.deploy.journal import Journal
from plures.deploy.keys import Keyring, authority_digest
from plures.deploy.operate import members
from plures.deploy.operate.place import Place
from plures.deploy.operate.renew import ending, ends, hosts
from plures.deploy.operate.status import look
from plures.deploy.plan import Plan
from plures.deploy.signing import public
from plures.errors import PluresError
from plures.remote.state import alone

CLIENTS = ("cleveland", "hungarian", "switzerland", "va")


@pytest.fixture
def superlink(monkeypatch: pytest.MonkeyPatch) -> SuperLink:
    made = SuperLink([Node(number, client, "online", 1.0) for number, client in enumerate(CLIENTS)])
    monkeypatch.setattr(Place, "control", made)
    return made


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A coordinator's folder with keys of its own and of all members."""
    file = written(tmp_path)
    assert call(tmp_path, "keys", "--host", "fed.example.org", "--host", "10.0.0.7").exit_code == 0
    ring = Keyring(tmp_path / "members")
    for client in CLIENTS:
        ring.make_node(client)
        members.agreement.enter(file, keys={client: public(ring.node_public(client))})
    return tmp_path


def call(folder: Path, *words: object) -> Result:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        return CliRunner().invoke(app, ["deploy", *map(str, words)])


def said(result: Result) -> str:
    if result.exception:
        raise result.exception
    return result.output


def test_a_member_is_taken_out_between_runs_and_everything_else_stays(folder, superlink):
    file = folder / "federation.toml"
    text = file.read_text().replace(
        'clients = ["cleveland", "hungarian",', '# who\nclients = [ # all\n  "cleveland",\n  "hungarian",'
    )
    file.write_text(text)
    before = Plan.load(file)
    output = said(call(folder, "remove", "va", "--yes"))
    after = Plan.load(file)
    assert after.clients == CLIENTS[:3]
    assert after.keys == {client: key for client, key in before.keys.items() if client != "va"}
    assert after.model_copy(update={"clients": before.clients, "keys": before.keys}) == before
    assert "# who\n" in file.read_text()
    assert superlink.said == [("unregister", 3)]
    assert "va is no longer admitted" in output
    assert "give the federation a new name" in output
    with pytest.raises(PluresError, match="there is no member 'va'"):
        said(call(folder, "remove", "va", "--yes"))


def test_a_member_who_goes_during_a_run_is_not_let_in_and_the_run_keeps_its_members(folder, superlink):
    out = folder / "results" / "ditto"
    out.mkdir(parents=True)
    (out / CHECKPOINT).touch()
    before = (folder / "federation.toml").read_text()
    output = said(call(folder, "remove", "va", "--yes"))
    assert f"{out} is unfinished and continues without va" in output
    assert (folder / "federation.toml").read_text() == before
    assert superlink.said == [("unregister", 3)]
    assert [event["client"] for event in Journal(out).events("removed")] == ["va"]
    (out / RESULT).touch()
    assert "va was removed from" in said(call(folder, "remove", "va", "--yes"))
    assert Plan.load(folder / "federation.toml").clients == CLIENTS[:3]


def test_a_node_that_is_no_members_is_taken_out(folder, superlink):
    superlink.known.append(Node(77, "stranger", "online", 1.0))
    before = (folder / "federation.toml").read_text()
    assert "stranger is no longer admitted" in said(call(folder, "remove", "stranger", "--yes"))
    assert superlink.said == [("unregister", 77)]
    assert (folder / "federation.toml").read_text() == before


@pytest.mark.parametrize("client", ["vaa", "", "../va"])
def test_who_is_no_member_is_not_taken_out(folder, superlink, client):
    with pytest.raises(PluresError, match="there is no member"):
        said(call(folder, "remove", client, "--yes"))
    assert superlink.said == []


def test_fewer_members_than_a_round_needs_are_refused_before_anything_changes(folder, superlink):
    file = folder / "federation.toml"
    file.write_text(file.read_text().replace("[rules]\n", "[rules]\nmin_clients = 4\n"))
    before = file.read_text()
    with pytest.raises(PluresError, match=r"fewer members than min_clients = 4 under \[rules\] of .*: lower it first"):
        said(call(folder, "remove", "va", "--yes"))
    assert file.read_text() == before
    assert superlink.said == []
    file.write_text(before.replace("min_clients = 4", "min_clients = 5"))
    with pytest.raises(PluresError, match="min_clients = 5, and there are 4 clients: no round would count; lower it"):
        Plan.load(file)


def test_nothing_happens_without_a_yes(folder, superlink):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert CliRunner().invoke(app, ["deploy", "remove", "va"], input="n\n").exit_code == 1
    assert superlink.said == []


def test_a_file_in_which_clients_cannot_be_changed_alone_stays(folder):
    file = folder / "federation.toml"
    file.write_text(
        file.read_text().replace('clients = ["', '"clients" = ["').replace('name = "heart"', 'name = "heart" #')
    )
    members.rename(file, ["cleveland", 'st. "anna"'])
    assert 'clients = ["cleveland", "st. \\"anna\\""]' in file.read_text()
    file.write_text("x = { clients = [] }\n[a]\n")
    with pytest.raises(PluresError, match=r"edit it by hand: clients = \[\"va\"\]"):
        members.rename(file, ["va"])
    assert file.read_text() == "x = { clients = [] }\n[a]\n"


def test_a_members_key_is_replaced_at_both_places(folder, superlink):
    new = Keyring(folder / "new")
    new.make_node("va")
    key = new.node_public("va")
    before = Plan.load(folder / "federation.toml")
    with pytest.raises(PluresError, match="ask va for the file again"):
        said(call(folder, "rotate", "va", key, "--fingerprint", before.keys["va"]))
    assert superlink.said == []
    output = said(call(folder, "rotate", "va", key, "--fingerprint", public(key)))
    after = Plan.load(folder / "federation.toml")
    assert after.keys == before.keys | {"va": public(key)}
    assert superlink.said == [("register", "va"), ("unregister", 3)]
    assert "who names the new key in site.toml, joins again with both" in output
    assert after.spec == before.spec
    assert after.agreed == before.agreed  # so the run is the same, and continues with the new key


def test_keys_of_others_and_of_nobody_are_no_new_keys(folder, superlink):
    ring = Keyring(folder / "members")
    other, same = ring.node_public("cleveland"), ring.node_public("va")
    with pytest.raises(PluresError, match="is the key of cleveland: va makes a new pair"):
        said(call(folder, "rotate", "va", other, "--fingerprint", public(other)))
    with pytest.raises(PluresError, match="is the key of va: va makes a new pair"):
        said(call(folder, "rotate", "va", same, "--fingerprint", public(same)))
    with pytest.raises(PluresError, match="there is no key of 'nobody' to replace"):
        said(call(folder, "rotate", "nobody", same, "--fingerprint", public(same)))
    own = folder / "keys" / "coordinator.pub"
    with pytest.raises(PluresError, match="is the key of the coordinator"):
        said(call(folder, "rotate", "va", own, "--fingerprint", public(own)))
    for wrong in ([], ["va"], ["va", same, "--server"], ["--server", "--authority"]):
        with pytest.raises(PluresError, match=r"say one of: NAME KEY.pub, --coordinator, --server, --authority"):
            said(call(folder, "rotate", *wrong))
    assert superlink.said == []


def test_keys_do_not_change_under_a_run(folder, superlink):
    new = Keyring(folder / "new")
    new.make_node("va")
    key = new.node_public("va")
    before = (folder / "federation.toml").read_text()
    with alone(folder / "results", "busy"):
        for words in (["va", key, "--fingerprint", public(key)], ["--coordinator"], ["--authority"]):
            with pytest.raises(PluresError, match=r"a run is under way in .*results: run `plures deploy stop`"):
                said(call(folder, "rotate", *words))
    assert (folder / "federation.toml").read_text() == before
    assert superlink.said == []


def test_the_coordinators_key_is_replaced_and_the_old_one_kept(folder, superlink):
    ring = Keyring(folder / "keys")
    old = ring.coordinator.read_bytes()
    output = said(call(folder, "rotate", "--coordinator"))
    plan = Plan.load(folder / "federation.toml")
    assert plan.coordinator == public(folder / "keys" / "coordinator.pub")
    assert ring.coordinator.read_bytes() != old
    (kept,) = (folder / "keys" / "retired").glob("*/coordinator")
    assert kept.read_bytes() == old
    assert kept.stat().st_mode & 0o777 == 0o600
    assert "send" in output
    assert "to every member" in output
    for _ in range(3):  # within a second
        said(call(folder, "rotate", "--coordinator"))
    assert len([*(folder / "keys" / "retired").glob("*/coordinator")]) == 4


def test_a_certificate_is_spoken_of_before_it_ends_and_replaced_for_the_same_names(folder, superlink, monkeypatch):
    ring = Keyring(folder / "keys")
    assert look(Place(folder)).notes == ()
    ring.server.unlink()
    ring.server_key.unlink()
    monkeypatch.setattr(keymaking, "SERVER_DAYS", 20)
    ring.make_server(["fed.example.org", "10.0.0.7"])
    (note,) = look(Place(folder)).notes
    assert (
        f"keys/server.crt expires on {ends(ring.server):%Y-%m-%d}, in 19 days: `plures deploy rotate --server`" in note
    )
    assert note in said(call(folder, "status"))
    monkeypatch.undo()
    monkeypatch.setattr(Place, "control", superlink)
    authority, plan = authority_digest(ring.authority), (folder / "federation.toml").read_text()
    assert "for localhost, fed.example.org, 127.0.0.1, 10.0.0.7" in said(call(folder, "rotate", "--server"))
    assert (authority_digest(ring.authority), (folder / "federation.toml").read_text()) == (authority, plan)
    assert sorted(hosts(ring.server)) == ["10.0.0.7", "127.0.0.1", "fed.example.org", "localhost"]
    assert look(Place(folder)).notes == ()
    end = ends(ring.server)
    days = datetime.timedelta(days=1)
    assert ending(ring.server, "do", end - 31 * days) == []
    assert f"expires on {end:%Y-%m-%d}, in 29 days: do" in ending(ring.server, "do", end - 29.5 * days)[0]
    assert f"expired on {end:%Y-%m-%d}: do" in ending(ring.server, "do", end + days)[0]


def test_without_the_authoritys_key_nothing_is_put_aside(folder, superlink):
    ring = Keyring(folder / "keys")
    ring.authority_key.rename(folder / "offline")
    before = ring.server.read_bytes()
    with pytest.raises(PluresError, match=r"put ca\.crt and ca\.key back for a moment"):
        said(call(folder, "rotate", "--server"))
    assert ring.server.read_bytes() == before


def test_another_authority_is_entered_into_the_agreement(folder, superlink):
    ring = Keyring(folder / "keys")
    old = authority_digest(ring.authority)
    output = said(call(folder, "rotate", "--authority"))
    assert authority_digest(ring.authority) != old
    assert Plan.load(folder / "federation.toml").authority == authority_digest(ring.authority)
    assert "no node can connect until it has joined again" in output


def test_a_run_that_another_version_began_is_spoken_of(folder, superlink):
    journal = Journal(folder / "results")
    journal.event("joined", clients=list(CLIENTS), version="0.0.9")
    journal.event("stopped", reason="by the operator")
    (note,) = look(Place(folder)).notes
    assert "was started with plures 0.0.9, and this is" in note


@pytest.fixture
def down(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: SuperLink) -> list[Node]:
        raise PluresError("SuperLink 127.0.0.1:8000 does not answer: refused; start it first")

    monkeypatch.setattr(SuperLink, "nodes", refuse)
    monkeypatch.setattr(SuperLink, "runs", refuse)


def test_a_member_is_taken_out_before_the_superlink_ever_ran(folder, superlink, down):
    output = said(call(folder, "remove", "va", "--yes"))
    assert Plan.load(folder / "federation.toml").clients == CLIENTS[:3]
    assert "start it first; then, if a node of va is registered there, run this command again" in output
    assert "va was removed from" in output
    for client in ("va", "vaa"):
        with pytest.raises(PluresError, match=rf"there is no member '{client}'; .*SuperLink .* does not answer"):
            said(call(folder, "remove", client, "--yes"))


def test_without_the_superlink_nobody_is_taken_out_of_an_unfinished_run(folder, superlink, down):
    out = folder / "results"
    out.mkdir()
    (out / CHECKPOINT).touch()
    before = (folder / "federation.toml").read_text()
    with pytest.raises(PluresError, match=r"does not answer: refused; start it first$"):
        said(call(folder, "remove", "va", "--yes"))
    assert (folder / "federation.toml").read_text() == before


@pytest.mark.parametrize("what", ["--coordinator", "--server", "--authority"])
def test_where_no_new_key_can_be_made_the_old_one_stays(folder, superlink, monkeypatch, what):
    before = {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}

    def full(*_):
        raise PluresError("cannot write: no room")

    monkeypatch.setattr(keymaking, "write_new", full)
    with pytest.raises(PluresError, match="no room"):
        said(call(folder, "rotate", what))
    assert before == {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.mark.parametrize(
    ("old", "new", "said_of_it"),
    [
        ('"ditto+threshold"', '"ditta"', "no method 'ditta'"),
        ("lr = 0.1", "lr = -1.0", "lr=-1.0 must be a number"),
        ("lr = 0.1", "lr = 'fast'", r"\[run\] lr: "),
        ("rounds = 4", "rounds = -3", "rounds=-3: give 0 or more"),
        ("[run]\n", "[run]\nmodel = 'mpl'\n", "no network 'mpl'"),
        ("[run]\n", "[run]\nparameters = { lamb = 1 }\n", "no parameter 'lamb'"),
        ("[run]\n", "superlink = '127.0.0.1'\n[run]\n", "superlink: '127.0.0.1' is not HOST:PORT"),
        ('va = "SHA256:', 'va = "MD5:', "'MD5:.*' is not a key's fingerprint"),
    ],
)
def test_what_cannot_be_run_is_refused_before_it_is_sent_to_anybody(folder, superlink, old, new, said_of_it):
    file, key = folder / "federation.toml", Keyring(folder / "members").node_public("va")
    text = file.read_text()
    assert text.count(old) == 1
    file.write_text(text.replace(old, new))
    for words in (("add", "va", key), ("run", "--detach")):
        with pytest.raises(PluresError, match=f"^{file}: .*{said_of_it}"):
            said(call(folder, *words))
    assert superlink.said == []
    file.write_text(text)
    said(call(folder, "run", "--detach"))


def test_whose_key_is_missing_is_said_where_a_run_ended_before_it_began(folder, superlink, monkeypatch):
    file, key = folder / "federation.toml", Keyring(folder / "members").node_public("va")
    monkeypatch.setattr(SuperLink, "status", lambda self, run: "finished:failed")
    text = file.read_text()
    members.agreement.enter(file, keys={"va": None})
    with pytest.raises(PluresError, match=r"has no key of va under \[keys\]: the coordinator adds each with"):
        said(call(folder, "run"))
    file.write_text(text.replace("coordinator = ", "# coordinator = "))
    with pytest.raises(
        PluresError, match=r"names no coordinator's key: the coordinator makes it .*`plures deploy keys --host NAME`"
    ):
        said(call(folder, "run"))
    output = said(call(folder, "add", "va", key))
    assert output.endswith("the coordinator has no keys yet: `plures deploy keys --host NAME` makes them\n")
