"""One document says what a student is trained by; a wrong one is named in a line."""

from __future__ import annotations

import pytest

from distill.config import DistillConfig
from hal.errors import UsageError


def test_the_defaults_are_the_documents():
    config = DistillConfig.parse({})
    assert config.weights.model_dump() == {"kv": 1.0, "codi": 0.5, "cka": 0.05, "contrastive": 0.0}
    assert config.kv.distance == "smooth_l1"
    assert config.cka_layers == "middle"


@pytest.mark.parametrize(
    ("document", "steps"),
    [
        ({"source": "student"}, 1000),
        ({"source": "teacher"}, 500),
        ({"source": "teacher", "warm_up_steps": 7}, 7),
        ({}, 0),
    ],
)
def test_a_students_attention_is_warmed_up_for_longer_than_a_teachers(document, steps):
    assert DistillConfig.parse({"attention": document}).attention.steps == steps


def test_whose_attention_is_needed():
    assert DistillConfig.parse({"attention": {"source": "student"}}).student_attention
    compressed = DistillConfig.parse({"kv": {"compression": "r_kv", "length": 8}})
    assert compressed.teacher_attention
    assert not compressed.student_attention


def test_from_yaml(tmp_path):
    path = tmp_path / "distill.yaml"
    path.write_text("weights: {kv: 2}\nkv: {layers: [0, 3]}\n")
    config = DistillConfig.from_yaml(path)
    assert config.weights.kv == 2
    assert config.kv.layers == [0, 3]


@pytest.mark.parametrize(
    ("document", "words"),
    [
        ({"weight": {}}, "unknown key 'weight': did you mean 'weights'"),
        ({"kv": {"distanse": "mse"}}, "unknown key 'kv.distanse': did you mean 'distance'"),
        ({"kv": {"compression": "r_kv"}}, "give a length with right_crop and r_kv"),
        ({"kv": {"length": 8}}, "none with full"),
        ({"weights": {"kv": -1}}, "weights.kv is -1"),
        ({"routing": {"kind": "learnable", "weights": [1, 2]}}, "weights belong to kind 'fixed'"),
        ([], "is a list"),
    ],
)
def test_what_is_wrong_is_named(document, words):
    with pytest.raises(UsageError, match=words):
        DistillConfig.parse(document)


def test_a_file_that_is_no_yaml_is_named(tmp_path):
    (tmp_path / "bad.yaml").write_text("a: [")
    with pytest.raises(UsageError, match=r"bad\.yaml is not YAML"):
        DistillConfig.from_yaml(tmp_path / "bad.yaml")
    with pytest.raises(UsageError, match="cannot read"):
        DistillConfig.from_yaml(tmp_path / "none.yaml")
