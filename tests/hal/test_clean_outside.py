"""Clean copies of what lies outside a model's layers."""

import pytest
import torch
from torch import nn

from hal.clean_outside import CleanOutside, is_product, is_table
from hal.model_weights import ModelWeights
from hal.structure import find_layer_stack


def clean(model, weights=None):
    return CleanOutside(model, find_layer_stack(model), weights)


@pytest.fixture
def gpt2(make_model):
    return make_model("gpt2", layers=2)


def test_small_modules_are_wide_copies_without_hooks(make_model):
    model = make_model("llama", layers=2, hidden=32, dtype=torch.bfloat16)
    model.model.norm.register_forward_hook(lambda _module, _args, output: 0 * output)
    norm = clean(model).module.model.norm
    assert norm.weight.dtype == torch.float64
    assert torch.equal(norm.weight, model.model.norm.weight.double())
    assert norm(torch.ones(2, 32, dtype=torch.float64)).all()


def test_layers_and_large_weights_take_no_memory(gpt2):
    module = clean(gpt2).module
    assert all(parameter.is_meta for parameter in module.transformer.h.parameters())
    assert module.transformer.wte.weight.is_meta
    assert module.lm_head.weight.is_meta
    assert not module.transformer.ln_f.weight.is_meta


def test_a_product_has_the_weights_of_the_model_in_its_dtype(make_model):
    model = make_model("bert", layers=2, hidden=32, dtype=torch.bfloat16)
    part = clean(model).product("pooler.dense")
    x = torch.randn(5, 32, dtype=torch.bfloat16)
    assert torch.equal(part(x), model.pooler.dense(x))
    assert part.weight is not model.pooler.dense.weight
    with pytest.raises(TypeError, match="not a matrix product"):
        clean(model).product("embeddings.word_embeddings")


def test_a_table_is_made_of_the_rows_asked_for(gpt2):
    table = clean(gpt2).table("transformer.wte", torch.tensor([4, 9]))
    assert torch.equal(table(torch.tensor([1, 0])).float(), gpt2.transformer.wte.weight[[9, 4]])
    with pytest.raises(TypeError, match="not a look-up table"):
        clean(gpt2).table("lm_head", None)


def test_the_checkpoint_gives_the_weights_under_any_shared_name(gpt2, tmp_path):
    gpt2.save_pretrained(tmp_path)
    right = gpt2.lm_head.weight.detach().clone()
    with torch.no_grad():
        gpt2.lm_head.weight.zero_()
        gpt2.transformer.ln_f.weight.zero_()
    copy = clean(gpt2, ModelWeights(gpt2, find_layer_stack(gpt2), tmp_path))
    assert torch.equal(copy.product("lm_head").weight, right)
    assert copy.module.transformer.ln_f.weight.all()


def test_frequencies_are_computed_afresh_unless_a_cast_explains_them(make_model):
    model = make_model("llama", layers=2)
    right = model.model.rotary_emb.inv_freq.clone()
    model.model.rotary_emb.inv_freq[2] = 7
    assert torch.equal(clean(model).module.model.rotary_emb.inv_freq, right.double())
    model.model.rotary_emb.inv_freq = right.bfloat16().float()
    assert torch.equal(clean(model).module.model.rotary_emb.inv_freq, right.bfloat16().double())


def test_a_wrapped_model_is_found_with_its_name(gpt2):
    wrapped = nn.ModuleDict({"inner": gpt2})
    copy = clean(wrapped)
    assert (copy.name, copy.owner) == ("inner", gpt2)
    assert not copy.module.transformer.ln_f.weight.is_meta


def test_weights_are_lent_to_parts_for_a_while_but_not_to_layers(gpt2):
    copy = clean(gpt2)
    wte, head = copy.module.transformer.wte, copy.module.lm_head
    with copy.lent("transformer"):
        assert torch.equal(wte.weight, gpt2.transformer.wte.weight)
        assert head.weight.is_meta
        assert all(parameter.is_meta for parameter in copy.module.transformer.h.parameters())
    assert wte.weight.is_meta


def test_a_model_outside_transformers_is_copied_without_its_layers():
    layers = nn.ModuleList(nn.Sequential(nn.Linear(4, 4), nn.Tanh()) for _ in range(2))
    model = nn.ModuleDict({"embedding": nn.Embedding(5, 4), "layers": layers, "norm": nn.LayerNorm(4)})
    copy = clean(model)
    assert [type(layer) for layer in copy.module["layers"]] == [nn.Identity, nn.Identity]
    assert copy.module["norm"].weight.dtype == torch.float64
    assert len(model["layers"][0]) == 2


def test_what_is_a_table_and_what_a_product():
    class Scaled(nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    assert is_table(nn.Embedding(2, 2))
    assert is_product(nn.Linear(2, 2))
    assert not is_product(Scaled(2, 2))
