"""Upgrade plures' own files to the installed version; the old ones are kept beside them."""

from __future__ import annotations

import os
import re
import shlex
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from itertools import count
from pathlib import Path

from plures.deploy.containers import FOLDER, containers
from plures.deploy.journal import read_log
from plures.deploy.member import around, unit_name
from plures.deploy.operate.member import look
from plures.deploy.operate.members import unfinished
from plures.deploy.operate.place import RESULTS, Place, finished, works
from plures.deploy.operate.status import began, certificates
from plures.deploy.plan import CONNECTION, Plan, SiteFile
from plures.deploy.project import HOST, PLAN, ROWS, Project, slug
from plures.deploy.promise import held
from plures.errors import PluresError
from plures.files import filed, replacing
from plures.version import __version__

COORDINATOR = {
    "systemd/guard.nft": "/etc/plures/{app}-superlink.nft",
    "systemd/superlink.service": "/etc/systemd/system/{app}-superlink.service",
    "systemd/proxy.service": "/etc/systemd/system/{app}-proxy.service",
    "systemd/run@.service": "/etc/systemd/system/{app}-run@.service",
    "systemd/logrotate.conf": "/etc/logrotate.d/plures-{app}",
}
"""File in the coordinator's folder -> where root installs a copy of it."""
MEMBER = {"guard.nft": "/etc/plures/{app}.nft", "node.service": "/etc/systemd/system/{app}.service"}
"""The same for a member's folder."""


def coordinator(place: Place) -> list[str]:
    """Rewrite plures' own files in the coordinator's folder. Keys, runs and files written by people stay.

    Returns:
        What was done, and the next steps, in sentences.

    Raises:
        PluresError: it is not a coordinator's folder, a run is unfinished, the agreed file or a certificate cannot be
            read, or a file cannot be written. Then nothing has changed.
    """
    home = place.folder.resolve()
    if not (home / CONNECTION).is_file():
        raise PluresError(
            f"{place.folder} is not a coordinator's folder, it has no {CONNECTION}: name the one that `plures deploy "
            "init` wrote; at a site, its site.toml"
        )
    plan = place.plan
    notes = [*resting(place), *certificates(place)]
    units = home / "systemd" / "superlink.service", home / "README.md"
    app = installed(units, r"/etc/plures/([a-z0-9-]+)-superlink\.nft") or slug(plan.name, "federation")
    host = plan.superlink.rpartition(":")[0].strip("[]") if plan.superlink else HOST
    texts = Project(plan.name, plan.clients, host, "", {}).files(home, app)
    del texts[PLAN]
    if contained := (home / FOLDER).is_dir():
        rows = {client: f"{ROWS}/{filed(client)}.csv" for client in plan.clients}
        here = (home / FOLDER / "up.sh").exists()
        texts |= containers(home, app, {c: file for c, file in rows.items() if here and (home / file).exists()})
    kept = renewed({home / name: text for name, text in texts.items()})
    restart = f"sudo systemctl restart {app}-superlink {app}-proxy"
    if contained:
        compose = f"docker compose -f {FOLDER}/compose.yaml"
        restart += f"\n   in containers: {compose} build superlink && {compose} up -d --wait"
    return instructions(
        home,
        kept,
        notes,
        *install(home, kept, COORDINATOR, app),
        restart,
        f"every member installs plures {__version__} and runs `plures deploy upgrade site.toml`",
        f"if a run of the federation has started, give {PLAN} another name, because no site resumes a run of another "
        "version; every member joins with it, `plures deploy run` starts it, and `plures deploy status` lists members "
        "with another version",
    )


def site(file: Path) -> list[str]:
    """Rewrite plures' own files in a member's folder. Keys, runs and files written by people stay.

    Args:
        file: the site's own file.

    Returns:
        What was done, and the next steps, in sentences.

    Raises:
        PluresError: the site's file or the agreed one cannot be read, the rows or rules do not fit, or a file cannot be
            written. Then nothing has changed.
    """
    for one in held(file):
        if not one.ok:
            raise PluresError(
                f"nothing was written, because this site could not take part with plures {__version__}:\n{one.text()}"
            )
    own, home = SiteFile.load(file), file.parent.resolve()
    plan = Plan.load(file.parent / own.federation)
    notes = look(file).notes
    units = home / "node.service", home / "README.md"
    app = installed(units, r"/etc/plures/([a-z0-9_-]+)\.nft") or unit_name(plan, own)
    kept = renewed({home / name: text for name, text in around(home, plan, own, app).items()})
    return instructions(
        home,
        kept,
        ["the rows pass their check", *notes],
        *install(home, kept, MEMBER, app),
        f"sudo systemctl restart {app}",
        f"`plures deploy status {file.name}`; when the coordinator sends the next {PLAN}, `plures deploy join` with it",
    )


def resting(place: Place) -> list[str]:
    """Refuse to change anything during a run that another version cannot resume.

    Returns:
        What could not be determined, in sentences.

    Raises:
        PluresError: there is such a run.
    """
    alive, notes = set[Path](), []
    try:
        alive = {out for run in place.control.runs() if not run.over and not finished(out := place.out(run))}
    except PluresError:
        notes = [f"the SuperLink does not answer, so runs outside {RESULTS} were not looked for"]
    for out in sorted({*unfinished(place), *alive}):
        version, what = began(read_log(out)), "under way" if out in alive or works(out) else "unfinished"
        who = f"plures {version}, which began it," if version else "the version that began it"
        old = f"plures {version}" if version else "that version"
        again = shlex.join(["plures", "deploy", "run", "--out", str(out)])
        aside = shlex.join(["mv", str(out), str(place.folder.resolve() / f"{out.name}.given-up")])
        raise PluresError(
            f"nothing was written: the run in {out} is {what}, and only {who} can resume it. Either "
            f"install {old} again and finish it with `{again}`, or give it up: `plures deploy stop`, `{aside}`, and "
            f"another name in {PLAN}"
        )
    return notes


def installed(files: tuple[Path, ...], pattern: str) -> str | None:
    """The name under which a service was first written, even if the federation has been renamed since."""
    for file in files:
        if found := re.search(pattern, (content(file) or b"").decode(errors="replace")):
            return found[1]
    return None


def install(home: Path, kept: Mapping[Path, Path | None], places: Mapping[str, str], app: str) -> list[str]:
    """The commands that install changed files where root keeps them."""
    changed = {name: target.format(app=app) for name, target in places.items() if home / name in kept}
    lines = [f"sudo install {'-D ' * name.endswith('.nft')}-m 0644 {name} {to}" for name, to in changed.items()]
    return ["\n   ".join([*lines, "sudo systemctl daemon-reload"])] if lines else []


def instructions(home: Path, kept: Mapping[Path, Path | None], notes: list[str], *steps: str) -> list[str]:
    """What was done, notes, and the next steps."""
    names = {str(file.relative_to(home)): before for file, before in kept.items()}
    lines = [f"{home}: every file is already that of plures {__version__}"]
    if names:
        lines = [f"{home}: wrote {', '.join(names)} for plures {__version__}"]
    if old := {name: str(before.relative_to(home)) for name, before in names.items() if before}:
        lines.append(f"the old files are kept: {', '.join(old.values())}")
        steps = (
            "copy your own changes from the old files to the new ones, then delete the old ones:\n   "
            + "\n   ".join(shlex.join(["diff", before, name]) for name, before in old.items()),
            *steps,
        )
    lines += [f"note: {note}" for note in notes]
    return [*lines, "in this order:", *(f"{number}. {step}" for number, step in enumerate(steps, 1))]


def renewed(texts: Mapping[Path, str]) -> dict[Path, Path | None]:
    """Write text files, all or none. Files that are up to date are not touched.

    Returns:
        Changed file -> where its old text is kept; ``None`` if there was no such file.

    Raises:
        PluresError: one of them cannot be written; then all are as before.
    """
    changed = {file: text.encode() for file, text in texts.items() if content(file) != text.encode()}
    kept = {file: beside(file) if os.path.lexists(file) else None for file in changed}
    with ExitStack() as stack:
        for file, before in kept.items():
            stack.enter_context(keeping(file, before))
        for file, text in changed.items():
            temporary = stack.enter_context(replacing(file))
            temporary.write_bytes(text)
            if kept[file]:
                shutil.copymode(file, temporary)
    return kept


def content(file: Path) -> bytes | None:
    """A file's content; ``None`` if there is no file."""
    try:
        return file.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise PluresError(f"{file} cannot be read: {error.strerror}; nothing was written") from error


def beside(file: Path) -> Path:
    """An unused name for the old version of a file."""
    names = (file.with_name(f"{file.name}.before{number if number > 1 else ''}") for number in count(1))
    return next(name for name in names if not os.path.lexists(name))


@contextmanager
def keeping(file: Path, before: Path | None) -> Iterator[None]:
    """Keep a file under another name as well, and restore it if the block fails; a new file is deleted then."""
    if before is not None:
        try:
            os.link(file, before)
        except OSError:  # not every file system has hard links
            with replacing(before) as temporary:
                shutil.copy2(file, temporary)
    try:
        yield
    except BaseException:
        if before is None:
            file.unlink(missing_ok=True)
        else:
            before.replace(file)  # does nothing if both are still the same file
            before.unlink(missing_ok=True)
        raise
