"""A checkpoint directory is checked before anything is built from it; what is wrong is named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from hal import ModelError
from hal.checkpoint import INDEX, SINGLE, CheckpointWeights, require_directory, require_finite, weight_files


@pytest.fixture
def directory(tmp_path) -> Path:
    (tmp_path / "config.json").write_text("{}")
    return tmp_path


def save(file: Path, **weights: torch.Tensor) -> Path:
    save_file(weights, file)
    return file


def shard(directory: Path, files: dict[str, dict[str, torch.Tensor]]) -> None:
    for name, weights in files.items():
        save(directory / name, **weights)
    weight_map = {key: name for name, weights in files.items() for key in weights}
    (directory / INDEX).write_text(json.dumps({"weight_map": weight_map}))


TWO = {"b.safetensors": {"x": torch.ones(4)}, "a.safetensors": {"y": torch.zeros(4), "z": torch.ones(2)}}


def test_single_file_is_found(directory):
    file = save(directory / SINGLE, x=torch.ones(2))
    assert weight_files(directory) == [file]


def test_shards_are_found_by_their_index(directory):
    shard(directory, TWO)
    save(directory / "unrelated.safetensors", x=torch.ones(2))
    assert weight_files(directory) == [directory / "a.safetensors", directory / "b.safetensors"]


def test_index_is_followed_when_a_single_file_lies_beside_it(directory):
    shard(directory, TWO)
    save(directory / SINGLE, x=torch.ones(2))
    assert directory / SINGLE not in weight_files(directory)


def test_missing_directory_is_named(tmp_path):
    with pytest.raises(ModelError, match=r"nowhere does not exist: give a directory with config.json"):
        weight_files(tmp_path / "nowhere")


def test_file_instead_of_a_directory_is_named(tmp_path):
    file = save(tmp_path / SINGLE, x=torch.ones(2))
    with pytest.raises(ModelError, match=r"model.safetensors is a file: give a directory"):
        require_directory(file)


def test_directory_without_config_is_refused(tmp_path):
    save(tmp_path / SINGLE, x=torch.ones(2))
    with pytest.raises(ModelError, match=r"has no config.json: give a transformers checkpoint"):
        weight_files(tmp_path)


def test_directory_without_weights_is_refused(directory):
    with pytest.raises(ModelError, match=r"has no model.safetensors: give a checkpoint saved as safetensors"):
        weight_files(directory)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.pth", "last.ckpt"])
def test_pickled_weights_are_refused_and_not_opened(directory, name):
    (directory / name).write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    with pytest.raises(ModelError, match=rf"pickled weights only \({name}\): pickles can run code"):
        weight_files(directory)


def test_missing_shard_is_named(directory):
    shard(directory, TWO)
    (directory / "a.safetensors").unlink()
    with pytest.raises(ModelError, match=r"is incomplete: a.safetensors is missing; copy it again"):
        weight_files(directory)


DAMAGE = {
    "cut_in_the_data": lambda data: data[:-3],
    "cut_in_the_header": lambda data: data[:20],
    "cut_in_the_length": lambda data: data[:5],
    "empty": lambda data: b"",
    "longer_than_its_header_says": lambda data: data + b"more",
    "a_web_page": lambda data: b"<html>Not found</html>" * 10,
    "a_git_lfs_pointer": lambda data: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n",
}


@pytest.mark.parametrize("case", DAMAGE)
def test_damaged_file_is_named(directory, case):
    file = save(directory / SINGLE, x=torch.ones(8))
    file.write_bytes(DAMAGE[case](file.read_bytes()))
    with pytest.raises(ModelError) as caught:
        weight_files(directory)
    assert f"{file} is truncated or not safetensors (" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2


INDICES = {
    "not_json": "{",
    "a_list": "[]",
    "without_a_map": "{}",
    "map_is_a_list": '{"weight_map": ["a"]}',
    "file_is_a_list": '{"weight_map": {"x": ["a"]}}',
    "file_is_a_number": '{"weight_map": {"x": 3}}',
    "empty": '{"weight_map": {}}',
    "points_outside": '{"weight_map": {"x": "../other/model.safetensors"}}',
}


@pytest.mark.parametrize("case", INDICES)
def test_damaged_index_is_named(directory, case):
    (directory / INDEX).write_text(INDICES[case])
    with pytest.raises(ModelError, match=rf"{INDEX}.*copy it again"):
        weight_files(directory)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.float8_e5m2], ids=str
)
def test_weight_that_is_not_finite_is_named_with_its_file(directory, value, dtype):
    files = {name: {key: weight.to(dtype) for key, weight in weights.items()} for name, weights in TWO.items()}
    damaged = torch.ones(8)
    damaged[5] = value
    files["b.safetensors"]["layers.3.up"] = damaged.to(dtype)
    shard(directory, files)
    with pytest.raises(ModelError, match=r"'layers.3.up' in .*b.safetensors is not finite") as caught:
        require_finite(directory)
    assert caught.value.exit_code == 2


def test_finite_weights_of_every_kind_pass(directory):
    save(
        directory / SINGLE,
        ids=torch.tensor([1, 2]),
        flags=torch.tensor([True]),
        nothing=torch.ones(0),
        largest=torch.tensor([torch.finfo(torch.float32).max]),
        short=torch.ones(2).to(torch.float8_e4m3fn),
    )
    require_finite(directory)


def test_weights_are_read_by_name_from_any_shard(directory):
    shard(directory, TWO)
    weights = CheckpointWeights(directory)
    assert torch.equal(weights.tensor("y"), torch.zeros(4))
    assert torch.equal(weights.tensor("x"), torch.ones(4))
    assert weights.tensor("w") is None
