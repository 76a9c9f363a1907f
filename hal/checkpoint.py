"""What lies in a checkpoint directory, checked before anything is built from it."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from hal.errors import ModelError, one_line

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
_PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt")


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
        with safe_open(file, framework="pt") as tensors:
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


def _open_check(file: Path) -> None:
    try:
        with safe_open(file, framework="pt"):
            pass
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{file} is truncated or not safetensors ({one_line(error)}): copy it again") from error


class CheckpointWeights:
    """The weights of a checkpoint directory by name, read one at a time. Names are tried as they are, and
    without or with their first part, because checkpoints of a bare model and of one with a head differ in that.
    """

    def __init__(self, directory: Path) -> None:
        self._file_of: dict[str, Path] = {}
        for file in weight_files(directory):
            with safe_open(file, framework="pt") as tensors:
                self._file_of.update(dict.fromkeys(tensors.keys(), file))

    def tensor(self, name: str) -> torch.Tensor | None:
        """The weight called `name` on the host, in the checkpoint's dtype, or None when no weight has that
        name.
        """
        stored = self._stored_name(name)
        if stored is None:
            return None
        with safe_open(self._file_of[stored], framework="pt") as tensors:
            weight: torch.Tensor = tensors.get_tensor(stored)
        return weight

    def _stored_name(self, name: str) -> str | None:
        bare = name.partition(".")[2]
        candidates = [name, bare, *(f"{prefix}.{name}" for prefix in self._prefixes())]
        return next((candidate for candidate in candidates if candidate in self._file_of), None)

    def _prefixes(self) -> set[str]:
        return {stored.partition(".")[0] for stored in self._file_of}
