"""Loading gives the checkpoint's weights, all of them and no others, or one line that says why not."""

from __future__ import annotations

import json
import resource
import shutil
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from safetensors.torch import load_file, save_file

import hal
from hal.checkpoint import INDEX, SINGLE
from hal.models import load_model, parse_dtype
from hal.streaming import stream_model
from tests.conftest import FAMILIES, random_model

IDS = torch.arange(24).reshape(2, 12) % 300

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:transformers.*")


@pytest.fixture(scope="module")
def cpu() -> hal.TorchBackend:
    return hal.get_backend("cpu-reference")


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A saved checkpoint of each family, made once."""
    made: dict[str, Path] = {}

    def save(family: str) -> Path:
        if family not in made:
            made[family] = tmp_path_factory.mktemp(family)
            random_model(family, layers=2).save_pretrained(made[family])
        return made[family]

    return save


@pytest.fixture
def checkpoint(saved, tmp_path) -> Path:
    """A copy of a small checkpoint that a test may damage."""
    return Path(shutil.copytree(saved("qwen2"), tmp_path / "model"))


def edit_weights(directory: Path, change) -> None:
    weights = load_file(directory / SINGLE)
    change(weights)
    save_file(weights, directory / SINGLE, metadata={"format": "pt"})


def edit_config(directory: Path, **values: Any) -> None:
    file = directory / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def refusal(directory: Path, backend: hal.TorchBackend, **options: Any) -> str:
    with pytest.raises(hal.UsageError) as caught:
        load_model(directory, backend, **options)
    message = str(caught.value)
    assert caught.value.exit_code == 2
    assert "\n" not in message
    return message


# -- what loads -------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_model_of_each_family_is_loaded_as_it_was_saved(saved, cpu, family):
    original = random_model(family, layers=2)
    loaded = load_model(saved(family), cpu)
    assert type(loaded.model) is type(original)
    assert not loaded.model.training
    assert loaded.tokenizer is None
    assert loaded.directory == saved(family)
    with torch.no_grad():
        assert torch.equal(loaded.model(IDS)[0], original(IDS)[0])


def test_path_may_be_a_string(saved, cpu):
    assert load_model(str(saved("qwen2")), cpu).directory == saved("qwen2")


def test_shards_are_put_together(checkpoint, cpu):
    weights = load_file(checkpoint / SINGLE)
    shutil.rmtree(checkpoint)
    model = random_model("qwen2", layers=2)
    model.save_pretrained(checkpoint, max_shard_size="100KB")
    assert (checkpoint / INDEX).is_file()
    loaded = load_model(checkpoint, cpu).model.state_dict()
    assert all(torch.equal(loaded[name], weight) for name, weight in weights.items())


@pytest.mark.parametrize("stored", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("asked", ["auto", "float32", "bfloat16", "float16"])
def test_dtype_is_the_checkpoints_own_or_the_one_asked_for(tmp_path, cpu, stored, asked):
    random_model("qwen2", layers=1, dtype=getattr(torch, stored)).save_pretrained(tmp_path)
    model = load_model(tmp_path, cpu, asked).model
    assert {str(weight.dtype) for weight in model.parameters()} == {f"torch.{stored if asked == 'auto' else asked}"}


def test_architecture_comes_from_the_model_type_when_it_is_not_named(checkpoint, cpu):
    edit_config(checkpoint, architectures=None)
    assert type(load_model(checkpoint, cpu).model).__name__ == "Qwen2Model"


def test_unknown_architecture_is_refused_instead_of_losing_its_head(checkpoint, cpu):
    edit_config(checkpoint, architectures=["Qwen2ForFortuneTelling"])
    assert "is of architecture Qwen2ForFortuneTelling, which transformers " in refusal(checkpoint, cpu)


def test_tied_weights_are_not_missing(tmp_path, cpu):
    import transformers

    config = random_model("qwen2", layers=1).config
    config.tie_word_embeddings = True
    transformers.Qwen2ForCausalLM(config).save_pretrained(tmp_path)
    assert "lm_head.weight" not in load_file(tmp_path / SINGLE)
    model = load_model(tmp_path, cpu).model
    assert model.lm_head.weight is model.model.embed_tokens.weight


@pytest.mark.parametrize("bars", [True, False])
def test_loading_leaves_transformers_logging_as_it_was(checkpoint, cpu, monkeypatch, bars):
    from transformers.utils import logging

    monkeypatch.setattr(logging, "_tqdm_active", bars)
    before = logging.get_verbosity()
    logging.set_verbosity(logging.INFO)
    load_model(checkpoint, cpu)
    edit_config(checkpoint, hidden_size=32)
    refusal(checkpoint, cpu)
    after = (logging.get_verbosity(), logging.is_progress_bar_enabled())
    logging.set_verbosity(before)
    assert after == (logging.INFO, bars)


def test_loading_prints_nothing(checkpoint, cpu, capfd):
    load_model(checkpoint, cpu)
    captured = capfd.readouterr()
    assert captured.out == ""
    assert captured.err == ""


@pytest.mark.parametrize("load", [load_model, stream_model])
@pytest.mark.parametrize(("asked", "taken"), [(None, "sdpa"), ("sdpa", "sdpa"), ("eager", "eager")])
def test_attention_is_transformers_choice_or_the_one_asked_for(checkpoint, cpu, load, asked, taken):
    model = load(checkpoint, cpu, attention=asked).model
    assert model.config._attn_implementation == taken
    assert model.model.layers[0].self_attn.config._attn_implementation == taken


def test_unknown_attention_lists_the_known_ones(checkpoint, cpu):
    with pytest.raises(
        hal.UsageError, match="unknown attention 'flash': transformers here has eager, flash_attention_2"
    ):
        load_model(checkpoint, cpu, attention="flash")


# -- dtypes -----------------------------------------------------------------------------------------


def test_unknown_dtype_lists_the_known_ones(cpu, tmp_path):
    with pytest.raises(hal.UsageError, match="unknown dtype 'float8': choose auto, float32, bfloat16, float16"):
        parse_dtype("float8")
    assert "unknown dtype 'fp16'" in refusal(tmp_path, cpu, dtype="fp16")


class Narrow(hal.HostBackend):
    name = "narrow"
    dtypes = (torch.float32,)


def test_dtype_that_the_backend_lacks_is_refused(checkpoint):
    message = refusal(checkpoint, Narrow(), dtype="bfloat16")
    assert message == "backend 'narrow' does not support dtype bfloat16; it declares float32"


def test_checkpoint_in_a_dtype_that_the_backend_lacks_is_refused(tmp_path):
    random_model("qwen2", layers=1, dtype=torch.bfloat16).save_pretrained(tmp_path)
    message = refusal(tmp_path, Narrow())
    assert "is bfloat16, which backend 'narrow' does not support: pass --dtype with one of float32" in message
    assert load_model(tmp_path, Narrow(), "float32").model.dtype == torch.float32


# -- incomplete and damaged -------------------------------------------------------------------------

DOWN = "model.layers.1.mlp.down_proj.weight"


def test_missing_weight_is_named_instead_of_being_drawn_at_random(checkpoint, cpu):
    edit_weights(checkpoint, lambda weights: weights.pop(DOWN))
    message = refusal(checkpoint, cpu)
    assert f"lacks the weight '{DOWN}' and they would be random" in message


def test_first_of_several_missing_weights_is_named_with_their_number(checkpoint, cpu):
    edit_config(checkpoint, num_hidden_layers=3, layer_types=["full_attention"] * 3)
    message = refusal(checkpoint, cpu)
    assert "lacks the weight 'model.layers.2." in message
    assert "(and 11 more)" in message


def test_misspelt_weight_is_missing(checkpoint, cpu):
    edit_weights(checkpoint, lambda weights: weights.update({"model.layers.1.mlp.dwn_proj.weight": weights.pop(DOWN)}))
    assert f"lacks the weight '{DOWN}'" in refusal(checkpoint, cpu)


def test_weight_of_another_shape_is_named_with_both_shapes(checkpoint, cpu):
    edit_weights(checkpoint, lambda weights: weights.update({DOWN: torch.ones(64, 96)}))
    message = refusal(checkpoint, cpu)
    assert f"'{DOWN}' has shape (64, 96) and the model needs (64, 128)" in message


def test_config_of_another_model_is_refused(checkpoint, cpu):
    edit_config(checkpoint, hidden_size=32)
    message = refusal(checkpoint, cpu)
    assert "does not fit its config.json" in message
    assert "use the config.json that belongs to the weights" in message


def test_weight_that_is_not_finite_is_named(checkpoint, cpu):
    edit_weights(checkpoint, lambda weights: weights[DOWN].view(-1)[7].fill_(float("nan")))
    assert f"weight '{DOWN}' in {checkpoint / SINGLE} is not finite" in refusal(checkpoint, cpu)


def test_truncated_file_is_named(checkpoint, cpu):
    file = checkpoint / SINGLE
    file.write_bytes(file.read_bytes()[:-100])
    assert f"{file} is truncated" in refusal(checkpoint, cpu)


def test_missing_directory_and_missing_files_are_named(checkpoint, cpu, tmp_path):
    assert "nowhere does not exist" in refusal(tmp_path / "nowhere", cpu)
    (checkpoint / SINGLE).rename(checkpoint / "pytorch_model.bin")
    assert "pickled weights only (pytorch_model.bin)" in refusal(checkpoint, cpu)
    (checkpoint / "config.json").unlink()
    assert "has no config.json" in refusal(checkpoint, cpu)


@pytest.fixture
def little_memory():
    """Two gigabytes of address space beyond what is in use."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    used = psutil.Process().memory_info().vms
    resource.setrlimit(resource.RLIMIT_AS, (used + 2 * 2**30, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.mark.usefixtures("little_memory")
def test_config_of_a_much_larger_model_is_refused_before_it_fills_the_memory(checkpoint, cpu):
    config = {"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"], "num_hidden_layers": 60}
    (checkpoint / "config.json").write_text(json.dumps(config))
    assert "has shape (300, 64) and the model needs (151936, 4096)" in refusal(checkpoint, cpu)


class Small(hal.HostBackend):
    name = "small"

    def free_memory(self):
        return 2**16


@pytest.mark.parametrize("dtype", ["auto", "bfloat16"])
def test_model_larger_than_what_is_free_is_refused_with_both_sizes(checkpoint, dtype):
    message = refusal(checkpoint, Small(), dtype=dtype)
    assert f"checkpoint {checkpoint} needs 0.00 GiB and cpu has 0.00 GiB free: scan it layer by layer" in message


CONFIGS = {
    "not_json": "{",
    "a_list": "[1]",
    "empty": "{}",
    "unknown_model_type": '{"model_type": "quantum"}',
    "no_heads": '{"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"], "num_attention_heads": 0}',
    "width_is_text": '{"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"], "hidden_size": "wide"}',
    "width_is_negative": '{"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"], "hidden_size": -64}',
    "architecture_is_no_class": '{"model_type": "qwen2", "architectures": ["__name__"]}',
    "architecture_is_no_model": '{"model_type": "qwen2", "architectures": ["Qwen2Config"]}',
    "not_text": b"\xff\xfe\x00",
}


@pytest.mark.parametrize("case", CONFIGS)
def test_config_that_describes_no_model_is_refused(checkpoint, cpu, case):
    content = CONFIGS[case]
    (checkpoint / "config.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    assert str(checkpoint) in refusal(checkpoint, cpu)


@pytest.mark.parametrize("content", ["{", '{"version": "1.0"}'])
def test_damaged_tokenizer_is_named(checkpoint, cpu, content):
    (checkpoint / "tokenizer.json").write_text(content)
    assert f"the tokenizer in {checkpoint} cannot be loaded" in refusal(checkpoint, cpu)


# -- remote code ------------------------------------------------------------------------------------

REMOTE = """
from pathlib import Path
from transformers import Qwen2Config, Qwen2ForCausalLM

Path(__file__).with_name("ran").touch()
Path({marker!r}).touch()

class OwnConfig(Qwen2Config):
    model_type = "own"

class OwnModel(Qwen2ForCausalLM):
    config_class = OwnConfig
"""
AUTO_MAP = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"}


@pytest.fixture
def remote(checkpoint, tmp_path, monkeypatch) -> tuple[Path, Path]:
    """A checkpoint with code of its own, and the file that the code makes when it runs."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "cache"))
    marker = tmp_path / "the_code_ran"
    (checkpoint / "own.py").write_text(REMOTE.format(marker=str(marker)))
    edit_config(checkpoint, model_type="own", architectures=["OwnModel"], auto_map=AUTO_MAP)
    return checkpoint, marker


def test_remote_code_is_refused_and_does_not_run(remote, cpu):
    directory, marker = remote
    message = refusal(directory, cpu)
    assert "remote code, which is refused: read it, then pass --trust-remote-code" in message
    assert not marker.exists()


def test_remote_code_of_a_known_model_type_is_refused_and_does_not_run(remote, cpu):
    directory, marker = remote
    edit_config(directory, model_type="qwen2")
    assert "brings its own code, which is refused" in refusal(directory, cpu)
    assert not marker.exists()


def test_remote_code_runs_when_it_is_asked_for(remote, cpu):
    directory, marker = remote
    loaded = load_model(directory, cpu, trust_remote_code=True)
    assert type(loaded.model).__name__ == "OwnModel"
    assert marker.exists()


def test_incomplete_checkpoint_with_its_own_code_is_refused_too(remote, cpu):
    directory, _ = remote
    edit_weights(directory, lambda weights: weights.pop(DOWN))
    assert f"lacks the weight '{DOWN}'" in refusal(directory, cpu, trust_remote_code=True)
