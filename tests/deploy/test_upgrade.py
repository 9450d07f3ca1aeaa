"""After an upgrade of plures: its texts replace the old ones, all or none, and what people wrote is kept."""

from __future__ import annotations

import os
import shlex
import shutil
from pathlib import Path

import pytest
from commands import call
from hospitals import written
from sites import Loopback
from superlink import SuperLink
from typer.testing import CliRunner

import plures
from plures.cli import app
from plures.deploy import keys as keymaking
from plures.deploy import member, project
from plures.deploy.app import opened
from plures.deploy.conduct import CHECKPOINT, RESULT, Conductor
from plures.deploy.fleet.control import Submitted
from plures.deploy.journal import Journal
from plures.deploy.keys import Keyring
from plures.deploy.member import digest_of
from plures.deploy.operate.place import Place
from plures.deploy.plan import Plan
from plures.deploy.signing import public as fingerprint
from plures.errors import PluresError
from plures.remote.state import alone
from versions import become

FULL = OSError(28, "No space left on device")
HOSPITALS = ("cleveland", "hungarian", "switzerland", "va")


def tree(folder: Path) -> dict[str, bytes]:
    """Every file in a folder and its content."""
    return {str(f.relative_to(folder)): f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file()}


def edited(*files: Path) -> None:
    for file in files:
        file.write_text(file.read_text() + "# by hand\n")


@pytest.fixture(autouse=True)
def superlink(monkeypatch: pytest.MonkeyPatch) -> SuperLink:
    made = SuperLink()
    monkeypatch.setattr(Place, "control", made)
    return made


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A coordinator's folder with keys, results of a finished run and a database, and containers of an example."""
    made = tmp_path / "hearts"
    call("init", made, "--example", "heart", "--containers")
    call("keys", "--host", "fed.example.org", "--folder", made / "keys", "--federation", made / "federation.toml")
    (made / "superlink.db").write_bytes(b"nodes")
    (made / "results" / "old").mkdir(parents=True)
    (made / "results" / "old" / RESULT).write_text("{}")
    return made


@pytest.fixture
def site(folder: Path) -> Path:
    """The file of a member who has joined."""
    home = folder.parent / "va"
    for client in HOSPITALS:
        keys = home / "keys" if client == "va" else folder.parent / "others"
        call("keys", "--client", client, "--folder", keys)
        public = Keyring(keys).node_public(client)
        said = fingerprint(public)
        call("add", client, public, "--folder", folder, "--fingerprint", said)
    file, rows = folder / "federation.toml", home / "data.csv"
    shutil.copy(folder / "rows" / "va.csv", rows)
    words = ["--client", "va", "--folder", home, "--data", rows, "--fingerprint", digest_of(file)]
    call("join", file, folder / "keys" / "ca.crt", *words)
    return home / "site.toml"


def test_texts_that_are_this_versions_are_not_touched(folder, site):
    homes = (folder, site.parent)
    before = [{file: (file.stat().st_mtime_ns, file.stat().st_ino) for file in home.rglob("*")} for home in homes]
    output = call("upgrade", folder), call("upgrade", site.parent)  # the folder of a site is as good as its file
    assert [{f: (f.stat().st_mtime_ns, f.stat().st_ino) for f in home.rglob("*")} for home in homes] == before
    assert f"hearts: every file is already that of plures {plures.__version__}\n" in output[0]
    assert "1. sudo systemctl restart heart-superlink heart-proxy\n" in output[0]
    assert "sudo install" not in output[0] + output[1]
    assert f"va: every file is already that of plures {plures.__version__}\n" in output[1]
    assert "1. sudo systemctl restart plures-heart_va\n" in output[1]


def test_another_versions_texts_replace_the_old_ones_and_nothing_else_changes(folder, monkeypatch):
    before, old = tree(folder), plures.__version__
    become("99.0", monkeypatch)
    monkeypatch.setattr(project, "nginx", lambda: "another door\n")
    (folder / "carrier.py").unlink()
    output = call("upgrade", folder)
    after = tree(folder)
    changed = {name for name in after if after[name] != before.get(name)}
    replaced = {"nginx.conf", "containers/Containerfile", "containers/compose.yaml"}
    assert changed == replaced | {f"{name}.before" for name in replaced}
    assert after["nginx.conf"] == b"another door\n"
    assert {name: after[f"{name}.before"] for name in replaced} == {name: before[name] for name in replaced}
    assert before["containers/compose.yaml"].replace(old.encode(), b"99.0") == after["containers/compose.yaml"]
    assert b"switzerland" in after["containers/compose.yaml"]
    assert after["carrier.py"] == before["carrier.py"]
    assert {"federation.toml", "keys/coordinator", "keys/ca.key", "superlink.db", "results/old/result.json"} <= {
        *before
    }
    assert "for plures 99.0\n" in output
    assert "diff nginx.conf.before nginx.conf\n" in output
    assert "docker compose -f containers/compose.yaml build superlink" in output
    assert "every member installs plures 99.0" in output


def test_what_was_changed_by_hand_is_kept_each_time(folder):
    file = folder / "nginx.conf"
    own = file.read_bytes()
    for number in ("", "2", "3"):
        file.write_text(f"mine {number}")
        assert f"the old files are kept: nginx.conf.before{number}\n" in call("upgrade", folder)
        assert file.read_bytes() == own
    assert [(folder / f"nginx.conf.before{number}").read_text() for number in ("", "2", "3")] == [
        "mine ",
        "mine 2",
        "mine 3",
    ]


def test_commands_that_install_are_those_of_the_readme(folder, site):
    for home, place, units in (
        (folder, folder, ["systemd/" + f.name for f in (folder / "systemd").iterdir()]),
        (site.parent, site, ["node.service", "guard.nft"]),
    ):
        edited(*(home / unit for unit in units))
        lines = [line.strip().removeprefix("2. ") for line in call("upgrade", place).splitlines()]
        shown = [line for line in lines if line.startswith("sudo install")]
        assert len(shown) == len(units)
        assert {*shown} == {line for line in (home / "README.md").read_text().splitlines() if "sudo install" in line}
        assert "sudo systemctl daemon-reload" in lines


def test_services_keep_their_names_when_the_federation_gets_another(folder, site):
    for file in (folder / "federation.toml", site.parent / "agreed" / "federation.toml"):
        file.write_text(file.read_text().replace('name = "heart"', 'name = "second study"'))
    assert "restart heart-superlink heart-proxy\n" in call("upgrade", folder)
    assert "After=heart-superlink.service" in (folder / "systemd" / "run@.service").read_text()
    assert (
        "Description=SuperLink of the federation second study" in (folder / "systemd" / "superlink.service").read_text()
    )
    assert "restart plures-heart_va\n" in call("upgrade", site)
    assert "/etc/plures/plures-heart_va.nft" in (site.parent / "node.service").read_text()
    for file in (folder / "systemd" / "superlink.service", site.parent / "node.service"):
        file.write_text("[Service]\n")  # by hand, without the rule: the README still knows
    assert "restart heart-superlink heart-proxy\n" in call("upgrade", folder)
    assert "restart plures-heart_va\n" in call("upgrade", site)


def refuses(folder: Path) -> str:
    """What the command reports for a folder with updates to write, without writing them."""
    edited(folder / "nginx.conf")
    before = tree(folder)
    with pytest.raises(PluresError) as error:
        call("upgrade", folder)
    assert tree(folder) == before
    return str(error.value)


def test_an_unfinished_run_is_refused_with_two_ways_out(folder):
    out = folder / "results" / "ditto"
    journal = Journal(out)
    journal.event("joined", clients=list(HOSPITALS), version="0.0.9")
    (out / CHECKPOINT).touch()
    said = refuses(folder)
    assert f"the run in {out} is unfinished, and only plures 0.0.9, which began it, can resume it" in said
    assert f"install plures 0.0.9 again and finish it with `plures deploy run --out {out}`" in said
    away = f"mv {out} {folder / 'ditto.given-up'}"
    assert f"or give it up: `plures deploy stop`, `{away}`, and another name in federation.toml" in said
    _, old, new = shlex.split(away)
    Path(old).rename(new)
    assert "wrote nginx.conf for" in call("upgrade", folder)
    Path(new).rename(old)
    (out / RESULT).write_text("{}")
    assert "every file is already" in call("upgrade", folder)


def test_a_run_under_way_is_refused_wherever_it_lies(folder, superlink):
    out = folder / "results"
    with alone(out, PluresError("busy")):
        said = refuses(folder)
    assert f"the run in {out} is under way, and only the version that began it can resume it" in said
    assert "install that version again and finish it" in said
    superlink.submitted = [Submitted(1, "running", {"out": str(folder.parent / "elsewhere")})]
    assert f"the run in {folder.parent / 'elsewhere'} is under way" in refuses(folder)
    superlink.submitted = [Submitted(1, "finished:stopped", {"out": str(folder.parent / "elsewhere")})]
    assert "wrote nginx.conf for" in call("upgrade", folder)


def test_without_a_superlink_the_files_tell(folder, monkeypatch):
    def down() -> None:
        raise PluresError("SuperLink 127.0.0.1:8000 does not answer")

    monkeypatch.setattr(Place.control, "runs", down)
    assert "note: the SuperLink does not answer, so runs outside results" in call("upgrade", folder)
    (folder / "results" / "ditto").mkdir()
    (folder / "results" / "ditto" / CHECKPOINT).touch()
    assert "is unfinished" in refuses(folder)


def test_files_that_this_version_cannot_read_are_named_before_anything_is_written(folder):
    file = folder / "federation.toml"
    text = file.read_text()
    file.write_text(text.replace("[rules]", "[rules]\nmoon = 3"))
    assert "moon" in refuses(folder)
    file.write_text(text)
    (folder / "keys" / "server.crt").write_text("none")
    assert "server.crt is not a certificate" in refuses(folder)
    with pytest.raises(PluresError, match="is not a coordinator's folder"):
        call("upgrade", folder / "rows")
    assert sorted(file.stem for file in (folder / "rows").iterdir()) == list(HOSPITALS)


def test_a_certificate_that_ends_is_spoken_of(folder, monkeypatch):
    ring = Keyring(folder / "keys")
    ring.server.unlink()
    ring.server_key.unlink()
    monkeypatch.setattr(keymaking, "SERVER_DAYS", 20)
    ring.make_server(["fed.example.org"])
    assert "in 19 days: `plures deploy rotate --server` makes the next one" in call("upgrade", folder)


def test_a_members_texts_are_replaced_and_nothing_else(site, monkeypatch):
    home = site.parent
    site.write_text(site.read_text() + "# mine\n")
    site.write_text(site.read_text().replace('state = "state"', 'state = "state"\nport = 9095'))
    edited(home / "node.service")
    before = tree(home)
    output = call("upgrade", site)
    after = tree(home)
    assert {name for name in after if after[name] != before.get(name)} == {
        "guard.nft",
        "guard.nft.before",
        "node.service",
        "node.service.before",
    }
    assert b"tcp dport 9095" in after["guard.nft"]
    assert after["guard.nft.before"] == before["guard.nft"]
    assert after["node.service.before"] == before["node.service"]
    assert after["node.service"] + b"# by hand\n" == before["node.service"]
    assert {"site.toml", "agreed/federation.toml", "agreed/ca.crt", "keys/nodes/va", "data.csv"} <= {*before}
    assert "note: the rows pass their check" in output
    assert "unfinished" not in output


def test_a_member_whose_files_no_longer_fit_is_refused_before_anything_is_written(site, monkeypatch):
    rows, agreed = site.parent / "data.csv", site.parent / "agreed" / "federation.toml"
    edited(site.parent / "node.service")
    for file, spoil, said in (
        (rows, lambda text: text.replace(",male,", ",q,"), "because this site could not take part"),
        (
            site,
            lambda text: text.replace('tell = ["examples"]', "tell = []"),
            r"members tell 'examples', and \[allow\]",
        ),
        (site, lambda text: text.replace("[allow]", "[alow]"), "alow"),
        (agreed, lambda text: text.replace("[rules]", "[rules]\nmoon = 3"), "moon"),
    ):
        text = file.read_text()
        assert spoil(text) != text
        file.write_text(spoil(text))
        before = tree(site.parent)
        with pytest.raises(PluresError, match=said):
            call("upgrade", site)
        assert tree(site.parent) == before
        file.write_text(text)
    assert "wrote node.service for" in call("upgrade", site)


def test_a_member_is_told_of_an_unfinished_run_that_it_would_refuse(tmp_path, monkeypatch):
    file = written(tmp_path, rounds=2, method="fedavg")
    own = tmp_path / "va" / "site.toml"

    def conducted(dies: bool) -> None:
        carrier = Loopback([opened(tmp_path / name / "site.toml") for name in HOSPITALS])

        def spoil(address: int, answer: bytes) -> bytes:
            if dies and len(carrier.log) > 10:
                raise KeyboardInterrupt
            return answer

        carrier.spoil = spoil
        Conductor(Plan.load(file), carrier, tmp_path / "results", wait=lambda seconds: None).run()

    with pytest.raises(KeyboardInterrupt):
        conducted(dies=True)
    version = plures.__version__
    assert "unfinished" not in call("upgrade", own)
    with monkeypatch.context() as patch:
        become("99.0", patch)
        note = (
            f"note: the run that plures {version} began here is unfinished, and this version, 99.0, refuses every order"
        )
        for words in (("upgrade", own), ("status", own)):
            assert note in call(*words)
            assert "install that version again until it has ended, or give it up" in call(*words)
    conducted(dies=False)
    with monkeypatch.context() as patch:
        become("99.0", patch)
        assert "unfinished" not in call("upgrade", own)


@pytest.fixture
def spoiled(folder: Path) -> Path:
    """A folder in which three texts are to be replaced, and one is missing."""
    edited(folder / "nginx.conf", folder / "README.md", folder / "systemd" / "guard.nft")
    (folder / "flower.env").unlink()
    (folder / "nginx.conf").chmod(0o640)
    return folder


def unchanged(folder: Path, error: type[BaseException], match: str = "") -> None:
    """The command fails and every file is as before."""
    before = tree(folder)
    done = CliRunner().invoke(app, ["deploy", "upgrade", str(folder)])
    kind = SystemExit if error is KeyboardInterrupt else error
    assert isinstance(done.exception, kind), done.output
    assert match in str(done.exception)
    assert tree(folder) == before
    assert (folder / "nginx.conf").stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize("name", ["nginx.conf", "flower.env", "README.md", "systemd/guard.nft"])
def test_a_text_that_cannot_be_written_leaves_all(spoiled, name):
    file = spoiled / name
    blocked = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    blocked.mkdir()
    unchanged(spoiled, PluresError, f"cannot write {file}")


@pytest.mark.parametrize(
    ("name", "error", "links"),
    [
        *((name, FULL, True) for name in ("nginx.conf", "flower.env", "README.md", "guard.nft")),
        ("README.md", FULL, False),
        ("README.md", KeyboardInterrupt(), True),
    ],
)
def test_a_failure_between_two_texts_brings_the_first_back(spoiled, monkeypatch, name, error, links):
    replace = Path.replace

    def fails(self: Path, target: Path) -> Path:
        if self.suffix == ".tmp" and target.name == name:
            raise error
        return replace(self, target)

    if not links:
        monkeypatch.setattr(os, "link", no_link)
    monkeypatch.setattr(Path, "replace", fails)
    stopped = isinstance(error, KeyboardInterrupt)
    unchanged(spoiled, KeyboardInterrupt if stopped else PluresError, "" if stopped else f"{name}: free some space")


def no_link(*words: object) -> None:
    raise PermissionError(1, "Operation not permitted")


def test_without_links_the_old_text_is_copied(spoiled, monkeypatch):
    monkeypatch.setattr(os, "link", no_link)
    before = tree(spoiled)
    call("upgrade", spoiled)
    after = tree(spoiled)
    for name in ("nginx.conf", "README.md", "systemd/guard.nft"):
        assert after[f"{name}.before"] == before[name] == after[name] + b"# by hand\n"
    assert (spoiled / "nginx.conf").stat().st_mode & 0o777 == 0o640
    assert "flower.env" in after


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root writes everywhere")
def test_a_folder_that_is_read_only_stays_as_it_is(spoiled):
    (spoiled / "systemd").chmod(0o500)
    try:
        unchanged(spoiled, PluresError, "cannot write")
    finally:
        (spoiled / "systemd").chmod(0o700)


def test_texts_that_are_gone_come_back_under_the_names_of_the_agreement(site):
    for name in ("node.service", "README.md", "guard.nft"):
        (site.parent / name).unlink()
    assert "restart plures-heart_va\n" in call("upgrade", site)
    own = member.SiteFile.load(site)
    assert (
        tree(site.parent)["node.service"].decode()
        == member.around(site.parent, Plan.load(site.parent / own.federation), own, "plures-heart_va")["node.service"]
    )
