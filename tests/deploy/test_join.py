"""How a federation starts: keys made where they stay, two files that travel, and folders that their owners make."""

from __future__ import annotations

import configparser
import errno
import getpass
import hashlib
import re
import shlex
import shutil
import stat
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from plures.cli import app
from plures.deploy import app as flower_app
from plures.deploy.agreement import enter
from plures.deploy.keys import Keyring, authority_digest
from plures.deploy.member import spoken
from plures.deploy.plan import Plan, SiteFile
from plures.deploy.project import blank, heart, slug, write
from plures.deploy.quoting import node_value, unit_command, unit_value
from plures.deploy.services import owner
from plures.deploy.signing import Key, Signed, SignedTransport, public, verified
from plures.errors import PluresError
from plures.files import inside, write_text
from plures.remote.message import Order, Reply, pack, unpack
from plures.remote.state import has_left
from plures.tables.table import read_table

ODD = (
    "mercy",
    'the "old" one',
    "o'neill & sons",
    "🏥 west",
    "back\\slash\\",
    "%n $HOME `id`",
    "-x",
    "a/../b",
    "#1; rm",
    "ünal",
)


def call(*words: object, told: str = "") -> Result:
    return CliRunner().invoke(app, ["deploy", *map(str, words)], input=told)


def refused(*words: object, told: str = "") -> str:
    """The sentence with which a command refuses."""
    done = call(*words, told=told)
    assert isinstance(done.exception, PluresError), (done.output, done.exception)
    return str(done.exception)


class Three:
    """A coordinator and two members, each with a folder of its own; files travel by hand."""

    def __init__(self, home: Path, clients: tuple[str, ...] = ("cleveland", "va", "hungarian", "switzerland")) -> None:
        self.home, self.clients, self.coordinator = home, clients, home / "coordinator"
        self.members = {client: home / f"member {place}" for place, client in enumerate(clients)}

    def agree(self) -> Path:
        """All that happens before the agreed file travels."""
        project = heart("fed.example.org") if "va" in self.clients else blank("study", self.clients, "fed.example.org")
        write(self.coordinator, project)
        file = self.coordinator / "federation.toml"
        keys = ("--folder", self.coordinator / "keys", "--federation", file, "--host", "fed.example.org")
        assert call("keys", *keys).exit_code == 0
        for client, folder in self.members.items():
            folder.mkdir()
            done = call("keys", "--folder", folder / "keys", "--client", client)
            assert done.exit_code == 0, done.output
            sent = shutil.copy(Keyring(folder / "keys").node_public(client), self.coordinator / "sent.pub")
            read = re.search(r"SHA256:\S+", done.output)
            assert read
            done = call("add", "--folder", self.coordinator, "--fingerprint", read[0], "--", client, sent)
            assert done.exit_code == 0, (done.output, done.exception)
            assert f"entered {client} into" in done.output
            assert "not registered: " in done.output
        return file

    def send(self, client: str) -> tuple[Path, Path]:
        """The two files as a member gets them."""
        post = self.members[client] / "post"
        post.mkdir(exist_ok=True)
        for file in (self.coordinator / "federation.toml", self.coordinator / "keys" / "ca.crt"):
            shutil.copy(file, post)
        return post / "federation.toml", post / "ca.crt"

    def join(self, client: str, *more: object, told: str = "") -> Result:
        return call(
            "join", *self.send(client), "--folder", self.members[client], f"--client={client}", *more, told=told
        )


@pytest.fixture
def three(tmp_path: Path) -> Three:
    found = Three(tmp_path)
    found.agree()
    return found


def test_two_files_travel_and_members_make_the_rest(three: Three) -> None:
    rows = three.coordinator / "rows" / "va.csv"
    done = three.join("va", "--data", rows, told="y\n")
    assert done.exit_code == 0, (done.output, done.exception)
    home, file = three.members["va"], three.coordinator / "federation.toml"
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    assert spoken(digest) in done.output
    assert len(spoken(digest).split()) == 16
    assert spoken(authority_digest(three.coordinator / "keys" / "ca.crt")) in done.output
    assert call("fingerprint", file).output.strip() == f"{file}: {spoken(digest)}"
    made = {str(path.relative_to(home)) for path in home.rglob("*") if path.is_file()}
    assert made == {
        *(
            "agreed/federation.toml",
            "agreed/ca.crt",
            "site.toml",
            "README.md",
            "node.service",
            "guard.nft",
            ".gitignore",
        ),
        *("keys/nodes/va", "keys/nodes/va.pub", "post/federation.toml", "post/ca.crt"),
    }
    own = SiteFile.load(home / "site.toml")
    assert (own.client, own.key, own.authority, own.data) == ("va", "keys/nodes/va", "agreed/ca.crt", str(rows))
    assert own.table(home) == read_table(rows)
    assert call("check", home / "site.toml").exit_code == 0
    assert stat.S_IMODE((home / "keys" / "nodes" / "va").stat().st_mode) == 0o600
    assert not (three.coordinator / "sites").exists()


def test_the_apps_of_both_sides_speak_through_what_was_joined(three: Three, monkeypatch: pytest.MonkeyPatch) -> None:
    assert three.join("va", "--data", three.coordinator / "rows" / "va.csv", told="y\n").exit_code == 0
    site = flower_app.site({"site": str(three.members["va"] / "site.toml")})
    assert isinstance(site, Signed)
    sent: list[SignedTransport] = []

    class Stops:
        def __init__(self, plan: Plan, transport: SignedTransport, *_: object, **__: object) -> None:
            sent.append(transport)
            raise KeyboardInterrupt

    class Carrier:
        arrived = None

        def addresses(self) -> list[int]:
            return [7]

        def exchange(self, messages: dict[int, bytes], deadline: float) -> dict[int, bytes | str]:
            return {address: site.answer(message) for address, message in messages.items()}

    monkeypatch.setattr(flower_app, "Conductor", Stops)
    with pytest.raises(KeyboardInterrupt):
        flower_app.conducted(Carrier(), {"plan": str(three.coordinator / "federation.toml")})  # type: ignore[arg-type]
    (answer,) = sent[0].exchange({7: pack(Order(request="join"))}, 1.0).values()
    assert isinstance(answer, bytes)
    reply, _ = unpack(answer, Reply)
    assert (reply.client, reply.status) == ("va", "done")
    stranger = Keyring(three.home / "keys")
    stranger.make_coordinator()
    order = Key.load(stranger.coordinator).sign("order", pack(Order(request="join")))
    plan = Plan.load(three.coordinator / "federation.toml")
    reply, _ = unpack(verified("answer", site.answer(order), plan.members.values(), order)[1], Reply)
    assert (reply.status, reply.facts) == ("refused", None)


def test_a_site_whose_key_is_not_the_agreed_one_answers_nobody(three: Three) -> None:
    assert three.join("va", "--data", three.coordinator / "rows" / "va.csv", told="y\n").exit_code == 0
    file = three.members["va"] / "site.toml"
    other = Keyring(three.home / "keys")
    other.make_node("va")
    order = Key.load(three.coordinator / "keys" / "coordinator").sign("order", pack(Order(request="join")))
    answer = flower_app.site({"site": str(file), "key": str(other.node("va"))}).answer(order)
    assert unpack(answer, Reply)[0].status == "failed"
    words = refused("node", file, "--key", other.node("va"))
    assert re.search("va is SHA256:.*, but as the key of va federation.toml names SHA256:", words)


@pytest.mark.parametrize("answer", ["n\n", ""])
def test_who_does_not_compare_does_not_join(three: Three, answer: str) -> None:
    done = three.join("va", told=answer)
    assert done.exit_code == 1
    assert "Does the coordinator read the same" in done.output
    assert not (three.members["va"] / "site.toml").exists()


def test_a_fingerprint_that_is_read_to_a_script(three: Three) -> None:
    digest = spoken(hashlib.sha256((three.coordinator / "federation.toml").read_bytes()).hexdigest())
    for wrong in (digest[:-1] + ("0" if digest[-1] != "0" else "1"), digest[:39], ""):
        done = three.join("va", "--fingerprint", wrong)
        assert "ask the coordinator for the file again, over another channel" in str(done.exception)
        assert not (three.members["va"] / "site.toml").exists()
    assert three.join("va", "--fingerprint", digest.upper()).exit_code == 0


def test_changed_files_are_not_joined(three: Three, tmp_path: Path) -> None:
    federation, authority = three.send("va")
    folder = ("--folder", three.members["va"], "--client", "va")
    foreign = Keyring(tmp_path / "foreign")
    foreign.make_server()
    assert "ask the coordinator for both files" in refused("join", federation, foreign.authority, *folder)
    for wrong in (
        three.coordinator / "keys" / "server.crt",
        three.coordinator / "keys" / "coordinator.pub",
        tmp_path / "no",
    ):
        assert re.search(
            "is not a certificate of an authority|not that of an authority", refused("join", federation, wrong, *folder)
        )
    assert "client 'nobody' is not one of its clients" in refused("join", federation, authority, "--client", "nobody")
    text = federation.read_text()
    federation.write_text(re.sub(r"^va = .*\n", "", text, flags=re.MULTILINE))
    assert "as the key of va federation.toml names none" in refused("join", federation, authority, *folder)
    federation.write_text(re.sub(r"^coordinator = .*\n", "", text, flags=re.MULTILINE))
    assert "names no coordinator's key" in refused("join", federation, authority, *folder)
    federation.write_text("x = ")
    assert "is not valid TOML" in refused("join", federation, authority, *folder)
    federation.write_text(text)
    assert "is missing: make it with `plures deploy keys" in refused(
        "join", federation, authority, "--folder", tmp_path / "new", "--client", "va"
    )
    assert not [path for path in three.members["va"].iterdir() if path.name not in ("post", "keys")]
    assert not (tmp_path / "new").exists()


def test_who_has_left_takes_part_again_by_joining_again(three: Three) -> None:
    home = three.members["va"]
    assert three.join("va", told="y\n").exit_code == 0
    assert call("leave", home / "site.toml", "--yes").exit_code == 0
    kept = inside(home / "state", Plan.load(three.coordinator / "federation.toml").name)
    assert has_left(kept)
    assert three.join("va", told="n\n").exit_code == 1
    assert has_left(kept)
    assert three.join("va", told="y\n").exit_code == 0
    assert not has_left(kept)


def test_joining_again_shows_what_changed_and_touches_nothing_of_the_members(three: Three) -> None:
    home = three.members["va"]
    assert three.join("va", told="y\n").exit_code == 0
    for name in ("site.toml", "README.md", "node.service", "load_data.py"):
        (home / name).write_text((home / name).read_text() + "\n# mine\n")
    before = {path: path.read_bytes() for path in home.rglob("*") if path.is_file() and path.name != "federation.toml"}
    file = three.coordinator / "federation.toml"
    text = file.read_text()
    file.write_text(text.replace("rounds = 20", "rounds = 9000  # \u202eharmless"))
    declined = three.join("va", told="n\n")
    assert declined.exit_code == 1
    assert "-rounds = 20" in declined.output
    assert "+rounds = 9000  # \\u202eharmless" in declined.output
    assert (home / "agreed" / "federation.toml").read_text() == text
    assert three.join("va", told="y\n").exit_code == 0
    assert Plan.load(home / "agreed" / "federation.toml").spec.rounds == 9000
    assert before == {path: path.read_bytes() for path in before}
    done = call(
        "join",
        *three.send("cleveland"),
        "--folder",
        home,
        "--client",
        "cleveland",
        "--key",
        three.members["cleveland"] / "keys/nodes/cleveland",
    )
    assert "is the folder of client 'va': choose another --folder" in str(done.exception)


def test_who_may_be_added(three: Three, tmp_path: Path) -> None:
    file = three.coordinator / "federation.toml"
    before = file.read_bytes()
    pubs = {client: Keyring(folder / "keys").node_public(client) for client, folder in three.members.items()}
    new = Keyring(tmp_path / "new")
    new.make_node("va")
    add = ("add", "--folder", three.coordinator)
    assert "is not among the clients" in refused(*add, "nobody", pubs["va"])
    assert "`plures deploy rotate` replaces it" in refused(*add, "va", new.node_public("va"))
    assert "is a private key, which must never be sent" in refused(*add, "va", new.node("va"))
    enter(file, keys={"va": None})
    assert "is the key of cleveland" in refused(*add, "va", pubs["cleveland"])
    assert "is the key of the coordinator" in refused(*add, "va", three.coordinator / "keys" / "coordinator.pub")
    assert "over another channel" in refused(*add, "va", pubs["va"], "--fingerprint", public(new.node_public("va")))
    assert call(*add, "va", pubs["va"], told="n\n").exit_code == 1
    assert Plan.load(file).keys.keys() == set(three.clients) - {"va"}
    assert call(*add, "va", pubs["va"], told="y\n").exit_code == 0
    assert Plan.load(file).keys["va"] == public(pubs["va"])
    assert sorted(file.read_bytes().splitlines()) == sorted(before.splitlines())
    again = call(*add, "va", pubs["va"])
    assert again.exit_code == 0
    assert "every member has a key" in again.output


def test_a_loader_of_a_member_is_plures_own_template(three: Three) -> None:
    (three.coordinator / "load_data.py").write_text("raise SystemExit('a member ran what another wrote')")
    assert three.join("va", told="y\n").exit_code == 0
    home = three.members["va"]
    assert "raise SystemExit" not in (home / "load_data.py").read_text()
    with pytest.raises(PluresError, match="there are no rows yet"):
        SiteFile.load(home / "site.toml").table(home)


def systemd(home: Path) -> configparser.RawConfigParser:
    """A unit file as systemd reads its lines."""
    unit = configparser.RawConfigParser(
        strict=False, interpolation=None, delimiters=("=",), comment_prefixes=("#", ";")
    )
    unit.optionxform = str  # type: ignore[assignment, method-assign]
    unit.read_string((home / "node.service").read_text())
    return unit


def test_names_with_signs_of_every_kind(tmp_path: Path) -> None:
    three = Three(tmp_path / 'a "quoted" $HOME %n \\ 🏥 folder', ODD)
    three.home.mkdir()
    plan = Plan.load(three.agree())
    assert set(plan.keys) == set(ODD)
    for client, home in three.members.items():
        rows = home / f"rows of {client.replace('/', '-')}.csv"
        rows.write_text("age\n1\n")
        done = three.join(client, "--data", rows, told="y\n")
        assert done.exit_code == 0, (done.output, done.exception)
        own = SiteFile.load(home / "site.toml")
        assert own.client == client
        assert own.data == rows.name
        assert Key.load(home / str(own.key)).fingerprint == plan.keys[client]
        unit = systemd(home)
        assert unit["Service"]["ExecStart"] == f'"{Path(sys.executable).parent / "plures"}" deploy node site.toml'
        assert unit["Service"]["WorkingDirectory"].replace("%%", "%") == str(home.resolve())
        assert unit["Service"]["User"] == owner()
        assert unit["Unit"]["Description"].replace("%%", "%") == f"Node of {client} in the federation study (plures)"
        commands = re.findall(r"```sh\n(.*?)```", (home / "README.md").read_text(), re.DOTALL)
        words = [shlex.split(line) for text in commands for line in text.splitlines()]
        assert ["plures", "deploy", "check", "site.toml"] in words
        assert all(
            re.fullmatch(r"plures-study_[a-z0-9-]+(\.service)?", name.rpartition("/")[2]) for name in words[2][-1:]
        )
        assert tomllib.loads((home / "agreed" / "federation.toml").read_text())["clients"] == list(ODD)


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd is not there")
def test_systemd_reads_the_service_as_it_was_meant(tmp_path: Path) -> None:
    folder = tmp_path / 'a "quoted" %n $HOME folder \\'
    folder.mkdir()
    unit = tmp_path / "odd.service"
    start = unit_command([sys.executable, str(folder / "site's.toml"), "$HOME", "100%", "back\\slash"])
    unit.write_text(
        f"[Unit]\nDescription={unit_value('a %n of $HOME')}\n[Service]\nUser={getpass.getuser()}\n"
        f"WorkingDirectory={unit_value(f'{folder}/')}\nExecStart={start}\n"
    )
    done = subprocess.run(["systemd-analyze", "verify", "--man=no", unit], capture_output=True, text=True, check=False)
    assert "odd.service" not in done.stderr, done.stderr


def test_no_line_break_comes_into_a_service() -> None:
    for quote in (unit_value, lambda text: unit_command([text])):
        with pytest.raises(PluresError, match="has a control character"):
            quote("a\nExecStartPre=/bin/rm")


@pytest.mark.parametrize("text", ["plain", 'a "b" c', "back\\", "o'neill", "a=b c", "🏥", "x.toml", "100%"])
def test_flower_reads_a_path_as_it_was_meant(text: str) -> None:
    from flwr.common.config import parse_config_args

    assert parse_config_args([f"site={node_value(text)} key={node_value(text)}"]) == {"site": text, "key": text}


def test_joining_again_takes_what_the_sites_own_file_says_and_overlooks_nothing_that_was_typed(three: Three) -> None:
    home = three.members["va"]
    rows = three.coordinator / "rows" / "va.csv"
    assert three.join("va", "--data", rows, told="y\n").exit_code == 0
    assert three.join("va", "--data", rows, told="y\n").exit_code == 0
    assert not (home / "load_data.py").exists()
    other = shutil.copy(rows, home / "other.csv")
    done = three.join("va", "--data", other, told="y\n")
    assert 'write data = "other.csv" there, then join without --data' in str(done.exception)
    new = Keyring(home / "new")
    new.make_node("va")
    enter(three.coordinator / "federation.toml", keys={"va": public(new.node_public("va"))})
    before = (home / "agreed" / "federation.toml").read_bytes()
    done = three.join("va", "--key", new.node("va"), told="y\n")
    assert 'write key = "new/nodes/va" there, then join without --key' in str(done.exception)
    assert (home / "agreed" / "federation.toml").read_bytes() == before
    site = home / "site.toml"
    site.write_text(site.read_text().replace("keys/nodes/va", "new/nodes/va"))
    done = three.join("va", told="y\n")
    assert done.exit_code == 0, (done.output, done.exception)
    assert not (home / "load_data.py").exists()


def test_the_coordinators_folder_is_no_members(three: Three) -> None:
    folder = three.coordinator
    before = {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    key = three.members["va"] / "keys" / "nodes" / "va"
    said = refused("join", *three.send("va"), "--folder", folder, "--client", "va", "--key", key, told="y\n")
    assert said == f"{folder} is the coordinator's folder: choose another --folder"
    assert before == {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_no_two_names_share_a_service() -> None:
    names = ["north a", "north-a", "north_a", "North-A", "日本", "東京", "site", "", "north", "north-a-", "ünal", "nal"]
    assert len({slug(name, "site") for name in names}) == len(names)
    assert slug("north-a", "site") == "north-a"


def test_a_key_that_cannot_be_sent_is_one_sentence(tmp_path: Path) -> None:
    keys = Keyring(tmp_path)
    keys.make_node("va")
    for file in (keys.node("va"), tmp_path / "nothing.pub"):
        with pytest.raises(PluresError) as caught:
            public(file)
        assert str(caught.value).count(str(file)) == 1
    keys.node("va").chmod(0o644)
    with pytest.raises(
        PluresError, match=r"^\S+ is not private: other users may read or change it; run `chmod 600 \S+`$"
    ):
        Key.load(keys.node("va"))


@pytest.mark.parametrize("host", ["a b", "fed.example.org:8443", "-x", "ünal.example.org"])
def test_a_certificate_is_for_names_that_there_can_be(tmp_path: Path, host: str) -> None:
    file = tmp_path / "federation.toml"
    keys = ("--folder", tmp_path / "keys", "--federation", file)
    assert "give a DNS name in ASCII or an IP address, without a port" in refused("keys", *keys, f"--host={host}")
    assert not (tmp_path / "keys").exists()


def test_a_certificate_that_is_not_for_the_door_is_spoken_of(tmp_path: Path) -> None:
    file, keys = tmp_path / "federation.toml", Keyring(tmp_path / "keys")
    write(tmp_path, blank("study", ["va"], "fed.example.org"))
    words = ("keys", "--folder", keys.folder, "--federation", file, "--host", "other.example.org")
    output = call(*words).output
    assert "sites call fed.example.org:8443, but the certificate is only for localhost, other.example.org" in output
    keys.server.unlink(), keys.server_key.unlink()
    before = keys.authority.read_bytes(), file.read_bytes()
    output = call(*words, "--host", "fed.example.org").output
    assert "note" not in output
    assert (keys.authority.read_bytes(), file.read_bytes()) == before


def test_who_is_named_twice_at_the_start_is_refused(tmp_path: Path) -> None:
    said = refused("init", tmp_path / "fed", "--client", "va", "--client", "va")
    assert said == "--client va is given twice: every member needs a name of its own"
    assert not (tmp_path / "fed").exists()


def test_a_full_disk_leaves_no_half_pair_of_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = Keyring(tmp_path / "keys")

    def full(number: int) -> None:
        if len([*keys.folder.rglob("*")]) > 2:  # the folder of nodes, the private key, and now the public one
            raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("plures.deploy.keys.os.fsync", full)
        with pytest.raises(PluresError, match=r"cannot write .*va\.pub"):
            keys.make_node("va")
    assert not [file for file in keys.folder.rglob("*") if file.is_file()]
    keys.make_node("va")


def test_a_folder_that_was_not_written_whole_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "fed"

    def full(file: Path, text: str) -> None:
        if file.name == "nginx.conf":
            raise PluresError("no room")
        write_text(file, text)

    with monkeypatch.context() as patch:
        patch.setattr("plures.deploy.project.write_text", full)
        with pytest.raises(PluresError, match="no room"):
            write(folder, blank("fed", ["va"]))
    assert not [file for file in folder.rglob("*") if file.is_file()]
    write(folder, blank("fed", ["va"]))


def test_a_file_that_is_not_there_says_who_writes_it(tmp_path: Path) -> None:
    said = refused("check", tmp_path / "site.toml")
    assert "`plures deploy join` writes it; run the command in its folder, or name the file" in said
    assert "`plures deploy init` writes it at the coordinator" in refused("stop", tmp_path)
    assert refused("check", tmp_path).endswith("Is a directory; name a file")
