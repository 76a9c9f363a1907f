"""A small Qwen2 on the simulated device against the host, bit for bit."""

from __future__ import annotations

import pytest
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

import hal


@pytest.fixture
def model():
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=64,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        attn_implementation="eager",
    )
    return Qwen2ForCausalLM(config).eval()


@pytest.fixture
def tokens():
    return torch.randint(0, 64, (2, 24), generator=torch.Generator().manual_seed(0))


def step(model, tokens, place):
    """Logits and gradients of one training step on `place`, brought to the host."""
    model.to(place).zero_grad(set_to_none=True)
    output = model(tokens.to(place), labels=tokens.to(place))
    output.loss.backward()
    grads = {name: parameter.grad.detach().cpu() for name, parameter in model.named_parameters()}
    return output.logits.detach().cpu(), grads


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_forward_and_backward_have_the_hosts_bits(npu, model, tokens, dtype):
    model = model.to(dtype)
    logits, grads = step(model, tokens, "cpu")
    with npu.numeric_mode(hal.NumericMode()):
        logits_npu, grads_npu = step(model, tokens, npu.device)
    assert torch.equal(logits, logits_npu)
    assert [name for name in grads if not torch.equal(grads[name], grads_npu[name])] == []


@pytest.mark.parametrize("switch", ["reorder", "hf32_matmul"])
def test_other_arithmetic_changes_the_bits_and_little_else(npu, arithmetic, model, tokens, switch):
    logits, grads = step(model, tokens, "cpu")
    with arithmetic(**{switch: True}):
        logits_npu, grads_npu = step(model, tokens, npu.device)
    assert not torch.equal(logits, logits_npu)
    torch.testing.assert_close(logits, logits_npu, rtol=0, atol=5e-3)
    for name, grad in grads.items():
        assert (grads_npu[name] - grad).norm() <= 5e-3 * grad.norm(), name


def test_generation_agrees_token_by_token(npu, model, tokens):
    prompt = tokens[:1, :5]
    expected = model.generate(prompt, max_new_tokens=8, do_sample=False, pad_token_id=0)
    generated = model.to(npu.device).generate(prompt.to(npu.device), max_new_tokens=8, do_sample=False, pad_token_id=0)
    assert generated.device == npu.device
    assert torch.equal(expected, generated.cpu())


def test_a_checkpoint_loads_onto_the_device(npu, model, tmp_path):
    model.save_pretrained(tmp_path)
    loaded = Qwen2ForCausalLM.from_pretrained(tmp_path, device_map={"": npu.device})
    assert loaded.device == npu.device
    for (name, ours), theirs in zip(model.state_dict().items(), loaded.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs.cpu()), name
