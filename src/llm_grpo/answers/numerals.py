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
from llm_grpo.answers.tokens import VULGAR, plain, tokens_of
from llm_grpo.answers.vocabulary import MONEY, SYNONYMS

MAX_NUMBER_CHARS = 500  # a longer text is prose, not a number; also keeps int() far from its quadratic regime

_UNITS = "|".join(sorted({unit for unit in {**SYNONYMS, **MONEY} if unit.isalpha() and len(unit) > 2}))
_LAST = re.compile(
    r"(?:(?<![\w).])-|\b(?:minus|negative)\s)?(?:[$\u20ac\u00a3]\s?)?-?(?<![\w^])(?:[0-9]{1,9}\s(?=[0-9]{1,9}/[0-9]))?"
    r"\.?[0-9][0-9.,]*(?:[eE][-+]?[0-9]{1,3}\b|/[0-9]+|[kKM]\b"
    r"|\s(?:hundred|thousand|million|billion|trillion|dozen)\b)?"
    rf"(?:\s?(?:%|\u00a2|(?:{_UNITS}|[ckm]m|kg|lb)s?\b))?",
    re.IGNORECASE,
)
_SENTENCE = re.compile(r"[\n;]|(?<!sq)[.?:](?=\s)|[.]$|(?<![0-9])!")
_NEXT_WORDS = re.compile(r"(?:\W*\w+)?(?:/\w+|\W*\w{2,})?\W?")  # further away they speak of something else
_CUT = re.compile(r"[,.;:?]\s")
_NUMBER = re.compile(rf"[0-9]|{VULGAR.pattern}")
_JOINED = re.compile(
    r"[$\s]*(?:or|to|through|versus|vs|x|[-:/*+\u00d7\u00f7\u00b7])?[$\s]*"
)  # 41 or 42, 10:30, 100 - 42


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


def last_said(text: str) -> tuple[str | None, bool]:
    """The last number of a text with its unit, as written (`-5`, `1,234.50`, `1/2`, `3 million`), and whether its
    sentence leaves it as it is.

    A sentence does not where it says another value or none, by the rules of `read_number`: `not 42`, `5x`, `41 or 42`.
    What stands before an earlier number or a comma is not looked at, nor what is further than two words behind it.
    """
    line = next((line for line in reversed(text.split("\n")) if _NUMBER.search(line)), None)
    if line is None:
        return None, False
    as_written = [*_LAST.finditer(typed(line))]
    written = as_written[-1][0].rstrip(".,") if as_written else None
    piece = plain(line[-MAX_NUMBER_CHARS:])
    found = [*_LAST.finditer(piece)]
    if not found:  # too far from the end to be looked at, or nothing that stands by itself: \\sqrt42
        return written, len(line) > MAX_NUMBER_CHARS
    said = found[-1][0].rstrip(".,")
    value = parse_number(said)
    clear = value is not None and value == parse_number(_phrase(piece, found, said))
    return (written if written and parse_number(written) == value else said), clear


def _phrase(piece: str, found: list[re.Match[str]], said: str) -> str:
    """What is said with the last of the numbers that were found, up to two words behind it; with the number before, if
    only a sign or a word like `or` stands between the two."""
    start, before = found[-1].start(), found[-2].end() if len(found) > 1 else 0
    if before and _JOINED.fullmatch(piece, before, start):
        return piece[found[-2].start() :]
    begin = max([before, *(cut.end() for cut in _CUT.finditer(piece, before, start))])
    ended = _SENTENCE.search(piece, start + len(said))
    behind = _NEXT_WORDS.match(piece, start + len(said), ended.start() if ended else len(piece))
    return piece[begin : behind.end() if behind else None]
