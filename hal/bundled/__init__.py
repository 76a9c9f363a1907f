"""The bundled model: a small Qwen2 trained for arithmetic, shipped with this package and made by it.

It is what commands use when no `--model` is given. A larger model is used instead by naming its directory,
`--model DIR`: any transformers checkpoint with config.json, safetensors and a tokenizer. `python -m hal.bundled.make`
makes the bundled one again. Importing this package loads no weights and not transformers.
"""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path
from typing import Any, Final

from hal.errors import ModelError

NAME: Final = "qwen2-arithmetic-12l"
CARD: Final = "model_card.json"


def model_dir() -> Path:
    """The directory of the shipped checkpoint, ready for `from_pretrained`."""
    directory = Path(str(files(__name__))) / NAME
    if not (directory / "config.json").is_file():
        raise ModelError(
            f"the bundled model is not at {directory}: install the package as files, "
            f"or make it with `python -m hal.bundled.make --out {directory}`"
        )
    return directory


def model_card() -> dict[str, Any]:
    """What is known of the shipped checkpoint: how it was made, its losses and accuracy, its licence."""
    card: dict[str, Any] = json.loads((model_dir() / CARD).read_text(encoding="utf-8"))
    return card


__all__ = ["CARD", "NAME", "model_card", "model_dir"]
