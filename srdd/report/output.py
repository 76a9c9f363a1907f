"""Write a report in the forms asked for, all of them or none."""

from __future__ import annotations

from pathlib import Path

from hal.files import write_texts
from srdd.report.html import render_html
from srdd.report.model import Report, to_json
from srdd.report.store import to_text


def write_report(report: Report, json: Path | None, html: Path | None) -> None:
    """Write `report` to the paths that are not None; raises UsageError, with neither file changed, when one cannot be
    written.
    """
    texts: dict[Path, str] = {}
    if json is not None:
        texts[json] = to_text(to_json(report))
    if html is not None:
        texts[html] = render_html(report)
    write_texts(texts)
