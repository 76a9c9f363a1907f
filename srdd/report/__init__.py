"""The report of a scan: its form, its file, and its renderings."""

from srdd.report.model import SCHEMA, Report
from srdd.report.store import load_report, to_json

__all__ = ["SCHEMA", "Report", "load_report", "to_json"]
