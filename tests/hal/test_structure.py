"""A model's repeated layers are found by structure, whatever the family and its names."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import EncodecConfig, JambaConfig, JambaForCausalLM, MusicgenConfig, MusicgenDecoderConfig, T5Config

from hal import ModelError
from hal.skeleton import text_config
from hal.structure import LayerStack, dotted, enclosing, evaluation_mode, find_layer_stack
from tests.conftest import FAMILIES, random_model

PATHS = {"gpt2": "transformer.h", "gpt_neox": "gpt_neox.layers", "bert": "encoder.layer"}


class Block(nn.Module):
    def __init__(self, width: int = 4, experts: int = 0) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.proj = nn.Linear(width, width)
        if experts:
            self.experts = nn.ModuleList(Mlp(width) for _ in range(experts))


class Mlp(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.up = nn.Linear(width, 8 * width)
        self.down = nn.Linear(8 * width, width)


class Recurrent(Block):
    pass


class Sliding(Block):
    pass


def model_of(**children: nn.Module) -> nn.Module:
    model = nn.Module()
    for name, child in children.items():
        model.add_module(name, child)
    return model


@pytest.mark.parametrize("layers", [1, 2, 5])
@pytest.mark.parametrize("family", FAMILIES)
def test_layers_of_each_family_are_found(family, layers):
    model = random_model(family, layers=layers)
    stack = find_layer_stack(model)
    assert stack.path == PATHS.get(family, "model.layers")
    assert len(stack) == layers
    assert stack.layers[-1] is model.get_submodule(stack.site(layers - 1))


def test_experts_are_not_mistaken_for_the_layers():
    layers = nn.ModuleList(Block(experts=16) for _ in range(3))
    assert find_layer_stack(model_of(layers=layers)).path == "layers"


def test_experts_of_a_single_layer_are_not_mistaken_for_the_layers():
    assert find_layer_stack(model_of(layers=nn.ModuleList([Block(experts=16)]))).path == "layers"


def test_of_containers_with_equal_weights_the_outer_is_the_stack():
    inner = nn.Module()
    inner.experts = nn.ModuleList(Mlp(4) for _ in range(4))
    assert find_layer_stack(model_of(layers=nn.ModuleList([inner]))).path == "layers"


def test_the_larger_stack_is_the_model():
    vision = nn.ModuleList(Block(4) for _ in range(8))
    text = nn.ModuleList(Block(16) for _ in range(4))
    assert find_layer_stack(model_of(vision=vision, text=text)).path == "text"
    assert find_layer_stack(model_of(text=text, vision=vision)).path == "text"


@pytest.mark.parametrize(
    "classes",
    [
        (Block, Recurrent) * 2,
        (Recurrent, Recurrent, Recurrent, Block) * 2,
        (Block, Recurrent, Sliding) * 2,
        (Recurrent, Recurrent, Block, Recurrent, Recurrent),
    ],
    ids=lambda classes: "-".join(kind.__name__[0] for kind in classes),
)
def test_hybrid_models_alternate_a_few_classes(classes):
    stack = find_layer_stack(model_of(layers=nn.ModuleList(kind() for kind in classes)))
    assert tuple(type(layer) for layer in stack.layers) == classes


def test_layers_of_a_class_each_are_those_that_the_configuration_counts():
    config = JambaConfig(
        num_hidden_layers=2, attn_layer_period=2, attn_layer_offset=1, expert_layer_period=2, hidden_size=32
    )
    with torch.device("meta"):
        model = JambaForCausalLM(config)
    stack = find_layer_stack(model)
    assert stack.path == "model.layers"
    assert len({type(layer) for layer in stack.layers}) == len(stack) == 2


def test_of_an_encoder_and_a_decoder_for_texts_the_decoder_counts():
    config = MusicgenConfig(
        text_encoder=T5Config(num_layers=2, d_model=8, d_ff=8, d_kv=4, num_heads=2).to_dict(),
        audio_encoder=EncodecConfig().to_dict(),
        decoder=MusicgenDecoderConfig(num_hidden_layers=3, hidden_size=8, ffn_dim=8, num_attention_heads=2).to_dict(),
    )
    assert text_config(config).num_hidden_layers == 3


def test_layers_may_be_a_sequential():
    model = model_of(embed=nn.Embedding(3, 4), blocks=nn.Sequential(*(Block() for _ in range(3))))
    assert find_layer_stack(model).path == "blocks"


def test_model_may_be_the_stack_itself():
    model = nn.Sequential(Block(), Block())
    stack = find_layer_stack(model)
    assert stack.path == ""
    assert stack.site(1) == "1"
    assert model.get_submodule("1") is stack.layers[1]


def test_torch_layers_are_found():
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16), 3, enable_nested_tensor=False)
    assert find_layer_stack(encoder).path == "layers"


NONE = {
    "single_layers": lambda: nn.Linear(4, 4),
    "plain_list_of_operators": lambda: nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4)),
    "list_of_leaves": lambda: nn.ModuleList(nn.Linear(4, 4) for _ in range(4)),
    "pipeline_of_different_blocks": lambda: nn.Sequential(Block(), Recurrent(), Sliding()),
    "empty_list": nn.ModuleList,
    "blocks_without_parameters": lambda: nn.Sequential(nn.Sequential(nn.ReLU()), nn.Sequential(nn.ReLU())),
}


@pytest.mark.parametrize("case", NONE)
def test_model_without_repeated_layers_is_refused_by_its_class(case):
    model = NONE[case]()
    with pytest.raises(ModelError, match=f"{type(model).__name__} has no repeated layers: expected a ModuleList"):
        find_layer_stack(model)


@pytest.mark.parametrize("index", [-1, 3, 100])
def test_layer_outside_the_stack_names_the_range(index):
    stack = LayerStack("model.layers", (Block(), Block(), Block()))
    assert stack.site(2) == "model.layers.2"
    with pytest.raises(ModelError, match=f"layer {index} does not exist: the model has layers 0 to 2"):
        stack.site(index)


@pytest.mark.parametrize(
    ("path", "name", "layer"),
    [
        ("model.layers", "model.layers.2.proj.weight", 2),
        ("model.layers", "model.layers.11", 11),
        ("model.layers", "model.layers", None),
        ("model.layers", "model.layers_norm.2", None),
        ("model.layers", "head.2.weight", None),
        ("", "2.proj.weight", 2),
        ("", "head.2.weight", None),
    ],
)
def test_a_name_belongs_to_the_layer_it_lies_in(path, name, layer):
    assert LayerStack(path, (Block(), Block(), Block())).layer_of(name) == layer


@pytest.mark.parametrize(
    ("parts", "name"), [(("a", "b.c"), "a.b.c"), (("", "b"), "b"), (("a", ""), "a"), (("", ""), "")]
)
def test_a_name_is_made_of_its_parts(parts, name):
    assert dotted(*parts) == name


def test_a_module_lies_in_each_that_its_name_begins_with_and_in_the_whole():
    assert list(enclosing("model.layers.3")) == ["model.layers.3", "model.layers", "model", ""]
    assert list(enclosing("")) == [""]


def test_evaluation_mode_returns_each_module_to_its_own_mode():
    model = nn.Sequential(Block(), Block(), nn.Dropout())
    model.train()
    model[1].proj.eval()
    before = [module.training for module in model.modules()]
    with pytest.raises(KeyError), evaluation_mode(model):  # noqa: PT012
        assert not any(module.training for module in model.modules())
        assert torch.equal(model[2](torch.ones(50)), torch.ones(50))
        raise KeyError
    assert [module.training for module in model.modules()] == before


class Elsewhere(nn.Identity):
    """Stands, as vLLM's PPMissingLayer does, where another pipeline stage has the layer."""


@pytest.mark.parametrize("first", [0, 1, 3])
def test_a_pipeline_stage_is_a_stack_whose_layers_keep_their_numbers(first):
    blocks = [Block() if first <= index < first + 2 else Elsewhere() for index in range(5)]
    stack = find_layer_stack(model_of(layers=nn.ModuleList(blocks), head=nn.Linear(4, 9)))
    assert stack.path == "layers"
    assert len(stack) == 5
    assert stack.present == (first, first + 1)
    assert stack.layers[first] is blocks[first]


def test_a_list_of_stand_ins_alone_is_no_stack():
    with pytest.raises(ModelError, match="no repeated layers"):
        find_layer_stack(model_of(layers=nn.ModuleList(Elsewhere() for _ in range(4))))


def test_all_layers_of_a_whole_model_are_present():
    assert find_layer_stack(model_of(layers=nn.ModuleList(Block() for _ in range(3)))).present == (0, 1, 2)


@pytest.mark.parametrize(
    ("path", "name", "holds"),
    [
        ("model.layers", "model.layers", True),
        ("model.layers", "model.layers.3.mlp", True),
        ("model.layers", "model.layers_norm", False),
        ("model.layers", "model", False),
        ("model.layers", "", False),
        ("", "3.mlp", True),
    ],
)
def test_what_the_layers_hold_is_told_by_whole_names(path, name, holds):
    assert LayerStack(path, ()).holds(name) is holds
