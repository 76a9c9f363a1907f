"""torch_npu's fused operators, forward and backward, against plain torch on the host."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from hal.ops.activations import swiglu
from hal.ops.attention import attention, rope
from hal.ops.normalisation import rms_norm

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def dtype(request):
    return request.param


@pytest.fixture
def random(dtype):
    generator = torch.Generator().manual_seed(0)
    return lambda *shape: torch.randn(*shape, generator=generator).to(dtype)


def compare(device, dtype, fused, plain, *inputs):
    """Result and gradients of `fused` on the device and `plain` on the host agree."""
    results = []
    for place, function in ((device, fused), ("cpu", plain)):
        leaves = [value.detach().to(place).requires_grad_() for value in inputs]
        output = function(*leaves)
        weights = torch.linspace(-1, 1, output.numel()).view(output.shape).to(place, dtype)
        output.backward(weights)
        results.append([output.detach().cpu(), *(leaf.grad.cpu() for leaf in leaves)])
    bound = TOLERANCE[dtype]
    for on_device, on_host in zip(*results, strict=True):
        assert on_device.dtype == on_host.dtype
        torch.testing.assert_close(on_device.float(), on_host.float(), rtol=bound, atol=bound)


def test_rms_norm(npu, dtype, random):
    def on_device(x, weight):
        return npu.ops.rms_norm(x, weight, 1e-6)

    assert npu.ops.is_native("rms_norm")
    compare(npu.device, dtype, on_device, lambda x, w: rms_norm(x, w, 1e-6), random(2, 5, 16), random(16))


def test_swiglu(npu, dtype, random):
    assert npu.ops.is_native("swiglu")
    compare(npu.device, dtype, npu.ops.swiglu, swiglu, random(2, 5, 16), random(2, 5, 16))


def test_rope(npu, dtype, random):
    assert npu.ops.is_native("rope")
    compare(npu.device, dtype, npu.ops.rope, rope, random(2, 3, 5, 8), random(5, 8), random(5, 8))


def test_interleaved_rotation(device, random):
    import torch_npu

    x, cos, sin = random(1, 2, 3, 8), random(1, 1, 3, 8), random(1, 1, 3, 8)
    rotated = torch.stack((-x[..., 1::2], x[..., ::2]), -1).flatten(-2)
    on_device = torch_npu.npu_rotary_mul(*(t.to(device) for t in (x, cos, sin)), "interleave").cpu()
    expected = (x.float() * cos.float() + rotated.float() * sin.float()).to(x.dtype)
    torch.testing.assert_close(on_device, expected)


@pytest.mark.parametrize("layout", ["BNSD", "BSND", "BSH", "SBH"])
@pytest.mark.parametrize("version", ["npu_fusion_attention", "npu_fusion_attention_v3"])
def test_fusion_attention(device, dtype, random, layout, version):
    heads, groups, length, width = 4, 2, 6, 8
    order = {"BNSD": "bnsd", "BSND": "bsnd", "BSH": "bs(nd)", "SBH": "sb(nd)"}[layout]

    def to_layout(x):
        axes = ["bnsd".index(axis) for axis in order if axis in "bnsd"]
        x = x.permute(axes).contiguous()
        return x.flatten(2) if "(" in order else x

    def from_layout(x):
        x = x.unflatten(-1, (heads, width)) if "(" in order else x
        plain = [axis for axis in order if axis in "bnsd"]
        return x.permute([plain.index(axis) for axis in "bnsd"])

    def fused(q, k, v):
        # True hides: the opposite of torch's masks.
        hidden = torch.ones(length, length, dtype=torch.bool, device=device).triu(1)
        call = getattr(torch.ops.npu, version)
        inputs = (to_layout(x) for x in (q, k, v))
        return from_layout(call(*inputs, heads, layout, atten_mask=hidden, scale=width**-0.5)[0])

    def plain(q, k, v):
        return attention(q, k, v, causal=True)

    inputs = random(2, heads, length, width), random(2, groups, length, width), random(2, groups, length, width)
    compare(device, dtype, fused, plain, *inputs)


@pytest.mark.parametrize("causal", [False, True])
def test_scaled_dot_product_attention_takes_the_fused_path(device, dtype, random, causal):
    def attend(q, k, v):
        return scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=True)

    compare(device, dtype, attend, attend, random(1, 4, 6, 16), random(1, 2, 6, 16), random(1, 2, 6, 16))


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("rms_norm", lambda: (torch.ones(3), torch.ones(3), 1e-6)),
        ("rms_norm", lambda: (torch.ones(2, 3, dtype=torch.bfloat16), torch.ones(3), 1e-6)),
        ("swiglu", lambda: (torch.ones(3), torch.ones(2, 3))),
        ("rope", lambda: (torch.ones(3, 4), torch.ones(3, 4), torch.ones(3, 4))),
        ("rope", lambda: (torch.ones(1, 1000, 1, 4), torch.ones(1, 4), torch.ones(1, 4))),
        ("rope", lambda: (torch.ones(1, 1, 3, 896), torch.ones(3, 896), torch.ones(3, 896))),
    ],
    ids=["one dimension", "weight dtype", "shapes differ", "no batch", "too many heads", "too wide"],
)
def test_outside_a_kernels_limits_the_default_is_used(npu, monkeypatch, name, arguments):
    import torch_npu

    from hal.ops import CATALOGUE

    for kernel in ("npu_rms_norm", "npu_swiglu", "npu_rotary_mul"):
        monkeypatch.delattr(torch_npu, kernel)
    values = arguments()
    moved = [v.to(npu.device) if isinstance(v, torch.Tensor) else v for v in values]
    assert torch.equal(npu.ops.get(name)(*moved).cpu(), CATALOGUE[name].default(*values))


@pytest.mark.parametrize("causal", [True, False])
def test_fusion_attention_of_sequences_of_different_lengths(device, dtype, random, causal):
    heads, groups, width, lengths = 4, 2, 8, (6, 2, 4)
    ends = torch.tensor(lengths).cumsum(0).tolist()

    def apart(call, q, k, v):
        pieces = zip(*(x.split(lengths, 2) for x in (q, k, v)), strict=True)
        return torch.cat([call(*piece) for piece in pieces], 2)

    def fused(q, k, v):
        mask = torch.ones(2048, 2048, dtype=torch.bool, device=device).triu(1) if causal else None
        options = {"atten_mask": mask, "sparse_mode": 3 if causal else 0, "scale": width**-0.5}
        inputs = [x[0].transpose(0, 1).contiguous() for x in (q, k, v)]
        call = torch.ops.npu.npu_fusion_attention
        output = call(*inputs, heads, "TND", actual_seq_qlen=ends, actual_seq_kvlen=ends, **options)[0]
        return output.transpose(0, 1)[None]

    def plain(q, k, v):
        return apart(lambda *piece: attention(*piece, causal=causal), q, k, v)

    total = sum(lengths)
    key, value = random(1, groups, total, width), random(1, groups, total, width)
    compare(device, dtype, fused, plain, random(1, heads, total, width), key, value)


def test_attention_dropout_is_refused_by_the_simulator(device):
    q = torch.ones(1, 1, 2, 8, device=device)
    with pytest.raises(NotImplementedError, match="attention dropout"):
        torch.ops.npu.npu_fusion_attention(q, q, q, 1, "BNSD", keep_prob=0.5)


def test_a_query_that_sees_no_key_gives_numbers_not_nan():
    # Left-padded prompts in a batch have such rows, and what they give becomes keys and values of the next layer.
    query, key, value = (torch.randn(1, 2, 4, 16) for _ in range(3))
    sees = torch.ones(1, 1, 4, 4, dtype=torch.bool).tril()
    sees[..., :2] = False
    attend = torch.nn.functional.scaled_dot_product_attention
    result = attend(query.npu(), key.npu(), value.npu(), attn_mask=sees.npu()).cpu()
    assert bool(result.isfinite().all())
    torch.testing.assert_close(result[:, :, 2:], attend(query, key, value, attn_mask=sees)[:, :, 2:])
