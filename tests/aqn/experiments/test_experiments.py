"""Each experiment shows an effect that is there, claims none that is not, and leaves the model as it was."""

from __future__ import annotations

import json

import pytest
import torch
from rich.console import Console

from aqn.experiments.comparison import (
    CLEAN,
    DEADZONE,
    GLOBAL,
    HEALTHY,
    LOSS,
    PRUNED,
    SURVIVAL,
    TARGETED,
    run_comparison,
)
from aqn.experiments.gradient_flow import COSINE, ZEROS, run_gradient_flow
from aqn.experiments.output import save
from aqn.experiments.overhead import NONE, RATIO, run_overhead
from aqn.experiments.plan import Plan
from aqn.experiments.result import Cell, Result
from aqn.experiments.robustness import run_robustness
from aqn.experiments.systematic import NEAREST, TRUNCATION, cut, run_systematic
from aqn.experiments.tables import show
from aqn.experiments.without_layer import without_layer
from hal.errors import UsageError
from tests.conftest import random_model

POINT = "layer 7, threshold 0.5"


@pytest.fixture(autouse=True)
def nothing_is_left(subject):
    yield
    assert torch._C._len_torch_function_stack() == 0
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in subject.model.modules())
    assert all(weight.grad is None for weight in subject.model.parameters())


@pytest.fixture(scope="module")
def comparison(subject):
    return run_comparison(subject, Plan(layers=(7,), thresholds=(0.5,), sigma=0.05, samples=6, seeds=3))


# -- injection --------------------------------------------------------------------------------------


def test_the_comparison_has_the_documents_rows_and_the_dead_zone_is_far_above_clean(comparison):
    losses = {cell.condition: cell.summary.mean for cell in comparison.cells if cell.measure == LOSS}
    assert list(losses) == [CLEAN, DEADZONE, GLOBAL, TARGETED, HEALTHY, PRUNED]
    assert losses[DEADZONE] > 5 * losses[CLEAN]
    assert len({comparison.cell(POINT, name, LOSS).values for name in losses}) == 6
    assert comparison.statements[-1].startswith("targeted beats global noise at")


def test_noise_of_the_layers_output_reports_what_survived(subject):
    plan = Plan(layers=(7,), thresholds=(0.3,), sigma=0.3, kind="layer", samples=2, seeds=2)
    result = run_comparison(subject, plan)
    assert 0 < result.cell("layer 7, threshold 0.3", TARGETED, SURVIVAL).summary.mean < 1
    assert not any((cell.condition, cell.measure) == (HEALTHY, SURVIVAL) for cell in result.cells)


def test_a_layer_that_is_not_there_is_refused_before_anything_runs(subject):
    with pytest.raises(UsageError, match="layer 12 does not exist"):
        run_comparison(subject, Plan(layers=(12,)))


def test_a_layer_left_out_returns_its_input():
    model, ids = random_model("llama"), torch.arange(10)[None]
    with torch.no_grad():
        expected = [state.clone() for state in model(ids, output_hidden_states=True).hidden_states]
        with without_layer(model, 0):
            skipped = model.model.layers[0](expected[0], position_embeddings=model.model.rotary_emb(expected[0], ids))
    assert torch.equal(skipped, expected[0])


# -- results ----------------------------------------------------------------------------------------


def test_a_result_is_saved_as_data_page_and_plot(comparison, tmp_path):
    comparison.options["command"] = "python -m aqn experiment injection"
    paths = save(comparison, tmp_path)
    assert [path.name for path in paths] == ["injection.json", "injection.md", "injection.svg"]
    document = json.loads(paths[0].read_text())
    assert document["schema"] == "aqn-experiment/1"
    assert {"mean", "std", "low", "high", "count"} == set(document["cells"][0]["summary"])
    assert {"p", "p_corrected", "effect", "verdict"} <= set(document["comparisons"][0])
    page = paths[1].read_text()
    assert "python -m aqn experiment injection" in page
    assert "| Targeted AQN - Global AQN |" in page
    assert paths[2].read_text().count("<svg") == 1
    again = tmp_path / "again"
    again.mkdir()
    assert save(comparison, again)[2].read_bytes() == paths[2].read_bytes()


def test_a_result_is_printed_whole(comparison):
    console = Console(width=200, record=True, quiet=True, file=None)
    with console.capture() as shown:
        show(comparison, Console(width=200, file=console.file))
    console = Console(width=200)
    with console.capture() as shown:
        show(comparison, console)
    assert "Deadzone only" in shown.get()
    assert "Holm" in shown.get()


def test_pairs_are_compared_only_where_both_are():
    result = Result("x", "x", {}, {})
    result.cells = [Cell("p", "a", "m", (1.0, 2.0)), Cell("p", "b", "m", (2.0, 3.5)), Cell("q", "a", "m", (1.0, 2.0))]
    result.compare("m", [("a", "b")])
    assert [entry.name for entry in result.comparisons] == ["p: m"]


# -- gradients --------------------------------------------------------------------------------------


def test_gradients_under_a_dead_zone_turn_away_from_the_clean_ones(subject):
    result = run_gradient_flow(subject, Plan(layers=(7,), thresholds=(0.5,), sigma=0.05, samples=4, seeds=2))
    assert result.cell("layer 7", DEADZONE, ZEROS).summary.mean > 0.9
    assert result.cell("layer 3", DEADZONE, ZEROS).summary.mean == 0
    assert result.cell("layer 3", DEADZONE, COSINE).summary.mean < 0.5


# -- systematic error -------------------------------------------------------------------------------


def test_cutting_rounds_as_named():
    x = torch.tensor([1.0, 1.3, -1.3, 1.7, 2.6, -0.0])
    assert cut(x, 1, "truncation").tolist() == [1.0, 1.0, -1.0, 1.5, 2.0, 0.0]
    assert cut(x, 1, "nearest").tolist() == [1.0, 1.5, -1.5, 1.5, 3.0, 0.0]
    assert cut(x, 1, "away").tolist() == [1.0, 1.5, -1.5, 2.0, 3.0, 0.0]
    with pytest.raises(UsageError, match="0 significand bits"):
        cut(x, 0, "nearest")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_cutting_to_what_a_dtype_has_changes_nothing(dtype):
    x = torch.randn(1000).to(dtype)
    assert torch.equal(cut(x.bfloat16().to(dtype), 7, "truncation"), x.bfloat16().to(dtype))


def test_few_bits_cost_loss(subject):
    result = run_systematic(subject, bits=(1,), samples=4, seeds=2)
    assert result.cell("1 bits", TRUNCATION, LOSS).values != result.cell("1 bits", NEAREST, LOSS).values


# -- robustness and overhead ------------------------------------------------------------------------


def test_accuracy_falls_under_strong_noise(subject):
    result = run_robustness([subject], [0, 0.5], samples=20, seeds=2)
    quiet, loud = (result.cell(f"noise {level}", subject.name, "accuracy").summary.mean for level in ("0", "0.5"))
    assert quiet > 0.9
    assert loud < 0.6


@pytest.mark.parametrize("noise", [[], [-0.1]])
def test_levels_that_are_none_are_refused(subject, noise):
    with pytest.raises(UsageError, match="noise levels"):
        run_robustness([subject], noise)


def test_overhead_measures_every_case_beside_the_step_without_noise(subject):
    result = run_overhead(subject, rows=2, length=8, seeds=2)
    ratios = {cell.condition: cell.values for cell in result.cells if cell.measure == RATIO}
    assert ratios[NONE] == (1.0, 1.0)
    assert len(ratios) == 9
