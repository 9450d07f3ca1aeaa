"""What a site's table must look like, its check, and the inputs derived from it."""

from plures.tables.check import Report, check
from plures.tables.column import Category, Number
from plures.tables.draft import Draft, draft
from plures.tables.schema import Reading, Schema, Splits
from plures.tables.table import Table, read_table, write_table

__all__ = [
    "Category",
    "Draft",
    "Number",
    "Reading",
    "Report",
    "Schema",
    "Splits",
    "Table",
    "check",
    "draft",
    "read_table",
    "write_table",
]
