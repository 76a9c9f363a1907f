"""Lessons teach the reply, come from the training side alone, and start with equations."""

from __future__ import annotations

from itertools import islice

from hal.bundled.arithmetic import problems
from hal.bundled.lessons import DRILL_PHASE, DRILL_SHARE, QUESTION_WEIGHT, conversation, equation, lessons


def test_a_conversation_is_the_chat_template_with_the_reply_weighted_in_full(tokenizer):
    problem = problems("train", 1, seed=1)[0]
    lesson = conversation(problem, tokenizer)
    assert lesson.ids == tokenizer.apply_chat_template(problem.conversation)["input_ids"]
    taught = [token for token, weight in zip(lesson.ids, lesson.weights, strict=True) if weight == 1.0]
    assert tokenizer.decode(taught) == f"{problem.answer}<|im_end|>\n"
    assert set(lesson.weights) == {QUESTION_WEIGHT, 1.0}


def test_an_equation_is_one_line(tokenizer):
    problem = next(p for p in problems("train", 50, seed=2) if p.question.endswith("="))
    assert tokenizer.decode(equation(problem, tokenizer).ids) == f"{problem.question}{problem.answer}\n"


def test_no_held_out_question_is_taught(tokenizer):
    held_out = {problem.question for problem in problems("held-out", 2000, seed=3)}
    taught = {_question(tokenizer.decode(lesson.ids)) for lesson in islice(lessons(tokenizer, 0, 40_000), 3000)}
    assert len(taught) > 1000
    assert not taught & held_out


def _question(text: str) -> str:
    if text.startswith("<|im_start|>"):
        return text.split("\n")[1].removesuffix("<|im_end|>")
    return text[: text.index("=") + 1]


def test_equations_fill_most_of_the_first_phase_and_none_of_the_second(tokenizer):
    tokens = 20_000
    phases = {True: [0, 0], False: [0, 0]}
    given = 0
    for lesson in lessons(tokenizer, 0, tokens):
        drill = not tokenizer.decode(lesson.ids).startswith("<|im_start|>")
        phases[given < DRILL_PHASE * tokens][drill] += len(lesson.ids)
        given += len(lesson.ids)
        if given > tokens:
            break
    asked, drilled = phases[True]
    assert abs(drilled / (asked + drilled) - DRILL_SHARE) < 0.02
    assert phases[False][True] == 0
