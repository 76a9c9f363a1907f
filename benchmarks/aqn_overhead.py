"""Milliseconds of a training step without noise, with the textbook's noise on every product, and with ours.

The textbook is `y + torch.randn_like(y) * y.abs() * sigma` in a forward hook on every linear module: not reproducible,
drawn anew for every sequence, and kept by autograd. Ours is `aqn.inject` on the same products.
"""

from __future__ import annotations

import argparse
import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

import aqn
import hal
from hal.structure import find_layer_stack

SIGMA = 0.05


def main() -> None:
    """Measure all cases turn by turn and print each beside the step without noise."""
    options = _arguments()
    if options.threads:
        torch.set_num_threads(options.threads)
    backend = hal.get_backend(options.backend)
    model = _model(options.hidden, options.layers).to(backend.device, getattr(torch, options.dtype)).train()
    ids = torch.randint(512, (options.rows, options.length), generator=torch.Generator().manual_seed(0))
    step = _step(model, ids.to(backend.device))
    third = list(range(max(1, options.layers // 3)))
    cases: dict[str, Callable[[], contextlib.AbstractContextManager[Any]]] = {
        "no noise": contextlib.nullcontext,
        "textbook, all linear modules": lambda: _textbook(model),
        "ours, fast, all layers": lambda: _ours(model, {"draws": "fast"}),
        "ours, fast, a third of the layers": lambda: _ours(model, {"draws": "fast", "target_layers": third}),
        "ours, exact, all layers": lambda: _ours(model, {"draws": "exact"}),
        "ours, exact, a third of the layers": lambda: _ours(model, {"draws": "exact", "target_layers": third}),
    }
    times: dict[str, list[float]] = {name: [] for name in cases}
    step()
    # Turn by turn, so that a busy moment of the machine meets every case.
    for _ in range(options.repeats):
        for name, case in cases.items():
            with case():
                times[name].append(_seconds(backend, step))
    print(
        f"step of {options.rows} x {options.length} tokens, {options.layers} layers of {options.hidden}, "
        f"{options.dtype}, {backend.device_name()}, {torch.get_num_threads()} threads; median of {options.repeats}"
    )
    plain = sorted(times["no noise"])[options.repeats // 2]
    for name, values in times.items():
        median = sorted(values)[options.repeats // 2]
        print(f"  {name:<36} {median * 1e3:9.1f} ms   {median / plain:5.2f}x")


def _model(hidden: int, layers: int) -> nn.Module:
    from transformers import Qwen2Config, Qwen2ForCausalLM

    return Qwen2ForCausalLM(
        Qwen2Config(
            hidden_size=hidden,
            intermediate_size=3 * hidden,
            num_hidden_layers=layers,
            num_attention_heads=max(1, hidden // 64),
            num_key_value_heads=max(1, hidden // 128),
            vocab_size=512,
        )
    )


def _step(model: nn.Module, ids: torch.Tensor) -> Callable[[], None]:
    def step() -> None:
        model.zero_grad(set_to_none=True)
        model(input_ids=ids, labels=ids, use_cache=False).loss.backward()

    return step


@contextlib.contextmanager
def _textbook(model: nn.Module) -> Iterator[None]:
    handles = [
        module.register_forward_hook(lambda _m, _a, y: y + torch.randn_like(y) * y.abs() * SIGMA)
        for layer in find_layer_stack(model).layers
        for module in layer.modules()
        if isinstance(module, nn.Linear)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _ours(model: nn.Module, options: dict[str, Any]) -> aqn.Injection:
    return aqn.inject(model, aqn.AqnConfig.parse({"aqn": {"sigma": SIGMA, "operators": ["linear"], **options}}))


def _seconds(backend: hal.TorchBackend, step: Callable[[], None]) -> float:
    # On the host the process's own time, which other work on the machine does not lengthen.
    clock = time.process_time if isinstance(backend, hal.HostBackend) else time.perf_counter
    backend.synchronize()
    start = clock()
    step()
    backend.synchronize()
    return clock() - start


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--hidden", type=int, default=512, help="width of the model (default: 512)")
    parser.add_argument("--layers", type=int, default=6, help="its depth (default: 6)")
    parser.add_argument("--rows", type=int, default=8, help="sequences in a step (default: 8)")
    parser.add_argument("--length", type=int, default=64, help="tokens in a sequence (default: 64)")
    parser.add_argument("--dtype", default="float32", help="float32, bfloat16 or float16 (default: float32)")
    parser.add_argument("--backend", default="cpu-reference", help="a backend's name (default: cpu-reference)")
    parser.add_argument("--threads", type=int, default=1, help="host threads; 0 leaves torch's own (default: 1)")
    parser.add_argument("--repeats", type=int, default=7, help="rounds of which the median counts (default: 7)")
    return parser.parse_args()


if __name__ == "__main__":
    main()
