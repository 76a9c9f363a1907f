"""A configuration document is valid, or one line says what is wrong with it."""

from __future__ import annotations

from typing import Annotated, Literal

import pytest
from pydantic import BaseModel, ConfigDict, Field, field_validator

from hal.documents import read_yaml, validated
from hal.errors import UsageError


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid")
    rate: Annotated[float, Field(ge=0, alias="learning_rate")] = 0.1
    kind: str = "a"

    @field_validator("kind")
    @classmethod
    def _is_short(cls, value):
        if len(value) > 3:
            raise ValueError(f"kind '{value}' is longer than 3 letters")
        return value


class Whole(BaseModel):
    model_config = ConfigDict(extra="forbid")
    first: Section | None = None
    steps: int
    layers: Literal["all", "last"] | list[int] = "all"


def test_a_valid_document_becomes_its_model():
    made = validated(Whole, {"first": {"learning_rate": 2}, "steps": 3}, "here")
    assert made.first.rate == 2
    assert made.steps == 3


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({"steps": 3, "frist": {}}, "here: unknown key 'frist': did you mean 'first'?"),
        ({"steps": 3, "first": {"kin": "b"}}, "here: unknown key 'first.kin': did you mean 'kind'?"),
        ({"steps": 3, "first": {"xyz": 1}}, "here: unknown key 'first.xyz': known keys: learning_rate, kind, rate"),
        ({}, "here: steps: Field required"),
        ({"steps": 3, "first": {"kind": "long"}}, "here: first.kind: kind 'long' is longer than 3 letters"),
        ({"steps": 3, "layers": "first"}, "here: layers is 'first': Input should be 'all' or 'last'"),
        ({"steps": 3, "layers": [1, "x"]}, "here: layers.1 is 'x': Input should be a valid integer"),
        ({"steps": "many"}, "here: steps is 'many': Input should be a valid integer"),
    ],
)
def test_what_is_wrong_is_one_line(document, message):
    with pytest.raises(UsageError) as caught:
        validated(Whole, document, "here")
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["seed: 2024-13-45", "[" * 3000, "? {a: 1}\n: 2"])
def test_what_yaml_stumbles_over_is_not_yaml(text, tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text(text)
    with pytest.raises(UsageError, match=r"a\.yaml is not YAML"):
        read_yaml(path)


def test_yaml_is_read_or_named(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("a: {b: [1, 2]}\n")
    assert read_yaml(path) == {"a": {"b": [1, 2]}}
    path.write_text("a: [\n")
    with pytest.raises(UsageError, match=r"a\.yaml is not YAML"):
        read_yaml(path)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match=r"cannot read .*a\.yaml"):
        read_yaml(path)
