"""How this site's rows are read. Fill in `load`; `plures deploy check site.toml` says whether they fit."""

from pathlib import Path

from plures.errors import PluresError
from plures.tables import Table, read_table

FILE = Path(__file__).with_name("data.csv")


def load() -> Table:
    """The site's rows: column -> values, one per row, or a frame of pandas or polars. None is a missing value."""
    if not FILE.exists():
        raise PluresError(
            f"there are no rows yet: put them into {FILE}, or say in {Path(__file__).name} where they are"
        )
    return read_table(FILE)
