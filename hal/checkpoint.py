"""What lies in a checkpoint directory, checked before anything is built from it."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from hal.errors import ModelError, one_line

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
_PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt")
# Of what a model can be built in; other formats in a file belong to quantisers.
_FLOATING = {"F64": torch.float64, "F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}


def weight_files(directory: Path) -> list[Path]:
    """The safetensors files of a checkpoint, complete and readable; raises ModelError that names what is
    missing, truncated or pickled.
    """
    require_directory(directory)
    files = _listed_files(directory)
    for file in files:
        if not file.is_file():
            raise ModelError(f"checkpoint {directory} is incomplete: {file.name} is missing; copy it again")
        _open_check(file)
    return files


def require_directory(directory: Path) -> None:
    """Raise ModelError unless `directory` exists and holds a config.json."""
    if not directory.is_dir():
        raise ModelError(
            f"model directory {directory} {'is a file' if directory.exists() else 'does not exist'}: "
            "give a directory with config.json and safetensors"
        )
    if not (directory / "config.json").is_file():
        raise ModelError(f"model directory {directory} has no config.json: give a transformers checkpoint directory")


def require_finite(directory: Path) -> None:
    """Raise ModelError that names the first weight with NaN or infinity; reads one tensor at a time."""
    for file in weight_files(directory):
        with open_weights(file) as tensors:
            for name in tensors.keys():  # noqa: SIM118 -- safe_open is no mapping
                weight = tensors.get_tensor(name)
                if weight.is_floating_point() and not _all_finite(weight):
                    raise ModelError(
                        f"weight '{name}' in {file} is not finite (NaN or infinity): the checkpoint is damaged; "
                        "copy or convert it again"
                    )


def _all_finite(weight: torch.Tensor) -> bool:
    if weight.element_size() == 1:  # the 8-bit formats have no arithmetic of their own
        weight = weight.float()
    return bool(torch.isfinite(weight).all())


def _listed_files(directory: Path) -> list[Path]:
    index = directory / INDEX
    if index.is_file():
        return [directory / name for name in _indexed_names(index)]
    if (directory / SINGLE).is_file():
        return [directory / SINGLE]
    pickled = sorted(path.name for pattern in _PICKLED for path in directory.glob(pattern))
    if pickled:
        raise ModelError(
            f"{directory} holds pickled weights only ({pickled[0]}): pickles can run code, so they are refused; "
            "convert them to safetensors"
        )
    raise ModelError(f"model directory {directory} has no {SINGLE}: give a checkpoint saved as safetensors")


def _indexed_names(index: Path) -> list[str]:
    try:
        names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (ValueError, KeyError, AttributeError, TypeError, OSError) as error:
        raise ModelError(f"{index} is not a safetensors index ({one_line(error)}): copy it again") from error
    strangers = [name for name in names if not isinstance(name, str) or Path(name).name != name]
    if strangers or not names:
        raise ModelError(f"{index} names no file of its own directory ({strangers or 'it is empty'}): copy it again")
    return sorted(names)


def open_weights(file: Path) -> Any:
    """The safetensors file opened for reading one tensor at a time. Read, not mapped: a mapping takes the whole
    file's address space, which is what a limit on memory counts.
    """
    return safe_open(file, framework="pt", backend="pread")


def _open_check(file: Path) -> None:
    try:
        with open_weights(file):
            pass
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{file} is truncated or not safetensors ({one_line(error)}): copy it again") from error


class CheckpointWeights:
    """The weights of a checkpoint directory by the names they are stored under, read one at a time. `slices` holds
    them unread: indexing one with `[...]` reads it.
    """

    def __init__(self, directory: Path) -> None:
        opened = [open_weights(file) for file in weight_files(directory)]
        self.slices: dict[str, Any] = {name: file.get_slice(name) for file in opened for name in file.keys()}  # noqa: SIM118 -- no mapping

    def tensor(self, name: str) -> torch.Tensor | None:
        """The weight stored as `name` on the host, in the checkpoint's dtype, or None when there is none."""
        return self.slices[name][...] if name in self.slices else None

    def shape(self, stored: str) -> tuple[int, ...]:
        """The shape of the weight stored as `stored`, without reading it."""
        return tuple(self.slices[stored].get_shape())

    def elements(self) -> int:
        """How many elements all weights have together."""
        return sum(math.prod(self.shape(name)) for name in self.slices)

    def widest_dtype(self) -> torch.dtype | None:
        """Of the floating-point formats that models are built in, the widest among the weights; None without one."""
        return max(self._dtypes(), key=lambda dtype: dtype.itemsize, default=None)

    def dtype(self) -> torch.dtype | None:
        """The dtype of the first weight in a floating-point format that models are built in, None without one."""
        return next(self._dtypes(), None)

    def _dtypes(self) -> Iterator[torch.dtype]:
        formats = (weight.get_dtype() for weight in self.slices.values())
        return (_FLOATING[name] for name in formats if name in _FLOATING)
