"""What a calculation comes to, exactly: `(9 + 5) / 2` is 7. For answers that a calculator finishes."""

from __future__ import annotations

import ast
import operator
import re
from fractions import Fraction

from llm_grpo.answers.numerals import parse_number

MAX_CHARS = 200  # a longer text is no calculation; also keeps the reading linear and its recursion small

SIGNS = str.maketrans({"\u00d7": "*", "\u00b7": "*", "\u00f7": "/", "\u2212": "-", "\u2013": "-"})  # in print
_MONEY = re.compile(r"(?<![0-9.)])\$\s?(?=[0-9.])")
_CHARACTERS = re.compile(r"[-+*/().0-9 ]+")
_THOUSANDS = re.compile(r"(?<![0-9.,])([0-9]{1,3}(?:,[0-9]{3})+)(?![0-9,])")
_OPERATIONS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv}


def value_of(text: str) -> Fraction | None:
    """The value of numbers joined by + - * / (or their printed signs) and brackets, or of a number as `parse_number`
    reads it; None for any other text, a division by nought among them. `2 + 3 = 5` is a statement, and none of these.
    """
    if len(text) > MAX_CHARS:
        return parse_number(text)
    plain = _MONEY.sub("", " ".join(text.translate(SIGNS).replace("x", "*").split()))
    plain = _THOUSANDS.sub(lambda found: found[1].replace(",", ""), plain)
    value = worked_out(plain) if _CHARACTERS.fullmatch(plain) else None
    return parse_number(text) if value is None else value


def worked_out(text: str) -> Fraction | None:
    """The same for what Python would read as numbers, + - * / and brackets. Parsed, never evaluated."""
    try:
        return _value(ast.parse(text, mode="eval").body, text)
    except (SyntaxError, ValueError, ZeroDivisionError):
        return None


def same_calculation(given: str | None, gold: str) -> bool:
    """Whether both come to the same value."""
    mine, theirs = value_of(given or ""), value_of(gold)
    return mine is not None and mine == theirs


def _value(node: ast.expr, text: str) -> Fraction:
    match node:
        case ast.Constant(value=int() | float()):
            return Fraction(ast.get_source_segment(text, node) or "")
        case ast.UnaryOp(op=ast.USub() | ast.UAdd() as sign, operand=operand):
            return _value(operand, text) * (-1 if isinstance(sign, ast.USub) else 1)
        case ast.BinOp(left=left, op=operation, right=right) if type(operation) in _OPERATIONS:
            return _OPERATIONS[type(operation)](_value(left, text), _value(right, text))
    raise ValueError(ast.dump(node))
