"""Cost of noise against torch's own, side by side in one run.

    python benchmarks/noise.py [--elements N] [--backend NAME] [--threads N]

Every line is the best of several runs and the ratio to the first line of its block.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch

import hal
from hal import noise
from hal.ops.perturbation import relative_noise, relative_noise_

SIGMA = 0.05


def main() -> None:
    """Print a block for drawing noise and a block for applying it."""
    options = _arguments()
    if options.threads:
        torch.set_num_threads(options.threads)
    backend = hal.get_backend(options.backend)
    count, device = options.elements, backend.device
    x = noise.normal(count, seed=1, device=device, mode="fast")
    spare = x.clone()
    print(f"{backend.device_name()}, {count} float32 elements, {torch.get_num_threads()} host threads")
    _block(
        backend,
        options.repeats,
        {
            "torch.randn_like": lambda: torch.randn_like(x),
            "exact": lambda: noise.normal(count, seed=1, device=device),
            "fast": lambda: noise.normal(count, seed=1, device=device, mode="fast"),
        },
    )
    _block(
        backend,
        options.repeats,
        {
            "x + randn_like(x) * x.abs() * sigma": lambda: x + torch.randn_like(x) * x.abs() * SIGMA,
            "relative_noise, exact": lambda: relative_noise(x, SIGMA, seed=1),
            "relative_noise, fast": lambda: relative_noise(x, SIGMA, seed=1, mode="fast"),
            "relative_noise_, fast, in place": lambda: relative_noise_(spare, SIGMA, seed=1, mode="fast"),
            "copy": x.clone,
        },
    )


def _block(backend: hal.TorchBackend, repeats: int, cases: dict[str, Callable[[], torch.Tensor]]) -> None:
    best = dict.fromkeys(cases, float("inf"))
    # Turn by turn, so that a busy moment of the machine meets every case.
    for _ in range(repeats):
        for name, case in cases.items():
            best[name] = min(best[name], _seconds(backend, case))
    first = next(iter(best.values()))
    for name, seconds in best.items():
        print(f"  {name:<38} {seconds * 1e3:9.2f} ms   {first / seconds:6.2f}x the speed of the first")


def _seconds(backend: hal.TorchBackend, case: Callable[[], torch.Tensor]) -> float:
    # On the host the process's own time, which other work on the machine does not lengthen.
    clock = time.process_time if backend.device_type == "cpu" else time.perf_counter
    backend.synchronize()
    start = clock()
    case()
    backend.synchronize()
    return clock() - start


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--elements", type=int, default=1 << 24, help="size of the tensor (default: 2**24)")
    parser.add_argument("--backend", default="cpu-reference", help="a backend's name (default: cpu-reference)")
    parser.add_argument("--threads", type=int, default=1, help="host threads; 0 leaves torch's own (default: 1)")
    parser.add_argument("--repeats", type=int, default=7, help="runs of which the best counts (default: 7)")
    return parser.parse_args()


if __name__ == "__main__":
    main()
