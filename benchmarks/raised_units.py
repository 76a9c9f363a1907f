"""How many units of the bundled model's matrix products come near the largest result: of the prompts' data amplified,
and with rows that raise units among them, as a scan has.

A clamp at a share of the largest result alters a unit only where that comes above the share.
"""

from __future__ import annotations

import argparse

import torch
from torch import nn

from hal import get_backend
from hal.bundled import model_dir
from hal.models import load_model
from srdd.batch import pack
from srdd.prompts import DEFAULT
from srdd.replay.capture import ModuleCall, record
from srdd.replay.part import amplified_and_tiny
from srdd.replay.raised import raising


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--share", type=float, default=0.7, help="of the largest result (0.7)")
    share = parser.parse_args().share
    loaded = load_model(model_dir(), get_backend("cpu-reference"))
    with torch.no_grad(), record(loaded.model) as trees:
        loaded.model(pack(loaded.tokenizer, DEFAULT, loaded.model))
    calls = {call.name: call for tree in trees for call in tree.walk() if not call.children}
    print(f"units that come above {share:g} of the largest result, of 12 layers' modules together")
    print(f"{'module':12} {'units':>6} {'amplified':>10} {'a scan':>8}")
    for name in ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"):
        found = [
            _reached(loaded.model.get_submodule(place), call, share)
            for place, call in calls.items()
            if place.endswith(name)
        ]
        plain, raised = (float(torch.cat([entry[way] for entry in found]).float().mean()) for way in (0, 1))
        print(f"{name:12} {len(found[0][0]):>6} {plain:>10.1%} {raised:>8.1%}")


def _reached(module: nn.Module, call: ModuleCall, share: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Which units of a product come above `share` of the largest, by amplified data alone and as a scan runs it."""
    x = call.args[0]
    plain, raised = (amplified_and_tiny(x, raised=way) for way in (None, raising(module, call)))
    return _above(module(plain).detach(), share), _above(module(raised).detach(), share)


def _above(result: torch.Tensor, share: float) -> torch.Tensor:
    size = result.abs().reshape(-1, result.shape[-1])
    return size.amax(0) > share * size.max()


if __name__ == "__main__":
    main()
