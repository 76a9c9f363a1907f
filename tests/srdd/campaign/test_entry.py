import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hal.errors import UsageError
from srdd.campaign.entry import FIELDS, entry_of, fault_from, short_form
from srdd.faults import Fault, parse_fault


def test_an_entry_has_exactly_the_fields_of_a_fault():
    assert tuple(field.name for field in dataclasses.fields(Fault)) == FIELDS
    assert tuple(entry_of(Fault("bias", 3))) == FIELDS


def test_an_entry_becomes_the_fault_it_describes():
    entry = {"kind": "saturation", "layer": 3, "magnitude": 0.5, "units": 2, "absolute": True}
    assert fault_from(entry, "here") == Fault("saturation", 3, magnitude=0.5, units=2, absolute=True)


def test_a_whole_number_is_a_number():
    assert fault_from({"kind": "scale", "layer": 0, "factor": 2}, "here").factor == 2.0


@given(
    st.sampled_from(["bias", "saturation", "dead_zone"]),
    st.integers(0, 99),
    st.floats(0.01, 0.99),
    st.floats(0.001, 1.0),
    st.integers(0, 2**64 - 1),
)
def test_an_entry_round_trips_as_json_and_as_the_option_of_the_command_line(kind, layer, magnitude, sparsity, seed):
    fault = Fault(kind, layer, magnitude=magnitude, sparsity=sparsity, seed=seed)
    assert fault_from(entry_of(fault), "here") == fault
    assert parse_fault(short_form(entry_of(fault))) == fault


def test_the_short_form_leaves_out_what_is_default():
    assert short_form(entry_of(Fault("bias", 3))) == "bias@3"
    assert short_form(entry_of(Fault("saturation", 3, absolute=True))) == "saturation@3:absolute=true"
    assert short_form(entry_of(Fault("bias", None, site="lm_head", units=1))) == "bias@lm_head:units=1"


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"kind": "bias", "layer": 0, "sparsty": 0.1}, "here: unknown key 'sparsty': did you mean 'sparsity'?"),
        ({"kind": "bias"}, "here: a fault needs 'layer'"),
        ({"layer": 0}, "here: a fault needs 'kind'"),
        ({"kind": "bias", "layer": "0"}, 'here: layer is "0": Input should be a valid integer'),
        ({"kind": "bias", "layer": True}, "here: layer is true"),
        ({"kind": "bias", "layer": 1.5}, "here: layer is 1.5"),
        ({"kind": "bias", "layer": 0, "absolute": 1}, "here: absolute is 1"),
        ({"kind": "bais", "layer": 0}, "here: unknown fault kind 'bais': did you mean 'bias'?"),
        ({"kind": "bias", "layer": 0, "sparsity": 0}, "here: fault sparsity"),
    ],
)
def test_an_entry_that_is_no_fault_is_named_with_its_place(entry, message):
    with pytest.raises(UsageError) as refusal:
        fault_from(entry, "here")
    assert str(refusal.value).startswith(message)
