"""Problems are exact, reproducible, and held out for good."""

from __future__ import annotations

import ast
import operator
import re

import pytest

from hal.bundled import arithmetic, exercises
from hal.bundled.arithmetic import ASKED, KINDS, Problem, problems
from hal.errors import UsageError

OPERATORS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul}


def value(expression: str) -> int:
    """Evaluate by Python's own grammar, which the generator does not use."""

    def walk(node: ast.expr) -> int:
        if isinstance(node, ast.BinOp):
            return OPERATORS[type(node.op)](walk(node.left), walk(node.right))
        assert isinstance(node, ast.Constant)
        return node.value

    return walk(ast.parse(expression, mode="eval").body)


@pytest.mark.parametrize("split", arithmetic.SPLITS)
@pytest.mark.parametrize("kind", KINDS)
def test_the_answer_is_the_value_of_the_expression(kind, split):
    for problem in problems(split, 20, seed=1, kinds=(kind,)):
        assert problem.kind == kind
        assert problem.split == split
        assert int(problem.answer) == value(problem.expression), problem


@pytest.mark.parametrize("kind", KINDS)
def test_the_question_holds_the_numbers_of_the_expression_in_order(kind):
    for problem in problems("train", 100, seed=2, kinds=(kind,)):
        assert re.findall(r"\d+", problem.question) == re.findall(r"\d+", problem.expression), problem


def test_answers_are_short_and_never_negative():
    assert all(re.fullmatch(r"\d{1,3}", problem.answer) for problem in problems("train", 3000, seed=3))


def test_no_held_out_problem_occurs_in_training():
    training = {problem.key for problem in problems("train", 20_000, seed=4)}
    held_out = problems("held-out", 1500, seed=5)
    assert not training & {problem.key for problem in held_out}


def test_numbers_held_out_of_bare_sums_are_held_out_of_stories_too():
    told = {p.key for p in problems("train", 8000, seed=6, kinds=("story", "long-story"))}
    asked = {p.key for p in problems("held-out", 300, seed=7, kinds=("addition", "subtraction", "two-steps"))}
    assert asked
    assert not told & asked


@pytest.mark.parametrize(("one", "other"), [("7+42", "42+7"), ("3*8-5", "8*3-5"), ("4+19-2", "19+4-2")])
def test_swapping_what_commutes_does_not_change_the_side(one, other):
    assert Problem("x", "one", "0", one).key == Problem("x", "other", "0", other).key


@pytest.mark.parametrize(("one", "other"), [("42-7", "7-42"), ("4+19-2", "4+2-19")])
def test_what_does_not_commute_is_another_problem(one, other):
    assert Problem("x", "same", "0", one).key != Problem("x", "same", "0", other).key


def test_lone_products_are_told_apart_by_wording():
    assert Problem("x", "3*8=", "24", "3*8").key != Problem("x", "What is 3*8?", "24", "3*8").key


def test_a_tenth_is_held_out():
    shares = [problem.split == "held-out" for problem in _both_sides(4000)]
    assert 0.07 < sum(shares) / len(shares) < 0.13


def _both_sides(count: int) -> list[Problem]:
    return [Problem("x", "q", "0", f"{a}+{b}") for a in range(1, 90) for b in range(a, 90)][:count]


def test_the_same_arguments_give_the_same_list_and_a_shorter_one_is_its_start():
    first = problems("train", 50, seed=8)
    assert problems("train", 50, seed=8) == first
    assert problems("train", 20, seed=8) == first[:20]
    assert problems("train", 50, seed=9) != first


def test_no_question_is_drawn_twice():
    questions = [problem.question for problem in problems("held-out", 1000, seed=10)]
    assert len(set(questions)) == 1000


def test_chat_form_ends_with_the_answer():
    problem = problems("train", 1, seed=11)[0]
    assert problem.messages == [{"role": "user", "content": problem.question}]
    assert problem.conversation == [*problem.messages, {"role": "assistant", "content": problem.answer}]


def test_every_shape_that_is_asked_or_told_has_numbers():
    shapes = {shape for shapes in ASKED.values() for shape in shapes}
    shapes |= {template.shape for templates in arithmetic.TOLD.values() for template in templates}
    assert shapes == set(exercises.SHAPES)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("test", 1, 0), "split 'test' is unknown: use one of train, held-out"),
        (("train", -1, 0), "count -1 is negative"),
        (("train", 1, 0, ("division",)), "'division'"),
        (("train", 1, 0, ()), "must name one or more of addition"),
        (("held-out", 500, 0, ("multiplication",)), "ask for fewer or for more kinds"),
    ],
)
def test_wrong_arguments_are_named(arguments, said):
    with pytest.raises(UsageError, match=re.escape(said)):
        problems(*arguments)
