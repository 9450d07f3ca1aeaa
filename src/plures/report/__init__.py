"""Tables, the catalogue of methods, and the single-file HTML report of a comparison."""

from plures.report.audits import audit_page
from plures.report.catalogue import catalogue
from plures.report.html import html_report
from plures.report.table import console_table, headline, markdown_table

__all__ = ["audit_page", "catalogue", "console_table", "headline", "html_report", "markdown_table"]
