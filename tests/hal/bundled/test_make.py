"""The script leaves a whole checkpoint or nothing, and says in one line what was wrong."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils.logging import enable_progress_bar, is_progress_bar_enabled

from hal.bundled import CARD, make
from hal.bundled.arithmetic import problems
from hal.bundled.evaluate import replies

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:transformers.*")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A checkpoint after three steps of training; what the script sets for its process is put back."""
    threads, bar = torch.get_num_threads(), is_progress_bar_enabled()
    out = tmp_path_factory.mktemp("made") / "model"
    code = make.main(["--out", str(out), "--steps", "3", "--problems", "12", "--seed", "5"])
    torch.set_num_threads(threads)
    if bar:
        enable_progress_bar()
    assert code == 0
    return out


def test_what_it_makes_loads_and_replies(made):
    model, loading = AutoModelForCausalLM.from_pretrained(made, output_loading_info=True)
    assert not any(loading.values()), loading
    assert model.dtype == torch.bfloat16
    tokenizer = AutoTokenizer.from_pretrained(made)
    assert len(tokenizer) == model.config.vocab_size
    assert len(replies(model, tokenizer, problems("held-out", 3, seed=0))) == 3


def test_the_card_says_how_it_was_made_and_how_good_it_is(made):
    card = json.loads((made / CARD).read_text())
    assert card["licence"] == "Apache-2.0"
    assert card["command"] == "python -m hal.bundled.make --steps 3 --seed 5 --threads 1 --out DIR"
    assert card["training"]["steps"] == 3
    assert card["training"]["tokens"] == 3 * (8 * 128 + 256)
    assert {"torch", "transformers", "python"} <= set(card["versions"])
    for dtype in ("float32", "bfloat16"):
        accuracy = card[dtype]["accuracy"]
        assert accuracy["total"] == 12
        assert accuracy["wilson_95"][0] <= accuracy["rate"] <= accuracy["wilson_95"][1]
        assert sum(kind["total"] for kind in card[dtype]["accuracy_by_kind"].values()) == 12


def test_nothing_else_is_left_beside_it(made):
    assert [path.name for path in made.parent.iterdir()] == ["model"]


def test_after_an_error_nothing_is_left(tmp_path):
    def interrupted() -> None:
        with make.appearing_whole(tmp_path / "model") as directory:
            (directory / "half").write_text("half")
            raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        interrupted()
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_visible_before_the_end(tmp_path):
    with make.appearing_whole(tmp_path / "model") as directory:
        (directory / "config.json").write_text("{}")
        assert not (tmp_path / "model").exists()
    assert (tmp_path / "model" / "config.json").read_text() == "{}"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--steps", "0"], "--steps 0 is too small: give 1 or more"),
        (["--threads", "-1"], "--threads -1 is too small"),
        (["--problems", "0"], "--problems 0 is too small"),
        (["--seed", "-3"], "--seed -3 is negative"),
        (["--steps", "many"], "'--steps'"),
        (["--step", "3"], "--step"),
    ],
)
def test_wrong_values_are_one_line_and_exit_code_2(tmp_path, capsys, arguments, said):
    assert make.main(["--out", str(tmp_path / "model"), *arguments]) == 2
    _one_line(capsys.readouterr().err, said)
    assert list(tmp_path.iterdir()) == []


def test_an_existing_directory_is_never_overwritten(tmp_path, capsys):
    assert make.main(["--out", str(tmp_path)]) == 2
    _one_line(capsys.readouterr().err, "exists already: remove it or name another directory")


def test_a_missing_parent_is_named(tmp_path, capsys):
    assert make.main(["--out", str(tmp_path / "none" / "model")]) == 2
    _one_line(capsys.readouterr().err, "has no parent directory: create")


def test_a_missing_out_is_named_without_a_traceback():
    done = subprocess.run([sys.executable, "-m", "hal.bundled.make"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    _one_line(done.stderr, "--out")


def _one_line(message: str, said: str) -> None:
    assert message.startswith("error: ")
    assert message.count("\n") == 1
    assert said in message
