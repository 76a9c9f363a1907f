"""Peak memory of a scan beyond the model itself: it grows with the largest layer, not with depth.

Scans random Qwen2 networks of two depths, and one of the smaller depth with layers of twice the width, each in
a fresh process, and prints what each took beyond the memory it held before, side by side. Exit code 1 when
the deep network takes more than `--limit` times the shallow one.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import gc
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

MIB = 2**20
# Freed arrays go back to the system at once, so that the resident set is what is in use.
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}


def main() -> int:
    options = _parser().parse_args()
    if options.measure:  # this is the fresh process
        print(json.dumps(_measure(options.measure, options.hidden, options.level)))
        return 0
    shallow, deep = options.layers
    runs = [(shallow, options.hidden), (deep, options.hidden), (shallow, 2 * options.hidden)]
    results = [_in_fresh_process(layers, hidden, options.level) for layers, hidden in runs]
    print(f"scan at level {options.level}, float32, 256 tokens; memory in MiB")
    print(f"{'layers':>6} {'hidden':>6} {'largest layer':>13} {'model':>8} {'scan beyond it':>14}")
    for (layers, hidden), result in zip(runs, results, strict=True):
        sizes = [result[name] / MIB for name in ("layer", "model", "beyond")]
        print(f"{layers:>6} {hidden:>6} {sizes[0]:>13.1f} {sizes[1]:>8.1f} {sizes[2]:>14.1f}")
    by_depth, by_width = (result["beyond"] / results[0]["beyond"] for result in results[1:])
    print(f"ratio for {deep / shallow:g} times the depth: {by_depth:.2f} (limit {options.limit:g})")
    print(f"ratio for twice the width: {by_width:.2f}")
    return int(by_depth > options.limit)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, nargs=2, default=[12, 48], metavar="N", help="two depths (12 48)")
    parser.add_argument("--hidden", type=int, default=256, help="width of the stream, a multiple of 64 (256)")
    parser.add_argument("--level", choices=["quick", "full"], default="quick", help="level of the scan (quick)")
    parser.add_argument("--limit", type=float, default=1.25, help="largest ratio allowed (1.25)")
    parser.add_argument("--measure", type=int, help=argparse.SUPPRESS)
    return parser


def _in_fresh_process(layers: int, hidden: int, level: str) -> dict[str, int]:
    command = [sys.executable, __file__, "--measure", str(layers), "--hidden", str(hidden), "--level", level]
    output = subprocess.run(command, env=os.environ | ALLOCATOR, capture_output=True, text=True, check=False)
    if output.returncode:
        raise SystemExit(output.stderr)
    result: dict[str, int] = json.loads(output.stdout.splitlines()[-1])
    return result


def _measure(layers: int, hidden: int, level: str) -> dict[str, int]:
    """Bytes of the model, of its largest layer, and of the scan's peak beyond what was resident before it."""
    import torch

    import srdd
    from hal.structure import find_layer_stack

    torch.set_num_threads(1)
    srdd.scan(network(2, hidden), level=level)  # libraries, thread pools and caches are loaded by now
    model = network(layers, hidden)
    beyond = peak_beyond(lambda: srdd.scan(model, level=level))
    stack = find_layer_stack(model).layers
    return {"model": _size(model), "layer": max(_size(layer) for layer in stack), "beyond": beyond}


def network(layers: int, hidden: int) -> Any:
    """A Qwen2 of random weights, `layers` deep and `hidden` wide."""
    import torch
    import transformers

    torch.manual_seed(0)
    config = transformers.Qwen2Config(
        num_hidden_layers=layers,
        hidden_size=hidden,
        intermediate_size=4 * hidden,
        num_attention_heads=hidden // 64,
        num_key_value_heads=hidden // 64,
        vocab_size=512,
        max_position_embeddings=128,
        initializer_range=0.1,
    )
    return transformers.Qwen2ForCausalLM(config).eval()


def _size(module: Any) -> int:
    return sum(parameter.nbytes for parameter in module.parameters())


def peak_beyond(work: Callable[[], object]) -> int:
    """The peak of the resident set during `work` beyond its size before, in bytes: the kernel's own mark where
    it can be reset (Linux), a sample every millisecond elsewhere.
    """
    import psutil

    gc.collect()
    with contextlib.suppress(AttributeError, OSError):  # only the GNU C library has malloc_trim
        ctypes.CDLL(None).malloc_trim(0)
    process = psutil.Process()
    before = process.memory_info().rss
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return _sampled_peak(work, process) - before
    work()
    return _high_water() - before


def _high_water() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise SystemExit("/proc/self/status has no VmHWM: this system does not keep the peak of a process")


def _sampled_peak(work: Callable[[], object], process: Any) -> int:
    peaks, done = [process.memory_info().rss], threading.Event()

    def sample() -> None:
        while not done.wait(0.001):
            peaks[0] = max(peaks[0], process.memory_info().rss)

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        work()
    finally:
        done.set()
        thread.join()
    return peaks[0]


if __name__ == "__main__":
    sys.exit(main())
