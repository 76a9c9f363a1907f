import json

import pytest

from hal.errors import UsageError
from srdd.campaign.expand import expand
from srdd.campaign.file import read_campaign, shipped
from srdd.faults import KINDS
from srdd.trials import chance_missed


def test_the_campaigns_that_ship_with_the_package():
    assert shipped() == ["core", "decoding", "glitches", "outside", "quick", "standard"]


@pytest.mark.parametrize("name", ["core", "quick", "standard"])
def test_every_shipped_campaign_covers_every_kind_there_is_and_has_clean_controls(name, structure):
    cases = expand(read_campaign(name), structure, None)
    assert {case.fault.kind for case in cases if case.fault} == set(KINDS)
    assert sum(case.fault is None for case in cases) >= 3


def test_the_standard_campaign_is_what_it_promises(structure):
    cases = expand(read_campaign("standard"), structure, None)
    faults = [case for case in cases if case.fault]
    plain = [case for case in faults if not (case.fault.site or case.fault.mode or case.fault.bits)]
    for kind in set(KINDS) - {"wrong_constant"}:
        for layer in range(len(structure.sites)):
            for extent in ((1.0, 0), (0.1, 0), (0.01, 0), (1.0, 1)):
                for dtype in ("float32", "bfloat16"):
                    drawn = {
                        case.fault.seed
                        for case in plain
                        if (case.fault.kind, case.fault.layer) == (kind, layer)
                        and (case.fault.sparsity, case.fault.units) == extent
                        and case.dtype == dtype
                    }
                    assert len(drawn) >= 3, (kind, layer, extent, dtype)
    assert len(cases) - len(faults) == 300
    assert len({case.prompts for case in cases if not case.fault}) == 300
    assert {case.level for case in cases} == {"full"}


def test_what_is_outside_has_a_campaign_of_its_own(structure):
    faults = [case.fault for case in expand(read_campaign("outside"), structure, None) if case.fault]
    assert {fault.layer for fault in faults} == {None}
    assert {fault.site for fault in faults} == set(structure.outside)


def test_what_is_wrong_with_one_token_has_a_campaign_of_its_own(structure):
    cases = expand(read_campaign("decoding"), structure, None)
    assert {case.fault.tokens for case in cases if case.fault} == {1}
    assert {case.fault.layer for case in cases if case.fault} == {None, *range(len(structure.sites))}
    assert any(case.fault is None for case in cases)


def test_glitches_run_each_layer_often_enough_to_meet_them(structure):
    cases = expand(read_campaign("glitches"), structure, None)
    rates = {case.fault.rate for case in cases if case.fault}
    assert max(rates) < 1
    assert all(chance_missed(min(rates), case.trials, replayed=True) < 1 / 500 for case in cases)


def test_a_file_is_read_with_its_defaults(write):
    campaign = read_campaign(str(write(faults=[{"kind": "bias", "layer": 1}])))
    assert (campaign.model, campaign.dtypes, campaign.level, campaign.seed) == ("bundled", ["auto"], "full", 0)
    assert campaign.clean.count == 0


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"fault": []}, "breaks srdd-campaign/1 at fault: Extra inputs are not permitted"),
        ({"grids": [{"each": {}, "repeat": 2}]}, "at grids.0.repeat: Extra inputs"),
        ({"grids": [{}]}, "at grids.0.each: Field required"),
        ({"clean": {"cont": 3}}, "at clean.cont: Extra inputs"),
        ({"clean": {"count": -1}}, "at clean.count"),
        ({"clean": {"count": "3"}}, "at clean.count: Input should be a valid integer"),
        ({"level": "deep"}, "at level: Input should be 'quick' or 'full'"),
        ({"dtypes": []}, "at dtypes"),
        ({"dtypes": ["float8"]}, "at dtypes.0"),
        ({"seed": -1}, "at seed"),
        ({"schema": "srdd-campaign/2"}, "has schema 'srdd-campaign/2', this version reads"),
    ],
)
def test_a_file_that_breaks_the_form_is_named_with_the_place(write, entries, message):
    with pytest.raises(UsageError) as refusal:
        read_campaign(str(write(**entries)))
    assert message in str(refusal.value)


def test_a_file_that_is_not_there_or_not_json_is_named(tmp_path):
    with pytest.raises(
        UsageError,
        match="no campaign 'standart': give a file, or one of core, decoding, glitches, outside, quick, standard",
    ):
        read_campaign("standart")
    with pytest.raises(UsageError, match=r"cannot read campaign .*none\.json: No such file"):
        read_campaign(str(tmp_path / "none.json"))
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(UsageError, match="is not JSON"):
        read_campaign(str(tmp_path / "bad.json"))
    (tmp_path / "list.json").write_text(json.dumps([1]))
    with pytest.raises(UsageError, match="has schema None"):
        read_campaign(str(tmp_path / "list.json"))
