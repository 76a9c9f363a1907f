"""The scan gives the same verdict on every backend.

The scan is a program of its own, run as its user runs it: this package may not import it, and the verdict that counts
is the one that a process started on that machine comes to.
"""

from __future__ import annotations

import functools
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from conformance.case import Case, Context
from conformance.evidence import Evidence, Mismatch, require

KINDS = ("dead_zone", "saturation", "bias", "noise", "spike")
LAYER = 5
_VERDICT_CODES = (0, 1)


def cases() -> Iterator[Case]:
    """The bundled model as it is, by both levels, and with each kind of fault. A fault's layer has to be the only
    finding, so that one of them tells in the quick run what the healthy model tells in the full one.
    """
    yield _case("healthy/quick", None, "quick", False)
    yield _case("healthy/full", None, "full", False)
    for kind in KINDS:
        yield _case(f"{kind}/quick", kind, "quick", kind == "dead_zone")


def _case(name: str, kind: str | None, level: str, quick: bool) -> Case:
    wanted = f"the scan finds {kind} at its layer" if kind else "the scan finds the bundled model healthy"
    return Case(f"scan/{name}", "scan", functools.partial(_check, kind, level), wanted, quick=quick)


def _check(kind: str | None, level: str, context: Context) -> Evidence:
    report = _scan(context, ["--level", level, *(["--inject", f"{kind}@{LAYER}"] if kind else [])])
    found = [f"{finding['kind']}@{finding['layer']}" for finding in report["findings"]]
    expected = [f"{kind}@{LAYER}"] if kind else []
    require(
        found == expected,
        f"the scan says {report['verdict']} ({', '.join(found[:3]) or 'no finding'}), expected "
        + (expected[0] if expected else "healthy"),
    )
    return Evidence(agreement={"verdict": report["verdict"], "findings": ", ".join(found) or "none"})


def _scan(context: Context, options: list[str]) -> dict[str, Any]:
    device = [] if context.device.index is None else ["--device", str(context.device.index)]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "report.json"
        command = [sys.executable, "-m", "srdd", "--backend", context.backend.name, *device, *options]
        outcome = subprocess.run(  # noqa: S603 -- our own program with our own arguments
            [*command, "--json", str(path), "--quiet"], capture_output=True, text=True, check=False
        )
        if outcome.returncode not in _VERDICT_CODES:
            last = outcome.stderr.strip().splitlines()[-1:] or ["no message"]
            raise Mismatch(f"the scan ended with exit code {outcome.returncode}: {last[0]}")
        report: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return report
