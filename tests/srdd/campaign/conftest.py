"""Shared by the tests of campaigns: a structure without a model, and outcomes made by hand."""

from __future__ import annotations

import json
import shutil

import pytest

from srdd.campaign.entry import entry_of
from srdd.campaign.outcome import Found, Outcome
from srdd.campaign.structure import ALL_CONSTANTS, INNERMOST, WEIGHTS, Structure
from srdd.faults import parse_fault

MODULES = ("input_layernorm", "self_attn", "self_attn.q_proj", "mlp", "mlp.down_proj")


@pytest.fixture
def structure():
    """Four layers of five modules each."""
    groups = {
        INNERMOST: ("input_layernorm", "self_attn.q_proj", "mlp.down_proj"),
        WEIGHTS: ("input_layernorm", "self_attn.q_proj", "mlp.down_proj"),
        ALL_CONSTANTS: ("input_layernorm", "self_attn"),
    }
    return Structure(
        sites=tuple(f"model.layers.{index}" for index in range(4)),
        modules=(MODULES,) * 4,
        groups={name: (members,) * 4 for name, members in groups.items()},
        outside=("model.norm", "lm_head"),
    )


def found(text):
    """A finding from LAYER, KIND[, SITE below the layer[, OPERATOR]], as in "3 bias mlp.down_proj linear", or with the
    full name of a site outside as in "3 bias /lm_head".
    """
    layer, kind, site, operator = [*text.split(), "", ""][:4]
    if site.startswith("/"):
        return Found(int(layer), site[1:], operator, kind, kind.upper(), 0.9)
    return Found(int(layer), f"model.layers.{layer}.{site}".rstrip("."), operator, kind, kind.upper(), 0.9)


def outcome(key, fault=None, *findings, dtype="bfloat16", changed=100, calls=9, error="", **more):
    """An outcome: `fault` as --inject takes it, each finding as `found` does."""
    entry = entry_of(parse_fault(fault)) if fault else None
    place = f"model.layers.{entry['layer']}.{entry['site']}".rstrip(".") if entry else ""
    place = entry["site"] if entry and entry["layer"] is None else place
    case = {"dtype": dtype, "level": "full", "prompts": ["text"], "fault": entry}
    return Outcome(
        key,
        case,
        place,
        calls if entry else 0,
        changed if entry else 0,
        tuple(found(text) for text in findings),
        9.0,
        0.5,
        error,
        **more,
    )


@pytest.fixture
def write(tmp_path):
    """Write a campaign file with these entries; returns its path."""

    def to_file(**entries):
        path = tmp_path / "mine.json"
        path.write_text(json.dumps({"schema": "srdd-campaign/1", **entries}))
        return path

    return to_file


@pytest.fixture
def copy(checkpoint, tmp_path):
    """A copy of the small checkpoint, to damage."""
    return shutil.copytree(checkpoint, tmp_path / "copy")
