"""Commands for federations of real sites: for the coordinator, for a site, and a demo of both."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.box import SIMPLE_HEAD
from rich.table import Table

from plures.cli.common import Commands, Quiet, app, console, say
from plures.cli.progress import progress
from plures.deploy.fleet.process import quiet_environment
from plures.deploy.fleet.programs import GUARD, SUPERLINK, WARM, command
from plures.deploy.plan import Plan, SiteFile, read_toml
from plures.deploy.proxy import SUPERLINK as SUPERLINK_PORT
from plures.deploy.services import advice, as_owner
from plures.errors import PluresError
from plures.evaluate.spec import find_method
from plures.extras import needed
from plures.files import check_folder, inside
from plures.names import checked_name
from plures.remote.state import leave, strangers

deploy = typer.Typer(
    cls=Commands, no_args_is_help=True, rich_markup_mode=None, help="Federations of real sites, over Flower."
)
app.add_typer(deploy, name="deploy")

SiteOf = Annotated[Path, typer.Argument(help="The site's own file, site.toml.")]
KeyFolder = Annotated[Path, typer.Option(help="Folder for keys.")]


@deploy.callback()
def private() -> None:
    os.umask(0o077)  # only this user may read keys, states, logs and models, whatever the shell's umask


@deploy.command("init")
def init_command(
    folder: Annotated[Path, typer.Argument(help="Folder to write; its files must not exist.")],
    name: Annotated[str | None, typer.Option(help="Name of the federation; default: the folder's.")] = None,
    client: Annotated[list[str] | None, typer.Option(help="Name of a member; repeatable.")] = None,
    host: Annotated[
        str | None, typer.Option(help="Name or address of the coordinator, as sites see it; without a port.")
    ] = None,
    example: Annotated[Literal["heart"] | None, typer.Option(help="Write a complete example, ready to run.")] = None,
    containers: Annotated[
        bool, typer.Option("--containers", help="Also write an image and a compose file; with an example's members.")
    ] = False,
) -> None:
    """Write the coordinator's folder: app, agreement, reverse proxy, services, README. Members use `join`."""
    from plures.deploy import project
    from plures.deploy.containers import SERVICE

    host = host or (SERVICE if containers and example is not None else project.HOST)
    if example is not None and (client or name):
        raise PluresError("--example has its own name and members: leave out --name and --client")
    for place, member in enumerate(client or ()):
        checked_name(member, "--client")
        if member in (client or ())[:place]:
            raise PluresError(f"--client {member} is given twice: every member needs a name of its own")
    wanted = project.blank(checked_name(name or folder.resolve().name, "--name"), client or project.CLIENTS, host)
    files = project.write(folder, wanted if example is None else project.heart(host), contained=containers)
    say("\n".join([f"wrote {len(files)} files; continue with {folder / 'README.md'}", *advice(folder)]))


@deploy.command("keys")
def keys_command(
    folder: KeyFolder = Path("keys"),
    host: Annotated[
        list[str] | None, typer.Option(help="Make the coordinator's keys; its name as sites see it; repeatable.")
    ] = None,
    client: Annotated[str | None, typer.Option(help="Make the key pair of this site.")] = None,
    federation: Annotated[
        Path, typer.Option(help="Where to write the coordinator's fingerprints, if the file exists.")
    ] = Path("federation.toml"),
) -> None:
    """Make the keys of a coordinator (--host), or the key pair of a site (--client). Overwrites no key."""
    needed("cryptography", "making keys", "flower")
    from plures.deploy import agreement
    from plures.deploy.keys import Keyring, authority_digest, hosts, with_pub
    from plures.deploy.signing import public

    keys = Keyring(folder)
    if (host is None) == (client is None):
        raise PluresError("say --host NAME at the coordinator, or --client NAME at a site")
    as_owner(folder)
    if host is not None:
        complete = keys.server.exists() and keys.coordinator.exists()
        if not keys.server.exists():
            keys.make_server(host)
        if not keys.coordinator.exists():
            keys.make_coordinator()
        entries = {"coordinator": public(with_pub(keys.coordinator)), "authority": authority_digest(keys.authority)}
        if complete and (not federation.exists() or entries.items() <= read_toml(federation).items()):
            keys.refuse(keys.server_key)
        if federation.exists():
            agreement.enter(federation, top=entries)
        lines = [
            f"for every site: {keys.authority}",
            f"secret: {keys.server_key}, {keys.authority_key}, {keys.coordinator}",
            f"{'written into' if federation.exists() else 'for'} {federation}:",
            *(f'  {name} = "{value}"' for name, value in entries.items()),
        ]
        door = str(read_toml(federation).get("superlink", "")) if federation.exists() else ""
        called = door.rpartition(":")[0].strip("[]")
        if called and called not in (names := hosts(keys.server)):
            lines.append(
                f"note: {federation} says that sites call {door}, but the certificate is only for {', '.join(names)}: "
                f"change superlink there, or move {keys.server} and {keys.server_key} away and give --host {called} too"
            )
    else:
        assert client is not None
        keys.make_node(client)
        lines = [
            f"for the coordinator: {keys.node_public(client)}",
            f"its fingerprint, to be read to the coordinator by telephone: {public(keys.node_public(client))}",
            f"secret: {keys.node(client)}",
        ]
    say("\n".join(lines))


@deploy.command("check")
def check_command(
    site: SiteOf,
    federation: Annotated[
        Path | None, typer.Option(help="The agreement of the members; default: the file that site.toml names.")
    ] = None,
) -> None:
    """Say in plain words whether a site's rows and rules fit the federation. Nothing leaves the machine."""
    from plures.deploy.promise import held

    for one in held(site, federation):
        say(one.text())
        if not one.ok:
            raise typer.Exit(1)


@deploy.command("fingerprint")
def fingerprint_command(
    file: Annotated[list[Path], typer.Argument(help="federation.toml, ca.crt, or a public key.")],
) -> None:
    """Print fingerprints to read aloud, to make sure that both sides have the same file."""
    needed("cryptography", "keys and certificates", "flower")
    from plures.deploy.keys import authority_digest
    from plures.deploy.member import digest_of, spoken
    from plures.deploy.signing import public

    for one in file:
        if one.suffix == ".pub":
            words = public(one)
        elif one.suffix == ".crt":
            words = spoken(authority_digest(one))
        else:
            words = spoken(digest_of(one))
        say(f"{one}: {words}")


@deploy.command("add")
def add_command(
    client: Annotated[str, typer.Argument(help="Name of the member; must be listed in the federation's clients.")],
    key: Annotated[Path, typer.Argument(help="The public key that the member sent.")],
    folder: Annotated[Path, typer.Option(help="The coordinator's folder.")] = Path(),
    fingerprint: Annotated[
        str | None, typer.Option(help="What the member read aloud, SHA256:...; default: ask whether it is the same.")
    ] = None,
) -> None:
    """Add a member's key to federation.toml, and register it at the SuperLink if that is running."""
    needed("flwr", "a coordinator", "flower")
    from plures.deploy.operate.members import add
    from plures.deploy.operate.place import Place

    as_owner(folder)

    def compare(found: str) -> str:
        say(f"{key}: {found}")
        typer.confirm(f"Does {client} read the same aloud, by telephone?", abort=True)
        return found

    said = compare if fingerprint is None else lambda _: str(fingerprint)
    say("\n".join(add(Place(folder), client, key, said)))


@deploy.command("join")
def join_command(
    federation: Annotated[Path, typer.Argument(help="federation.toml, as the coordinator sent it.")],
    authority: Annotated[Path, typer.Argument(help="ca.crt, as the coordinator sent it.")],
    client: Annotated[str, typer.Option(help="Your name in the federation's clients.")],
    folder: Annotated[Path, typer.Option(help="The site's folder.")] = Path(),
    key: Annotated[Path | None, typer.Option(help="Your private key; default: the one in keys of the folder.")] = None,
    data: Annotated[
        Path | None, typer.Option(help="Your rows, CSV or Parquet; default: load_data.py reads them.")
    ] = None,
    fingerprint: Annotated[
        str | None, typer.Option(help="What the coordinator read aloud; default: ask whether it is the same.")
    ] = None,
) -> None:
    """Create a site's folder from the coordinator's files, or accept a newer agreement."""
    needed("cryptography", "joining", "flower")
    from plures.deploy.member import Joining, heard, spoken

    as_owner(folder)
    joining = Joining.of(federation, authority, client, folder, key, data)
    assert joining.plan.authority is not None
    say(f"{federation}: {spoken(joining.fingerprint)}")
    say(f"{authority}: {spoken(joining.plan.authority)}, as the file above says")
    if changes := joining.changes():
        say(f"what is new in it:\n{changes}")
    if fingerprint is None:
        typer.confirm("Does the coordinator read the same aloud, by telephone?", abort=True)
    elif heard(fingerprint) != joining.fingerprint:
        raise PluresError(
            f"{federation} is {spoken(joining.fingerprint)}, not {spoken(heard(fingerprint))}: "
            "ask the coordinator for the file again, over another channel"
        )
    files = joining.write()
    names = ", ".join(str(file.relative_to(folder)) for file in files)
    say("\n".join([f"wrote {names}; continue with {folder / 'README.md'}", *advice(folder)]))


@deploy.command("node")
def node_command(
    site: SiteOf,
    superlink: Annotated[
        str | None, typer.Option(help="The coordinator's reverse proxy, HOST:PORT; default: the agreed one.")
    ] = None,
    authority: Annotated[
        Path | None, typer.Option(help="Certificate of the coordinator's authority; default: as site.toml says.")
    ] = None,
    key: Annotated[Path | None, typer.Option(help="The site's private key; default: as site.toml says.")] = None,
    port: Annotated[
        int | None,
        typer.Option(min=1, max=65535, help="Loopback port for the node's own processes; default: as site.toml says."),
    ] = None,
) -> None:
    """Run the node of a site until it is stopped. Runs plures' client, whatever app the coordinator submits."""
    needed("flwr", "a node", "flower")
    from plures.deploy.app import key_file
    from plures.deploy.fleet.loopback import node_arguments
    from plures.deploy.signing import Key

    own = SiteFile.load(site)
    plan = Plan.load(site.parent / own.federation)
    authority, private = authority or site.parent / own.authority, key_file(site, own, key)
    for file in (authority, private):
        if not file.is_file():
            raise PluresError(
                f"{file} is missing: `plures deploy keys` makes a key, `plures deploy join` puts ca.crt there"
            )
    _ = plan.orders
    Key.of(private, own.client, plan.keys.get(own.client))
    door = superlink or plan.superlink
    if door is None:
        raise PluresError(f"{site.parent / own.federation} names no superlink: say --superlink HOST:PORT")
    home = site.resolve().parent / own.state / "flower"
    arguments = node_arguments(site, door, port or own.port, authority, private)
    words = [*command("flower-supernode", WARM, GUARD), *arguments]
    os.execve(words[0], words, quiet_environment(home, own.allow.threads))


@deploy.command("superlink")
def superlink_command(
    keys: Annotated[Path, typer.Option(help="Folder of the coordinator's keys.")] = Path("keys"),
    database: Annotated[Path, typer.Option(help="Database of nodes and runs.")] = Path("superlink.db"),
    port: Annotated[int, typer.Option(min=1, max=65535, help="Loopback port.")] = SUPERLINK_PORT,
) -> None:
    """Run the coordinator's SuperLink until it is stopped. Listens on loopback, behind the reverse proxy."""
    needed("flwr", "a SuperLink", "flower")
    from plures.deploy.fleet.loopback import superlink_arguments
    from plures.deploy.keys import Keyring

    as_owner(keys)
    ring = Keyring(keys)
    for file in (ring.server, ring.server_key, ring.authority):
        if not file.is_file():
            raise PluresError(f"{file} is missing: `plures deploy keys --host NAME` makes it")
    words = [*command(SUPERLINK, WARM), *superlink_arguments(port, database, ring)]
    os.execve(words[0], words, quiet_environment(Path("flower").resolve()))


@deploy.command("leave")
def leave_command(
    site: SiteOf,
    reason: Annotated[str, typer.Option(help="For the site's own records.")] = "",
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Leave the federation: delete the site's personal state and models, and refuse orders from now on."""
    own = SiteFile.load(site)
    plan = Plan.load(site.parent / own.federation)
    folder = inside(site.parent / own.state, plan.name)
    if not yes:
        typer.confirm(f"delete what plures has written to {folder}?", abort=True)
    files = leave(folder, reason)
    for file in strangers(folder):
        say(f"{file} is not plures' and stays: delete it yourself if it is not needed")
    say(f"deleted {len(files)} files; {own.client} has left {plan.name}")


@deploy.command("demo")
def demo_command(
    out: Annotated[Path, typer.Option(help="Folder for everything; finished parts are not run again.")] = Path(
        "runs/demo-deploy"
    ),
    rounds: Annotated[int, typer.Option(min=1, help="Rounds of each method.")] = 10,
    method: Annotated[list[str] | None, typer.Option(help="Method instead of the two; repeatable.")] = None,
    quiet: Quiet = False,
) -> None:
    """Four hospitals on this machine over Flower, with TLS and registered keys: what each gains from two methods."""
    for name in method or ():
        if ":" in name:
            raise PluresError(f"--method {name}: the demo's sites run only methods of the catalogue")
        find_method(name)
    check_folder(out)
    needed("flwr", "the demo", "flower")
    from plures.deploy.demo import METHODS, demo

    with progress("four hospitals", 1, quiet=quiet) as update:
        outcomes = demo(
            out,
            method or METHODS,
            rounds,
            lambda what, done, total, text: update(done / max(total, 1), f"{what} {text}".strip(), skipped=done <= 1),
        )
    alone = {hospital.client: hospital for hospital in outcomes[0].hospitals}
    for outcome in outcomes[1:]:
        headings = ("train", "test", "accuracy", "alone", "balanced", "alone", "threshold", "kB")
        title = f"{outcome.method}, round {outcome.round} of {rounds}, {outcome.seconds:.0f} s"
        table = Table("hospital", title=title, title_justify="left", box=SIMPLE_HEAD, collapse_padding=True)
        for heading in headings:
            table.add_column(heading, justify="right")
        for own in outcome.hospitals:
            lone = alone[own.client]
            cells = [f"{x:.3f}" for x in (own.accuracy, lone.accuracy, own.balanced, lone.balanced)]
            threshold = "-" if own.threshold is None else f"{own.threshold:.2f}"
            sizes = map(str, (own.rows[0], own.rows[2]))
            table.add_row(own.client, *sizes, *cells, threshold, f"{(own.sent + own.received) / 1000:.0f}")
        console.print(table)
    console.print(
        "train, test: patients. accuracy: on the hospital's own test patients, with its own model and threshold. "
        "balanced: mean of its accuracy on healthy and on diseased. alone: what it reaches with its own patients only, "
        "simulated. kB: everything sent and received. Rounds are chosen on validation patients."
    )
    say(f"kept in {out}: sites with their models, keys, logs, results")
