import os
import stat
from pathlib import Path

import pytest

from hal.errors import UsageError
from hal.files import require_outputs, require_writable, write_text, write_texts


def test_text_is_written_as_given(tmp_path):
    path = tmp_path / "a.json"
    write_text(path, "größer\n")
    assert path.read_bytes() == "größer\n".encode()
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert list(tmp_path.iterdir()) == [path]


def test_an_old_file_is_replaced(tmp_path):
    path = tmp_path / "a.json"
    path.write_text("old and longer")
    write_text(path, "new")
    assert path.read_text() == "new"


class Full:
    """A file on a full disk: it takes a part, then fails."""

    def __init__(self, file, error):
        self._file, self._error = file, error

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._file.close()

    def write(self, text):
        self._file.write(text[:2])
        self._file.flush()
        raise self._error


@pytest.mark.parametrize(
    ("error", "expected"),
    [(OSError(28, "No space left on device"), UsageError), (KeyboardInterrupt(), KeyboardInterrupt)],
    ids=["disk full", "interrupt"],
)
def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, error, expected):
    path, fdopen = tmp_path / "a.json", os.fdopen
    path.write_text("old")
    monkeypatch.setattr(os, "fdopen", lambda *args, **kwargs: Full(fdopen(*args, **kwargs), error))
    with pytest.raises(expected) as caught:
        write_text(path, "new text")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
    if expected is UsageError:
        assert str(caught.value) == f"cannot write {path}: No space left on device"


def test_a_rename_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    path.write_text("old")

    def refuse(*_):
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(UsageError, match="Operation not permitted"):
        write_text(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_missing_directory_is_named(tmp_path):
    path = tmp_path / "none" / "a.json"
    for check in (require_writable, lambda path: write_text(path, "x")):
        with pytest.raises(UsageError, match=r"cannot write .*none/a\.json.* choose a"):
            check(path)


def test_a_directory_is_no_file(tmp_path):
    with pytest.raises(UsageError, match="cannot write"):
        require_writable(tmp_path)


def test_a_file_is_no_directory(tmp_path):
    (tmp_path / "a").write_text("")
    with pytest.raises(UsageError, match="cannot write"):
        require_writable(tmp_path / "a" / "b.json")


def test_asking_whether_a_file_can_be_written_leaves_no_trace(tmp_path):
    require_writable(tmp_path / "a.json")
    assert list(tmp_path.iterdir()) == []


# -- several files at once --------------------------------------------------------------------------------


@pytest.mark.parametrize("failing", [0, 1, 2])
@pytest.mark.parametrize("existing", [True, False], ids=["old files", "new files"])
def test_when_one_of_several_renames_fails_none_has_happened(tmp_path, monkeypatch, failing, existing):
    paths = [tmp_path / name for name in ("a.json", "b.html", "c.txt")]
    if existing:
        for path in paths:
            path.write_text(f"old {path.name}")
    replace = Path.replace

    def refuse_one(self, target):
        if target == paths[failing] and "new" in self.read_text():
            raise OSError(1, "Operation not permitted")
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", refuse_one)
    with pytest.raises(UsageError, match=f"cannot write {paths[failing]}: Operation not permitted"):
        write_texts({path: f"new {path.name}" for path in paths})
    assert sorted(tmp_path.iterdir()) == (paths if existing else [])
    assert all(path.read_text() == f"old {path.name}" for path in paths if existing)


def test_several_files_are_written_and_nothing_else(tmp_path):
    paths = [tmp_path / "a.json", tmp_path / "b.html"]
    paths[0].write_text("old")
    write_texts({path: path.name for path in paths})
    assert [path.read_text() for path in paths] == ["a.json", "b.html"]
    assert sorted(tmp_path.iterdir()) == paths


def test_a_missing_directory_of_one_file_leaves_the_other_alone(tmp_path):
    with pytest.raises(UsageError, match=r"none/b\.html"):
        write_texts({tmp_path / "a.json": "a", tmp_path / "none" / "b.html": "b"})
    assert list(tmp_path.iterdir()) == []


def test_two_outputs_are_two_files(tmp_path):
    require_outputs([tmp_path / "a", tmp_path / "b"])
    with pytest.raises(UsageError, match="are the same file"):
        require_outputs([tmp_path / "a", tmp_path / "." / "a"])
