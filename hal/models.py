"""Load a checkpoint onto a backend."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hal.backend import TorchBackend
from hal.checkpoint import require_finite
from hal.errors import ModelError, UsageError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class LoadedModel:
    """A model in evaluation mode on its device, with its tokenizer (None when the directory has none) and
    where it came from.
    """

    model: nn.Module
    tokenizer: Any | None
    directory: Path


def load_model(
    directory: str | Path, backend: TorchBackend, dtype: str = "auto", trust_remote_code: bool = False
) -> LoadedModel:
    """Load the transformers checkpoint in `directory` onto `backend`, in `dtype` ("auto" keeps the
    checkpoint's own). The architecture's own class is built, causal or encoder. Raises ModelError for a
    missing, truncated, pickled or non-finite checkpoint, or one that needs remote code without
    `trust_remote_code`, and UsageError for an unknown or unsupported dtype.
    """
    directory = Path(directory)
    target = parse_dtype(dtype)
    if target != "auto" and target not in backend.dtypes:
        raise UsageError(f"backend '{backend.name}' does not support dtype {dtype}; it declares {_names(backend)}")
    require_finite(directory)
    with _quiet_transformers():
        config = _read_config(directory, trust_remote_code)
        model = _build(directory, config, target, trust_remote_code)
        tokenizer = _read_tokenizer(directory, trust_remote_code)
    return LoadedModel(model.to(backend.device).eval(), tokenizer, directory)


def parse_dtype(name: str) -> torch.dtype | str:
    """The torch dtype called `name`, or "auto"; raises UsageError for any other word."""
    if name == "auto":
        return "auto"
    if name not in DTYPES:
        raise UsageError(f"unknown dtype '{name}': choose auto, {', '.join(DTYPES)}")
    return DTYPES[name]


def _names(backend: TorchBackend) -> str:
    return ", ".join(str(dtype).removeprefix("torch.") for dtype in backend.dtypes)


def _read_config(directory: Path, trust_remote_code: bool) -> Any:
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(directory, trust_remote_code=trust_remote_code, local_files_only=True)
    except (ValueError, OSError, KeyError) as error:
        raise ModelError(f"config.json in {directory} cannot be used: {_remote_hint(error)}") from error


def _build(directory: Path, config: Any, dtype: torch.dtype | str, trust_remote_code: bool) -> nn.Module:
    options = {"dtype": dtype, "use_safetensors": True, "local_files_only": True}
    try:
        if trust_remote_code and getattr(config, "auto_map", None):
            from transformers import AutoModelForCausalLM

            return _checked(AutoModelForCausalLM.from_pretrained(directory, trust_remote_code=True, **options))
        return _checked(_architecture(config, directory).from_pretrained(directory, config=config, **options))
    except (ValueError, OSError, RuntimeError, KeyError, ImportError) as error:
        raise ModelError(f"checkpoint {directory} cannot be loaded: {_remote_hint(error)}") from error


def _architecture(config: Any, directory: Path) -> Any:
    import transformers

    for name in getattr(config, "architectures", None) or []:
        if hasattr(transformers, name):
            return getattr(transformers, name)
    if getattr(config, "auto_map", None):
        raise ModelError(
            f"checkpoint {directory} brings its own code, which is refused: read it, then pass --trust-remote-code"
        )
    return transformers.AutoModel


def _checked(model: Any) -> nn.Module:
    if not isinstance(model, nn.Module):
        raise ModelError(f"loading gave a {type(model).__name__}, not a torch module")
    return model


def _read_tokenizer(directory: Path, trust_remote_code: bool) -> Any | None:
    from transformers import AutoTokenizer

    if not any((directory / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json", "vocab.json")):
        return None
    try:
        return AutoTokenizer.from_pretrained(directory, trust_remote_code=trust_remote_code, local_files_only=True)
    except (ValueError, OSError, KeyError) as error:
        raise ModelError(f"the tokenizer in {directory} cannot be loaded: {_remote_hint(error)}") from error


def _remote_hint(error: Exception) -> str:
    message = " ".join(str(error).split())
    if "trust_remote_code" in message:
        return "it needs remote code, which is refused: read it, then pass --trust-remote-code"
    return message[:300]


@contextlib.contextmanager
def _quiet_transformers() -> Iterator[None]:
    from transformers.utils import logging as transformers_logging

    before = transformers_logging.get_verbosity()
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity(logging.ERROR)
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(before)
        if bars:
            transformers_logging.enable_progress_bar()
