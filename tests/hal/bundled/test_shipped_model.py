"""The shipped checkpoint is whole, loads cleanly, is what its card says, and is good enough for a fault to show."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file
from scipy.stats import binomtest, fisher_exact
from transformers import AutoModelForCausalLM, AutoTokenizer

from hal.bundled import model_card, model_dir
from hal.bundled.arithmetic import KINDS, problems
from hal.bundled.evaluate import accuracy, text_loss
from hal.bundled.text import passages

ASKED = problems("held-out", 60, seed=7)
RARE = 1e-4  # a sound model fails a test at this level once in ten thousand seeds; the seed is fixed


@pytest.fixture(scope="module")
def card():
    return model_card()


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(model_dir())


@pytest.fixture
def model():
    return AutoModelForCausalLM.from_pretrained(model_dir(), dtype=torch.float32).eval()


def test_it_loads_with_no_weight_missing_or_left_over():
    model, loading = AutoModelForCausalLM.from_pretrained(model_dir(), output_loading_info=True)
    assert not any(loading.values()), loading
    assert type(model).__name__ == "Qwen2ForCausalLM"
    assert model.dtype == torch.bfloat16


def test_it_is_small_and_every_weight_is_finite(card):
    weights = load_file(model_dir() / "model.safetensors")
    assert all(weight.dtype == torch.bfloat16 and torch.isfinite(weight).all() for weight in weights.values())
    assert sum(weight.numel() for weight in weights.values()) == card["parameters"]
    assert sum(file.stat().st_size for file in model_dir().iterdir()) < 6_000_000


def test_it_has_the_shape_that_vllm_and_the_scan_need(model, tokenizer):
    config = model.config
    assert config.num_hidden_layers >= 12
    assert config.hidden_size // config.num_attention_heads in {32, 64}
    assert config.max_position_embeddings >= 2048
    assert config.vocab_size == len(tokenizer)


def test_generation_stops_at_the_end_of_a_turn(model, tokenizer):
    assert tokenizer.eos_token_id in model.generation_config.eos_token_id
    assert model.generation_config.pad_token_id == tokenizer.pad_token_id != tokenizer.eos_token_id
    assert model.generation_config.max_new_tokens is None  # vLLM would take it for a limit on every request


@pytest.mark.parametrize("text", ["\n", "a\nb", "\n\n\n", ". \n ?\n"])
def test_a_newline_is_one_token_wherever_it_stands(tokenizer, text):
    (newline,) = tokenizer("\n", add_special_tokens=False).input_ids
    assert tokenizer(text, add_special_tokens=False).input_ids.count(newline) == text.count("\n")


def test_a_conversation_survives_the_chat_template(tokenizer):
    for problem in ASKED[:10]:
        ids = tokenizer.apply_chat_template(problem.conversation)["input_ids"]
        assert tokenizer.decode(ids) == (
            f"<|im_start|>user\n{problem.question}<|im_end|>\n<|im_start|>assistant\n{problem.answer}<|im_end|>\n"
        )


def test_its_accuracy_is_that_of_the_card_and_far_above_chance(model, tokenizer, card):
    measured = accuracy(model, tokenizer, ASKED)
    said = card["float32"]["accuracy"]
    assert binomtest(measured.correct, measured.total, card["chance"], "greater").pvalue < 1e-12
    counts = [[said["correct"], said["total"] - said["correct"]], [measured.correct, measured.total - measured.correct]]
    assert fisher_exact(counts).pvalue > RARE, f"measured {measured}, the card says {said}"


def test_the_card_states_what_was_promised(card):
    for dtype in ("float32", "bfloat16"):
        accuracy = card[dtype]["accuracy"]
        assert accuracy["total"] >= 1000
        assert accuracy["rate"] >= 0.8
        assert set(card[dtype]["accuracy_by_kind"]) == set(KINDS)
    assert card["chance"] < 0.1
    assert card["licence"] == "Apache-2.0"


def test_it_has_learnt_from_text(model, tokenizer, card):
    """The passages differ a little between Python versions, hence the wide margin."""
    measured = text_loss(model, tokenizer, passages("held-out", 20))
    assert measured == pytest.approx(card["float32"]["text_loss"], abs=0.4)
    assert measured < 0.6 * torch.tensor(float(len(tokenizer))).log()


@pytest.mark.parametrize("layer", [0, 5, 11])
def test_its_accuracy_falls_when_a_layer_is_broken(model, tokenizer, layer, card):
    with torch.no_grad():
        model.model.layers[layer].mlp.down_proj.weight.neg_()
    broken = accuracy(model, tokenizer, ASKED[:30])
    assert broken.interval[1] < card["float32"]["accuracy"]["rate"]


def test_naming_it_loads_neither_weights_nor_transformers():
    program = "import sys, hal.bundled; hal.bundled.model_dir(); assert 'transformers' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
