"""The exact noise has the host's bits on a device whose floating-point arithmetic differs in every known way."""

from __future__ import annotations

import pytest
import torch

from hal import noise

HOSTILE = {"reorder": True, "hf32_matmul": True, "saturate": True, "flush_subnormal": True}
DRAWS = {"normal": noise.normal, "uniform": noise.uniform, "bits": noise.bits}


@pytest.mark.parametrize("draw", DRAWS)
def test_every_draw_has_the_hosts_bits(device, arithmetic, draw):
    expected = DRAWS[draw]((7, 1031), seed=7, stream=3)
    with arithmetic(**HOSTILE):
        drawn = DRAWS[draw]((7, 1031), seed=7, stream=3, device=device)
    assert drawn.device == device
    assert torch.equal(drawn.cpu(), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_every_dtype_has_the_hosts_bits(device, dtype):
    on_device = noise.normal((4099,), seed=1, device=device, dtype=dtype)
    assert torch.equal(on_device.cpu(), noise.normal((4099,), seed=1, dtype=dtype))


def test_scattered_elements_have_the_hosts_bits(device):
    index = torch.tensor([0, 5, (1 << 24) + 1, (1 << 40) + 3])
    assert torch.equal(noise.normal_at(index.to(device), seed=7).cpu(), noise.normal_at(index, seed=7))
