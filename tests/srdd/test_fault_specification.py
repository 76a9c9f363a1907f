import contextlib
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hal.errors import UsageError
from srdd.faults.specification import KINDS, MODES, Fault, parse_fault

WORD = st.text(alphabet="abcdefghijklmnopqrstuvwxyz_.0123456789", max_size=20)
POSITIVE = st.floats(1e-6, 0.99)


@st.composite
def faults(draw):
    kind = draw(st.sampled_from([kind for kind in KINDS if kind != "wrong_constant"]))
    return Fault(
        kind=kind,
        layer=draw(st.integers(0, 200)),
        site=draw(WORD),
        operator=draw(WORD),
        magnitude=draw(POSITIVE) if kind in ("dead_zone", "saturation", "bias", "noise", "spike") else 0.3,
        sparsity=draw(st.floats(1e-6, 0.99)),
        units=draw(st.integers(0, 5000)),
        seed=draw(st.integers(0, 2**64 - 1)),
        absolute=kind == "saturation" and draw(st.booleans()),
        mode=draw(st.sampled_from(("", *MODES[kind]))) if kind in MODES else "",
        factor=draw(st.floats(0.01, 100)) if kind in ("scale", "non_determinism") else 5.0,
        scope=draw(st.sampled_from(("units", "rows", "lanes", "addresses"))),
        period=draw(st.integers(2, 512)),
        every=draw(st.integers(1, 9)),
        rate=draw(st.floats(0.01, 1)),
        tokens=draw(st.integers(0, 64)),
        bits=draw(st.sampled_from(("", "0", "0-5"))) if kind in ("bit_flip", "stuck_at", "rounding") else "",
        value=draw(st.sampled_from((0.0, 1.0))) if kind == "stuck_at" else 0.0,
        draws=draw(st.integers(0, 2**64 - 1)) if kind in ("noise", "spike") else 0,
    )


@given(faults())
def test_what_is_written_is_read_back(fault):
    options = ",".join(
        f"{name}={'true' if value is True else 'false' if value is False else value}"
        for name, value in vars(fault).items()
        if name not in ("kind", "layer")
    )
    assert parse_fault(f"{fault.kind}@{fault.layer}:{options}") == fault


def test_only_kind_and_layer_are_required():
    assert parse_fault("dead_zone@10") == parse_fault("dead_zone@10:") == Fault("dead_zone", 10)
    assert Fault("dead_zone", 10).magnitude == 0.3
    assert Fault("dead_zone", 10).sparsity == 1.0
    assert Fault("non_determinism", 0).factor == 5.0


def test_a_module_outside_the_layers_stands_in_the_layers_place():
    assert parse_fault("bias@lm_head:units=1") == Fault("bias", None, site="lm_head", units=1)
    assert parse_fault("bias@model.norm").place == "model.norm"
    assert parse_fault("bias@7:site=mlp").place == "7"


def test_the_documented_example():
    fault = parse_fault("dead_zone@10:magnitude=0.3,sparsity=0.1,site=mlp.down_proj,operator=linear")
    assert fault == Fault("dead_zone", 10, site="mlp.down_proj", operator="linear", magnitude=0.3, sparsity=0.1)


# text, the value that the message must show, what it must say about the rule or the way out
BAD = [
    ("", "''", "KIND@LAYER"),
    ("bias", "'bias'", "KIND@LAYER"),
    ("bias@", "'bias@'", "KIND@LAYER"),
    ("bias@lm_head:site=mlp", "lm_head and site=mlp", "site is for a layer's number"),
    ("bias@kv_cache", "kv_cache", "full name of a module outside them"),
    ("bias@-1", "'bias@-1'", "KIND@LAYER"),
    ("bias@1.5", "'bias@1.5'", "KIND@LAYER"),
    ("bias@²", "'bias@²'", "KIND@LAYER"),
    ("bias@" + "9" * 5000, "9999", "KIND@LAYER"),
    ("@3", "''", "choose one of: dead_zone"),
    ("deadzone@3", "'deadzone'", "did you mean 'dead_zone'?"),
    ("Bias@3", "'Bias'", "did you mean 'bias'?"),
    ("bias@3:magnitud=0.3", "'magnitud'", "did you mean 'magnitude'?"),
    ("bias@3:layer=4", "'layer'", "unknown key"),
    ("bias@3:magnitude", "'magnitude'", "key=value"),
    ("bias@3:magnitude=", "magnitude=", "give a number"),
    ("bias@3:magnitude=big", "magnitude=big", "give a number"),
    ("bias@3:magnitude=0.1,magnitude=0.2", "'magnitude'", "twice"),
    ("bias@3:magnitude=0", "0.0", "greater than 0"),
    ("bias@3:magnitude=-1", "-1.0", "greater than 0"),
    ("bias@3:magnitude=nan", "nan", "greater than 0"),
    ("bias@3:magnitude=inf", "inf", "finite"),
    ("dead_zone@3:magnitude=1", "1.0", "below 1"),
    ("saturation@3:magnitude=1.5", "1.5", "below 1"),
    ("bias@3:sparsity=0", "0.0", "(0, 1]"),
    ("bias@3:sparsity=1.01", "1.01", "(0, 1]"),
    ("bias@3:sparsity=nan", "nan", "(0, 1]"),
    ("bias@3:units=-1", "-1", "negative"),
    ("bias@3:units=1.5", "units=1.5", "a whole number"),
    ("bias@3:seed=-1", "-1", "seed"),
    (f"bias@3:seed={2**64}", str(2**64), "seed"),
    ("saturation@3:absolute=yes", "absolute=yes", "true or false"),
    ("bias@3:absolute=true", "absolute", "saturation"),
    ("bias@3:mode=biased", "mode", "non_determinism"),
    ("bias@3:factor=2", "'factor'", "scale"),
    ("scale@3:magnitude=0.5", "'magnitude'", "dead_zone"),
    ("bias@3:draws=4", "'draws'", "noise"),
    ("bias@3:bits=4", "'bits'", "bit_flip"),
    ("bit_flip@3:bits=low", "'low'", "mantissa"),
    ("rounding@3:bits=2-4", "'2-4'", "start at 0"),
    ("rounding@3:mode=up", "'up'", "truncate, away"),
    ("stuck_at@3:bits=4,value=2", "2.0", "0 or 1"),
    ("bias@3:value=2", "'value'", "stuck_at"),
    ("bias@3:scope=unit", "'unit'", "did you mean 'units'?"),
    ("bias@3:scope=rows", "'rows'", "give units=N"),
    ("bias@3:scope=elements,units=1", "'elements'", "parameter=weight"),
    ("bias@3:scope=elements,parameter=weight", "'elements'", "units=N"),
    ("bias@3:period=1", "1", "2 or more"),
    ("bias@3:every=0", "every=0", "1 or more"),
    ("bias@3:rate=0", "0.0", "(0, 1]"),
    ("bias@3:rate=1.5", "1.5", "(0, 1]"),
    ("noise@3:draws=-1", "-1", "draws"),
    ("bias@3:tokens=-1", "-1", "the most tokens"),
    ("bias@3:parameter=weight,tokens=1", "parameter", "always there"),
    ("bias@3:site=kv_cache,tokens=1", "kv_cache", "leave them out"),
    ("wrong_constant@3:tokens=1", "'tokens'", "one number"),
    ("bias@3:parameter=weight,every=3", "parameter", "always there"),
    ("bias@3:parameter=weight,operator=linear", "parameter", "always there"),
    ("bias@3:site=kv_cache,operator=linear", "kv_cache", "leave them out"),
    ("wrong_constant@3:sparsity=0.5", "'sparsity'", "one number"),
    ("wrong_constant@3:units=1", "'units'", "one number"),
    ("bias@3:attribute=eps", "'attribute'", "wrong_constant"),
    ("non_determinism@3:mode=louder", "'louder'", "choose one of: amplified"),
    ("non_determinism@3:factor=0", "0.0", "greater than 0"),
    ("non_determinism@3:factor=nan", "nan", "greater than 0"),
]


@pytest.mark.parametrize(("text", "value", "rule"), BAD, ids=[text[:40] for text, _, _ in BAD])
def test_a_bad_value_is_named_with_its_rule_in_one_line(text, value, rule):
    with pytest.raises(UsageError) as caught:
        parse_fault(text)
    message = str(caught.value)
    assert value in message
    assert rule in message
    assert "\n" not in message


def test_a_negative_layer_is_refused_in_python_too():
    with pytest.raises(UsageError, match="layer -1 is negative"):
        Fault("bias", -1)


@given(st.text(max_size=40))
def test_any_other_text_is_a_usage_error_and_never_a_crash(text):
    with contextlib.suppress(UsageError):
        fault = parse_fault(text)
        assert fault.kind in KINDS
        assert math.isfinite(fault.magnitude)
