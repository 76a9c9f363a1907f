"""How many simulated faults of the bundled model a scan places right, and how many clean scans raise an alarm.

Every kind of the five, at every layer, dense, in a tenth of the hidden units and in one unit. A fault that changed no
element is not counted: it is none. Exit code 1 when a clean scan raises an alarm.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter

import torch
from rich.progress import track
from scipy.stats import binomtest

import srdd
from hal import get_backend
from hal.bundled import model_dir
from hal.models import LoadedModel, load_model
from hal.structure import find_layer_stack
from srdd.faults import Fault, simulate
from srdd.prompts import DEFAULT

KINDS = ("dead_zone", "saturation", "bias", "noise", "spike")
SPARSITIES = {"dense": {"sparsity": 1.0}, "10 %": {"sparsity": 0.1}, "one unit": {"units": 1}}


def main() -> int:
    options = _parser().parse_args()
    loaded = load_model(model_dir(), get_backend("cpu-reference"), options.dtype)
    alarms = sum(_scan(loaded, options.level, number).verdict == "faulty" for number in track(range(options.clean)))
    _print("clean scans with an alarm", alarms, options.clean)
    for name in options.sparsity:
        counts = _detect(loaded, name, options)
        _print(f"{name}: layer right, alone", counts["layer"], counts["all"])
        _print(f"{name}: layer and kind right", counts["kind"], counts["all"])
    return 1 if alarms else 0


def _detect(loaded: LoadedModel, name: str, options: argparse.Namespace) -> Counter[str]:
    counts: Counter[str] = Counter()
    layers = range(len(find_layer_stack(loaded.model)))
    faults = [Fault(kind, layer, seed=layer, **SPARSITIES[name]) for kind in KINDS for layer in layers]
    for fault in track(faults, description=name):
        with simulate(loaded.model, [fault]) as active:
            findings = _scan(loaded, options.level, 0).findings
        if active[0].changed == 0:
            continue
        placed = [finding.layer for finding in findings] == [fault.layer]
        counts["all"] += 1
        counts["layer"] += placed
        counts["kind"] += placed and findings[0].kind == fault.kind
        if not placed:
            print(f"  {fault.kind}@{fault.layer}: {[(finding.layer, finding.kind) for finding in findings]}")
    return counts


def _scan(loaded: LoadedModel, level: str, rotation: int) -> srdd.Report:
    """A scan on the default prompts, turned round so that each clean scan sees other rows."""
    prompts = [f"{rotation}. {text}" for text in (*DEFAULT[rotation % 8 :], *DEFAULT[: rotation % 8])]
    return srdd.scan(loaded.model, loaded.tokenizer, prompts=prompts, level=level)


def _print(what: str, count: int, of: int) -> None:
    interval = binomtest(count, of).proportion_ci(method="wilson") if of else None
    bounds = f"   Wilson 95 %: {100 * interval.low:.1f} to {100 * interval.high:.1f} %" if interval else ""
    print(f"{what:<32} {count:>4}/{of}{bounds}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--level", choices=("quick", "full"), default="quick")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--clean", type=int, default=20, help="number of clean scans")
    parser.add_argument("--sparsity", nargs="+", choices=tuple(SPARSITIES), default=list(SPARSITIES))
    return parser


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.exit(main())
