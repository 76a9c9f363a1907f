"""An operator without an NPU kernel does not run on the host unseen."""

from __future__ import annotations

import importlib
import pkgutil

import pytest
import torch

import hal.ops
from hal.ops import CATALOGUE
from hal.ops.sampling import SampleSpec

FALLBACK = "TORCH_NPU_FALLBACK_CPU_DISABLE"
LGAMMA = (
    "import hal; backend = hal.get_backend('npu'); import torch;"
    "print(backend.numeric_switches()['TORCH_NPU_FALLBACK_CPU_DISABLE']);"
    "print(torch.lgamma(torch.ones(1, device='npu')).item())"
)

for _module in pkgutil.iter_modules(hal.ops.__path__):
    importlib.import_module(f"hal.ops.{_module.name}")


def test_it_raises_unless_the_user_decided(run_python):
    outcome = run_python(LGAMMA, **{FALLBACK: None})
    assert outcome.stdout == "1\n"
    assert "The operator 'aten::lgamma.out' would execute its main computation on CPU" in outcome.stderr


def test_a_user_may_allow_it_and_the_vendor_warns(run_python):
    outcome = run_python(LGAMMA, **{FALLBACK: "0"})
    assert outcome.stdout == "0\n0.0\n"
    assert "The operator 'aten::lgamma.out' is not currently supported on the NPU backend" in outcome.stderr


@pytest.mark.parametrize("name", sorted(CATALOGUE))
def test_no_operator_of_the_catalogue_needs_the_host(npu, name):
    arguments = CATALOGUE[name].sample(SampleSpec(dtype=CATALOGUE[name].dtypes[0]))
    moved = [value.to(npu.device) if isinstance(value, torch.Tensor) else value for value in arguments]
    npu.ops.get(name)(*moved)


def test_every_known_failure_names_an_operator_of_the_catalogue(npu):
    assert set(npu.known_failures) <= set(CATALOGUE)
