"""Shared by the tests of srdd: one thread, measurements made by hand, and a checkpoint on disk."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from srdd.diagnose import diagnose
from srdd.measurements import (
    Cost,
    Gain,
    LayerMeasurement,
    Measurements,
    PassThrough,
    Shape,
    SiteReplay,
    Stability,
    Transfer,
)
from srdd.report import Report
from tests.conftest import byte_level_tokenizer, random_model

torch.set_num_threads(1)

CLEAN = Transfer(0.3, 0.0, 0, 64, 0.0, 0.0, 0.0, False, math.nan, math.nan, math.nan, math.nan, 0.0)
BIASED = Transfer(900.0, 1.0, 64, 64, 1.0, 0.0, 0.01, True, 0.3, 0.001, 1.1, 2.0, 0.3)
CLAMPED = Transfer(500.0, 0.02, 64, 64, 0.02, 0.0, 1.0, True, -0.4, 0.5, 0.9, 0.1, 0.1)
DEAD = Transfer(300.0, 0.6, 64, 64, 0.6, 1.0, 1.0, False, -0.2, 0.8, 0.0, math.inf, 0.2)


def layer(index=0, **changes):
    """A healthy row with every probe, and what is changed in it."""
    healthy = LayerMeasurement(
        index=index,
        site=f"model.layers.{index}",
        finite_input=True,
        finite_output=True,
        stability=Stability(trials=3, spread=0.0, unit=0.0, element=0.0, changed=0.0),
        gain=Gain(gain=1.02, lowest=0.98, highest=1.01, discrete=0),
        shape=Shape(1.5, 9.0, 12.5, 0.9, ties=1, ties_expected=0.01, zeros=0, small=4000, elements=16384),
        pass_through=PassThrough(CLEAN, growth=1.0),
    )
    return replace(healthy, **changes)


def passing(transfer, growth=1.0):
    return PassThrough(transfer, growth)


def replayed(index, *failed, violation=50.0, transfer=BIASED):
    """Replay of layer `index`: each of `failed` is a site below it, or (site, operator)."""
    places = [(entry, "") if isinstance(entry, str) else entry for entry in failed]
    return tuple(
        SiteReplay(
            f"model.layers.{index}.{site}".rstrip("."), operator, "offset_up", 1, replace(transfer, violation=violation)
        )
        for site, operator in places
    )


def measurements(*layers, **changes):
    made = Measurements(tuple(layers), 2.0**-8, "bfloat16", tokens=256, hidden=64, probes=("instability",))
    return replace(made, **changes)


def healthy_stack(count=6, **damaged):
    """`count` healthy rows; `damaged` replaces some, as row_3=layer(3, ...)."""
    return measurements(*[damaged.get(f"row_{index}", layer(index)) for index in range(count)])


def report_of(made):
    return Report(
        made, diagnose(made), Cost(7.0, 1.25, 2**28), "cpu-reference", "models/tiny", "full", {"device_name": "x86"}
    )


@pytest.fixture(scope="session")
def byte_tokenizer():
    """A tokenizer in which each byte is one token; not to be changed."""
    return byte_level_tokenizer()


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory, byte_tokenizer):
    """A directory with a small random Qwen2 and the byte tokenizer; tests that damage it take a copy."""
    directory = tmp_path_factory.mktemp("checkpoint")
    random_model("qwen2", layers=4, hidden=32).save_pretrained(directory)
    byte_tokenizer.save_pretrained(directory)
    return directory
