"""Backends whose tensors lie in the host's memory."""

from __future__ import annotations

import platform
import resource
from typing import ClassVar

import psutil
import torch

from hal.backend import MemoryStats, TorchBackend


class HostBackend(TorchBackend):
    """Base of a backend that computes in host memory and has finished when a call returns: the host itself,
    a simulator, an accelerator that shares the host's memory. A subclass sets `name` and overrides `probe`;
    torch's device module for the host answers none of the other questions, so they are answered here.
    """

    device_type: ClassVar[str] = "cpu"

    @property
    def device(self) -> torch.device:
        """The host, which torch addresses without an index."""
        return torch.device(self.device_type)

    def device_name(self) -> str:
        """The processor's architecture, as the operating system names it."""
        return platform.processor() or platform.machine()

    def synchronize(self) -> None:
        """Return at once: host work is done when its call returns."""

    def memory(self) -> MemoryStats:
        """Resident set of this process in bytes, now and at its peak, and the machine's memory."""
        peak_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return MemoryStats(psutil.Process().memory_info().rss, peak_kib * 1024, psutil.virtual_memory().total)

    def free_memory(self) -> int:
        """What the machine has left, or less where a limit on this process (`ulimit -v`, `ulimit -d`) leaves less."""
        used = psutil.Process().memory_info()
        left = [psutil.virtual_memory().available]
        for limit, taken in ((resource.RLIMIT_AS, used.vms), (resource.RLIMIT_DATA, used.data)):
            allowed = resource.getrlimit(limit)[0]
            if allowed != resource.RLIM_INFINITY:
                left.append(max(allowed - taken, 0))
        return min(left)

    def reset_peak_memory(self) -> None:
        """Do nothing: the operating system keeps the peak of a process for its whole life."""
