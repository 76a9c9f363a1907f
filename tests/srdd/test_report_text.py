import io
import re

import pytest
from rich.console import Console

from srdd.measurements import Gain, LayerMeasurement
from srdd.report.text import print_report
from tests.srdd.conftest import (
    CLAMPED,
    healthy_stack,
    layer,
    measurements,
    passing,
    replayed,
    report_of,
)


def printed(report, width=160):
    stream = io.StringIO()
    print_report(report, Console(file=stream, width=width))
    return stream.getvalue()


def rows(text):
    """The table's lines by layer."""
    return {int(line.split()[0]): line for line in text.splitlines() if re.match(r" *\d+ +[\d.-]", line)}


def test_a_healthy_report_says_what_was_scanned_and_that_it_is_healthy():
    text = printed(report_of(healthy_stack()))
    assert "SRDD scan of tiny\n" in text
    assert "backend cpu-reference (x86), bfloat16, level full, 6 layers x 64 units, 256 tokens" in text
    assert "VERDICT: healthy" in text
    assert "faulty" not in text


def test_the_table_has_the_documents_columns_and_a_row_for_each_layer():
    text = printed(report_of(healthy_stack()))
    header = next(line for line in text.splitlines() if line.startswith("layer"))
    for column in ("score", "instability", "gain", "min gain", "max gain", "kurtosis", "pile-up", "diagnosis"):
        assert column in header
    assert set(rows(text)) == set(range(6))
    assert all(line.endswith("ok") for line in map(str.rstrip, rows(text).values()))
    assert {"1.02", "0.98", "1.01", "12.5", "0.9"} <= set(rows(text)[2].split())


def test_every_cell_stands_under_its_own_header():
    text = printed(report_of(healthy_stack(row_2=layer(2, replay=replayed(2, "mlp", violation=0.5)))))
    header = next(line for line in text.splitlines() if line.startswith("layer"))
    names = re.split(r" {2,}", header.strip())
    assert len(rows(text)[2].split()) == len(names)


def test_the_statistics_block_gives_medians_and_cost():
    text = printed(report_of(healthy_stack(row_1=layer(1, gain=Gain(0.5, 0.4, 1.0, 0)))))
    assert re.search(r"gain +1\.02 +1 layers below 0\.8 of it", text)
    assert re.search(r"kurtosis +12\.5", text)
    assert re.search(r"cost +7\.00 +forward equivalents, 1\.2 s, peak memory 256 MiB", text)


def test_a_finding_names_place_kind_confidence_evidence_and_what_to_try():
    damaged = layer(3, pass_through=passing(CLAMPED), replay=replayed(3, ("mlp.down_proj", "linear")))
    text = printed(report_of(healthy_stack(row_3=damaged)))
    assert "VERDICT: faulty" in text
    assert "1. layer 3, model.layers.3.mlp.down_proj, operator linear: saturation [SAT_SOURCE]" in text
    assert "confidence 0.999" in text
    assert "pass_through 500 (limit 1)" in text
    assert "replay 50 (limit 1)" in text
    assert "Next: rerun layer 3" in text
    assert rows(text)[3].rstrip().endswith("SAT_SOURCE")


def test_layers_that_were_not_probed_show_dashes():
    bare = LayerMeasurement(0, "model.layers.0", True, False)
    text = printed(report_of(measurements(bare, LayerMeasurement(1, "model.layers.1", False, False))))
    assert rows(text)[1].split().count("-") >= 6
    assert "NON_FINITE_SOURCE" in text
    assert "NON_FINITE_PROP" in text


def test_notes_are_shown():
    assert "note      replay was left out" in printed(
        report_of(measurements(layer(0), notes=("replay was left out: no memory",)))
    )


@pytest.mark.parametrize("width", [80, 100, 200])
def test_no_number_is_cut_off_in_a_narrow_terminal(width):
    report = report_of(healthy_stack(row_3=layer(3, pass_through=passing(CLAMPED))))
    text = printed(report, width)
    assert "…" not in text
    assert rows(text)[3].split() == rows(printed(report, 500))[3].split()
    assert "instability" in text


def test_square_brackets_in_names_are_text_not_markup():
    report = report_of(healthy_stack())
    text = printed(type(report)(**{**vars(report), "model": "models/[red]tiny"}))
    assert "[red]tiny" in text
