"""A scan that holds one layer at a time measures what the scan of the loaded model does, in less memory."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import srdd
from hal.errors import UsageError
from hal.models import load_model
from hal.registry import get_backend
from hal.streaming import stream_model
from srdd.cli import main
from srdd.faults import parse_fault, simulate
from srdd.measurements import ALONE
from srdd.report import to_json
from tests.conftest import FAMILIES, random_model
from tests.srdd.large_checkpoint import write_checkpoint

LAYERS = 2
SHORT = ["Water boils at 100 degrees."]


@pytest.fixture(scope="module")
def saved(tmp_path_factory, byte_tokenizer):
    """A sharded checkpoint of each family, made once."""
    made: dict[str, Path] = {}

    def save(family: str) -> Path:
        if family not in made:
            made[family] = tmp_path_factory.mktemp(family)
            random_model(family, layers=LAYERS, hidden=32).save_pretrained(made[family], max_shard_size="40KB")
            byte_tokenizer.save_pretrained(made[family])
        return made[family]

    return save


def loaded_scan(directory, faults=(), dtype="auto", **options):
    backend = get_backend("cpu-reference")
    loaded = load_model(directory, backend, dtype)
    with simulate(loaded.model, [parse_fault(text) for text in faults]):
        return srdd.scan(loaded.model, loaded.tokenizer, backend, checkpoint=directory, **options)


def measured(report):
    """All that a report says but what the scan cost."""
    return {key: value for key, value in to_json(report).items() if key != "cost"}


def assert_same_verdict(ratio, other):
    """Both are within the limit, or beyond it about as far."""
    assert max(ratio, other) < 1 or ratio == pytest.approx(other, rel=0.05)


def of_one_token(row):
    """What the steps of one token alone tell of a layer."""
    return [site["transfer"]["violation"] for site in row["replay"] or () if site["excitation"] == ALONE]


def assert_same(streamed, loaded):
    """Two reports are equal, but for what steps of one token tell: the host's product of a matrix and a vector adds in
    an order that depends on where in memory the matrix lies.
    """
    one, other = measured(streamed), measured(loaded)
    for row, same in zip((*one["layers"], *one["outside"]), (*other["layers"], *other["outside"]), strict=True):
        score, other_score = row.pop("score", 0.0), same.pop("score", 0.0)
        assert_same_verdict(score, other_score)
        assert score == other_score or score in of_one_token(row) or other_score in of_one_token(same)
        for site, again in zip(row.pop("replay") or (), same.pop("replay") or (), strict=True):
            assert (site["site"], site["operator"]) == (again["site"], again["operator"])
            assert_same_verdict(site["transfer"]["violation"], again["transfer"]["violation"])
            assert site == again or ALONE in (site["excitation"], again["excitation"])
    assert one == other


@pytest.mark.parametrize("family", FAMILIES)
def test_measurements_are_those_of_the_loaded_model_bit_for_bit(saved, family):
    directory = saved(family)
    assert_same(srdd.scan_checkpoint(directory, prompts=SHORT), loaded_scan(directory, prompts=SHORT))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("family", ["gemma2", "gpt2"])
def test_so_they_are_in_another_dtype(saved, family, dtype):
    directory = saved(family)
    streamed = srdd.scan_checkpoint(directory, level="quick", dtype=dtype)
    assert streamed.measurements.dtype == dtype
    assert measured(streamed) == measured(loaded_scan(directory, level="quick", dtype=dtype))


@pytest.mark.parametrize("fault", ["dead_zone@1", "bias@0:site=mlp.down_proj,units=1", "bias@1:site=mlp,operator=silu"])
def test_an_injected_fault_is_found_as_in_the_loaded_model(saved, fault):
    directory = saved("qwen2")
    backend = get_backend("cpu-reference")
    loaded = stream_model(directory, backend)
    with simulate(loaded.model, [parse_fault(fault)]):
        streamed = srdd.scan(loaded.model, loaded.tokenizer, backend, SHORT, checkpoint=directory)
    assert_same(streamed, loaded_scan(directory, [fault], prompts=SHORT))
    assert streamed.findings[0].layer == parse_fault(fault).layer


def test_a_fault_in_a_weight_that_is_not_there_yet_is_found_as_in_the_loaded_model(saved):
    fault = "bit_flip@1:site=mlp.down_proj,parameter=weight,units=1,bits=30"
    directory = saved("qwen2")
    backend = get_backend("cpu-reference")
    loaded = stream_model(directory, backend)
    with simulate(loaded.model, [parse_fault(fault)]):
        streamed = srdd.scan(loaded.model, loaded.tokenizer, backend, SHORT, checkpoint=directory)
    assert_same(streamed, loaded_scan(directory, [fault], prompts=SHORT))
    assert (streamed.findings[0].layer, streamed.findings[0].kind) == (1, "bit_flip")
    clean = srdd.scan(loaded.model, loaded.tokenizer, backend, SHORT, "quick", checkpoint=directory)
    assert clean.verdict == "healthy"


def test_the_command_line_streams(saved, capsys):
    arguments = [
        "--backend",
        "cpu-reference",
        "--level",
        "quick",
        "--quiet",
        "--model",
        str(saved("mixtral")),
        "--stream",
    ]
    assert main(arguments) == 0
    assert main([*arguments, "--inject", "saturation@1"]) == 1
    assert capsys.readouterr().out == "healthy\nfaulty: layer 1, model.layers.1, saturation\n"


def test_the_bundled_model_can_be_streamed(capsys):
    assert main(["--backend", "cpu-reference", "--level", "quick", "--quiet", "--stream"]) == 0
    assert capsys.readouterr().out == "healthy\n"


def test_bad_arguments_are_named_before_anything_is_read(tmp_path):
    with pytest.raises(UsageError, match="unknown level 'deep'"):
        srdd.scan_checkpoint(tmp_path / "nowhere", level="deep")
    with pytest.raises(UsageError, match="nowhere does not exist"):
        srdd.scan_checkpoint(tmp_path / "nowhere")


def test_running_out_of_memory_during_a_scan_is_one_line(saved, capsys, monkeypatch):
    backend = get_backend("cpu-reference")
    loaded = load_model(saved("qwen2"), backend)
    loaded.model.model.layers[1].register_forward_pre_hook(lambda *_: torch.empty(2**50))
    with pytest.raises(UsageError, match=r"memory is full: a scan at level quick does not fit .*; give it more"):
        srdd.scan(loaded.model, loaded.tokenizer, backend, level="quick")


# -- real limits ------------------------------------------------------------------------------------------

SHARE = 4  # the model is this many times larger than the memory it is given


@pytest.fixture(scope="module")
def large(tmp_path_factory, byte_tokenizer):
    """A checkpoint of 40 layers and 201 MiB with one short prompt, and its size in bytes."""
    directory = tmp_path_factory.mktemp("large")
    size = write_checkpoint(directory, layers=40, hidden=512, intermediate=1024)
    byte_tokenizer.save_pretrained(directory)
    (directory / "prompts.txt").write_text("abcdefgh\n")
    return directory, size


@pytest.fixture(scope="module")
def small(tmp_path_factory, byte_tokenizer):
    directory = tmp_path_factory.mktemp("small")
    write_checkpoint(directory, layers=2, hidden=128, intermediate=256)
    byte_tokenizer.save_pretrained(directory)
    return directory


def limited(kind, budget, small, directory, *arguments):
    command = [sys.executable, "-m", "tests.srdd.scan_with_limited_memory", kind, budget, str(small)]
    fixed = [
        "--backend",
        "cpu-reference",
        "--quiet",
        "--model",
        str(directory),
        "--prompts",
        str(directory / "prompts.txt"),
    ]
    root = Path(__file__).parents[2]
    return subprocess.run([*command, *fixed, *arguments], cwd=root, capture_output=True, text=True, check=False)


def test_a_model_four_times_larger_than_the_memory_given_is_scanned(large, small):
    directory, size = large
    budget = str(size // SHARE // 2**20)
    whole = limited("AS", budget, small, directory)
    assert whole.returncode == 2
    assert re.fullmatch(
        r"error: checkpoint \S+ needs 0.20 GiB and cpu has 0.05 GiB free: scan it layer by layer .*\n", whole.stderr
    )
    streamed = limited("AS", budget, small, directory, "--stream", "--inject", "bias@20")
    assert streamed.returncode == 1, streamed.stderr
    assert streamed.stdout.splitlines()[-1] == "faulty: layer 20, model.layers.20, bias"
    assert streamed.stderr == ""


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_model_four_times_larger_than_the_whole_limit_is_scanned(tmp_path, small, byte_tokenizer):
    """Here the limit counts everything the process holds, its libraries' data too."""
    limit = 768
    size = write_checkpoint(tmp_path, layers=235, hidden=768, intermediate=2048)
    assert size >= SHARE * limit * 2**20
    byte_tokenizer.save_pretrained(tmp_path)
    (tmp_path / "prompts.txt").write_text("abcdefgh\n")
    whole = limited("DATA", f"={limit}", small, tmp_path)
    assert whole.returncode == 2
    assert whole.stderr.count("\n") == 1
    streamed = limited("DATA", f"={limit}", small, tmp_path, "--stream")
    assert streamed.returncode == 0, streamed.stderr
    assert streamed.stdout.splitlines()[-1] == "healthy"
