"""Pages of the reference: the public names of each room, and every command."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from html import escape
from types import ModuleType

import click
import typer
from tools.markdown import table

import plures
from plures.cli import app

ROOMS = {
    "federation": "Federation: the clients and their data",
    "models": "Models: modules as functions of their leaves",
    "method": "Method: the six parts",
    "run": "Run: rounds, participation, training",
    "evaluate": "Evaluate: scores and comparisons",
    "report": "Report: tables and pages",
    "study": "Study: many comparisons",
    "diagnose": "Diagnose: how clients differ",
    "track": "Track: numbers to trackers",
    "tables": "Tables: what a site's data must look like",
    "serving": "Serving: one client's model",
    "deploy": "Deploy: federations of real sites",
}
"""The rooms of the package that have a page, with its title; a name that two export is on the page of the first."""


def reference() -> dict[str, str]:
    """Every page of the reference."""
    found = {f"reference/{room}.md": page(room, names) for room, names in shown().items()}
    return found | {"reference/plures.md": front(), "reference/cli.md": commands()}


def shown() -> dict[str, list[str]]:
    """The names that each room's page shows: those that it exports and defines."""
    return {room: [n for n in exported(room) if origin(room, n) in (f"plures.{room}", None)] for room in ROOMS}


def exported(room: str) -> list[str]:
    """Public names of a room."""
    module = importlib.import_module(f"plures.{room}")
    return sorted(getattr(module, "__all__", ()), key=str.lower)


def origin(room: str, name: str) -> str | None:
    """The package in which an object is defined; ``None`` if it is unknown."""
    module: ModuleType = importlib.import_module(f"plures.{room}")
    where = getattr(getattr(module, name), "__module__", None)
    if not isinstance(where, str) or not where.startswith("plures."):
        rooms = list(ROOMS)
        earlier = any(name in exported(other) for other in rooms[: rooms.index(room)])
        return "elsewhere" if earlier else None
    return ".".join(where.split(".")[:2])


def page(room: str, names: list[str]) -> str:
    """A room: what it is, and everything that it exports."""
    about = (importlib.import_module(f"plures.{room}").__doc__ or "").strip()
    return "\n\n".join([f"# {ROOMS[room]}", about, *(f"::: {path(room, name)}" for name in names)]) + "\n"


def path(room: str, name: str) -> str:
    """Full path of a name, where it is defined; a function may have the name of its module."""
    found = getattr(importlib.import_module(f"plures.{room}"), name)
    if callable(found) and getattr(found, "__module__", "").startswith("plures.") and hasattr(found, "__qualname__"):
        return f"{found.__module__}.{found.__qualname__}"
    return f"plures.{room}.{name}"


def front() -> str:
    """The names that ``import plures`` provides, with links to their descriptions."""
    pages = {name: room for room, names in shown().items() for name in names}
    rows: list[tuple[object, ...]] = [("[`plures.METHODS`](../methods/index.md)", "The methods, by name.")]
    for name in sorted(set(plures.__all__) - {"METHODS", "__version__"}, key=str.lower):
        told = (getattr(plures, name).__doc__ or "").strip().partition("\n")[0]
        linked = (
            f"[`plures.{name}`]({pages[name]}.md#{path(pages[name], name)})" if name in pages else f"`plures.{name}`"
        )
        rows.append((linked, told))
    return "\n\n".join(["# plures", "What most programs need, from one place.", table(("name", "what it is"), rows)])


def commands() -> str:
    """Every command, its arguments and options."""
    root = typer.main.get_command(app)
    parts = ["# Command line", "Generated from the commands themselves; `plures COMMAND --help` says the same."]
    for name, command in walk(root, "plures"):
        rows = [
            (option(one), f"`{default(one)}`" if default(one) else "", (getattr(one, "help", "") or "").strip())
            for one in command.params
            if one.name != "help"
        ]
        parts += [f"## {name}", escape(command.help or "", quote=False)]
        if rows:
            parts.append(table(("option", "default", "meaning"), rows))
    return "\n\n".join(parts)


def walk(command: click.Command, name: str) -> Iterator[tuple[str, click.Command]]:
    """All subcommands of a command, by the words that call them."""
    found: Mapping[str, click.Command] = getattr(command, "commands", {})
    if not found:
        yield name, command
    for word, inner in found.items():
        yield from walk(inner, f"{name} {word}")


def option(one: click.Parameter) -> str:
    """Spelling of a parameter on the command line."""
    names = [*one.opts, *one.secondary_opts] if one.param_type_name == "option" else [(one.name or "").upper()]
    return ", ".join(f"`{name}`" for name in names)


def default(one: click.Parameter) -> str:
    """A parameter's default, if it is worth showing."""
    value = one.default
    return "" if value is None or value is False or callable(value) else str(value)
