from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from srdd import suggest, thresholds
from srdd.classify import stability_kind, transfer_kind
from srdd.measurements import Stability, Transfer
from tests.srdd.conftest import BIASED, CLAMPED, CLEAN, DEAD

ANY = st.floats(allow_nan=True, allow_infinity=True)
KINDS = {"spike", "stuck_at", "bit_flip", "dead_zone", "saturation", "bias", "scale", "sign_flip", "corruption"}


def stability(spread, changed):
    return Stability(trials=3, spread=spread, unit=100.0, element=1000.0, changed=changed)


@pytest.mark.parametrize(
    ("spread", "changed", "kind"),
    [
        (3.0, 0.003, "spike"),
        (0.01, 0.049, "spike"),
        (0.3, 1.0, "noise"),
        (0.1, 0.05, "noise"),
        (0.05, 1.0, "non_determinism"),
        (0.002, 0.5, "non_determinism"),
    ],
)
def test_what_differs_from_run_to_run(spread, changed, kind):
    assert stability_kind(stability(spread, changed), []) == kind


def test_the_site_at_fault_says_more_about_it_than_the_layers_output():
    blurred = stability(0.01, 1.0)  # a spike inside the layer, spread over all units by what follows it
    assert stability_kind(blurred, []) == "non_determinism"
    assert stability_kind(blurred, [replace(CLEAN, coverage=0.003, size=3.0)]) == "spike"
    assert stability_kind(blurred, [replace(CLEAN, coverage=1.0, size=0.3)]) == "noise"
    assert stability_kind(blurred, [replace(CLEAN, coverage=1.0, size=0.05)]) == "non_determinism"


@pytest.mark.parametrize(("sizes", "kind"), [((0.09, 0.27, 0.3), "noise"), ((0.2, 0.06, 0.01), "non_determinism")])
def test_noise_is_measured_under_most_inputs_not_under_the_oddest(sizes, kind):
    assert stability_kind(stability(0.3, 1.0), [replace(CLEAN, coverage=1.0, size=size) for size in sizes]) == kind


SCALED = replace(BIASED, offset=0.1, offset_spread=5.0, ratio=1.5, ratio_spread=0.0)


@pytest.mark.parametrize(
    ("transfer", "kind"),
    [
        (DEAD, "dead_zone"),
        (replace(DEAD, zeroed=0.95, units=1), "dead_zone"),
        (CLAMPED, "saturation"),
        (replace(CLAMPED, tied=0.1, largest=True), "saturation"),
        (replace(CLAMPED, tied=0.8, largest=False), "saturation"),
        (replace(CLAMPED, tied=1.0, coverage=1.0, ratio_spread=0.6), "saturation"),
        (BIASED, "bias"),
        (replace(BIASED, offset=-0.3, units=1), "bias"),
        (SCALED, "scale"),
        (replace(SCALED, ratio=0.5), "scale"),
        (replace(SCALED, ratio=-1.0), "sign_flip"),
        (replace(SCALED, ratio=-2.0), "scale"),
        (replace(SCALED, ratio_spread=3.0), "corruption"),
        (replace(BIASED, coverage=0.1), "corruption"),
        (replace(BIASED, coverage=0.01, offset=-40.0), "spike"),
        (replace(BIASED, coverage=0.01, offset=2.0), "corruption"),
    ],
)
def test_what_a_transfer_curve_looks_like(transfer, kind):
    assert transfer_kind([transfer]) == kind


@given(st.builds(Transfer, *[ANY] * 2, st.integers(0, 64), st.just(64), *[ANY] * 3, st.booleans(), *[ANY] * 5))
def test_any_numbers_have_a_kind_that_a_person_can_act_on(transfer):
    kind = transfer_kind([transfer])
    assert kind in KINDS
    assert suggest.suggestion(kind, 3, "model.layers.3")


@pytest.mark.parametrize("kind", sorted({*KINDS, "noise", "spike", "non_determinism", "non_finite"}))
def test_a_suggestion_is_one_line_that_names_the_place_and_the_next_step(kind):
    text = suggest.suggestion(kind, 7, "model.layers.7.mlp")
    assert "\n" not in text
    assert "layer 7 (model.layers.7.mlp)" in text
    assert "Next:" in text
    assert text.endswith("python -m srdd verify-fix --layer 7 --site mlp")


def test_the_thresholds_are_in_order():
    assert 1 < thresholds.UNSTABLE_UNIT < thresholds.UNSTABLE_ELEMENT
    assert 0 < thresholds.SPIKE_CHANGED < thresholds.COVERED < thresholds.PURE < 1


def test_an_input_that_roundings_nearly_hide_does_not_make_a_stuck_zero_a_dead_zone():
    stuck = replace(DEAD, coverage=0.9, constant=1.0, diverse=True)
    hidden = replace(stuck, coverage=0.4)
    assert transfer_kind([stuck, stuck, hidden]) == "stuck_at"
    assert transfer_kind([stuck, stuck, replace(hidden, spared_large=True)]) == "dead_zone"
    assert transfer_kind([stuck, hidden, hidden]) == "dead_zone"
