"""A rerun in another precision or on the host: is the fault gone, and is the task better?"""

import json
import math
import shutil

import numpy as np
import pytest
import torch
from scipy import stats

from hal import get_backend
from hal.bundled import model_dir
from hal.bundled.arithmetic import problems
from hal.errors import UsageError
from hal.models import load_model
from srdd.cli import main
from srdd.faults import parse_fault, simulate
from srdd.verify_fix import verify_fix
from srdd.verify_fix.outcome import metric_text
from srdd.verify_fix.paired import compare_losses, compare_shares
from srdd.verify_fix.run import place
from srdd.verify_fix.task import AnswerTask, ArithmeticTask, TextTask, matches, read_task
from tests.conftest import random_model

# -- paired comparison ------------------------------------------------------------------------------------


def shares(both, lost, gained, neither):
    before = [True] * (both + lost) + [False] * (gained + neither)
    after = [True] * both + [False] * lost + [True] * gained + [False] * neither
    return compare_shares("accuracy", before, after)


def test_only_the_examples_that_changed_speak_for_or_against():
    found = shares(70, 2, 14, 14)
    assert (found.before, found.after, found.gain) == pytest.approx((0.72, 0.84, 0.12))
    assert found.p_value == pytest.approx(2 * stats.binom.cdf(2, 16, 0.5))
    assert found.p_value == shares(700, 2, 14, 3).p_value
    assert found.better
    assert not found.worse


def test_a_loss_of_right_answers_is_worse_and_mirrors_a_gain():
    gain, loss = shares(70, 2, 14, 14), shares(70, 14, 2, 14)
    assert (loss.gain, loss.low, loss.high) == pytest.approx((-gain.gain, -gain.high, -gain.low))
    assert loss.worse


@pytest.mark.parametrize("right", [0, 1, 20, 40])
def test_no_change_is_not_certainty_and_more_examples_say_more(right):
    few, many = shares(right, 0, 0, 40 - right), shares(10 * right, 0, 0, 10 * (40 - right))
    for found in (few, many):
        assert found.gain == 0
        assert found.p_value == 1
        assert found.low < 0 < found.high
    assert many.high - many.low < few.high - few.low


@pytest.mark.parametrize("truth", [(0.7, 0.05, 0.15, 0.1), (0.9, 0.02, 0.02, 0.06), (0.05, 0.0, 0.9, 0.05)])
@pytest.mark.parametrize("size", [40, 300])
def test_the_interval_of_paired_shares_holds_the_truth_as_often_as_it_says(truth, size):
    tables = np.random.default_rng(1).multinomial(size, truth, size=1500)
    distinct, counts = np.unique(tables, axis=0, return_counts=True)
    held = 0
    for table, count in zip(distinct, counts, strict=True):
        found = shares(*table)
        held += count * (found.low <= truth[2] - truth[1] <= found.high)
    assert held / 1500 >= 0.94
    assert size < 100 or held / 1500 <= 0.98  # few examples that hardly ever change leave it too wide, on the safe side


def test_smaller_losses_are_a_gain():
    before, after = [2.0, 2.5, 3.0, 2.2, 2.9], [1.5, 2.1, 2.4, 1.8, 2.3]
    found = compare_losses(before, after)
    assert found.better
    assert found.gain == pytest.approx(0.5)
    assert found.p_value == pytest.approx(stats.ttest_rel(before, after).pvalue)
    assert compare_losses(after, before).worse


def test_equal_losses_are_no_change_and_one_text_says_nothing():
    same = compare_losses([2.0, 3.0], [2.0, 3.0])
    assert (same.low, same.high, same.p_value) == (0.0, 0.0, 1.0)
    single = compare_losses([2.0], [1.0])
    assert not single.better
    assert (single.low, single.high) == (-math.inf, math.inf)


def test_losses_that_are_not_finite_are_counted():
    before = [math.nan] * 12 + [2.0] * 8
    found = compare_losses(before, [2.0] * 20)
    assert found.metric == "share of texts with a finite loss"
    assert (found.before, found.after) == (0.4, 1.0)
    assert found.better


# -- tasks ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reply", "answer", "right"),
    [
        ("18", "18", True),
        ("She has 16 - 3 - 4 = 9 eggs. 9 * 2 = 18.", "Janet sells 9 eggs.\n#### 18", True),
        ("The answer is 1,200.0", "1200", True),
        ("It costs $18", "$18", True),
        ("-7", "-7", True),
        ("7", "-7", False),
        ("18 or 19", "18", False),
        ("none", "18", False),
        ("", "18", False),
        ("Paris", "paris", True),
        ("  New   York ", "New York", True),
        ("Paris, France", "Paris", False),
    ],
)
def test_a_reply_is_right_by_its_last_number_or_its_text(reply, answer, right):
    assert matches(reply, answer) is right


@pytest.fixture
def data(tmp_path):
    def write(*entries, name="data.jsonl"):
        path = tmp_path / name
        path.write_text("".join(f"{entry if isinstance(entry, str) else json.dumps(entry)}\n" for entry in entries))
        return path

    return write


def test_a_data_file_is_read_as_what_it_holds(data):
    asked = [{"question": "2+2?", "answer": 4}, {"prompt": "3+3?", "answer": "6"}]
    assert read_task(data(*asked), 10, 5, 2) == AnswerTask(("2+2?", "3+3?"), ("4", "6"), 5, 2)
    assert read_task(data(*asked), 1, 5, 2) == AnswerTask(("2+2?",), ("4",), 5, 2)
    assert read_task(data({"text": "One."}, "", {"text": "Two."}), 10, 5, 2) == TextTask(("One.", "Two."), 2)
    assert read_task(data("One.", "Two.", name="texts.txt"), 10, 5, 2) == TextTask(("One.", "Two."), 2)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([{"prompt": "a", "answer": "b"}, {"prompt": "c"}], "entry 2 differs from the first"),
        ([{"prompt": "a"}, {"prompt": "c", "answer": "b"}], "entry 2 differs from the first"),
        ([{"prompt": "a", "answer": ["b"]}], r"entry 1 is \['b'\]: give a text or a number"),
        ([{"prompt": "a", "answer": " "}], "entry 1 is ' '"),
        ([{"text": "a", "answer": "b"}], "entry 1 has an 'answer' but no 'prompt'"),
        (["{"], "line 1 is not JSON"),
        ([], "holds no prompts"),
    ],
)
def test_a_data_file_that_cannot_be_used_is_named(data, entries, message):
    with pytest.raises(UsageError, match=message):
        read_task(data(*entries), 10, 5, 2)


@pytest.fixture(scope="module")
def bundled():
    return load_model(model_dir(), get_backend("cpu-reference"))


def test_questions_from_a_file_are_scored_as_the_models_own_are(bundled, data):
    asked = problems("held-out", 60, 0)
    task = read_task(data(*({"question": entry.question, "answer": entry.answer} for entry in asked)), 60, 5, 16)
    own = ArithmeticTask(60).run(bundled.model, bundled.tokenizer)
    assert task.run(bundled.model, bundled.tokenizer) == own
    assert 50 < sum(own) <= 60


def test_texts_are_scored_one_by_one(bundled):
    texts = ("The train left the station.", "What is 7+5?", "x" * 40)
    task, alone = TextTask(texts, 2), [TextTask((text,), 1) for text in texts]
    found = task.run(bundled.model, bundled.tokenizer)
    assert found == pytest.approx([each.run(bundled.model, bundled.tokenizer)[0] for each in alone], rel=0.02)
    assert found[2] > found[1] + 1


def test_texts_of_one_token_are_refused(checkpoint):
    loaded = load_model(checkpoint, get_backend("cpu-reference"))
    with pytest.raises(UsageError, match="no token to predict"):
        TextTask(("a", "b"), 2).run(loaded.model, loaded.tokenizer)


# -- the whole --------------------------------------------------------------------------------------------


def test_the_bundled_model_is_cured_by_float32_of_a_fault_in_bfloat16_kernels(bundled):
    change = place(bundled.model, 7)
    before = ArithmeticTask(40).run(bundled.model, bundled.tokenizer)
    with simulate(bundled.model, [parse_fault("dead_zone@7:magnitude=0.5,dtype=bfloat16")]):
        outcome = verify_fix(
            bundled.model,
            bundled.tokenizer,
            get_backend("cpu-reference"),
            change,
            ArithmeticTask(120),
            level="quick",
            checkpoint=bundled.directory,
        )
    assert outcome.verdict == "cured"
    assert outcome.found_before.site == "model.layers.7"
    assert outcome.metric.before < 0.4
    assert outcome.after.findings == ()
    assert outcome.metric.better
    assert outcome.metric.after > 0.9
    assert ArithmeticTask(40).run(bundled.model, bundled.tokenizer) == before


@pytest.fixture
def fix(checkpoint, capsys):
    """Run verify-fix on the small checkpoint in bfloat16; returns exit code, standard output and error."""

    def run(*arguments, model=checkpoint):
        common = ["--backend", "cpu-reference", "--level", "quick", "--model-dtype", "bfloat16", "--model", str(model)]
        code = main(["verify-fix", *common, *map(str, arguments)])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


@pytest.fixture
def refused(fix):
    def run(*arguments, **options):
        code, out, err = fix(*arguments, **options)
        assert (code, out) == (2, ""), err
        assert err.startswith("error: ")
        assert err.count("\n") == 1
        return err

    return run


FAULT = "bias@1:magnitude=0.5"


@pytest.mark.parametrize(
    ("fault", "how", "verdict"),
    [
        (FAULT, [], "not cured"),
        (f"{FAULT},dtype=bfloat16", [], "cured"),
        (FAULT, ["--host"], "cured"),
        (f"{FAULT},dtype=bfloat16", ["--dtype", "float16"], "cured"),
        (FAULT, ["--host", "--site", "mlp"], "not cured"),
    ],
    ids=["the layer in any precision", "its bfloat16", "the device's", "but not float16", "outside what was rerun"],
)
def test_only_what_takes_the_fault_away_cures_it(fix, fault, how, verdict):
    code, out, _ = fix("--layer", 1, *how, "--inject", fault)
    assert f"VERDICT: {verdict}." in out, out
    assert code == (0 if verdict == "cured" else 1)
    assert "scan before  model.layers.1: bias" in out


def test_a_fault_of_an_operator_is_cured_by_that_operator_alone(fix):
    fault = "bias@1:site=mlp,operator=silu,magnitude=9,dtype=bfloat16"
    options = ["--layer", 1, "--site", "mlp", "--level", "full", "--inject", fault]
    assert fix(*options, "--operator", "silu", "--quiet")[0] == 0
    assert fix(*options, "--operator", "linear", "--quiet")[0] == 1


def test_a_module_outside_the_layers_is_rerun_by_its_full_name(bundled):
    def in_bfloat16(_module, _args, output):
        return (
            torch.where(output.abs() < 0.3 * output.abs().max(), 0, output)
            if output.dtype is torch.bfloat16
            else output
        )

    model = bundled.model.bfloat16()
    handle = model.lm_head.register_forward_hook(in_bfloat16)
    try:
        change = place(model, None, "lm_head")
        outcome = verify_fix(model, bundled.tokenizer, get_backend("cpu-reference"), change)
    finally:
        handle.remove()
        model.float()
    assert str(change) == "lm_head, in float32 on the device"
    assert outcome.verdict == "cured"
    assert outcome.found_before.site == "lm_head"


def test_a_healthy_layer_has_nothing_to_cure(fix):
    code, out, _ = fix("--layer", 2)
    assert code == 1
    assert "VERDICT: nothing to cure." in out


def test_findings_of_other_layers_are_counted_and_do_not_count(fix):
    code, out, _ = fix("--layer", 1, "--inject", f"{FAULT},dtype=bfloat16", "--inject", "dead_zone@3")
    assert code == 0
    assert "scan after   nothing there; 1 more finding elsewhere" in out


def test_damaged_weights_are_named_as_another_explanation(checkpoint):
    loaded = load_model(checkpoint, get_backend("cpu-reference"), "bfloat16")
    with torch.no_grad():
        loaded.model.model.layers[1].mlp.down_proj.weight[3, 5] += 64.0
    change = place(loaded.model, 1)
    outcome = verify_fix(loaded.model, None, get_backend("cpu-reference"), change, level="full", checkpoint=checkpoint)
    assert outcome.verdict == "cured"
    assert outcome.found_before.kind in ("bit_flip", "weight_damage")
    assert "model.layers.1.mlp.down_proj.weight" in outcome.advice
    assert "load them again" in outcome.advice


def test_json_holds_the_change_the_metric_and_both_scans(fix, tmp_path):
    path = tmp_path / "fix.json"
    texts = tmp_path / "texts.txt"
    texts.write_text("One text to lose on.\n")
    fix("--layer", 1, "--inject", f"{FAULT},dtype=bfloat16", "--data", texts, "--json", path)
    document = json.loads(path.read_text(), parse_constant=pytest.fail)
    assert document["schema"] == "srdd-verify-fix/1"
    assert document["change"] == {
        "layer": 1,
        "site": "model.layers.1",
        "operator": "",
        "dtype": "float32",
        "host": False,
    }
    assert (document["verdict"], document["helps"]) == ("cured", True)
    assert document["before"]["schema"] == document["after"]["schema"] == "srdd-report/1"
    assert (document["before"]["verdict"], document["after"]["verdict"]) == ("faulty", "healthy")
    assert document["metric"]["examples"] == 1
    assert document["metric"]["low"] is None


def test_a_model_that_generates_nothing_is_judged_by_the_scans(fix, tmp_path, byte_tokenizer):
    random_model("bert", layers=4, hidden=32).save_pretrained(tmp_path)
    byte_tokenizer.save_pretrained(tmp_path)
    code, out, _ = fix("--layer", 1, "--level", "full", "--inject", f"{FAULT},dtype=bfloat16", model=tmp_path)
    assert code == 0
    assert f"task         {metric_text(None)}" in out


def test_a_layer_that_keeps_parts_in_the_other_precision_may_be_rerun_in_it():
    model = random_model("llama", layers=2, hidden=32, dtype=torch.bfloat16)
    model.model.layers[1].input_layernorm.float()
    assert place(model, 1).dtype == "float32"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--layer", 9], "layer 9 does not exist: the model has layers 0 to 3"),
        (["--layer", 1, "--site", "mlp.down"], "no module 'model.layers.1.mlp.down'"),
        (["--layer", 1, "--operator", "conv"], "operator 'conv' cannot be hooked"),
        (["--layer", 1, "--operator", "rms_norm"], "the model never calls that"),
        (["--layer", 1, "--dtype", "bfloat16"], "is in bfloat16 already"),
        (["--layer", 1, "--dtype", "int8"], "unknown dtype 'int8'"),
        (["--layer", 1, "--inject", "bias@1:dtype=float16"], "never acted"),
        (["--layer", 1, "--inject", "bias@1:dtype=fp16"], "unknown fault dtype 'fp16'"),
        (["--layer", 1, "--data", "none.jsonl"], "cannot read prompts file none.jsonl"),
        (["--layer", 1, "--json", "none/fix.json"], "cannot write none/fix.json"),
        ([], "nothing to rerun: give --layer, or --site with the full name of a module outside the layers"),
        (["--site", "model.layers.1.mlp"], "site model.layers.1.mlp belongs to a layer: give --layer"),
        (["--site", "head"], "no module 'head'"),
    ],
)
def test_bad_input_is_named_in_one_line(refused, arguments, message):
    assert message in refused(*arguments)


def test_a_task_for_a_model_without_tokenizer_is_refused(refused, checkpoint, tmp_path):
    copy = shutil.copytree(checkpoint, tmp_path / "copy")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (copy / name).unlink()
    (tmp_path / "texts.txt").write_text("text\n")
    assert "has no tokenizer" in refused("--layer", 1, "--data", tmp_path / "texts.txt", model=copy)
