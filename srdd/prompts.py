"""The text a scan feeds the model."""

from __future__ import annotations

import json
from pathlib import Path

from hal.errors import UsageError

DEFAULT = (
    "The train left the station at nine and reached the coast two hours later.",
    "Question: a baker fills 12 trays with 8 rolls each. How many rolls are there in all?",
    "def mean(values):\n    return sum(values) / len(values)",
    "Water boils at 100 degrees at sea level, and at a lower temperature on a mountain.",
    "In 1969 the first message was sent between two computers of the new network.",
    "She opened the letter, read it twice, and put it back into the drawer without a word.",
    "17 + 25 = 42, 64 - 19 = 45, 7 * 8 = 56, 81 / 9 = 9.",
    "To whom it may concern: the parcel was delivered on Friday, 13 March, at 10:45.",
)


def read_prompts(path: Path) -> list[str]:
    """Prompts from a file: one a line in .txt; in .jsonl one object a line with the text under "prompt",
    "question" or "text". Raises UsageError for another ending, a file without prompts, or the first line that
    cannot be used.
    """
    if path.suffix not in (".txt", ".jsonl"):
        raise UsageError(f"prompts file {path} must end in .txt or .jsonl")
    try:
        # Not splitlines: it would also cut at separators that JSON allows inside a string.
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read prompts file {path}: {error}") from error
    numbered = [(number, line) for number, line in enumerate(lines, start=1) if line.strip()]
    prompts = [line if path.suffix == ".txt" else _text_of(line, number, path) for number, line in numbered]
    return require_prompts(prompts, str(path))


def require_prompts(prompts: list[str], source: str) -> list[str]:
    """The prompts, or UsageError when there are none or one is empty."""
    if not prompts:
        raise UsageError(f"{source} holds no prompts: give at least one line of text")
    if any(not prompt.strip() for prompt in prompts):
        raise UsageError(f"{source} holds an empty prompt: a scan needs text in each")
    return prompts


def _text_of(line: str, number: int, path: Path) -> str:
    try:
        entry = json.loads(line)
    except ValueError as error:
        raise UsageError(f"{path} line {number} is not JSON: {error}") from error
    for key in ("prompt", "question", "text"):
        if isinstance(entry, dict) and isinstance(entry.get(key), str):
            return str(entry[key])
    raise UsageError(f"{path} line {number} has no text under 'prompt', 'question' or 'text'")
