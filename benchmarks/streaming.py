"""Peak memory and time of a scan that holds one layer at a time, beside the scan of the loaded model, at two depths.

Writes random Llama checkpoints in bfloat16 and scans each both ways, in a fresh process each time; memory is the
resident set's peak beyond what the process held after a first small scan, so the libraries are not counted. Exit
code 1 when the streamed scan of the deep network takes more than `--limit` times that of the shallow one, or when what
is measured differs between the two ways in any bit.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from scan_memory import ALLOCATOR, MIB, peak_beyond

PROMPTS = ["The train left the station at nine and reached the coast two hours later."]


def main() -> int:
    options = _parser().parse_args()
    if options.measure:  # this is the fresh process
        print(json.dumps(_measure(Path(options.measure), Path(options.small), options.way, options.level)))
        return 0
    with tempfile.TemporaryDirectory() as scratch:
        small = _write(Path(scratch) / "small", 2, 128)
        results = {}
        for layers in options.layers:
            directory = _write(Path(scratch) / str(layers), layers, options.hidden)
            for way in ("loaded", "streamed"):
                results[layers, way] = _in_fresh_process(directory, small, way, options.level)
    return _report(options, results)


def _report(options: argparse.Namespace, results: dict[tuple[int, str], dict[str, Any]]) -> int:
    print(f"scan at level {options.level}, bfloat16, {options.hidden} units; memory in MiB")
    print(f"{'layers':>6} {'model':>8} {'loaded':>8} {'streamed':>9} {'seconds':>9} {'streamed':>9} {'ratio':>6}")
    same = True
    for layers in options.layers:
        loaded, streamed = results[layers, "loaded"], results[layers, "streamed"]
        same = same and loaded["measured"] == streamed["measured"]
        print(
            f"{layers:>6} {loaded['model'] / MIB:>8.1f} {loaded['beyond'] / MIB:>8.1f} "
            f"{streamed['beyond'] / MIB:>9.1f} {loaded['seconds']:>9.1f} {streamed['seconds']:>9.1f} "
            f"{streamed['seconds'] / loaded['seconds']:>6.2f}"
        )
    shallow, deep = options.layers
    growth = results[deep, "streamed"]["beyond"] / results[shallow, "streamed"]["beyond"]
    print(f"streamed memory for {deep / shallow:g} times the depth: {growth:.2f} (limit {options.limit:g})")
    print(f"measurements of both ways: {'the same bits' if same else 'DIFFERENT'}")
    return int(growth > options.limit or not same)


def _in_fresh_process(directory: Path, small: Path, way: str, level: str) -> dict[str, Any]:
    command = [sys.executable, __file__, "--measure", directory, "--small", small, "--way", way, "--level", level]
    output = subprocess.run(command, env=os.environ | ALLOCATOR, capture_output=True, text=True, check=False)
    if output.returncode:
        raise SystemExit(output.stderr)
    result: dict[str, Any] = json.loads(output.stdout.splitlines()[-1])
    return result


def _measure(directory: Path, small: Path, way: str, level: str) -> dict[str, Any]:
    import torch

    torch.set_num_threads(1)
    _scan(small, "streamed", level)
    _scan(small, "loaded", level)
    measured: list[str] = []
    start = time.perf_counter()
    beyond = peak_beyond(lambda: measured.append(_scan(directory, way, level)))
    return {
        "seconds": time.perf_counter() - start,
        "beyond": beyond,
        "model": sum(file.stat().st_size for file in directory.glob("*.safetensors")),
        "measured": measured[0],
    }


def _scan(directory: Path, way: str, level: str) -> str:
    """Everything but the scan's cost, as text."""
    import srdd
    from hal import get_backend
    from hal.models import load_model
    from srdd.report import to_json

    backend = get_backend("cpu-reference")
    if way == "streamed":
        report = srdd.scan_checkpoint(directory, backend, PROMPTS, level)
    else:
        loaded = load_model(directory, backend)
        report = srdd.scan(loaded.model, loaded.tokenizer, backend, PROMPTS, level, checkpoint=directory)
    return json.dumps({key: value for key, value in to_json(report).items() if key != "cost"})


def _write(directory: Path, layers: int, hidden: int) -> Path:
    import torch
    import transformers

    from hal.bundled import model_dir

    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        num_hidden_layers=layers,
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_attention_heads=hidden // 64,
        num_key_value_heads=hidden // 64,
        vocab_size=1024,
        max_position_embeddings=128,
        initializer_range=0.05,
    )
    transformers.LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(directory, max_shard_size="64MB")
    transformers.AutoTokenizer.from_pretrained(model_dir()).save_pretrained(directory)
    return directory


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, nargs=2, default=[8, 32], metavar="N", help="two depths (8 32)")
    parser.add_argument("--hidden", type=int, default=512, help="width of the stream, a multiple of 64 (512)")
    parser.add_argument("--level", choices=["quick", "full"], default="full", help="level of the scan (full)")
    parser.add_argument("--limit", type=float, default=1.25, help="largest growth of memory allowed (1.25)")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    parser.add_argument("--small", help=argparse.SUPPRESS)
    parser.add_argument("--way", help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    sys.exit(main())
