"""Four hospitals as a federation of sites: their files, and the same run in one process."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from benchmarks.aftermath import EXACT

from plures.deploy.plan import Plan
from plures.evaluate import finish, fit
from plures.evaluate.results import SeedResult
from plures.run import Execution, Run
from plures.tables.heart import heart_schema, heart_tables
from plures.tables.schema import Schema, Table, write_table

RUN = {"method": "ditto+threshold", "lr": 0.1, "rounds": 4, "seed": 3}


def written(home: Path, rules: str = "", send: tuple[str, ...] = ("model",), **run: object) -> Path:
    """Write new files of the four hospitals, and return the federation's."""
    return files(home, heart_schema(), heart_tables(), rules, send, **run)


def files(
    home: Path,
    schema: Schema,
    tables: Mapping[str, Table],
    rules: str = "",
    send: tuple[str, ...] = ("model",),
    **run: object,
) -> Path:
    """Write new files of a federation and of its sites, and return the federation's."""
    told = "\n".join(f"{key} = {json.dumps(value)}" for key, value in (RUN | run).items())
    plan = f'name = "heart"\nclients = {json.dumps(list(tables))}\n\n[run]\n{told}\n\n[rules]\n{rules}\n\n'
    for name, table in tables.items():
        folder = home / name
        folder.mkdir(parents=True, exist_ok=True)
        write_table(folder / "data.csv", table)
        lines = [f'client = "{name}"', 'data = "data.csv"', 'federation = "../federation.toml"', "[allow]"]
        (folder / "site.toml").write_text("\n".join([*lines, f"send = {json.dumps(send)}", *EXACT, ""]))
    file = home / "federation.toml"
    file.write_text(plan + schema.to_toml())
    return file


def simulated(file: Path, tables: Mapping[str, Table] | None = None) -> tuple[SeedResult, Run]:
    """The same run over the same tables in one process."""
    plan = Plan.load(file)
    federation = plan.table.federation(plan.name, tables or heart_tables())
    run = plan.spec.run(federation, Execution("loop", 1, False, "float32", "cpu"))
    return finish(fit(run, "simulated"), plan.spec.seed), run
