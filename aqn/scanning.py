"""Have a scan made. It is another program: what goes between it and the guide is the report, and nothing else."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from hal.errors import UsageError
from srdd.report import Report, load_report

HEALTHY, FAULTY = 0, 1


def scan_elsewhere(
    backend: str, device: str | None, model: Path | None, dtype: str, level: str, faults: Sequence[str]
) -> Report:
    """Run `python -m srdd` with these options in a process of its own and read its report; what it refuses is a
    UsageError with its own words.
    """
    with tempfile.TemporaryDirectory(prefix="aqn-guide-") as folder:
        file = Path(folder) / "report.json"
        options = {"--backend": backend, "--device": device, "--model": model, "--dtype": dtype, "--level": level}
        command = [sys.executable, "-m", "srdd", "scan", "--json", str(file)]
        command += [part for name, value in options.items() if value is not None for part in (name, str(value))]
        command += [part for fault in faults for part in ("--inject", fault)]
        outcome = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False)  # noqa: S603 -- our own program
        if outcome.returncode not in (HEALTHY, FAULTY):
            lines = outcome.stderr.strip().splitlines() or [f"exit code {outcome.returncode}"]
            raise UsageError(f"the scan failed: {lines[-1].removeprefix('error: ')}")
        return load_report(file)
