"""Options of a command in a TOML file, written beside its results and read with ``--config``."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import click
import typer

from plures.errors import PluresError, suggestion
from plures.faults import text_of
from plures.files import write_text
from plures.signature import shown
from plures.tables.declared import toml

APART = ("config", "quiet", "help")
"""Options that belong to one call of a command, and are not written."""


def configured(context: typer.Context, file: Path | None) -> Path | None:
    """Take the options of a file as the command's defaults: what is typed goes before them.

    Raises:
        PluresError: if the file is no TOML, a key is not an option, or a value does not fit it.
    """
    if file is None or context.resilient_parsing:
        return file
    try:
        found = tomllib.loads(text_of(file, "a TOML file of options"))
    except (ValueError, RecursionError) as error:
        if isinstance(error, PluresError):
            raise
        raise PluresError(f"{file} is not TOML: {error}") from error
    known = {param.name: param for param in context.command.params if param.name and param.name not in APART}
    defaults = dict[str, Any]()
    for key, value in found.items():
        name = key.replace("-", "_")
        if name not in known:
            raise PluresError(f"{file}: no option {key!r}; {suggestion(name, known, 'options are')}")
        defaults[name] = _fitted(context, known[name], value, f"{file}: {key}")
    context.default_map = defaults
    return file


def _fitted(context: typer.Context, param: click.Parameter, value: Any, where: str) -> Any:
    """A value of the file, as the option takes it."""
    if isinstance(value, Mapping):
        value = [f"{name}={json.dumps(one)}" for name, one in value.items()]
    truth = isinstance(param.type, click.types.BoolParamType)
    several = param.multiple if isinstance(param, click.Option) else False
    given = value if isinstance(value, list) and several else [value]
    for one in given:
        if isinstance(one, list) or isinstance(one, bool) != truth:
            wanted = "true or false" if truth else "a list" if several else "a single value"
            raise PluresError(f"{where} = {shown(one)}; give {wanted}, as {param.opts[0]} takes it")
        try:
            param.type.convert(one, param, context)
        except click.BadParameter as error:
            raise PluresError(f"{where}: {error.message.rstrip('.')}") from error
    return given if several else value


def write_config(file: Path) -> None:
    """Write the options of the current command, typed or defaulted; those without a value are left out."""
    context = click.get_current_context()
    lines = [f"# plures {context.info_name} --config {file.name}"]
    for param in context.command.params:
        name = param.name or ""
        value = context.params.get(name)
        if name in APART or value is None or value in ([], ()):
            continue
        plain = tuple(value) if isinstance(value, list | tuple) else str(value) if isinstance(value, Path) else value
        lines.append(f"{name} = {toml(plain)}")
    write_text(file, "\n".join(lines) + "\n")


Config = Annotated[
    Path | None,
    typer.Option(
        "--config",
        is_eager=True,
        callback=configured,
        help="TOML file of options, such as the compare.toml of an earlier comparison; what is typed goes before it.",
    ),
]
