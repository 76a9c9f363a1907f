import pytest
from hypothesis import given
from hypothesis import strategies as st

from hal.errors import UsageError
from srdd.campaign.case import Case
from srdd.campaign.expand import expand, sample, shard
from srdd.campaign.file import Campaign
from srdd.campaign.structure import structure_of
from srdd.faults import KINDS, Fault

PLACE = {"srdd-hal": "1", "model": "abc"}


def campaign(**entries):
    return Campaign.model_validate({"schema": "srdd-campaign/1", "dtypes": ["float32"], **entries})


def faults_of(structure, **entries):
    return [case.fault for case in expand(campaign(**entries), structure, None)]


def grid(**each):
    return {"each": each}


def test_a_listed_fault_is_scanned_as_it_stands_once_a_dtype(structure):
    entry = {"kind": "noise", "layer": 2, "sparsity": 0.5, "seed": 9, "draws": 4}
    cases = expand(campaign(faults=[entry], dtypes=["float32", "bfloat16"]), structure, None)
    assert [case.dtype for case in cases] == ["float32", "bfloat16"]
    for case in cases:
        assert {name: getattr(case.fault, name) for name in entry} == entry


def test_a_grid_is_the_product_of_its_axes(structure):
    each = {"kind": ["bias", "scale"], "layer": [0, 3]}
    variants = {"extent": [{"sparsity": 0.5}, {"units": 1}], "site": [{"site": ""}, {"site": "mlp"}]}
    found = faults_of(structure, grids=[{"each": each, "variants": variants}])
    assert len(found) == 16
    assert len({(f.kind, f.layer, f.sparsity, f.units, f.site) for f in found}) == 16


def test_all_and_the_words_for_layers_stand_for_what_the_model_has(structure):
    assert {f.layer for f in faults_of(structure, grids=[grid(kind=["bias"], layer="all")])} == {0, 1, 2, 3}
    words = faults_of(structure, grids=[grid(kind=["bias"], layer=["first", "middle", "last"])])
    assert [f.layer for f in words] == [0, 2, 3]
    assert {f.kind for f in faults_of(structure, grids=[grid(kind="all", layer=[0])])} == set(KINDS)


def test_a_group_of_sites_stands_for_its_modules(structure):
    for sites in ("all", ["@innermost"]):
        found = faults_of(structure, grids=[grid(kind=["bias"], layer=[1], site=sites)])
        assert [f.site for f in found] == ["input_layernorm", "self_attn.q_proj", "mlp.down_proj"]
    constants = faults_of(structure, grids=[grid(kind=["wrong_constant"], layer=[1], site=["@constants"])])
    assert [f.site for f in constants] == ["input_layernorm", "self_attn"]


def test_null_for_the_layer_is_what_lies_outside(structure):
    found = faults_of(structure, grids=[grid(kind=["bias"], layer=[None], site=["@outside"])])
    assert [(f.layer, f.site) for f in found] == [(None, "model.norm"), (None, "lm_head")]
    (found,) = faults_of(structure, faults=[{"kind": "bias", "layer": None, "site": "lm_head", "seed": 4}])
    assert found == Fault("bias", None, site="lm_head", seed=4)


def test_passive_modules_are_not_outside(make_model):
    assert structure_of(make_model("gpt2")).outside == (
        "transformer.wte",
        "transformer.wpe",
        "transformer.ln_f",
        "lm_head",
    )


@pytest.mark.parametrize("family", ["qwen2", "gpt2", "bert", "mixtral"])
def test_the_groups_are_found_in_other_families(make_model, family):
    read = structure_of(make_model(family))
    assert len(read.sites) == 4
    for members in read.groups.values():
        assert all(members)
        assert all(set(some) <= set(known) for some, known in zip(members, read.modules, strict=True))


def test_repeats_differ_in_units_draws_and_prompts_and_come_out_the_same_each_time(structure):
    entries = {"grids": [{"each": {"kind": ["noise"], "layer": [1]}, "repeats": 5}]}
    cases = expand(campaign(**entries), structure, None)
    assert len({case.fault.seed for case in cases}) == 5
    assert len({case.fault.draws for case in cases}) == 5
    assert all(case.fault.draws > 0 for case in cases)
    assert len({case.prompts for case in cases}) == 5
    assert expand(campaign(**entries), structure, None) == cases
    assert expand(campaign(**entries, seed=1), structure, None) != cases


def test_the_same_fault_has_the_same_drawing_in_both_dtypes(structure):
    entries = {"grids": [grid(kind=["spike"], layer=[1])], "dtypes": ["float32", "bfloat16"]}
    one, other = expand(campaign(**entries), structure, None)
    assert (one.fault, one.prompts) == (other.fault, other.prompts)


def test_a_kind_that_draws_nothing_takes_no_draws(structure):
    [bias] = faults_of(structure, grids=[grid(kind=["bias"], layer=[1])])
    assert bias.draws == 0
    assert bias.seed > 0
    [constant] = faults_of(structure, faults=[{"kind": "wrong_constant", "layer": 1, "site": "self_attn"}])
    assert constant.seed == 0


def test_clean_controls_take_turns_in_dtype_and_differ_in_text_and_length(structure):
    cases = expand(campaign(clean={"count": 40}, dtypes=["float32", "bfloat16"]), structure, None)
    assert [case.dtype for case in cases[:4]] == ["float32", "bfloat16"] * 2
    assert len({case.prompts for case in cases}) == 40
    assert {len(case.prompts) for case in cases} == set(range(1, 17))


def test_clean_controls_with_prompts_of_ones_own(structure):
    cases = expand(campaign(clean={"prompts": [["one"], ["two", "three"]]}), structure, None)
    assert [case.prompts for case in cases] == [("one",), ("two", "three")]


def test_prompts_are_drawn_from_the_lines_of_a_file(structure):
    pool = [f"line {index}" for index in range(50)]
    cases = expand(campaign(clean={"count": 32}), structure, pool)
    assert {text for case in cases for text in case.prompts} <= set(pool)
    assert all(len(set(case.prompts)) == len(case.prompts) for case in cases)
    assert len({case.prompts for case in cases}) == 32


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({}, "the campaign has no case"),
        ({"grids": [grid(kind=["bias"], layer=[4])]}, "grids[0]: layer 4 must be 0 to 3, first, middle or last"),
        ({"grids": [grid(kind=["bias"], layer=["frist"])]}, "grids[0]: layer 'frist' must be"),
        ({"grids": [grid(kind=["bias"])]}, "grids[0]: a fault needs 'layer'"),
        ({"grids": [grid(layer=[0])]}, "grids[0]: a fault needs 'kind'"),
        ({"grids": [grid(kind=["bais"], layer=[0])]}, "grids[0]: unknown fault kind 'bais'"),
        ({"grids": [grid(kind=["bias"], layr=[0])]}, "grids[0]: unknown key 'layr'"),
        ({"grids": [grid(kind=["bias"], layer=[0], seed="all")]}, 'grids[0]: seed cannot be "all"'),
        (
            {"grids": [{"each": {"kind": ["bias"], "layer": [0]}, "variants": {"a": [{"kind": "scale"}]}}]},
            "grids[0]: 'kind' is given by two axes",
        ),
        (
            {"grids": [{"each": {"kind": ["bias"], "layer": [0]}, "variants": {"a": [{"unit": 1}]}}]},
            "grids[0], variants a: unknown key 'unit': did you mean 'units'?",
        ),
        ({"faults": [{"kind": "bias", "layer": 9}]}, "faults[0]: layer 9"),
        ({"faults": [{"kind": "bias", "layer": 1, "site": "mpl"}]}, "faults[0]: layer 1 has no module 'mpl'"),
        (
            {"grids": [grid(kind=["bias"], layer=[0], site=["@norms"])]},
            "grids[0]: unknown site @norms: choose one",
        ),
        ({"faults": [{"kind": "bias", "layer": None}]}, "faults[0]: a fault without a layer needs as its site"),
        (
            {"faults": [{"kind": "bias", "layer": None, "site": "head"}]},
            "faults[0]: no module outside the layers is called 'head'; there are model.norm, lm_head",
        ),
        (
            {"grids": [grid(kind=["bias"], layer=[None], site=["@innermost"])]},
            "grids[0]: layer null is outside the layers: give the site @outside",
        ),
        ({"clean": {"prompts": [[" "]]}}, "clean.prompts[0] holds an empty prompt"),
        ({"clean": {"prompts": [[]]}}, "clean.prompts[0] holds an empty prompt"),
    ],
)
def test_an_entry_that_cannot_be_is_named(structure, entries, message):
    with pytest.raises(UsageError) as refusal:
        expand(campaign(**entries), structure, None)
    assert message in str(refusal.value)


def test_the_same_case_twice_is_one_case(structure):
    entry = {"kind": "bias", "layer": 1}
    assert len(faults_of(structure, faults=[entry, entry])) == 1


def clean_cases(count):
    return [Case("float32", "full", (f"text {index}",)) for index in range(count)]


@given(st.integers(1, 60), st.integers(1, 7))
def test_shards_are_the_cases_each_once(count, of):
    cases = clean_cases(count)
    parts = [shard(cases, number, of) for number in range(1, of + 1)]
    assert sorted(case.prompts for part in parts for case in part) == sorted(case.prompts for case in cases)
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


@given(st.integers(1, 60), st.integers(1, 80))
def test_a_sample_is_some_of_the_cases_in_their_order_and_grows_with_its_size(count, limit):
    cases = clean_cases(count)
    chosen = sample(cases, limit)
    assert len(chosen) == min(limit, count)
    assert chosen == [case for case in cases if case in chosen]
    assert set(chosen) <= set(sample(cases, limit + 1))


def test_a_key_changes_with_the_case_and_with_what_decides_its_outcome(structure):
    entries = {"grids": [grid(kind=["bias", "scale"], layer="all")], "clean": {"count": 20}}
    cases = expand(campaign(**entries), structure, None)
    assert len({case.key(PLACE) for case in cases}) == 28
    assert cases[0].key(PLACE) == cases[0].key(dict(reversed(PLACE.items())))
    assert cases[0].key(PLACE) != cases[0].key({**PLACE, "model": "abd"})
