import inspect
import itertools
import weakref

import pytest
import torch
from torch import nn

from hal.structure import find_layer_stack
from srdd.walk import Walk
from tests.conftest import FAMILIES

IDS = torch.arange(40).reshape(2, 20)


def ignore(_visit):
    pass


def respond_to_all(visit):
    for excitation in visit.excitations(seed=0, repeats=2):
        visit.respond(excitation)


@torch.no_grad()
def walk_over(model, visit):
    """The walk over one forward pass, and what that pass returned."""
    walk, results = Walk(find_layer_stack(model), visit), []
    walk.run(lambda: results.append(forward(model)))
    return walk, results[0]


def forward(model):
    # As a scan runs it: a layer that adds to a cache would not repeat itself.
    options = {"use_cache": False} if "use_cache" in inspect.signature(model.forward).parameters else {}
    return model(IDS, **options)[0]


def hook_count(model):
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


class InPlaceBlock(nn.Module):
    """A layer that writes its result into its input."""

    def __init__(self, width):
        super().__init__()
        self.inner = nn.Linear(width, width)

    def forward(self, x):
        return x.add_(self.inner(x))


class InPlaceModel(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(64, 16)
        self.layers = nn.ModuleList(InPlaceBlock(16) for _ in range(4))

    def forward(self, ids):
        x = self.embed(ids)
        for layer in self.layers:
            x = layer(x)
        return (x,)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_the_model_returns_is_bit_equal_with_and_without_the_walk(make_model, family):
    model = make_model(family)
    with torch.no_grad():
        plain = forward(model)
    _, walked = walk_over(model, respond_to_all)
    assert torch.equal(walked, plain)
    assert hook_count(model) == 0


def test_a_model_whose_layers_write_into_their_input_is_not_disturbed():
    model, inputs = InPlaceModel(), []
    with torch.no_grad():
        plain = forward(model)

    def visit(entry):
        inputs.append((entry.call.stream.clone(), entry.output.clone()))
        respond_to_all(entry)

    _, walked = walk_over(model, visit)
    assert torch.equal(walked, plain)
    for (_, output), (stream, _) in itertools.pairwise(inputs):
        assert torch.equal(output, stream)


def test_layers_are_visited_once_each_in_order_with_their_names(make_model):
    seen = []
    walk_over(make_model("gpt2"), lambda visit: seen.append((visit.index, visit.site)))
    assert seen == [(index, f"transformer.h.{index}") for index in range(4)]


def test_the_stream_of_a_layer_is_the_output_of_the_one_before(make_model):
    streams, outputs = [], []

    def visit(entry):
        streams.append(entry.call.stream.clone())
        outputs.append(entry.output.clone())

    walk_over(make_model("qwen2"), visit)
    assert all(torch.equal(output, stream) for output, stream in zip(outputs, streams[1:], strict=False))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_response_to_the_layers_own_stream_is_its_own_output(make_model, family):
    def visit(entry):
        repeat = next(entry.excitations(seed=0, repeats=2))
        assert torch.equal(entry.respond(repeat).output, entry.output)

    walk_over(make_model(family), visit)


def test_one_layers_activations_are_in_memory_at_a_time(make_model):
    kept = []

    def visit(entry):
        assert all(reference() is None for reference in kept)
        response = entry.respond(next(entry.excitations(seed=0, repeats=2)))
        kept.extend(weakref.ref(item) for item in (entry.call, entry.call.stream, response.output))

    walk_over(make_model("qwen2", layers=6), visit)
    assert len(kept) == 18


def test_running_a_layer_again_does_not_visit_it_again(make_model):
    visits = []

    def visit(entry):
        visits.append(entry.index)
        assert len(visits) < 10
        respond_to_all(entry)

    walk_over(make_model("qwen2"), visit)
    assert visits == [0, 1, 2, 3]


def test_layer_runs_counts_the_models_own_runs_and_the_responses(make_model):
    model = make_model("qwen2")
    assert walk_over(model, ignore)[0].layer_runs == 4
    responses = []
    walk, _ = walk_over(model, lambda visit: responses.extend(map(visit.respond, visit.excitations(0, 2))))
    assert walk.layer_runs == 4 + len(responses)


def albert():
    import transformers as tf

    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "embedding_size": 16, "intermediate_size": 64, "vocab_size": 64}
    config = tf.AlbertConfig(**sizes, num_hidden_layers=5, num_attention_heads=2, max_position_embeddings=64)
    return tf.AlbertModel(config).eval()


def test_a_layer_with_shared_weights_is_visited_at_its_first_run_and_all_its_runs_are_counted():
    visits = []
    walk, _ = walk_over(albert(), lambda visit: visits.append(visit.index))
    assert visits == [0]
    assert (walk.layer_runs, walk.own_runs) == (5, 5)


def test_a_model_with_shared_weights_can_be_scanned():
    import srdd

    report = srdd.scan(albert(), level="quick")
    assert report.verdict == "healthy"
    assert report.cost.forward_equivalents == pytest.approx((5 + 6) / 5)


def test_responses_run_the_layer_with_whatever_is_hooked_to_it(make_model):
    model = make_model("qwen2")
    calls = []
    model.model.layers[2].register_forward_hook(lambda *_: calls.append(1))
    walk_over(model, respond_to_all)
    assert len(calls) > 1


def test_what_is_not_finite_is_said(make_model):
    model = make_model("qwen2")
    model.model.layers[2].mlp.down_proj.weight.data[3, 3] = torch.nan
    seen = []
    walk_over(model, lambda visit: seen.append((visit.finite_input, visit.finite_output)))
    assert seen == [(True, True), (True, True), (True, False), (False, False)]


@pytest.mark.parametrize("where", ["visit", "forward", "layer"])
def test_no_hook_is_left_after_an_exception(make_model, where):
    model = make_model("qwen2")

    def fail(*_):
        raise RuntimeError("broken")

    handle = model.model.layers[2].mlp.register_forward_pre_hook(fail) if where == "layer" else None
    walk = Walk(find_layer_stack(model), fail if where == "visit" else ignore)
    with pytest.raises(RuntimeError, match="broken"):
        walk.run(fail if where == "forward" else lambda: model(IDS))
    if handle is not None:
        handle.remove()
    assert hook_count(model) == 0
    visits = []
    walk_over(model, lambda visit: visits.append(visit.index))
    assert visits == [0, 1, 2, 3]
