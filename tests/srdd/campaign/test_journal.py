import pytest

from hal.errors import UsageError
from srdd.campaign.journal import journal_name, open_journal, read_journals
from tests.srdd.campaign.conftest import outcome

ONE = outcome("one", "bias@3", "3 bias mlp linear")
TWO = outcome("two", None)
THREE = outcome("three", "noise@3", error="RuntimeError: no")


def keep(directory, *outcomes, name="cases.jsonl"):
    with open_journal(directory / name) as journal:
        for entry in outcomes:
            journal.add(entry)


def test_what_was_added_is_read_again(tmp_path):
    keep(tmp_path, ONE, TWO)
    keep(tmp_path, THREE)
    assert read_journals(tmp_path) == {"one": ONE, "two": TWO, "three": THREE}


def test_a_directory_without_journals_holds_nothing(tmp_path):
    assert read_journals(tmp_path) == {}


def test_the_journals_of_all_shards_are_read(tmp_path):
    assert journal_name(1, 1) == "cases.jsonl"
    for number, entry in enumerate((ONE, TWO, THREE), start=1):
        keep(tmp_path, entry, name=journal_name(number, 3))
    assert len(list(tmp_path.iterdir())) == 3
    assert set(read_journals(tmp_path)) == {"one", "two", "three"}


@pytest.mark.parametrize("left", [1, 40, -1])
def test_a_line_that_a_kill_cut_short_costs_that_case_alone(tmp_path, left):
    keep(tmp_path, ONE, TWO)
    path = tmp_path / "cases.jsonl"
    whole = path.read_bytes()
    first = whole.index(b"\n") + 1
    path.write_bytes(whole[: first + left] if left > 0 else whole[:left])
    assert read_journals(tmp_path) == {"one": ONE}
    keep(tmp_path, THREE)
    assert read_journals(tmp_path) == {"one": ONE, "three": THREE}


@pytest.mark.parametrize("line", ["not json", "{}", '{"schema": "srdd-campaign-case/0"}', "[]", '"text"'])
def test_a_whole_line_that_is_no_outcome_is_named(tmp_path, line):
    keep(tmp_path, ONE)
    path = tmp_path / "cases.jsonl"
    path.write_text(f"{path.read_text()}{line}\n")
    with pytest.raises(UsageError, match=r"cases\.jsonl line 2 is not an outcome of this version"):
        read_journals(tmp_path)


def test_two_runs_do_not_write_one_journal(tmp_path):
    with (
        open_journal(tmp_path / "cases.jsonl"),
        pytest.raises(UsageError, match="belongs to a campaign that is running"),
        open_journal(tmp_path / "cases.jsonl"),
    ):
        pass


def test_a_journal_that_cannot_be_written_is_named(tmp_path):
    with pytest.raises(UsageError, match="cannot write"), open_journal(tmp_path / "none" / "cases.jsonl"):
        pass
