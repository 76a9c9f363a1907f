"""Draw the README's picture: the terminal output of a real scan with a simulated fault, as SVG.

python docs/make_images.py
"""

from __future__ import annotations

import io
from pathlib import Path

from rich.console import Console

import srdd
from hal import get_backend
from hal.bundled import model_dir
from hal.models import load_model
from srdd.faults import parse_fault, simulate
from srdd.report.text import print_report

IMAGES = Path(__file__).parent / "images"
FAULT = "dead_zone@7:sparsity=0.1"


def main() -> None:
    """Scan the bundled model with the fault of `make demo` and save what the terminal shows."""
    loaded = load_model(model_dir(), get_backend("cpu-reference"))
    with simulate(loaded.model, [parse_fault(FAULT)]):
        report = srdd.scan(loaded.model, loaded.tokenizer, checkpoint=loaded.directory)
    console = Console(record=True, width=132, file=io.StringIO())
    print_report(report, console)
    console.save_svg(str(IMAGES / "scan.svg"), title=f"python -m srdd --inject {FAULT}")


if __name__ == "__main__":
    main()
