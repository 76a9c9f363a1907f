"""An experiment's result as files."""

from __future__ import annotations

import json
from pathlib import Path

from aqn.experiments.result import Result
from aqn.experiments.tables import markdown
from hal.files import write_text


def save(result: Result, directory: Path) -> list[Path]:
    """Write EXPERIMENT.json, .md and, with matplotlib, .svg into `directory`; returns what was written."""
    paths = [directory / f"{result.experiment}{ending}" for ending in (".json", ".md")]
    write_text(paths[0], json.dumps(result.to_json(), indent=1, ensure_ascii=False) + "\n")
    write_text(paths[1], markdown(result))
    try:
        from aqn.experiments.plot import plot_cells
    except ImportError:  # matplotlib is an extra
        return paths
    paths.append(directory / f"{result.experiment}.svg")
    write_text(paths[2], plot_cells(result))
    return paths
