"""Load a checkpoint onto a backend."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hal.backend import TorchBackend
from hal.checkpoint import require_finite, weight_files
from hal.errors import ModelError, UsageError, one_line

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

# Mismatches are let through to be reported by name: transformers itself names none.
_LOADING: dict[str, Any] = {
    "use_safetensors": True,
    "local_files_only": True,
    "output_loading_info": True,
    "ignore_mismatched_sizes": True,
}


@dataclass(frozen=True)
class LoadedModel:
    """A model in evaluation mode on its device, with its tokenizer (None when the directory has none) and where
    it came from.
    """

    model: nn.Module
    tokenizer: Any | None
    directory: Path


def load_model(
    directory: str | Path, backend: TorchBackend, dtype: str = "auto", trust_remote_code: bool = False
) -> LoadedModel:
    """Load the transformers checkpoint in `directory` onto `backend`, in `dtype` ("auto" keeps the checkpoint's
    own). The architecture's own class is built, causal or encoder. Raises ModelError for a missing, truncated,
    incomplete, pickled or non-finite checkpoint, or one that needs remote code without `trust_remote_code`, and
    UsageError for an unknown or unsupported dtype.
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
    _require_supported(model, backend)
    return LoadedModel(model.to(backend.device).eval(), tokenizer, directory)


def model_without_weights(directory: str | Path, trust_remote_code: bool = False) -> nn.Module:
    """The model of the checkpoint in `directory` on torch's meta device: all its modules, and no memory. Raises
    ModelError as `load_model` does, save for weights that are not finite.
    """
    directory = Path(directory)
    weight_files(directory)
    with _quiet_transformers():
        config = _read_config(directory, trust_remote_code)
        return _load(_loader(directory, config, trust_remote_code), directory, dtype="auto", device_map="meta")


def parse_dtype(name: str) -> torch.dtype | str:
    """The torch dtype called `name`, or "auto"; raises UsageError for any other word."""
    if name == "auto":
        return "auto"
    if name not in DTYPES:
        raise UsageError(f"unknown dtype '{name}': choose auto, {', '.join(DTYPES)}")
    return DTYPES[name]


def _require_supported(model: nn.Module, backend: TorchBackend) -> None:
    for name, weight in model.named_parameters():
        if weight.is_floating_point() and weight.dtype not in backend.dtypes:
            raise UsageError(
                f"weight '{name}' is {_short(weight.dtype)}, which backend '{backend.name}' does not support: "
                f"pass --dtype with one of {_names(backend)}"
            )


def _names(backend: TorchBackend) -> str:
    return ", ".join(_short(dtype) for dtype in backend.dtypes)


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


# Configurations, models and tokenizers raise what they like on files that are wrong: each `except Exception` below
# hands its cause on inside a ModelError.


def _read_config(directory: Path, trust_remote_code: bool) -> Any:
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(directory, trust_remote_code=trust_remote_code, local_files_only=True)
    except Exception as error:
        raise ModelError(f"config.json in {directory} cannot be used: {_remote_hint(error)}") from error


def _loader(directory: Path, config: Any, trust_remote_code: bool) -> Callable[..., Any]:
    if trust_remote_code and getattr(config, "auto_map", None):
        from transformers import AutoModelForCausalLM

        return partial(AutoModelForCausalLM.from_pretrained, directory, trust_remote_code=True)
    return partial(_architecture(config, directory).from_pretrained, directory, config=config)


def _build(directory: Path, config: Any, dtype: torch.dtype | str, trust_remote_code: bool) -> nn.Module:
    loader = _loader(directory, config, trust_remote_code)
    if getattr(config, "quantization_config", None) is None:  # quantisers want the real device
        # Without memory first: a config.json of some larger model would fill the host before it is found wrong.
        _load(loader, directory, dtype=dtype, device_map="meta")
    return _load(loader, directory, dtype=dtype)


def _load(loader: Callable[..., Any], directory: Path, **options: Any) -> nn.Module:
    try:
        model, loading = loader(**_LOADING, **options)
    except Exception as error:
        raise ModelError(f"checkpoint {directory} cannot be loaded: {_remote_hint(error)}") from error
    if not isinstance(model, nn.Module):
        raise ModelError(f"loading gave a {type(model).__name__}, not a torch module")
    _require_complete(directory, loading)
    return model


def _require_complete(directory: Path, loading: dict[str, Any]) -> None:
    """Refuse a checkpoint that leaves weights of the model at random values; transformers only warns."""
    mismatched = sorted(loading["mismatched_keys"])
    if mismatched:
        name, found, expected = mismatched[0]
        raise ModelError(
            f"checkpoint {directory} does not fit its config.json: '{name}' has shape {tuple(found)} and the model "
            f"needs {tuple(expected)}{_others(mismatched)}; use the config.json that belongs to the weights"
        )
    missing = sorted(loading["missing_keys"])
    if missing:
        raise ModelError(
            f"checkpoint {directory} lacks the weight '{missing[0]}'{_others(missing)} and they would be random: "
            "copy it again, or use the config.json that belongs to the weights"
        )


def _others(keys: list[Any]) -> str:
    return f" (and {len(keys) - 1} more)" if len(keys) > 1 else ""


def _architecture(config: Any, directory: Path) -> Any:
    import transformers

    names = getattr(config, "architectures", None) or []
    for name in names:
        architecture = getattr(transformers, str(name), None)
        if isinstance(architecture, type) and issubclass(architecture, transformers.PreTrainedModel):
            return architecture
    if getattr(config, "auto_map", None):
        raise ModelError(
            f"checkpoint {directory} brings its own code, which is refused: read it, then pass --trust-remote-code"
        )
    if names:
        raise ModelError(
            f"checkpoint {directory} is of architecture {names[0]}, which transformers {transformers.__version__} "
            "does not have: install a release that has it"
        )
    return transformers.AutoModel


def _read_tokenizer(directory: Path, trust_remote_code: bool) -> Any | None:
    from transformers import AutoTokenizer

    if not any((directory / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json", "vocab.json")):
        return None
    try:
        return AutoTokenizer.from_pretrained(directory, trust_remote_code=trust_remote_code, local_files_only=True)
    except Exception as error:
        raise ModelError(f"the tokenizer in {directory} cannot be loaded: {_remote_hint(error)}") from error


def _remote_hint(error: Exception) -> str:
    message = one_line(error)
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
