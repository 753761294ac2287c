"""The calculations a text writes down (`6 boxes x 7 pens = 42`), and whether each is right. Exact, and in linear time.

Only what is plain is read: numbers, + - * / and their signs, brackets, units of whole words. What is more (powers,
variables, LaTeX fractions) is not seen, and so is neither right nor wrong.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction

from llm_grpo.answers.calculation import SIGNS, worked_out

_NUMBER = r"-?[$€£]?[0-9]{1,12}(?:,[0-9]{3}){0,3}(?:\.[0-9]{1,8})?%?"
_UNIT = r"(?:[ \t]?[^\W\d_]{2,20}(?![^\W\d_])){0,2}"
_OPERAND = rf"\({{0,3}}{_NUMBER}{_UNIT}\){{0,3}}"
_SIDE = rf"{_OPERAND}(?:[ \t]?(?:[-+*/]|x(?![ \t]?-))[ \t]?{_OPERAND}){{0,8}}"
_CALCULATION = re.compile(rf"(?<![\w.,$€£]){_SIDE}(?:[ \t]?=[ \t]?{_SIDE}){{1,3}}(?!\.?\w|\^)")
_LATEX = re.compile(r"\\(times|cdot|div)(?![a-zA-Z])")
_ANNOTATION = re.compile(r"<<[^<>\n]{0,200}>>")  # GSM8K's own: 6*7=<<6*7=42>>42
_BULLET = re.compile(r"^[ \t]{0,8}[-*+\u2022][ \t]", re.MULTILINE)
_WORD, _PERCENT = re.compile(r"[^\W\d_]{2,}"), re.compile(r"([0-9.]+)%")
_LEADING_ZEROS = re.compile(r"(?<![0-9.])0+(?=[0-9])")  # 05 is no number to Python's grammar


@dataclass(frozen=True)
class Calculation:
    """One equation of a text as it is written, the value of its last side, and whether all its sides are equal."""

    text: str
    result: Fraction
    right: bool


def calculations(text: str) -> Iterator[Calculation]:
    """Every equation with something to work out, in the order of the text. One that cannot be read is left out.

    A quotient may be rounded to the decimals that are written (10 / 3 = 3.33), and a percentage stand for its share.
    """
    plain = _BULLET.sub("", _ANNOTATION.sub("", text))
    plain = _LATEX.sub(lambda found: "/" if found[1] == "div" else "*", plain).translate(SIGNS).replace("X", "x")
    for found in _CALCULATION.finditer(plain):
        before = plain[max(0, found.start() - 3) : found.start()].rstrip(" \t")[-1:]
        sides = [side.strip() for side in found[0].split("=")]
        if not _works(sides[0]) and _WORD.search(sides[0]):
            sides.pop(0)  # a label: 4 bedrooms = 4 * 121 = 484
        values = [_value(side) for side in sides]
        if before in tuple("+-*/x(^)") or None in values or not any(map(_works, sides)):
            continue
        pairs = zip(values, values[1:], sides[1:], strict=False)
        yield Calculation(found[0].strip(), values[-1], all(_equal(a, b, written) for a, b, written in pairs))


def _works(side: str) -> bool:
    """Whether there is something to work out on this side: an operator that is no sign."""
    return any(sign in side.lstrip("(-") for sign in "+-*/x")


def _value(side: str) -> Fraction | None:
    """What a side comes to; None where its brackets do not close or it divides by zero."""
    plain = _LEADING_ZEROS.sub("", _PERCENT.sub(r"(\1/100)", _WORD.sub("", side).replace(",", "")))
    for sign in "$€£":
        plain = plain.replace(sign, "")
    return worked_out(plain.replace("x", "*").strip())


def _equal(left: Fraction, right: Fraction, written: str) -> bool:
    """Equal, or rounded or cut off at the decimals that are written on the right; 20% is a fifth or twenty."""
    if left == right or _works(written):
        return left == right
    number = written.strip("()$€£ ").partition(" ")[0]
    decimals = len(number.rstrip("%").partition(".")[2])
    unit = Fraction(1, 10**decimals) if decimals else Fraction(0)
    if not number.endswith("%"):
        return abs(left - right) < unit
    return left == right * 100 or abs(left - right) < unit / 100 or abs(left - right * 100) < unit
