"""What a user has put around a model, and that a scan judges the model itself."""

import pytest
import torch
from torch import nn

import srdd
from hal.errors import ModelError
from srdd.execution import plain_execution, unwrapped
from tests.conftest import random_model

COMPILED = "the model is compiled: its modules were scanned one by one, and compiled kernels not at all"


def model():
    return random_model("llama", layers=3, hidden=32)


def with_fault(healthy):
    healthy.model.layers[1].register_forward_hook(lambda _module, _args, output: 1.01 * output)
    return healthy


def compiled_in_place(plain):
    for layer in plain.model.layers:
        layer.compile(backend="eager")
    return plain


def compiled_layers(plain):
    for index, layer in enumerate(plain.model.layers):
        plain.model.layers[index] = torch.compile(layer, backend="eager")
    return plain


def compiled_whole(plain):
    return torch.compile(plain, backend="eager")


@pytest.mark.parametrize("compiled", [compiled_in_place, compiled_layers, compiled_whole])
class TestCompiledModels:
    def test_a_healthy_one_is_healthy_with_a_note(self, compiled):
        report = srdd.scan(compiled(model()))
        assert report.verdict == "healthy"
        assert COMPILED in report.diagnosis.notes

    def test_a_fault_inside_is_named_under_the_plain_name(self, compiled):
        (finding,) = srdd.scan(compiled(with_fault(model()))).findings
        assert (finding.site, finding.kind) == ("model.layers.1", "scale")


def test_compiled_parts_are_back_in_place_afterwards():
    compiled = compiled_layers(model())
    before = list(compiled.model.layers)
    srdd.scan(compiled, level="quick")
    assert list(compiled.model.layers) == before
    assert all(unwrapped(layer) is not layer for layer in before)


def test_hooks_on_the_wrapper_are_not_left_out_in_silence():
    compiled = compiled_layers(model())
    compiled.model.layers[1].register_forward_hook(lambda _module, _args, output: 2 * output)
    with pytest.raises(ModelError, match=r"'model.layers.1' is a compiled wrapper with hooks of its own"):
        srdd.scan(compiled)


def test_casts_around_the_scan_are_switched_off_and_said():
    with torch.autocast("cpu", torch.bfloat16):
        report = srdd.scan(model())
        assert torch.is_autocast_enabled("cpu")
    assert report.verdict == "healthy"
    assert report.diagnosis.notes == ("autocast was on: the scan ran the model in its own precision, without it",)


def test_inference_mode_around_model_and_scan_is_no_hindrance():
    with torch.inference_mode():
        report = srdd.scan(model())
        assert torch.is_inference_mode_enabled()
    assert (report.verdict, report.diagnosis.notes) == ("healthy", ())


def test_a_plain_model_gets_no_note():
    with plain_execution(model(), "cpu") as notes:
        assert notes == []
        assert not torch.is_grad_enabled()


def test_a_float64_model_is_refused_by_its_precision():
    with pytest.raises(ModelError, match="is in float64, and a scan judges by float64: load it in float32"):
        srdd.scan(model().double())


class Packed(nn.Linear):
    """A linear module whose state is no tensor, as quantised ones have it."""

    def get_extra_state(self):
        return {"packed": b"1234"}

    def set_extra_state(self, state):
        raise AssertionError("nobody restores it here")


def test_packed_weights_are_refused_by_name():
    packed = model()
    packed.model.layers[1].mlp.down_proj = Packed(64, 32, bias=False)
    with pytest.raises(ModelError, match="its weights are packed"):
        srdd.scan(packed)
