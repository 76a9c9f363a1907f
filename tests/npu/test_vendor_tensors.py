"""torch_npu's tensors behave as torch's do: creation, views, indexing, operators, dtypes."""

from __future__ import annotations

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional


def agrees(device, function, *shapes, seed=0):
    """`function` gives the same on the device and on the host for the same inputs."""
    generator = torch.Generator().manual_seed(seed)
    inputs = [torch.randn(shape, generator=generator) for shape in shapes]
    on_device = function(*(value.to(device) for value in inputs))
    torch.testing.assert_close(on_device.cpu(), function(*inputs))


@pytest.mark.parametrize(
    "create",
    [
        pytest.param(lambda d: torch.zeros(2, device=d), id="zeros"),
        pytest.param(lambda d: torch.arange(6.0, device=d).view(2, 3).T.contiguous(), id="arange"),
        pytest.param(lambda d: torch.tensor([1, 2], device=d), id="tensor"),
        pytest.param(lambda d: torch.tensor([], device=d), id="empty tensor"),
        pytest.param(lambda d: torch.randn(2, device=d), id="randn"),
        pytest.param(lambda d: torch.ones(2).to(d), id="to"),
        pytest.param(lambda d: torch.ones(2).npu(), id="npu()"),
        pytest.param(lambda d: torch.empty(0, device=d).new_ones(3), id="new_ones"),
        pytest.param(lambda d: torch.nn.Linear(2, 2).npu().weight, id="module"),
    ],
)
def test_creation(device, create):
    created = create(device)
    assert created.device == device
    assert created.is_npu
    assert created.cpu().isfinite().all()


def test_the_default_device_context(device):
    with torch.device(device):
        assert torch.nn.Linear(2, 2).weight.device == device


@pytest.mark.parametrize(
    "function",
    [
        pytest.param(lambda x: x[x > 0], id="boolean"),
        pytest.param(lambda x: x[torch.tensor([0, 2])], id="host indices"),
        pytest.param(lambda x: x[:, 1:3].T[1], id="slices"),
        pytest.param(torch.nonzero, id="nonzero"),
        pytest.param(lambda x: x.clone().masked_fill_(x > 0, 7.0), id="masked_fill_"),
        pytest.param(lambda x: x.index_select(0, torch.tensor([2, 0], device=x.device)), id="index_select"),
        pytest.param(lambda x: torch.take_along_dim(x, x.argsort(-1), -1), id="take_along_dim"),
        pytest.param(lambda x: torch.zeros_like(x).scatter_(1, x.argmax(1, keepdim=True), 1.0), id="scatter_"),
    ],
)
def test_indexing(device, function):
    agrees(device, function, (3, 4))


def test_assignment_through_every_kind_of_index(device):
    x = torch.arange(12.0, device=device).view(3, 4)
    x[x > 5] = 0
    x[:, 1] += 1
    x[torch.tensor([0, 2])] = 7
    assert x.tolist() == [[7.0] * 4, [4.0, 6.0, 0.0, 0.0], [7.0] * 4]


@pytest.mark.parametrize(
    "function",
    [
        pytest.param(lambda x: x.sort(-1).values, id="sort"),
        pytest.param(lambda x: x.topk(2).values, id="topk"),
        pytest.param(lambda x: x.cumsum(-1), id="cumsum"),
        pytest.param(lambda x: torch.einsum("ij,kj->ik", x, x), id="einsum"),
        pytest.param(lambda x: torch.where(x > 0, x, 0.0), id="where"),
        pytest.param(lambda x: functional.softmax(x, -1), id="softmax"),
        pytest.param(lambda x: functional.layer_norm(x, (8,)), id="layer_norm"),
        pytest.param(lambda x: functional.rms_norm(x, (8,)), id="rms_norm"),
        pytest.param(functional.silu, id="silu"),
        pytest.param(lambda x: torch.stack(x.unbind(0)).var(0), id="var"),
        pytest.param(lambda x: x.quantile(0.3), id="quantile"),
        pytest.param(lambda x: torch.view_as_real(torch.fft.rfft(x)), id="rfft"),
        pytest.param(lambda x: torch.histc(x, 5), id="histc"),
        pytest.param(torch.func.vmap(lambda row: row @ row), id="vmap"),
    ],
)
def test_operators(device, function):
    agrees(device, function, (4, 8))


def test_an_out_tensor_grows(device):
    out = torch.empty(0, device=device)
    assert torch.add(torch.ones(3, device=device), 1, out=out) is out
    assert out.tolist() == [2.0, 2.0, 2.0]


def test_a_view_shares_memory_both_ways(device):
    x = torch.zeros(2, 3, device=device)
    x.view(-1)[4] = 5.0
    x.T.add_(1)
    assert x.tolist() == [[1.0, 1.0, 1.0], [1.0, 6.0, 1.0]]


@pytest.mark.parametrize("dtype", [torch.int8, torch.int64, torch.bool, torch.float16, torch.bfloat16])
def test_dtypes_travel_unchanged(device, dtype):
    values = torch.tensor([0, 1, 1], dtype=dtype)
    assert torch.equal(values.to(device).cpu(), values)


def test_int64_arithmetic_is_exact(device):
    large = torch.tensor([(1 << 62) + 1, (1 << 24) + 1], device=device)
    assert (large ^ 1).tolist() == [1 << 62, 1 << 24]


def test_a_number_is_read_from_the_device(device):
    assert torch.full((), 2.5, device=device).item() == 2.5
    assert bool(torch.ones(1, device=device) > 0)


def test_fake_tensors(device):
    with FakeTensorMode():
        assert (torch.empty(2, 2, device=device) @ torch.empty(2, 2, device=device)).device == device


def test_a_custom_operator_runs(device):
    @torch.library.custom_op("npu_tests::twice", mutates_args=())
    def twice(x: torch.Tensor) -> torch.Tensor:
        return x * 2

    assert twice(torch.ones(2, device=device)).tolist() == [2.0, 2.0]


def test_safetensors(device, tmp_path):
    from safetensors.torch import load_file, save_file

    path = tmp_path / "weights.safetensors"
    save_file({"a": torch.arange(4.0, device=device)}, path)
    assert load_file(path)["a"].tolist() == [0.0, 1.0, 2.0, 3.0]
    assert load_file(path, device="npu:0")["a"].device == device
