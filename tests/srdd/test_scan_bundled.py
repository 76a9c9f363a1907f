"""The false-alarm rate and the detection rate on the bundled, trained model, at level quick."""

from itertools import product

import pytest
import torch

import srdd
from hal import get_backend
from hal.errors import ModelError
from hal.models import load_model
from srdd.faults import parse_fault, simulate
from tests.conftest import in_turn

DTYPES = ["bfloat16", "float32"]
KINDS = ("dead_zone", "saturation", "bias", "noise", "spike")
SETS = 20
NAMED = 0.9  # of the dense faults, kind by kind: the figure promised for level quick

THINGS = ("trains", "loaves", "letters", "sensors", "windows", "maps", "songs", "bridges", "lamps", "seeds")
FORMS = (
    "There are {a} {x} and {b} {y}. How many are there in all?",
    "{a} + {b} = {c}, {b} + {a} = {c}, {c} - {a} = {b}.",
    "Of {c} {x}, {a} were {y} before; the other {b} were found near the river.",
    "def {x}({y}):\n    return {y} * {a} + {b}",
    "The {x} of {a} towns sent {b} {y}, and nobody knew why until the spring of 19{b}.",
)


def prompts(number):
    """The prompt set of that number: every set is other text."""
    lines = []
    for line in range(16):
        a, b = 3 + 7 * number + line, 11 + 5 * line + number
        x, y = THINGS[(number + line) % 10], THINGS[(3 * number + line + 1) % 10]
        lines.append(FORMS[(number + line) % len(FORMS)].format(a=a, b=b, c=a + b, x=x, y=y))
    return lines


@pytest.fixture(scope="module", params=DTYPES)
def bundled(request):
    from hal.bundled import model_dir

    try:
        directory = model_dir()
    except ModelError as error:
        pytest.skip(f"the bundled model is not made yet: {error}")
    return load_model(directory, get_backend("cpu-reference"), request.param)


def quick(bundled, texts=None):
    return srdd.scan(bundled.model, bundled.tokenizer, prompts=texts, level="quick")


def test_the_prompt_sets_differ():
    assert len({"".join(prompts(number)) for number in range(SETS)}) == SETS


def test_twenty_clean_scans_with_different_prompts_raise_no_alarm(bundled):
    scores = []
    for number in range(SETS):
        report = quick(bundled, prompts(number))
        assert report.verdict == "healthy", (number, report.findings)
        assert report.measurements.tokens == 256
        scores.append(max(report.diagnosis.scores))
    print(f"\nclean scans: 0 alarms in {SETS}, highest score {max(scores):.3f} (alarm above 1)")  # noqa: T201 -- the figure
    assert max(scores) < 0.95


@pytest.mark.parametrize(("kind", "bundled"), in_turn(KINDS, DTYPES), indirect=["bundled"], scope="module")
def test_a_dense_fault_is_named_with_its_layer_in_nine_of_ten_layers_at_least(bundled, kind):
    layers = bundled.model.config.num_hidden_layers
    missed = []
    for index in range(layers):
        with simulate(bundled.model, [parse_fault(f"{kind}@{index}")]):
            report = quick(bundled)
        found = [(finding.layer, finding.kind) for finding in report.findings]
        if found != [(index, kind)]:
            missed.append((index, found))
        assert report.cost.forward_equivalents <= 10
    print(f"\n{kind}: {layers - len(missed)} of {layers} named; others: {missed}")  # noqa: T201 -- the figure
    assert layers >= 12
    assert layers - len(missed) >= NAMED * layers, missed


@pytest.mark.parametrize(
    ("sparsity", "kind", "bundled"),
    in_turn(product([0.1, 0.01], KINDS), DTYPES),
    indirect=["bundled"],
    scope="module",
)
def test_a_sparse_fault_never_accuses_another_layer(bundled, kind, sparsity):
    for index in (0, bundled.model.config.num_hidden_layers - 1):
        with simulate(bundled.model, [parse_fault(f"{kind}@{index}:sparsity={sparsity}")]):
            report = quick(bundled)
        assert {finding.layer for finding in report.findings} <= {index}


def test_a_scan_leaves_the_models_answers_as_they_were(bundled):
    ids = torch.tensor([bundled.tokenizer("17 + 25 =")["input_ids"]])
    with torch.no_grad():
        before = bundled.model(ids).logits
        quick(bundled)
        assert torch.equal(bundled.model(ids).logits, before)
