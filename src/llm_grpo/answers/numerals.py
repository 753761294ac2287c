"""How a number is read out of a text: exactly, in linear time, and not at all where the text says no single number.

A text is tokens (tokens.py), and each of them has to be harmless, or of a known effect on the value (`minus`,
`million`, `10^3`); else there is no number: `less than 42`, `42!`, `100 - x`. What is harmless is decided in
phrases.py, by the words of vocabulary.py. A single letter behind a number is a unit where it is one of UNIT_LETTERS (5
m, 5 g, 5 L), and may be a variable otherwise (5x, 5 n).
"""

from __future__ import annotations

import re
from fractions import Fraction

from llm_grpo.answers.dress import typed
from llm_grpo.answers.phrases import Reading, read_side
from llm_grpo.answers.tokens import plain, tokens_of

MAX_NUMBER_CHARS = 500  # a longer text is prose, not a number; also keeps int() far from its quadratic regime

_LAST = re.compile(
    r"(?:(?<![\w).])-|\b(?:minus|negative)\s)?[$\u20ac\u00a3]?(?<![\w^])\.?[0-9][0-9.,]*(?:/[0-9]+|[kKM]\b"
    r"|\s(?:hundred|thousand|million|billion|trillion|dozen)\b)?",
    re.IGNORECASE,
)


def parse_number(text: str) -> Fraction | None:
    """The one number a text says, exactly, or None: for no number, several different ones, or digits that are none.

    Currency, units, nouns and LaTeX dress beside the number do not matter: `$1,234.00`, `42 apples`, `\\boxed{12}`. A
    percent sign is a unit like any other (80% is 80, not 0.8): golds are written without it, and an answer given in
    percent was asked for in percent. Signs and multipliers in words count: `minus 5`, `3 million`, `42k`, `2 dozen`.
    No numbers are `1,23,4`, `1.2.3`, `1/0`, dates, `B12`, a superscript, and whatever has something beside it that may
    change it: `not 42`, `42 or more`, `5x`, `5!`, `half of 3`. Number words alone (`forty-two`) are words.
    """
    reading = read_number(text)
    return reading.value if reading else None


def read_number(text: str) -> Reading | None:
    """As `parse_number`, with the words beside the number. Linear, since long texts are refused."""
    if len(text) > MAX_NUMBER_CHARS:
        return None
    sides = [tokens_of(side) for side in plain(text).split("=")]
    read = [read_side(side, first=not place, last=place == len(sides) - 1) for place, side in enumerate(sides) if side]
    numbers = [reading for reading in read if isinstance(reading, Reading)]
    if None in read or len({reading.value for reading in numbers}) != 1:
        return None
    return numbers[-1]


def last_number(text: str) -> str | None:
    """The last thing in a text that looks like a number, as written (`-5`, `1,234.50`, `1/2`, `3 million`), or None."""
    found = None
    for match in _LAST.finditer(typed(text)):
        found = match[0]
    return found.rstrip(".,") if found else None
