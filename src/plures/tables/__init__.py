"""What a site's table must look like, its check, and the inputs derived from it."""

from plures.tables.check import Report, check
from plures.tables.column import Boolean, Category, Date, Number, Ordered
from plures.tables.draft import Draft, draft
from plures.tables.schema import Reading, Schema, Splits
from plures.tables.source import from_table, is_table, keep_schema, read_schema, schema_of, write_schema
from plures.tables.table import Table, read_table, write_table

__all__ = [
    "Boolean",
    "Category",
    "Date",
    "Draft",
    "Number",
    "Ordered",
    "Reading",
    "Report",
    "Schema",
    "Splits",
    "Table",
    "check",
    "draft",
    "from_table",
    "is_table",
    "keep_schema",
    "read_schema",
    "read_table",
    "schema_of",
    "write_schema",
    "write_table",
]
