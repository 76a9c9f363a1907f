"""A random fault inside a layer is told from one that errs in the same way each time."""

from __future__ import annotations

import pytest
import torch

import srdd
from srdd.faults import Fault, simulate
from srdd.replay.repeat import errs_alike
from tests.conftest import in_turn

ERROR = torch.randn(64, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
OTHER = torch.randn(64, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("second", "alike"),
    [
        (ERROR, True),
        (ERROR + 0.1 * OTHER, True),
        (OTHER, False),
        (-ERROR, False),
        (0.1 * OTHER, None),
        (0 * ERROR, None),
    ],
)
def test_two_errors_are_alike_when_they_change_by_less_than_half(second, alike):
    assert errs_alike([ERROR], [second], [torch.ones_like(ERROR, dtype=torch.bool)]) is alike


def test_only_the_wrong_elements_are_compared():
    wrong = torch.zeros_like(ERROR, dtype=torch.bool)
    wrong[:, 3] = True
    changed = torch.where(wrong, OTHER, ERROR)
    assert errs_alike([ERROR], [changed], [wrong]) is False
    assert errs_alike([ERROR], [changed], [~wrong]) is True


def test_errors_of_other_shapes_are_not_alike():
    assert errs_alike([ERROR], [ERROR[1:]], [torch.ones_like(ERROR, dtype=torch.bool)]) is False


@pytest.mark.parametrize(
    ("kind", "repeats", "site"),
    in_turn(
        [("noise", False), ("spike", False), ("bias", True), ("scale", True)],
        ["self_attn.v_proj", "self_attn", "mlp.act_fn", "mlp.down_proj"],
    ),
)
def test_a_random_fault_in_a_tenth_of_a_modules_units_keeps_its_kind(make_model, site, kind, repeats):
    model = make_model("qwen2", layers=2, dtype=torch.bfloat16)
    with simulate(model, [Fault(kind, 1, site=site, sparsity=0.1, seed=5)]):
        report = srdd.scan(model)
    (finding,) = report.findings
    assert (finding.site, finding.kind) == (f"model.layers.1.{site}", kind)
    (row,) = [row for row in report.measurements.layers[1].replay if row.transfer.violation > 1 and not row.operator]
    # The spikes of the second call may be few and small beside those of the first: that says nothing either way.
    assert row.repeats is repeats or (kind == "spike" and row.repeats is None)
