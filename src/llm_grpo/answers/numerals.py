"""How a number is read out of a text: exactly, in linear time, and not at all where the text says no single number."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

MAX_NUMBER_CHARS = 500  # a longer text is prose, not a number; also keeps int() far from its quadratic regime

_SIGNS = str.maketrans(dict.fromkeys("\u2212\u2013\u2010\u2011\ufe63\uff0d", "-"))  # what models write for a minus
_GROUP_SPACE = re.compile(r"(?<=[0-9])(?:[\u00a0\u2009\u202f]|\\,|\\!)(?=[0-9]{3}(?![0-9]))")
_FRACTION = re.compile(r"\\[dt]?frac\{(-?[0-9]+)\}\{([0-9]+)\}")
_WRAPPER = re.compile(
    r"\\(?:boxed|text|textbf|mathrm|mathbf|left|right|quad|displaystyle)(?![a-zA-Z])"
    r"|\^\{?\\circ\}?|\\[()\[\] ,;$%]|[{}]"
)
# The power of a unit (m\u00b2, cm^3) belongs to its word; `x^2`, `5x10` and `1e3` are no units.
_UNIT_POWER = re.compile(r"(?<=[^\W\d_xX])(?<![0-9][eE])(?:[\u00b2\u00b3]|\^?[23])(?![0-9.,]*[0-9]|[^\W_])")
_NUMBER = re.compile(
    r"(?P<sign>(?<![\w).])[-+])?[$\u20ac\u00a3]?(?P<inner>[-+])?"
    r"(?:(?P<whole>[0-9]{1,9})\s{1,9}(?=[0-9]{1,9}/[0-9]))?"
    r"(?P<top>\.?[0-9][0-9.,]*)(?:e(?P<power>[-+]?[0-9]{1,3})(?!\w))?(?:/(?P<bottom>[0-9]+))?",
    re.IGNORECASE,
)
_DIGITS = re.compile(r"(?:[0-9]+|[1-9][0-9]{0,2}(?:,[0-9]{3})+)(?:\.[0-9]+)?|\.[0-9]+")
_WORD = re.compile(r"[^\W\d_]+")
_LAST = re.compile(r"(?:(?<![\w).])-)?[$\u20ac\u00a3]?(?<![\w^])\.?[0-9][0-9.,]*(?:/[0-9]+)?")


@dataclass(frozen=True)
class Reading:
    """The one number of a text, and the words that stand beside it (case-folded)."""

    value: Fraction
    words: frozenset[str]


def parse_number(text: str) -> Fraction | None:
    """The one number a text says, exactly, or None: for no number, several different ones, or digits that are none.

    Currency, units, words and LaTeX wrappers beside the number do not matter: `$1,234.00`, `42 apples`, `\\boxed{12}`.
    A percent sign is a unit like any other (80% is 80, not 0.8): golds are written without it, and an answer given in
    percent was asked for in percent. No numbers are `1,23,4`, `1.2.3`, `1/0`, dates, `B12`, and a superscript.
    """
    reading = read_number(text)
    return reading.value if reading else None


def read_number(text: str) -> Reading | None:
    """As `parse_number`, with the words beside the number. Linear, since long texts are refused."""
    if len(text) > MAX_NUMBER_CHARS:
        return None
    plain = _plain(text)
    values = {_value(match, plain) for match in _NUMBER.finditer(plain)}
    rest = _NUMBER.sub(" ", plain)
    if len(values) != 1 or None in values or _unclear(rest, plain):
        return None
    return Reading(values.pop(), frozenset(word.casefold() for word in _WORD.findall(rest)))


def last_number(text: str) -> str | None:
    """The last thing in a text that looks like a number, as it is written (`-5`, `1,234.50`, `1/2`), or None."""
    found = None
    for match in _LAST.finditer(text.translate(_SIGNS)):
        found = match[0]
    return found.rstrip(".,") if found else None


def _plain(text: str) -> str:
    """Without what is only dress: typographic signs and group spaces, LaTeX wrappers, the power of a unit."""
    text = _GROUP_SPACE.sub("", text.translate(_SIGNS).replace("{,}", ","))
    text = _FRACTION.sub(lambda m: (" " if text[: m.start()][-1:].isdigit() else "") + f"{m[1]}/{m[2]}", text)
    return _UNIT_POWER.sub("", _WRAPPER.sub(lambda m: m[0][-1] if m[0][-1] in "$%" else "", text))


def _unclear(rest: str, plain: str) -> bool:
    """True where what stands beside the numbers changes their meaning: other digits, other LaTeX, a loose minus."""
    loose_minus = plain.lstrip().startswith("- ")
    return loose_minus or "\\" in rest or "\u00b1" in rest or any(char.isnumeric() for char in rest)


def _value(match: re.Match[str], plain: str) -> Fraction | None:
    """One number of the text, or None where its digits, its neighbours or its denominator make no sense."""
    top = match["top"].rstrip(".,")
    before, after = plain[: match.start()][-1:], plain[match.end() :][:2]
    glued = before.isalnum() or before in ("_", "^") or (after[:1] == "/" and after[1:].isdigit())
    if glued or not _DIGITS.fullmatch(top) or (match["sign"] and match["inner"]):
        return None
    value = Fraction(top.replace(",", "")) * Fraction(10) ** int(match["power"] or 0)
    if match["bottom"]:
        if not int(match["bottom"]) or top != match["top"]:
            return None
        value /= int(match["bottom"])
    value += int(match["whole"] or 0)
    return -value if "-" in (match["sign"], match["inner"]) else value
