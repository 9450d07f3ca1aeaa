"""The two TOML files of a deployment: the federation's plan that all members agreed on, and a site's own settings."""

from __future__ import annotations

import importlib.util
import json
import re
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import torch
from pydantic import AfterValidator, Field, ValidationError, field_validator, model_validator

from plures.errors import PluresError
from plures.evaluate import Code, RunSpec
from plures.faults import explain
from plures.method import Setting
from plures.names import in_order
from plures.remote.allowed import Allowed
from plures.remote.clients import Rules
from plures.run.origin import Origin
from plures.tables.declared import Declared, Finite, Name, Names
from plures.tables.schema import Schema
from plures.tables.table import Table, read_table
from plures.version import __version__

D = TypeVar("D", bound=Declared)


def _fingerprint(text: str) -> str:
    if not re.fullmatch("SHA256:[A-Za-z0-9+/]{43}", text):
        raise ValueError(f"{text[:60]!r} is not a key's fingerprint, SHA256:...; `plures deploy fingerprint` prints it")
    return text


def _host_port(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9._:\[\]-]+:[0-9]{1,5}", text):
        raise ValueError(f"{text[:60]!r} is not HOST:PORT, as in coordinator.example.org:8443")
    return text


Fingerprint = Annotated[str, AfterValidator(_fingerprint)]
"""SHA-256 fingerprint of a public key, as OpenSSH writes it."""

SITE, CONNECTION = "site.toml", Path("flower", "config.toml")
"""Files that mark a member's folder and a coordinator's folder."""
ELSEWHERE = {
    "data": "every site names its own in site.toml",
    "data_options": "the members' data are described in [schema]",
    "unseen": "leave such clients out of clients",
    "evaluate_clients": "every site scores its own model",
    **dict.fromkeys(
        ("attack", "attackers", "attack_from", "attack_knows"), "attacks are simulated, with all data in one process"
    ),
    "combine": "write it behind the method, such as method = 'fedavg+median'",
    "drop_out": "sites that do not answer drop out by themselves",
    **dict.fromkeys(
        ("fleet", "deadline", "late", "over_select", "buffer", "staleness"),
        "devices are simulated, with all data in one process; how long a round waits is [rules] deadline",
    ),
    "select": "a site tells nothing about its losses before it trains",
}
"""Fields of a run that have no meaning when the data are at sites, and what to do instead."""


class Insisted(Declared):
    """When a round counts, and how long the server waits.

    Attributes:
        min_clients: valid uploads that a round needs.
        deadline: seconds that a round waits for them.
        join_deadline: seconds that the server waits at the start for every client to join.
        patience: consecutive failed rounds after which the run stops; it can be resumed.
        max_norm: largest allowed L2 norm of the difference between an upload and what was sent, over all numbers.
            Typical updates stay below 100.
    """

    min_clients: Annotated[int, Field(ge=1)] = 1
    deadline: Annotated[float, Field(gt=0)] = 600.0
    join_deadline: Annotated[float, Field(gt=0)] = 600.0
    patience: Annotated[int, Field(ge=1)] = 10
    max_norm: Annotated[Finite, Field(gt=0)] = 1000.0

    @property
    def rules(self) -> Rules:
        return Rules(self.min_clients, self.deadline, self.max_norm)


class Plan(Declared):
    """A federation: its members, the run, and the form of the data. Every member has the same file.

    Attributes:
        name: name of the federation.
        clients: names of its members.
        run: method, parameters, network, local work and rounds, as in :class:`~plures.evaluate.RunSpec`.
        rules: when a round counts.
        tells: facts that members report: ``examples``, ``labels``, columns of their metadata.
        coordinator: fingerprint of the key that signs orders.
        keys: client -> fingerprint of the key that signs its answers. Like ``coordinator``, this does not belong to
            the identity of a run: a key may be replaced during a run.
        authority: digest of the certificate that verifies the coordinator's reverse proxy.
        superlink: address of the reverse proxy, ``host:port``.
        table: columns and types of every member's data; the table ``[schema]`` of the file.
    """

    name: Name
    clients: Names
    run: dict[str, Any] = Field(default_factory=dict)
    rules: Insisted = Field(default_factory=Insisted)
    tells: Names = ("examples",)
    coordinator: Fingerprint | None = None
    keys: dict[Name, Fingerprint] = Field(default_factory=dict)
    authority: Annotated[str, Field(pattern="^[0-9a-f]{64}$")] | None = None
    superlink: Annotated[str, AfterValidator(_host_port)] | None = None
    table: Schema = Field(alias="schema")

    @field_validator("clients")
    @classmethod
    def _sorted(cls, clients: tuple[str, ...]) -> tuple[str, ...]:
        if not clients or len(set(clients)) < len(clients):
            raise ValueError("give at least one client, each with its own name")
        return in_order(clients)

    @field_validator("tells")
    @classmethod
    def _tells(cls, tells: tuple[str, ...]) -> tuple[str, ...]:
        return tells if "examples" in tells else ("examples", *tells)

    @model_validator(mode="after")
    def _one_key_each(self) -> Plan:
        for client in self.keys.keys() - set(self.clients):
            raise ValueError(
                f"[keys] has a key of {client!r}, which is not in clients: add the client there, or remove the key"
            )
        owners: dict[str, str] = {} if self.coordinator is None else {self.coordinator: "the coordinator"}
        for client, key in self.keys.items():
            if key in owners:
                raise ValueError(f"{client!r} has the key of {owners[key]}: everybody needs a key of its own")
            owners[key] = repr(client)
        return self

    @model_validator(mode="after")
    def _enough(self) -> Plan:
        if self.rules.min_clients > len(self.clients):
            raise ValueError(
                f"[rules] min_clients = {self.rules.min_clients}, and there are {len(self.clients)} clients: no round "
                "would count; lower it"
            )
        return self

    @property
    def orders(self) -> str:
        """The fingerprint of the key that signs orders.

        Raises:
            PluresError: it is missing.
        """
        if self.coordinator is None:
            raise PluresError(
                f"the federation {self.name!r} names no coordinator's key: the coordinator makes it and enters it into "
                "federation.toml with `plures deploy keys --host NAME`"
            )
        return self.coordinator

    @property
    def members(self) -> dict[str, str]:
        """Client -> the fingerprint of the key that signs its answers.

        Raises:
            PluresError: one of them is missing.
        """
        if missing := [client for client in self.clients if client not in self.keys]:
            raise PluresError(
                f"the federation {self.name!r} has no key of {', '.join(missing)} under [keys]: the coordinator adds "
                "each with `plures deploy add CLIENT CLIENT.pub`"
            )
        return dict(self.keys)

    @property
    def spec(self) -> RunSpec:
        """The run that the members agreed on; each uses its own data."""
        for name in self.run.keys() & ELSEWHERE.keys():
            raise PluresError(f"[run] {name} is not used in a federation of sites: {ELSEWHERE[name]}")
        try:
            spec = RunSpec.model_validate({"data": self.name, **self.run})
        except ValidationError as error:
            raise PluresError(f"[run] {explain(error, self.run, RunSpec.model_fields)}") from error
        if (found := spec.calibrated(self.table.empty(self.name, self.clients))) is not spec:
            raise PluresError(f"[run] dp: all members need the same noise, as a number: write dp = {found.dp!r}")
        return spec

    def rehearse(self, code: Code) -> None:
        """Build everything that a run starts with and that needs no rows.

        Args:
            code: user-defined functions that the reader allows.

        Raises:
            PluresError: for any fault that would stop a run before it contacts a site.
        """
        spec = self.spec
        spec.built(code)
        spec.training()
        spec.network(spec.judged(self.table.empty(self.name, self.clients), code), code)

    def origin(self, code: Code) -> Origin:
        """The run as far as it is known before any member has told a fact, for what needs no rows.

        Args:
            code: user-defined functions that the reader allows.

        Raises:
            PluresError: if the method needs such facts, or cannot be built.
        """
        spec = self.spec
        empty = spec.judged(self.table.empty(self.name, self.clients), code)
        made = Origin.of(
            spec.built(code),
            spec.network(empty, code),
            Setting.of(empty),
            empty,
            torch.float32,
            spec.who(),
            spec.seed,
        )
        return made.counting(spec.training())

    @property
    def agreed(self) -> str:
        """Everything but the model itself that must be the same at every member, as JSON."""
        return json.dumps([__version__, self.spec.model_dump(), self.table.model_dump(mode="json"), self.tells])

    @property
    def label(self) -> str:
        """The method as a folder name."""
        return self.spec.title().replace("/", "-").replace(" ", "_")

    @classmethod
    def load(cls, file: Path) -> Plan:
        """Read and check ``federation.toml``."""
        document = read_toml(file)
        if "schema" not in document:
            raise PluresError(f"{file}: the table [schema] is missing: it describes the members' data")
        document["schema"] = Schema.parse(document["schema"], f"{file}, [schema]")
        plan = parsed(cls, document, file)
        with naming(file):
            _ = plan.spec
        return plan


class Allow(Declared):
    """What a site agrees to; see :class:`~plures.remote.allowed.Allowed`."""

    send: Names = Allowed.send
    tell: Names = Allowed.tell
    threads: Annotated[int, Field(ge=1)] = Allowed.threads
    max_epochs: float | None = None
    max_steps: int | None = None
    code: Annotated[tuple[str, ...], Field(strict=False)] = ()
    metrics: Names | None = Allowed.metrics
    digits: Annotated[int, Field(ge=1, le=17)] = Allowed.digits
    least: Annotated[int, Field(ge=1)] = Allowed.least
    versions: Annotated[int, Field(ge=1)] = Allowed.versions
    epsilon: float | None = None
    delta: float | None = None
    unit: Literal["example", "client"] = "example"
    trust: Literal["server", "sum", "nobody"] = "server"
    clip: float | None = None
    channels: Names | None = Allowed.channels

    @property
    def allowed(self) -> Allowed:
        return Allowed(**{item.name: getattr(self, item.name) for item in fields(Allowed)})


class SiteFile(Declared):
    """A site's own file. It never leaves the site; only ``metadata`` and ``client`` are reported.

    Attributes:
        client: name of the site's client.
        data: CSV or Parquet file with the client's rows.
        loader: ``file.py:function`` that returns the rows instead: column -> values, or a frame.
        federation: the file that all members have.
        key: the site's private key.
        authority: certificate that verifies the coordinator's reverse proxy.
        port: loopback port of the node's own processes.
        state: folder of personal state and published models.
        metadata: facts about the client.
        allow: what the site agrees to.
    """

    client: Name
    data: str | None = None
    loader: str | None = None
    federation: str = "federation.toml"
    key: str | None = None
    authority: str = "ca.crt"
    port: Annotated[int, Field(ge=1, le=65535)] = 9094
    state: str = "state"
    metadata: dict[str, str | float | int | bool] = Field(default_factory=dict)
    allow: Allow = Field(default_factory=Allow)

    @property
    def code(self) -> Code:
        """User-defined functions that the federation's file may name as method or network, each with its hash."""
        return Code.of(*self.allow.code, by="site").reading(self.federation)

    @classmethod
    def load(cls, file: Path) -> SiteFile:
        """Read and check ``site.toml``."""
        own = parsed(cls, read_toml(file), file)
        _ = own.code
        with naming(file):
            _ = own.allow.allowed
        return own

    def table(self, home: Path) -> Table:
        """The client's rows.

        Args:
            home: folder of the site's file; its paths are relative to it.
        """
        if (self.data is None) == (self.loader is None):
            raise PluresError(f"{home / 'site.toml'}: give either data, a file, or loader, a function")
        if self.data is not None:
            return read_table(home / self.data)
        assert self.loader is not None
        return called(home, self.loader)


def read_toml(file: Path) -> dict[str, Any]:
    """A TOML file."""
    try:
        return tomllib.loads(file.read_text(encoding="utf-8-sig"))
    except OSError as error:
        hint = (
            "`plures deploy init` writes it at the coordinator"
            if file.name != SITE
            else "`plures deploy join` writes it"
        )
        where = (
            f"{hint}; run the command in its folder, or name the file"
            if isinstance(error, FileNotFoundError)
            else "name a file"
        )
        raise PluresError(f"{file} cannot be read: {error.strerror}; {where}") from error
    except (ValueError, RecursionError) as error:
        raise PluresError(f"{file} is not valid TOML: {error}") from error


@contextmanager
def naming(file: Path) -> Iterator[None]:
    """Add the file's name to the message of an error."""
    try:
        yield
    except PluresError as error:
        raise PluresError(f"{file}: {error}") from error


def parsed(kind: type[D], document: Mapping[str, Any], file: Path) -> D:
    """Validate a file's content."""
    try:
        return kind.model_validate(document)
    except ValidationError as error:
        raise PluresError(f"{file}: {explain(error, document, kind.model_fields)}") from error


def called(home: Path, loader: str) -> Table:
    """Call a site's own loader."""
    name, colon, function = loader.partition(":")
    spec = importlib.util.spec_from_file_location("plures_site_loader", home / name)
    if not colon or spec is None or spec.loader is None or not (home / name).exists():
        raise PluresError(f"loader {loader!r}: write file.py:function, with the file beside site.toml")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    load = getattr(module, function, None)
    if not callable(load):
        raise PluresError(f"loader {loader!r}: {name} has no function {function}")
    table: Table = load()
    return table
