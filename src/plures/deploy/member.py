"""A member's folder, made at the site: only the agreed file and the authority's certificate come from outside."""

from __future__ import annotations

import difflib
import hashlib
import os
import re
import shlex
from dataclasses import dataclass
from pathlib import Path

from plures.deploy.keys import Keyring, authority_digest
from plures.deploy.plan import CONNECTION, SITE, Plan, SiteFile
from plures.deploy.project import PLAN, slug
from plures.deploy.quoting import unit_value
from plures.deploy.services import owner, service
from plures.deploy.signing import Key
from plures.deploy.templates import filled
from plures.errors import PluresError, suggestion
from plures.files import inside, replacing, write_text
from plures.remote.state import PUBLISHED, back
from plures.tables.declared import toml
from plures.texts import markdown, visible_lines

KEYS, LOADER = "keys", "load_data.py"
AGREED, AUTHORITY = f"agreed/{PLAN}", "agreed/ca.crt"
"""What the member has agreed to. Files that have only been received lie elsewhere, and the node ignores them."""


def spoken(digest: str) -> str:
    """A digest in groups that are easy to read aloud."""
    return " ".join(digest[place : place + 4] for place in range(0, len(digest), 4))


def heard(text: str) -> str:
    """A digest as somebody typed it, without separators and in lower case."""
    return re.sub(r"[\s:-]", "", text).lower()


def digest_of(file: Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal digits."""
    try:
        return hashlib.sha256(file.read_bytes()).hexdigest()
    except OSError as error:
        raise PluresError(f"{file} cannot be read: {error.strerror}") from error


@dataclass(frozen=True)
class Joining:
    """What a member is about to agree to, checked; nothing is written yet.

    Attributes:
        client: name of the member.
        folder: folder of the site; it may not exist yet.
        plan: the federation.
        agreed: the bytes of the federation's file.
        authority: the bytes of the authority's certificate.
        key: the member's private key.
        data: file with its rows, if there is one.
    """

    client: str
    folder: Path
    plan: Plan
    agreed: bytes
    authority: bytes
    key: Path
    data: Path | None

    @classmethod
    def of(
        cls, federation: Path, authority: Path, client: str, folder: Path, key: Path | None, data: Path | None
    ) -> Joining:
        """Check everything that a member has received.

        Raises:
            PluresError: the federation cannot be read, does not list the client or its key, the certificate is not its
                authority's, or the folder belongs to another member.
        """
        plan = Plan.load(federation)
        if client not in plan.clients:
            near = suggestion(client, plan.clients, "they are")
            raise PluresError(f"{federation}: client {client!r} is not one of its clients; {near}")
        _ = plan.orders
        digest = authority_digest(authority)
        if digest != plan.authority:
            stands = "names none" if plan.authority is None else f"names {spoken(plan.authority)}"
            raise PluresError(
                f"{authority} is {spoken(digest)}, but {federation} {stands}: ask the coordinator for both files"
            )
        if data is not None and not data.is_file():
            raise PluresError(f"--data {data} is not a file: name a CSV or Parquet file with the rows")
        private = chosen(folder, client, key, data)
        if not private.exists():
            where = shlex.join(["plures", "deploy", "keys", "--folder", str(folder / KEYS), "--client", client])
            raise PluresError(
                f"{private} is missing: make it with `{where}`, send the .pub file beside it to the coordinator, and "
                "join once it is added"
            )
        Key.of(private, client, plan.keys.get(client))
        return cls(client, folder, plan, federation.read_bytes(), authority.read_bytes(), private, data)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the federation's file in hexadecimal digits; the file in turn holds the certificate's digest."""
        return hashlib.sha256(self.agreed).hexdigest()

    def changes(self) -> str:
        """Differences between the federation's file and the one in the folder, as a diff; empty if there are none."""
        old = self.folder / AGREED
        if not old.exists() or old.read_bytes() == self.agreed:
            return ""
        before, after = (content.decode(errors="replace").split("\n") for content in (old.read_bytes(), self.agreed))
        return visible_lines(
            "\n".join(difflib.unified_diff(before, after, "until now", "from now on", lineterm="", n=1))
        )

    def write(self) -> list[Path]:
        """Write the site's folder and return the written files. Only the two received files replace existing ones.

        A site that had left takes part again.
        """
        there = (self.folder / SITE).exists()
        files = {name: text for name, text in self.files().items() if not (self.folder / name).exists()}
        if there:
            files.pop(LOADER, None)  # site.toml says where the rows are
        for name, text in files.items():
            write_text(self.folder / name, text)
        for name, content in ((AGREED, self.agreed), (AUTHORITY, self.authority)):
            with replacing(self.folder / name) as temporary:
                temporary.write_bytes(content)
        own = SiteFile.load(self.folder / SITE)
        back(inside(self.folder / own.state, self.plan.name))
        return [self.folder / name for name in (AGREED, AUTHORITY, *files)]

    def files(self) -> dict[str, str]:
        """File in the site's folder -> text, for the files that plures writes itself."""
        home = self.folder.resolve()
        source = 'loader = "load_data.py:load"\n# data = "data.csv"'
        if self.data is not None:
            source = f"data = {toml(placed(self.data, home))}"
        site = {"client": toml(self.client), "key": toml(placed(self.key, home)), "source": source}
        own = SiteFile(client=self.client)
        found = {SITE: filled("site/site.toml", **site), **around(home, self.plan, own, unit_name(self.plan, own))}
        return found | ({LOADER: filled("site/load_data.py")} if self.data is None else {})


def chosen(folder: Path, client: str, key: Path | None, data: Path | None) -> Path:
    """The member's private key; the one that its site.toml names, if it has joined before.

    Args:
        folder: folder of the site.
        client: the member.
        key: the ``--key`` given, if any.
        data: the ``--data`` given, if any.

    Raises:
        PluresError: the folder is the coordinator's or another member's, or its site.toml contradicts an option.
    """
    if (folder / CONNECTION).exists():
        raise PluresError(f"{folder.resolve()} is the coordinator's folder: choose another --folder")
    file, home = folder / SITE, folder.resolve()
    if not file.exists():
        return key or Keyring(folder / KEYS).node(client)
    own = SiteFile.load(file)
    if own.client != client:
        raise PluresError(f"{folder} is the folder of client {own.client!r}: choose another --folder")
    for name, typed, stands in (("key", key, own.key), ("data", data, own.data)):
        if typed is not None and (stands is None or not typed.resolve() == (home / stands).resolve()):
            raise PluresError(
                f"{file} is never overwritten: write {name} = {toml(placed(typed, home))} there, then join without "
                f"--{name}"
            )
    return Keyring(folder / KEYS).node(client) if own.key is None else folder / own.key


def unit_name(plan: Plan, own: SiteFile) -> str:
    """Name of a site's service."""
    return f"plures-{slug(plan.name, 'federation')}_{slug(own.client, 'site')}"


def around(home: Path, plan: Plan, own: SiteFile, app: str) -> dict[str, str]:
    """File in a site's folder -> text, for the files that nobody needs to edit.

    Args:
        home: the folder.
        plan: the federation.
        own: the site's file.
        app: name of its service.
    """
    published = inside(home / own.state, plan.name, plan.label) / PUBLISHED
    placeholders = {
        "name": markdown(plan.name),
        "client": markdown(own.client),
        "superlink": plan.superlink or "the coordinator",
        "service": app,
        "user": owner(),
        "published": shlex.quote(placed(published, home)),
    }
    return {
        "README.md": filled("site/README.md", **placeholders),
        "node.service": service(
            "node.service", home, client=unit_value(own.client), app=app, title=plan.name, port=own.port
        ),
        "guard.nft": service("guard.nft", home, app=app, title=plan.name, port=own.port),
        ".gitignore": filled("site/gitignore"),
    }


def placed(file: Path, home: Path) -> str:
    """A path as written in the site's own file: relative to the site's folder if it is inside it."""
    whole = Path(os.path.abspath(file))
    return str(whole.relative_to(home)) if whole.is_relative_to(home) else str(whole)
