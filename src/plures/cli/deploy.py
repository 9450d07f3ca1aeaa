"""Commands for federations of real sites: what a coordinator writes, what a site does, and a demo of both."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.box import SIMPLE_HEAD
from rich.table import Table

from plures.cli.common import app, console, progress
from plures.deploy.fleet.process import quiet_environment
from plures.deploy.fleet.programs import GUARD, command
from plures.deploy.plan import Plan, SiteFile
from plures.deploy.state import leave, strangers
from plures.errors import PluresError
from plures.evaluate.spec import find_method
from plures.extras import needed
from plures.files import check_folder, inside

deploy = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Federations of real sites, over Flower.")
app.add_typer(deploy, name="deploy")

SiteOf = Annotated[Path, typer.Argument(help="The site's own file, site.toml.")]
KeyFolder = Annotated[Path, typer.Option(help="Folder for keys.")]


@deploy.command("init")
def init_command(
    folder: Annotated[Path, typer.Argument(help="Folder to write; its files must not exist.")],
    name: Annotated[str | None, typer.Option(help="Of the federation; default: the folder's.")] = None,
    client: Annotated[list[str] | None, typer.Option(help="Name of a member; repeatable.")] = None,
    host: Annotated[str | None, typer.Option(help="Name or address of the coordinator, as sites see it.")] = None,
    example: Annotated[Literal["heart"] | None, typer.Option(help="Write one that is ready to run.")] = None,
) -> None:
    """Write all that a federation needs: app, agreement, door, services, a folder for each member, and what to do."""
    from plures.deploy import project

    host = host or project.HOST
    if example is not None and (client or name):
        raise PluresError("--example has its own name and members: leave out --name and --client")
    wanted = project.blank(name or folder.resolve().name, client or project.CLIENTS, host)
    for member in client or ():
        if "/" in member or member.startswith(".") or not member.strip():
            raise PluresError(f"--client {member!r} becomes a folder: leave out / and a leading dot")
    files = project.write(folder, wanted if example is None else project.heart(host))
    typer.echo(f"wrote {len(files)} files; go on with {folder / 'README.md'}")


@deploy.command("keys")
def keys_command(
    folder: KeyFolder = Path("keys"),
    host: Annotated[
        list[str] | None, typer.Option(help="Make the coordinator's keys; a name that sites call it by; repeatable.")
    ] = None,
    client: Annotated[str | None, typer.Option(help="Make the key pair of this site.")] = None,
    federation: Annotated[
        Path, typer.Option(help="Where the coordinator's fingerprints are written to, if it is there.")
    ] = Path("federation.toml"),
) -> None:
    """Make the keys of a coordinator (--host), or the key pair of a site (--client). Overwrites no key."""
    needed("cryptography", "making keys", "flower")
    from plures.deploy import agreement
    from plures.deploy.keys import Keyring, authority_digest, with_pub
    from plures.deploy.signing import public

    keys = Keyring(folder)
    if (host is None) == (client is None):
        raise PluresError("say --host NAME at the coordinator, or --client NAME at a site")
    if host is not None:
        if keys.coordinator.exists() or not keys.server.exists():
            keys.make_server(host)
        if not keys.coordinator.exists():
            keys.make_coordinator()
        told = {"coordinator": public(with_pub(keys.coordinator)), "authority": authority_digest(keys.authority)}
        if federation.exists():
            agreement.enter(federation, top=told)
        lines = [
            f"for every site: {keys.authority}",
            f"secret: {keys.server_key}, {keys.authority_key}, {keys.coordinator}",
            f"{'written into' if federation.exists() else 'for'} {federation}:",
            *(f'  {name} = "{value}"' for name, value in told.items()),
        ]
    else:
        assert client is not None
        keys.make_node(client)
        lines = [
            f"for the coordinator: {keys.node_public(client)}",
            f"its fingerprint, to be read to the coordinator by telephone: {public(keys.node_public(client))}",
            f"secret: {keys.node(client)}",
        ]
    typer.echo("\n".join(lines))


@deploy.command("check")
def check_command(
    site: SiteOf,
    federation: Annotated[
        Path | None, typer.Option(help="What the members agreed on; default: the file that site.toml names.")
    ] = None,
) -> None:
    """Say in plain words whether a site's rows and rules fit the federation. Nothing leaves the machine."""
    from plures.deploy.promise import promise
    from plures.tables.check import check

    own = SiteFile.load(site)
    plan = Plan.load(federation or site.parent / own.federation)
    if own.client not in plan.clients:
        raise PluresError(f"{site}: client {own.client!r} is not one of the federation's: {', '.join(plan.clients)}")
    table = own.table(site.parent)
    report = check(plan.table, table, own.client)
    typer.echo(report.text())
    if not report.ok:
        raise typer.Exit(1)
    asked = promise(plan, own, table)
    typer.echo(asked.text())
    if not asked.ok:
        raise typer.Exit(1)


@deploy.command("node")
def node_command(
    site: SiteOf,
    superlink: Annotated[str, typer.Option(help="The coordinator's door, HOST:PORT.")],
    authority: Annotated[Path, typer.Option(help="Certificate of the coordinator's authority, ca.crt.")],
    key: Annotated[Path, typer.Option(help="The site's private key.")],
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port of loopback for the node's own processes.")] = 9094,
) -> None:
    """Be the node of a site until it is stopped. Runs plures' client, whatever app the coordinator submits."""
    needed("flwr", "a node", "flower")
    from plures.deploy.fleet.loopback import node_arguments

    own = SiteFile.load(site)
    for file in (authority, key):
        if not file.is_file():
            raise PluresError(f"{file} is missing: `plures deploy keys` makes it, or the coordinator sends it")
    home = site.resolve().parent / own.state / "flower"
    words = [*command("flower-supernode", GUARD), *node_arguments(site, superlink, port, authority, key)]
    os.execve(words[0], words, quiet_environment(home, own.allow.threads))


@deploy.command("leave")
def leave_command(
    site: SiteOf,
    reason: Annotated[str, typer.Option(help="For the site's own records.")] = "",
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Leave the federation: delete the site's personal state and models of it, and refuse orders from now on."""
    own = SiteFile.load(site)
    plan = Plan.load(site.parent / own.federation)
    folder = inside(site.parent / own.state, plan.name)
    if not yes:
        typer.confirm(f"delete what plures has written to {folder}?", abort=True)
    files = leave(folder, reason)
    for file in strangers(folder):
        typer.echo(f"{file} is not plures' and stays: delete it yourself if it is not needed")
    typer.echo(f"deleted {len(files)} files; {own.client} has left {plan.name}")


@deploy.command("demo")
def demo_command(
    out: Annotated[Path, typer.Option(help="Folder of everything; what is finished in it is not run again.")] = Path(
        "runs/demo-deploy"
    ),
    rounds: Annotated[int, typer.Option(min=1, help="Rounds of each method.")] = 20,
    method: Annotated[list[str] | None, typer.Option(help="Method instead of the two; repeatable.")] = None,
) -> None:
    """Four hospitals on this machine over Flower, with TLS and registered keys: what each gets out of two methods."""
    for name in method or ():
        find_method(name)  # of the catalogue: what sites run is not a word of the coordinator's
    check_folder(out)
    needed("flwr", "the demo", "flower")
    from plures.deploy.demo import METHODS, demo

    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with progress("four hospitals", 1) as update:
        outcomes = demo(
            out,
            method or METHODS,
            rounds,
            lambda what, done, total, text: update(done / max(total, 1), f"{what} {text}"),
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
        "simulated. kB: all that passed its wire, both ways. Rounds are chosen on validation patients."
    )
    typer.echo(f"kept in {out}: sites with their models, keys, logs, results")
