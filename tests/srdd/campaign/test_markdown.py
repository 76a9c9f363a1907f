import re
from pathlib import Path

import pytest

from srdd.campaign.file import Campaign, read_campaign
from srdd.campaign.kinds import EQUIVALENCES
from srdd.campaign.markdown import LISTED, render
from srdd.campaign.result import result_of, to_json
from tests.srdd.campaign.conftest import outcome

DOCS = Path(__file__).parents[3] / "docs" / "campaigns.md"


def page(*outcomes, of=None):
    campaign = Campaign.model_validate({"schema": "srdd-campaign/1", "dtypes": ["bfloat16", "float32"]})
    made = result_of(
        "mine", campaign, "tiny", "python -m srdd campaign mine.json", {"torch": "2"}, of or len(outcomes), outcomes
    )
    return render(made)


def table(text, heading):
    """The rows of the table under `heading`, cells stripped."""
    block = text.split(heading)[1].split("\n## ")[0]
    return [
        [cell.strip() for cell in line.strip("|").split("|")] for line in block.splitlines() if line.startswith("|")
    ]


MIXED = (
    outcome("a", "bias@3", "3 bias"),
    outcome("b", "bias@4"),
    outcome("c", "bias@3:units=1", "3 scale"),
    outcome("d", "bias@3", "3 bias", dtype="float32"),
    outcome("e", "noise@3:site=mlp", "3 noise mlp"),
    outcome("f", "noise@5:site=mlp,sparsity=0.1", "5 noise"),
    outcome("g", "spike@3", changed=0),
    outcome("h", "spike@3:operator=gelu", changed=0, calls=0),
    outcome("i"),
    outcome("j", None, "2 scale"),
    outcome("k", "scale@1", error="its process ended by SIGKILL"),
)


def test_the_page_begins_with_the_command_and_what_was_scanned():
    text = page(*MIXED, of=500)
    assert text.startswith("# Fault campaign `mine`\n\n`python -m srdd campaign mine.json`\n")
    assert "11 of 500 cases on tiny, level full, dtypes bfloat16, float32." in text
    assert "Made with torch 2." in text


def test_kinds_are_rows_and_extents_columns_densest_first():
    rows = table(page(*MIXED), "## Faults on a layer's output")
    assert rows[0] == ["bfloat16", "dense", "1 unit"]
    assert ["bias", "1/2; 1/2", "1/1; 0/1"] in rows
    assert ["float32", "dense", "1 unit"] in rows
    assert ["bias", "1/1; 1/1", ""] in rows


def test_extents_are_ordered_from_dense_to_one_unit():
    faults = ["bias@1:units=1", "bias@1:sparsity=0.01", "bias@1:sparsity=0.1", "bias@1"]
    rows = table(page(*[outcome(text, text) for text in faults]), "## Faults on a layer's output")
    assert rows[0] == ["bfloat16", "dense", "10 %", "1 %", "1 unit"]


def test_faults_inside_a_layer_are_summed_over_extents():
    rows = table(page(*MIXED), "## Faults of modules, operators and weights")
    assert rows[2:] == [["mlp", "noise", "2/2; 1/2"]]


def test_every_list_says_how_long_it_is():
    text = page(*MIXED)
    for line in (
        "## Faults whose layer was not named first: 2",
        "## Clean controls with an alarm: 1",
        "## Cases without a scan: 1",
        "## Faults that changed no element, and are not counted: 2",
        "scans with a finding all the same: 0.",
    ):
        assert line in text
    assert table(text, "not counted")[2:] == [
        ["spike", "its place never ran", "1"],
        ["spike", "met no value that it alters", "1"],
    ]


def test_a_long_list_is_cut_and_says_so():
    text = page(*[outcome(f"{number:03}", f"bias@{number}") for number in range(LISTED + 5)])
    assert len(table(text, "not named first")[2:]) == LISTED
    assert "and 5 more, in the JSON result." in text


def test_the_equivalences_are_on_every_page():
    rows = table(page(outcome("a")), "## Kinds that count as right")
    assert [row[0] for row in rows[2:]] == [entry.injected for entry in EQUIVALENCES]


@pytest.mark.parametrize("outcomes", [(), MIXED, MIXED[-3:]])
def test_every_table_is_rectangular(outcomes):
    for block in re.findall(r"(?:^\|.*\n?)+", page(*outcomes), re.MULTILINE):
        assert len({line.count("|") for line in block.splitlines()}) == 1


def test_the_json_lists_what_the_page_counts():
    campaign = Campaign.model_validate({"schema": "srdd-campaign/1"})
    document = to_json(result_of("mine", campaign, "tiny", "command", {}, 11, MIXED))
    assert [entry["key"] for entry in document["misses"]] == ["b", "k"]
    assert [entry["key"] for entry in document["alarms"]] == ["j"]
    assert [entry["key"] for entry in document["unchanged"]] == ["g", "h"]
    assert document["cases"] == {"all": 11, "scored": 11}
    assert sum(sum(counts.values()) for counts in document["confusion"].values()) == document["rates"]["layer"]["of"]


def test_the_example_of_the_documentation_is_a_campaign(tmp_path):
    [example] = re.findall(r"```json\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL)
    path = tmp_path / "example.json"
    path.write_text(example)
    assert read_campaign(str(path)).grids[0].repeats == 3
