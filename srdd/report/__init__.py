"""The report of a scan: its form, its file, and its renderings."""

from srdd.report.model import Report, from_json, load_report, to_json
from srdd.report.store import SCHEMA

__all__ = ["SCHEMA", "Report", "from_json", "load_report", "to_json"]
