import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hal.errors import UsageError
from srdd.prompts import DEFAULT, read_prompts, require_prompts


@pytest.fixture
def file(tmp_path):
    def write(name, content):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


def test_text_files_hold_one_prompt_a_line(file):
    assert read_prompts(file("a.txt", "one\n\n  two words\r\nthree")) == ["one", "  two words", "three"]


def test_jsonl_takes_the_text_from_the_first_known_key(file):
    lines = [{"prompt": "a", "text": "no"}, {"question": "b", "answer": "7"}, {"id": 3, "text": "c"}]
    assert read_prompts(file("a.jsonl", "\n".join(map(json.dumps, lines)) + "\n\n")) == ["a", "b", "c"]


@given(st.lists(st.text(min_size=1).filter(str.strip), min_size=1))
def test_any_text_survives_jsonl(tmp_path_factory, texts):
    path = tmp_path_factory.mktemp("prompts") / "a.jsonl"
    path.write_text("".join(json.dumps({"prompt": text}, ensure_ascii=False) + "\n" for text in texts), "utf-8")
    assert read_prompts(path) == texts


def test_a_byte_order_mark_is_no_part_of_the_text(file):
    assert read_prompts(file("a.txt", b"\xef\xbb\xbfone\n")) == ["one"]
    assert read_prompts(file("a.jsonl", b'\xef\xbb\xbf{"text": "one"}\n')) == ["one"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "one", "must end in .txt or .jsonl"),
        ("a.txt", "", "holds no prompts"),
        ("a.txt", " \n\n", "holds no prompts"),
        ("a.txt", b"\xff\xfe\x00", "cannot read"),
        ("a.jsonl", '{"prompt": "a"}\n{"prompt": "b"\n', "line 2 is not JSON"),
        ("a.jsonl", '\n{"prompt": 3}\n', "line 2 has no text under 'prompt', 'question' or 'text'"),
        ("a.jsonl", '["a"]\n', "line 1 has no text"),
        ("a.jsonl", '{"answer": "a"}\n', "line 1 has no text"),
        ("a.jsonl", '{"prompt": " "}\n', "holds an empty prompt"),
    ],
)
def test_a_file_that_cannot_be_used_is_named_with_the_line(file, name, content, message):
    with pytest.raises(UsageError, match=message) as caught:
        read_prompts(file(name, content))
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UsageError, match=r"cannot read prompts file .*none\.txt"):
        read_prompts(tmp_path / "none.txt")


def test_a_directory_is_no_prompts_file(tmp_path):
    (tmp_path / "a.txt").mkdir()
    with pytest.raises(UsageError, match="cannot read"):
        read_prompts(tmp_path / "a.txt")


def test_the_built_in_prompts_are_usable():
    assert require_prompts(list(DEFAULT), "default") == list(DEFAULT)
    assert len(set(DEFAULT)) == len(DEFAULT) >= 4
