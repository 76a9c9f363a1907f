import copy
import json
import math
from dataclasses import replace
from importlib import resources

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import srdd
from hal.errors import UsageError
from srdd.measurements import Cost, Stability
from srdd.report import SCHEMA, to_json
from srdd.report.text import render_text
from tests.srdd.conftest import (
    BIASED,
    CLAMPED,
    healthy_stack,
    layer,
    measurements,
    passing,
    replayed,
    report_of,
)


@pytest.fixture
def faulty():
    """A report with findings of several kinds, one with infinite evidence, and layers that were not probed."""
    damaged = layer(1, replay=replayed(1, "mlp.down_proj", ("mlp.down_proj", "linear")), pass_through=passing(CLAMPED))
    bare = {"stability": None, "gain": None, "shape": None, "pass_through": None}
    rows = [layer(0), damaged, layer(2, finite_output=False, **bare)]
    return report_of(measurements(*rows, layer(3, finite_input=False, finite_output=False, **bare)))


@pytest.fixture
def saved(faulty, tmp_path):
    faulty.save(tmp_path / "report.json")
    return tmp_path / "report.json"


def schema():
    return json.loads(resources.files("srdd.report").joinpath("schema.json").read_text(encoding="utf-8"))


def changed(path, change):
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))
    return path


def test_what_is_saved_is_loaded_again(faulty, saved):
    loaded = srdd.load_report(saved)
    assert to_json(loaded) == to_json(faulty)
    assert loaded.verdict == "faulty"
    assert [finding.kind for finding in loaded.findings] == ["non_finite", "saturation"]
    assert loaded.measurements.layers[1].replay == faulty.measurements.layers[1].replay
    assert loaded.cost == faulty.cost


NUMBER = st.floats(allow_nan=True, allow_infinity=True)


@settings(max_examples=40)
@given(NUMBER, NUMBER, st.booleans(), st.none() | st.integers(0, 2**50))
def test_any_numbers_survive_the_round_trip(tmp_path_factory, first, second, largest, memory):
    row = layer(
        0,
        stability=Stability(3, first, abs(second), abs(first), second),
        pass_through=passing(replace(BIASED, offset=first, ratio=second, largest=largest), growth=second),
    )
    report = replace(report_of(measurements(row, layer(1))), cost=Cost(7.0, 0.5, memory))
    path = tmp_path_factory.mktemp("report") / "report.json"
    report.save(path)
    assert to_json(srdd.load_report(path)) == to_json(report)


def test_json_holds_no_nan_and_no_infinity(saved):
    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    document = json.loads(saved.read_text(), parse_constant=refuse)
    assert document["layers"][2]["instability"] is None
    assert document["findings"][0]["evidence"][0]["statistic"] == pytest.approx(1.7976931348623157e308)


def test_the_document_follows_the_schema_that_ships_with_the_package(saved):
    document = json.loads(saved.read_text())
    jsonschema.Draft202012Validator.check_schema(schema())
    jsonschema.validate(document, schema())
    assert document["schema"] == SCHEMA == "srdd-report/1"


@pytest.mark.parametrize("key", ["findings", "layers", "cost", "verdict", "input", "environment"])
def test_the_schema_misses_what_is_left_out(saved, key):
    document = json.loads(saved.read_text())
    del document[key]
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(document, schema())


def test_the_documented_keys_are_there(saved):
    document = json.loads(saved.read_text())
    finding = {"rank", "layer", "site", "kind", "confidence", "evidence", "suggestion"}
    row = {"index", "instability", "gain", "min_gain", "max_gain", "kurtosis", "pile_up", "replay_error"}
    assert finding <= set(document["findings"][0])
    assert row <= set(document["layers"][0])
    assert set(document["cost"]) == {"forward_equivalents", "wall_s", "peak_memory_bytes"}
    assert document["layers"][1]["replay_error"] == 50.0
    assert document["layers"][0]["replay_error"] is None


def test_a_report_of_another_schema_version_is_refused_by_both_names(saved):
    path = changed(saved, lambda document: document.update(schema="srdd-report/2"))
    with pytest.raises(UsageError, match="'srdd-report/2', this version reads 'srdd-report/1'"):
        srdd.load_report(path)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.9, 0.999])
def test_a_truncated_file_is_refused(saved, share):
    text = saved.read_text().rstrip()
    saved.write_text(text[: int(share * len(text))])
    with pytest.raises(UsageError, match=r"report\.json is not JSON"):
        srdd.load_report(saved)


@pytest.mark.parametrize("content", [b"[]", b"3", b"null", b"{}", b'"srdd-report/1"', b"\xff\xfe", b"\x00" * 9])
def test_another_file_is_refused(saved, content):
    saved.write_bytes(content)
    with pytest.raises(UsageError, match=r"report\.json (is not JSON|has schema)"):
        srdd.load_report(saved)


def test_a_missing_file_and_a_directory_are_refused(tmp_path):
    for path in (tmp_path / "none.json", tmp_path):
        with pytest.raises(UsageError, match="cannot read report"):
            srdd.load_report(path)


BREAKS = {
    "a finding without a layer": lambda document: document["findings"][0].pop("layer"),
    "a layer that is no number": lambda document: document["findings"][0].update(layer="10"),
    "an unknown key": lambda document: document.update(extra=1),
    "a missing probe": lambda document: document["layers"][0]["measured"].pop("gain"),
    "a missing number in a probe": lambda document: document["layers"][0]["measured"]["gain"].pop("gain"),
    "a word for a number": lambda document: document["layers"][0]["measured"]["gain"].update(gain="high"),
    "an unknown number": lambda document: document["layers"][0]["measured"]["shape"].update(skew=1.0),
    "a missing transfer": lambda document: document["layers"][0]["measured"]["pass_through"].pop("transfer"),
    "an empty transfer": lambda document: document["layers"][1]["replay"][0].update(transfer={}),
    "no evidence": lambda document: document["findings"][0].update(evidence=[]),
    "a confidence above one": lambda document: document["findings"][0].update(confidence=1.1),
}


@pytest.mark.parametrize("name", BREAKS)
def test_a_document_that_breaks_the_schema_is_refused_in_one_line(saved, name):
    with pytest.raises(UsageError, match="breaks schema srdd-report/1 at ") as caught:
        srdd.load_report(changed(saved, BREAKS[name]))
    assert "\n" not in str(caught.value)


def test_numbers_that_are_null_can_be_shown(saved):
    def blank(document):
        document["findings"][0]["evidence"][0].update(statistic=None, threshold=None)

    assert render_text(srdd.load_report(changed(saved, blank))) is not None


def test_a_failing_write_leaves_the_old_report(faulty, saved, monkeypatch):
    before = saved.read_bytes()

    def fail(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fdopen", fail)
    with pytest.raises(UsageError, match="No space left on device"):
        faulty.save(saved)
    assert saved.read_bytes() == before


def test_a_report_that_would_break_the_schema_is_not_written(faulty, tmp_path):
    broken = replace(faulty, level="thorough")
    with pytest.raises(jsonschema.ValidationError):
        broken.save(tmp_path / "report.json")
    assert list(tmp_path.iterdir()) == []


def test_rediagnosis_reads_the_measurements_and_not_the_saved_verdict(faulty, saved):
    def whitewash(document):
        document.update(findings=[], verdict="healthy")

    loaded = srdd.load_report(changed(saved, whitewash))
    assert loaded.verdict == "healthy"
    assert to_json(loaded.rediagnosed()) == to_json(faulty)


def test_rediagnosis_of_a_healthy_report_stays_healthy(tmp_path):
    report = report_of(healthy_stack())
    report.save(tmp_path / "report.json")
    loaded = srdd.load_report(tmp_path / "report.json")
    assert loaded.rediagnosed() == loaded
    assert loaded.verdict == "healthy"


def test_a_report_is_not_changed_by_being_written(faulty, tmp_path):
    before = copy.deepcopy(to_json(faulty))
    faulty.save(tmp_path / "report.json")
    assert to_json(faulty) == before
    assert math.isinf(faulty.findings[0].evidence[0].statistic)
