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
from hal.checkpoint import CheckpointWeights, require_finite, weight_files
from hal.errors import ModelError, UsageError, one_line
from hal.host_attention import HOST_ATTENTION
from hal.memory import GIB, named_when_full, out_of_memory

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

_STREAM = "scan it layer by layer (python -m srdd --stream), or free memory"

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
    directory: str | Path,
    backend: TorchBackend,
    dtype: str = "auto",
    trust_remote_code: bool = False,
    attention: str | None = None,
) -> LoadedModel:
    """Load the transformers checkpoint in `directory` onto `backend`, in `dtype` ("auto" keeps the checkpoint's
    own), with transformers' `attention` of that name, or the one that it chooses. The architecture's own class is
    built, causal or encoder. Raises ModelError for a missing, truncated, incomplete, pickled or non-finite checkpoint,
    one that needs remote code without `trust_remote_code`, or one that cannot run that attention, and UsageError for an
    unknown or unsupported dtype or an unknown attention.
    """
    directory = Path(directory)
    target = requested_dtype(dtype, backend)
    files = weight_files(directory)
    with named_when_full(f"checkpoint {directory}", _STREAM), quiet_transformers():
        config = read_config(directory, trust_remote_code, attention)
        _require_memory(directory, files, config, target, backend)
        require_finite(directory)
        model = _build(directory, config, target, trust_remote_code)
        tokenizer = read_tokenizer(directory, trust_remote_code)
        require_supported(model, backend)
        model = model.to(backend.device).eval()
    return LoadedModel(model, tokenizer, directory)


def model_without_weights(directory: str | Path, trust_remote_code: bool = False) -> nn.Module:
    """The model of the checkpoint in `directory` on torch's meta device: all its modules, and no memory. Raises
    ModelError as `load_model` does, save for weights that are not finite.
    """
    directory = Path(directory)
    weight_files(directory)
    with quiet_transformers():
        config = read_config(directory, trust_remote_code)
        return load_complete(_loader(directory, config, trust_remote_code), directory, dtype="auto", device_map="meta")


def parse_dtype(name: str) -> torch.dtype | str:
    """The torch dtype called `name`, or "auto"; raises UsageError for any other word."""
    if name == "auto":
        return "auto"
    if name not in DTYPES:
        raise UsageError(f"unknown dtype '{name}': choose auto, {', '.join(DTYPES)}")
    return DTYPES[name]


def requested_dtype(name: str, backend: TorchBackend) -> torch.dtype | str:
    """The dtype called `name`, or "auto"; raises UsageError for one that is unknown or that `backend` lacks."""
    target = parse_dtype(name)
    if target != "auto" and target not in backend.dtypes:
        raise UsageError(f"backend '{backend.name}' does not support dtype {name}; it declares {_names(backend)}")
    return target


def resolve_dtype(target: torch.dtype | str, config: Any, weights: CheckpointWeights) -> torch.dtype:
    """The dtype that a model is built in: the one asked for, or for "auto" what the configuration says, or else
    what the weights are stored in.
    """
    if isinstance(target, torch.dtype):
        return target
    configured = getattr(config, "dtype", None)
    if isinstance(configured, str):
        configured = getattr(torch, configured, None)
    return configured or weights.dtype() or torch.get_default_dtype()


def require_supported(model: nn.Module, backend: TorchBackend) -> None:
    """Raise UsageError that names the first weight in a dtype that `backend` does not declare."""
    for name, weight in model.named_parameters():
        if weight.is_floating_point() and weight.dtype not in backend.dtypes:
            raise UsageError(
                f"weight '{name}' is {_short(weight.dtype)}, which backend '{backend.name}' does not support: "
                f"pass --dtype with one of {_names(backend)}"
            )


def _require_memory(
    directory: Path, files: list[Path], config: Any, target: torch.dtype | str, backend: TorchBackend
) -> None:
    """Refuse a model that cannot fit before the system ends the process for trying."""
    if getattr(config, "quantization_config", None) is None:
        weights = CheckpointWeights(directory)
        needed = weights.elements() * resolve_dtype(target, config, weights).itemsize
    else:
        needed = sum(file.stat().st_size for file in files)
    free = backend.free_memory()
    if needed > free:
        raise ModelError(
            f"checkpoint {directory} needs {needed / GIB:.2f} GiB and {backend.device} has {free / GIB:.2f} GiB "
            f"free: {_STREAM}"
        )


def _names(backend: TorchBackend) -> str:
    return ", ".join(_short(dtype) for dtype in backend.dtypes)


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


# Configurations, models and tokenizers raise what they like on files that are wrong: each `except Exception` below
# hands its cause on inside a ModelError.


def read_config(directory: Path, trust_remote_code: bool, attention: str | None = None) -> Any:
    """The configuration in `directory`, which asks for `attention` if that is given, or ModelError."""
    from transformers import AutoConfig

    if attention is not None:
        _require_attention(attention)
    try:
        return AutoConfig.from_pretrained(
            directory,
            trust_remote_code=trust_remote_code,
            local_files_only=True,
            **({} if attention is None else {"attn_implementation": attention}),
        )
    except Exception as error:
        raise ModelError(f"config.json in {directory} cannot be used: {_remote_hint(error)}") from error


def _require_attention(name: str) -> None:
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    known = ["eager", *sorted(key for key in ALL_ATTENTION_FUNCTIONS if key != HOST_ATTENTION and "|" not in key)]
    if name not in known:
        raise UsageError(f"unknown attention '{name}': transformers here has {', '.join(known)}")


def _loader(directory: Path, config: Any, trust_remote_code: bool) -> Callable[..., Any]:
    if trust_remote_code and getattr(config, "auto_map", None):
        from transformers import AutoModelForCausalLM

        return partial(
            AutoModelForCausalLM.from_pretrained,
            directory,
            trust_remote_code=True,
            attn_implementation=config._attn_implementation,
        )
    return partial(architecture_of(config, directory).from_pretrained, directory, config=config)


def _build(directory: Path, config: Any, dtype: torch.dtype | str, trust_remote_code: bool) -> nn.Module:
    loader = _loader(directory, config, trust_remote_code)
    if getattr(config, "quantization_config", None) is None:  # quantisers want the real device
        # Without memory first: a config.json of some larger model would fill the host before it is found wrong.
        load_complete(loader, directory, dtype=dtype, device_map="meta")
    return load_complete(loader, directory, dtype=dtype)


def load_complete(loader: Callable[..., Any], directory: Path, **options: Any) -> nn.Module:
    """The module that `loader`, a `from_pretrained`, gives with `options`; raises ModelError where it fails or
    leaves a weight at random values, and passes on that memory is full.
    """
    try:
        model, loading = loader(**_LOADING, **options)
    except Exception as error:
        if out_of_memory(error):
            raise
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


def architecture_of(config: Any, directory: Path) -> Any:
    """The transformers class that `config` names, or AutoModel where it names none; ModelError where there is no
    such class.
    """
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


def read_tokenizer(directory: Path, trust_remote_code: bool) -> Any | None:
    """The tokenizer in `directory`, None where there is none, or ModelError."""
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
def quiet_transformers() -> Iterator[None]:
    """Keep transformers from logging and drawing bars in the block."""
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
