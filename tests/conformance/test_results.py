"""Results as files: complete, checked, and refused where they are not what they should be."""

from __future__ import annotations

import json

import pytest

from conformance.results import SCHEMA, load_results, to_json
from hal.errors import UsageError


@pytest.fixture
def results(make_backend, run_whole):
    backend = make_backend(known_failures={"gradients/layer_norm/float16/large/normal": "a narrow sum"})
    patterns = (
        "operators/silu/*/odd/*",
        "sweeps/silu/*",
        "gradients/layer_norm/float16/large/normal",
        "noise/bits",
        "differences/13-*",
        "operators/tensor_digest/*",
    )
    return run_whole(backend, *patterns, seeds=2)


@pytest.fixture
def path(results, tmp_path):
    results.save(tmp_path / "r.json")
    return tmp_path / "r.json"


def test_a_saved_run_comes_back_as_it_was(results, path):
    assert to_json(load_results(path)) == to_json(results)


def test_the_file_holds_figures_inputs_agreement_and_environment(path):
    document = json.loads(path.read_text())
    assert document["schema"] == SCHEMA
    assert document["counts"]["known"] == 1
    assert document["declarations"]["known"] == {"gradients/layer_norm/float16/large/normal": "a narrow sum"}
    assert document["environment"]["torch"]
    cases = {case["case"]: case for case in document["cases"]}
    silu = cases["operators/silu/bfloat16/odd/normal"]
    assert [row["seed"] for row in silu["rows"]] == [0, 1]
    assert silu["rows"][0]["errors"]["mare"] > 0
    assert len(silu["inputs"]) == 2
    assert cases["noise/bits"]["agreement"].keys() == {"digest of bits", "digest of normal", "digest of uniform"}
    assert cases["differences/13-random-streams"]["facts"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not JSON"),
        ("[]", "has schema None"),
        ('{"schema": "conformance-results/0"}', "this version reads 'conformance-results/1'"),
        ('{"schema": "conformance-results/1"}', "breaks schema"),
    ],
)
def test_what_is_no_results_file_is_named(tmp_path, text, message):
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(UsageError, match=message):
        load_results(tmp_path / "x.json")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UsageError, match="cannot read results"):
        load_results(tmp_path / "none.json")


def test_an_invented_figure_breaks_the_schema(path):
    document = json.loads(path.read_text())
    document["cases"][0]["rows"][0]["vibes"] = 1
    path.write_text(json.dumps(document))
    with pytest.raises(UsageError, match="vibes"):
        load_results(path)
