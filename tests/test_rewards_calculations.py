"""Which calculations are seen in a text, what they come to, and whether they are right."""

from __future__ import annotations

from fractions import Fraction

import pytest

from llm_grpo.rewards.calculations import calculations

ONE = [  # text, result, right, why
    ("6 * 7 = 42", 42, True, "plain"),
    ("6*7=<<6*7=42>>42", 42, True, "GSM8K's own annotation is not read twice"),
    ("6 boxes x 7 pens = 42 pens", 42, True, "units, and a letter for the times sign"),
    ("So he pays $5 * 3 = $15.00.", 15, True, "currency, and a full stop"),
    ("1,000 + 234 = 1,234", 1234, True, "thousands"),
    ("5 - 8 = -3", -3, True, "negative"),
    ("10 - 2 * 3 = 4", 4, True, "times before minus"),
    ("2 * (3 + 4) = 14", 14, True, "brackets"),
    ("12 \u00f7 4 = 3", 3, True, "typographic signs"),
    ("6 \\times 7 = 42", 42, True, "LaTeX's"),
    ("- 6 * 7 = 42", 42, True, "a bullet is no minus"),
    ("total = 6 * 7 = 42", 42, True, "a name before it"),
    ("4 rooms = 121 * 4 = 484 feet", 484, True, "a label with a number"),
    ("42 = 6 * 7", 42, True, "the other way round"),
    ("10 / 3 = 3.33", Fraction("3.33"), True, "rounded"),
    ("2 / 3 = 0.66", Fraction("0.66"), True, "cut off"),
    ("1 / 5 = 20%", Fraction(1, 5), True, "a percentage"),
    ("8 / 40 * 100 = 20%", Fraction(1, 5), True, "a percentage times 100"),
    ("05 + 3 = 8", 8, True, "a leading zero"),
    ("6 * 7 = 41", 41, False, "wrong"),
    ("10 / 3 = 3", 3, False, "a whole number is not rounded"),
    ("10 / 3 = 3.34", Fraction("3.34"), True, "within the last decimal"),
    ("10 / 3 = 3.35", Fraction("3.35"), False, "beyond it"),
    ("2 * 3 = 6 + 1 = 7", 7, False, "one equation that runs on is no equation"),
]
NONE = [
    ("6 times 7 is 42", "words are not read"),
    ("5 = 5", "nothing to work out"),
    ("2x + 3 = 7", "algebra"),
    ("x + 3 + 4 = 9", "the first part was not read"),
    ("2^3 + 1 = 9", "powers are not read"),
    ("1 / 0 = 7", "no value"),
    ("(1 + 2 = 3", "a bracket that does not close"),
    ("6 + + 7", "no equation"),
    ("", "nothing"),
]


@pytest.mark.parametrize(("text", "result", "right", "why"), ONE)
def test_a_calculation_is_read(text: str, result: Fraction, right: bool, why: str) -> None:
    assert [(found.result, found.right) for found in calculations(text)] == [(result, right)], why


@pytest.mark.parametrize(("text", "why"), NONE)
def test_what_is_not_read(text: str, why: str) -> None:
    assert list(calculations(text)) == [], why


def test_several_in_one_text() -> None:
    text = "She has 12 - 5 = 7 left, so 7 * 2 = 14.\n14 + 1 = 16"
    assert [(str(c.result), c.right) for c in calculations(text)] == [("7", True), ("14", True), ("16", False)]
