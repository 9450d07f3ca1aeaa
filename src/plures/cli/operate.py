"""Commands for operating a federation: status, run, stop, members, keys, upgrade."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from plures.cli.common import AllowCode, Quiet, Track, console, say
from plures.cli.deploy import deploy
from plures.cli.progress import progress
from plures.deploy.plan import CONNECTION, SITE
from plures.deploy.services import as_owner
from plures.errors import PluresError
from plures.extras import needed
from plures.texts import visible, visible_lines

if TYPE_CHECKING:
    from plures.deploy.operate.member import MemberStatus
    from plures.deploy.operate.place import Place
    from plures.deploy.operate.status import RunStatus, Status

STOPPED = 3
"""Exit code of a run stopped by its operator: not a failure, so a service does not restart it."""

Folder = Annotated[Path, typer.Argument(help="The coordinator's folder.")]


def looked(folder: Path) -> Place:
    """A coordinator's folder, for reading."""
    needed("flwr", "a coordinator", "flower")
    from plures.deploy.operate.place import Place

    return Place(folder)


def placed(folder: Path) -> Place:
    """A coordinator's folder, for writing."""
    as_owner(folder)
    return looked(folder)


def site_of(place: Path) -> Path | None:
    """The site's file, if the place is that file or the folder of a site that is not a coordinator's."""
    if (place / SITE).is_file() and not (place / CONNECTION).exists():
        return place / SITE
    return place if place.is_file() else None


@deploy.command("status")
def status_command(
    place: Annotated[Path, typer.Argument(help="The coordinator's folder, or a site's own file, site.toml.")] = Path(),
    out: Annotated[Path | None, typer.Option(help="Folder of the run; default: the one submitted last.")] = None,
    machine: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """Status of the federation, or of a site; at the coordinator also while the SuperLink is down."""
    if site := site_of(place):
        from plures.deploy.operate import member

        own = member.look(site)
        typer.echo(json.dumps(asdict(own), ensure_ascii=False, indent=1) if machine else site_text(own))
        return
    where = looked(place)
    from plures.deploy.operate.status import look

    status = look(where, out)
    if machine:
        typer.echo(json.dumps(asdict(status), ensure_ascii=False, indent=1))
    else:
        show(status)


def site_text(own: MemberStatus) -> str:
    """A site's status as text."""
    lines = [f"{own.client} in {own.federation}, plures {own.version}, Flower {own.flower or 'not installed'}"]
    if own.left:
        lines.append("it has left: it refuses every order")
    for one in own.answered:
        done = "answered" if one.done else "not answered (yet)"
        lines.append(f"{one.request} after {one.round} of {own.rounds} rounds: {done}")
    if own.asked is not None:
        lines.append(f"asked last {span(time.time() - own.asked)} ago")
    elif not own.left:
        lines.append("it has received no order yet")
    if own.versions:
        lines.append(f"personal state: versions {', '.join(map(str, own.versions))} in {own.folder}")
    if own.published is None:
        lines.append("no model is published yet")
    else:
        lines.append(
            f"published model {own.published['version']} of {own.published['created']}: {own.published['folder']}"
        )
    return visible_lines("\n".join([*lines, *(f"note: {note}" for note in own.notes)]))


def show(status: Status) -> None:
    """Print a status."""
    say(f"{status.federation}, plures {status.version}: {line(status.run, status.time)}")
    say(f"run {status.run.out}{status.flower and f', at the SuperLink {status.flower}'}")
    say(visible("SuperLink: up" if status.superlink == "up" else status.superlink))
    if status.run.state != "none":
        sizes = f"{status.run.bytes_down / 1e6:.3g} MB to sites, {status.run.bytes_up / 1e6:.3g} MB from them"
        validation = "" if status.run.validation is None else f", validation {status.run.validation:.4g}"
        say(f"{sizes}{validation}, {status.run.failed} failed rounds")
    if privacy := spent(status.run):
        say(privacy)
    table = Table("member", "node", "last seen", "counted in", "last left out", box=SIMPLE_HEAD, collapse_padding=True)
    for site in status.sites:
        left = site.left_out
        table.add_row(
            Text(site.client + (" (waited for)" if site.waited else "")),
            site.node,
            "never" if site.seen is None else f"{span(status.time - site.seen)} ago",
            "-" if site.counted is None else f"round {site.counted}",
            Text("-" if left is None else visible(f"round {left['round']}: {left['reason']}")),
        )
    console.print(table)
    for note in status.notes:
        say(visible(f"note: {note}"))


def spent(run: RunStatus) -> str:
    """What a run has spent of differential privacy, and what all its rounds spend; empty without."""
    if run.delta is None:
        return ""
    if run.epsilon_plan is None:
        return "differential privacy: none, because the plan adds no noise"
    now = "" if run.epsilon is None else f"epsilon {run.epsilon:.3g} after round {run.epsilon_round}, "
    return f"differential privacy: {now}{run.epsilon_plan:.3g} for all {run.rounds} rounds, at delta {run.delta:g}"


def line(run: RunStatus, now: float) -> str:
    """A run's status in one line."""
    where = f"round {run.round} of {run.rounds}"
    if run.state == "finished":
        return f"finished; validation chose round {run.chosen} of {run.rounds}"
    if run.state == "none":
        return f"no run yet, {run.rounds} rounds are planned"
    parts = [f"{run.state}, {where} done"]
    if run.waiting and run.since is not None and run.until is not None:
        until = f"at most {span(run.until - now)} more"
        parts.append(f"{run.what}: waiting for {', '.join(run.waiting)} for {span(now - run.since)}, {until}")
    if run.state == "running" and run.eta is not None:
        parts.append(f"about {span(run.eta)} left")
    if run.reason:
        parts.append(run.reason)
    if run.state == "stopped":
        parts.append("`plures deploy run` resumes from there")
    return visible("; ".join(parts))


def span(seconds: float) -> str:
    """A time span, roughly."""
    seconds = max(seconds, 0.0)
    for unit, size in (("d", 86400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


@deploy.command("run")
def run_command(
    folder: Folder = Path(),
    out: Annotated[
        Path | None, typer.Option(help="Folder of the run; an unfinished one is resumed. Default: results.")
    ] = None,
    track: Track = None,
    allow_code: AllowCode = None,
    detach: Annotated[bool, typer.Option("--detach", help="Do not wait for its end.")] = False,
    quiet: Quiet = False,
) -> None:
    """Start or resume the agreed run. Ctrl-C stops watching, not the run."""
    place = placed(folder)
    from plures.deploy.operate.place import RESULTS, finished
    from plures.deploy.operate.run import follow, start

    out = (out or folder / RESULTS).resolve()
    if finished(out):
        say(f"{out} holds a finished run: `plures deploy status` shows it; choose another --out for a new one")
        return
    run = start(place, out, " ".join(track or ()), " ".join(allow_code or ()))
    if detach:
        say(f"run {run} continues at the SuperLink; `plures deploy status` shows it, `plures deploy stop` ends it")
        return
    seen: set[tuple[object, ...]] = set()

    def listen(status: RunStatus) -> None:
        news = (status.state, status.round, tuple(status.waiting))
        said = line(replace(status, eta=None), time.time())
        update(status.round, said, line=news not in seen, skipped=status.state != "running")
        seen.add(news)

    with progress(place.plan.name, place.plan.spec.rounds, quiet=quiet) as update:
        try:
            done = follow(place, run, out, listen)
        except KeyboardInterrupt:
            console.print("the run itself continues at the SuperLink: `plures deploy stop` ends it", style="yellow")
            raise typer.Exit(130) from None
    if not done:
        say("stopped; the same command resumes from the last round that counted")
        raise typer.Exit(STOPPED)
    say(f"finished: {out}")


@deploy.command("stop")
def stop_command(
    folder: Folder = Path(),
    out: Annotated[Path | None, typer.Option(help="Folder of the run to end; default: all.")] = None,
) -> None:
    """End the federation's run. `plures deploy run` with the same --out resumes from the last round that counted."""
    place = placed(folder)
    from plures.deploy.operate.run import stop

    stopped = stop(place, None if out is None else out.resolve())
    if not stopped:
        say("no run is under way")
    for one in stopped:
        say(f"stopped; `plures deploy run --out {one}` resumes from the last round that counted")


@deploy.command("remove")
def remove_command(
    client: Annotated[str, typer.Argument(help="Name of the member.")],
    folder: Annotated[Path, typer.Option(help="The coordinator's folder.")] = Path(),
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Remove a member: its node at once, its name and key once no run is unfinished."""
    place = placed(folder)
    from plures.deploy.operate.members import remove

    if not yes:
        typer.confirm(f"remove {client}?", abort=True)
    say("\n".join(remove(place, client)))


@deploy.command("rotate")
def rotate_command(
    client: Annotated[str | None, typer.Argument(help="Name of the member who has a new key.")] = None,
    key: Annotated[Path | None, typer.Argument(help="Its new public key.")] = None,
    folder: Annotated[Path, typer.Option(help="The coordinator's folder.")] = Path(),
    fingerprint: Annotated[
        str | None, typer.Option(help="What the member read aloud, SHA256:...; default: ask whether it is the same.")
    ] = None,
    coordinator: Annotated[bool, typer.Option("--coordinator", help="Another key to sign orders with.")] = False,
    server: Annotated[bool, typer.Option("--server", help="Another certificate, of the same authority.")] = False,
    authority: Annotated[bool, typer.Option("--authority", help="Another authority and certificate.")] = False,
) -> None:
    """Replace a member's key (NAME KEY.pub) or one of the coordinator's, and list what everybody has to do."""
    place = placed(folder)
    from plures.deploy.operate import renew
    from plures.deploy.operate.members import rotate
    from plures.deploy.signing import public

    if (client is not None) + coordinator + server + authority != 1 or (client is None) != (key is None):
        raise PluresError("say one of: NAME KEY.pub, --coordinator, --server, --authority")
    if client is not None and key is not None:
        found = public(key)
        if fingerprint is None:
            say(f"{key}: {found}")
            typer.confirm(f"Does {client} read the same aloud, by telephone?", abort=True)
        done = rotate(place, client, key, fingerprint or found)
    else:
        done = (renew.coordinator if coordinator else renew.server if server else renew.authority)(place)
    say("\n".join(done))


@deploy.command("upgrade")
def upgrade_command(
    place: Annotated[Path, typer.Argument(help="The coordinator's folder, or a site's own file, site.toml.")] = Path(),
) -> None:
    """After installing a newer plures: rewrite plures' own files, check the rest, and list the next steps."""
    site = site_of(place)
    as_owner(site.parent if site else place)
    needed("flwr", "a federation of sites", "flower")
    from plures.deploy.operate import upgrade
    from plures.deploy.operate.place import Place

    say("\n".join(upgrade.site(site) if site else upgrade.coordinator(Place(place))))
