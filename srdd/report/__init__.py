"""The report of a scan: its form, its file, and its renderings."""

from srdd.report.model import Report, load_report, to_json
from srdd.report.store import SCHEMA

__all__ = ["SCHEMA", "Report", "load_report", "to_json"]
