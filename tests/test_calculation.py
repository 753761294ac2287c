"""What a calculation comes to, and what is none."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_grpo.answers.calculation import MAX_CHARS, same_calculation, value_of

WRITTEN = [
    ("14 + 6", 20, "blanks"),
    ("14+6", 20, "and none"),
    ("2 + 3 * 4", 14, "products first"),
    ("(2 + 3) * 4", 20, "brackets"),
    ("10 - 3 - 2", 5, "from the left"),
    ("7 / 2 / 7", Fraction(1, 2), "exactly"),
    ("1 / 3 * 3", 1, "without a rounding on the way"),
    ("0.1 + 0.2", Fraction(3, 10), "decimals too"),
    ("100000000000000000.1 - 0.1", 10**17, "more digits than a float has"),
    ("-3 + 14", 11, "a sign"),
    ("3 - -2", 5, "two of them"),
    ("2 \u00d7 3 \u00f7 6", 1, "as it is printed"),
    ("8 \u2212 5", 3, "a typographic minus"),
    ("$17 - $8", 9, "money"),
    ("1,234 + 1", 1235, "thousands"),
    ("20", 20, "a number is its own value"),
    ("", None, "nothing"),
    ("1 / 0", None, "no value"),
    ("1 / (2 - 2)", None, "no value either"),
    ("6 * 7 = 42", None, "a statement"),
    ("14 + 6 apples", None, "words"),
    ("20 apples", 20, "a number as it is read everywhere"),
    ("**20**", 20, "dressed"),
    ("\\frac{1}{2}", Fraction(1, 2), "a fraction"),
    ("not 20", None, "denied"),
    ("007", 7, "leading zeros of a number"),
    ("+5", 5, "a sign that says nothing"),
    ("3 + +4", 7, "twice"),
    ("5 \u2013 3", 2, "a dash"),
    ("2 x 3", 6, "a letter for a sign"),
    ("5\u00a0+\t3", 8, "other blanks"),
    ("1$2", None, "money in a number"),
    ("5$3", None, "and behind one"),
    ("2 ** 9999999", None, "a power, which may be as large as the memory"),
    ("7 // 2", None, "a division that rounds"),
    ("5 5", None, "two numbers"),
    ("5 (3)", None, "a call"),
    ("012 + 1", None, "octal, or what?"),
    ("111," * 20_000 + "11", None, "long, and soon"),
    ("1,23", None, "not thousands"),
    ("1_0", None, "as programs write it"),
    ("1e5", 100_000, "as a number is read"),
    ("\u0665 + 1", None, "other digits"),
    ("()", None, "empty brackets"),
    ("((((", None, "and open ones"),
    ("1.2.3", None, "no number"),
    (".", None, "a point"),
    ("-" * 150 + "5", 5, "signs without end"),
    ("1+" * MAX_CHARS + "1", None, "too long for an answer"),
]


@pytest.mark.parametrize(("text", "value", "why"), WRITTEN, ids=[row[-1] for row in WRITTEN])
def test_what_a_text_comes_to(text: str, value: Fraction | int | None, why: str) -> None:
    assert value_of(text) == value, why


def test_what_has_no_value_equals_nothing() -> None:
    assert same_calculation("14 + 6", "2 * 10")
    assert not any(same_calculation(one, other) for one, other in ((None, "1"), ("1 / 0", "1 / 0"), ("x", "x")))


@given(st.text(alphabet="0123456789+-*/(). ,$=", max_size=MAX_CHARS + 5))
def test_it_answers_for_every_text(text: str) -> None:
    assert isinstance(value_of(text), Fraction | None)
