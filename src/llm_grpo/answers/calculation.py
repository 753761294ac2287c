"""What a calculation comes to, exactly: `(9 + 5) / 2` is 7. For answers that a calculator finishes."""

from __future__ import annotations

import ast
import operator
import re
from fractions import Fraction

MAX_CHARS = 200  # a longer text is no answer; also keeps the reading linear and its recursion small

_WRITTEN = str.maketrans({"\u00d7": "*", "\u00f7": "/", "\u00b7": "*", "\u2212": "-", "$": None})
_CHARACTERS = re.compile(r"[-+*/().0-9 ]+")
_THOUSANDS = re.compile(r"(?<![0-9.])([0-9]{1,3}(?:,[0-9]{3})+)(?![0-9,])")
_OPERATIONS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv}


def value_of(text: str) -> Fraction | None:
    """The value of numbers joined by + - * / (or their printed signs) and brackets; None for any other text, a division
    by nought among them. A number alone is its own value; `2 + 3 = 5` is a statement, and none of these."""
    text = _THOUSANDS.sub(lambda found: found[1].replace(",", ""), text.translate(_WRITTEN).strip())
    return worked_out(text) if len(text) <= MAX_CHARS and _CHARACTERS.fullmatch(text) else None


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
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_value(operand, text)
        case ast.BinOp(left=left, op=operation, right=right) if type(operation) in _OPERATIONS:
            return _OPERATIONS[type(operation)](_value(left, text), _value(right, text))
    raise ValueError(ast.dump(node))
