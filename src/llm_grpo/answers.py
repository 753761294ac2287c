"""How an answer is taken out of a text, when two answers are equal, and what a judge says of a completion.

Everything works on tag positions and takes linear time, because model output is data. Light: the one heavy
library (math-verify) is imported late and sees only short LaTeX.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

from llm_grpo.records import Judgement

TAGS = ("<reasoning>", "</reasoning>", "<answer>", "</answer>")
MAX_NUMBER_CHARS = 500  # a longer text is prose, not a number; also keeps int() far from its quadratic regime
MAX_LATEX_CHARS = 100


# --- taking the answer out -------------------------------------------------------------------------------------


def extract_xml_answer(text: str, *, published: bool = False) -> str | None:
    """What stands in the last complete `<answer>...</answer>`, stripped; None where there is none.

    published: as the copied function does it: after the last `<answer>`, up to the first `</answer>` behind it or to
    the end, and the whole text where there is no tag (so that a bare `42` counts as an answer).
    """
    if published:
        return text.rpartition("<answer>")[2].partition("</answer>")[0].strip()
    for piece in reversed(text.split("</answer>")[:-1]):
        _, opened, content = piece.rpartition("<answer>")
        if opened:
            return content.strip()
    return None


def extract_hash_answer(text: str, *, published: bool = False, drop_separators: bool = False) -> str | None:
    """What stands behind the first `####`, on its line, stripped; None where there is no `####`.

    published: everything up to the next `####`, over lines. drop_separators: without `,` and `$`, as later copies
    of the published function give it (not needed here: `same_answer` compares values).
    """
    _, mark, behind = text.partition("####")
    if not mark:
        return None
    answer = behind.partition("####")[0].strip()
    if not published:
        answer = answer.partition("\n")[0].strip()
    return answer.replace(",", "").replace("$", "") if drop_separators else answer


def only_answer(text: str) -> str | None:
    """The tagged answer if each answer tag stands exactly once: two blocks are a hedge, not an answer."""
    if text.count("<answer>") != 1 or text.count("</answer>") != 1:
        return None
    return extract_xml_answer(text)


def well_formed(text: str) -> bool:
    """Each tag exactly once and in order, something in both blocks, nothing but whitespace outside them.

    One line or many, with or without a newline at the end: chat models end at `</answer>`.
    """
    if any(text.count(tag) != 1 for tag in TAGS):
        return False
    before, _, rest = text.partition(TAGS[0])
    reasoning, closed, rest = rest.partition(TAGS[1])
    between, opened, rest = rest.partition(TAGS[2])
    answer, ended, after = rest.partition(TAGS[3])
    outside = before.strip() or between.strip() or after.strip()
    return bool(closed and opened and ended and not outside and reasoning.strip() and answer.strip())


# --- numbers ---------------------------------------------------------------------------------------------------

_SIGNS = str.maketrans({"\u2212": "-", "\u2013": "-", "\ufe63": "-", "\uff0d": "-", "\u2010": "-", "\u2011": "-"})
_GROUP_SPACE = re.compile(r"(?<=[0-9])(?:[\u00a0\u2009\u202f]|\\,|\\!)(?=[0-9]{3}(?![0-9]))")
_FRACTION = re.compile(r"\\[dt]?frac\{(-?[0-9]+)\}\{([0-9]+)\}")
_WRAPPER = re.compile(r"\\(?:boxed|text|textbf|mathrm|mathbf|left|right|quad|displaystyle)(?![a-zA-Z])|\\[()\[\] $%]|[{}]")
_UNIT_POWER = re.compile(r"(?<=[^\W\d_xX])(?<![0-9][eE])(?:[\u00b2\u00b3]|\^?[23])(?![0-9.,]*[0-9]|[^\W_])")
_NUMBER = re.compile(
    r"(?P<sign>(?<![\w).])[-+])?[$\u20ac\u00a3]?(?P<inner>[-+])?"
    r"(?:(?P<whole>[0-9]{1,9})\s+(?=[0-9]{1,9}/[0-9]))?"
    r"(?P<top>\.?[0-9][0-9.,]*)(?:e(?P<power>[-+]?[0-9]{1,3})(?!\w))?(?:/(?P<bottom>[0-9]+))?",
    re.IGNORECASE,
)
_DIGITS = re.compile(r"(?:[0-9]+|[1-9][0-9]{0,2}(?:,[0-9]{3})+)(?:\.[0-9]+)?|\.[0-9]+")
_LAST = re.compile(r"(?:(?<![\w).])-)?[$\u20ac\u00a3]?(?<![\w^])\.?[0-9][0-9.,]*(?:/[0-9]+)?")


@dataclass(frozen=True)
class _Reading:
    value: Fraction
    words: frozenset[str]


def parse_number(text: str) -> Fraction | None:
    """The one number a text says, exactly, or None: for no number, several different ones, or digits that are no number.

    Currency, units, words and LaTeX wrappers beside the number do not matter (`$1,234.00`, `42 apples`, `\\boxed{12}`).
    A percent sign is a unit like any other (80% is 80, not 0.8): golds are written without it, and nobody who asks
    for a percentage means its hundredth. `1,23,4`, `1.2.3`, dates and superscripts (`2` raised is not 2) are no numbers.
    """
    reading = _read(text)
    return reading.value if reading else None


def _read(text: str) -> _Reading | None:
    """The value and the words beside it. Linear, since longer texts are refused."""
    if len(text) > MAX_NUMBER_CHARS:
        return None
    plain = _plain(text)
    matches = list(_NUMBER.finditer(plain))
    values = {_value(match, plain) for match in matches}
    if len(values) != 1 or None in values or _unclear(_NUMBER.sub(" ", plain), plain):
        return None
    words = re.findall(r"[^\W\d_]+", _NUMBER.sub(" ", plain))
    return _Reading(values.pop(), frozenset(word.casefold() for word in words))


def _plain(text: str) -> str:
    """Without what is only dress: typographic signs and group spaces, LaTeX wrappers, the power of a unit."""
    text = _GROUP_SPACE.sub("", text.translate(_SIGNS).replace("{,}", ","))
    text = _FRACTION.sub(lambda m: (" " if text[m.start() - 1 : m.start()].isdigit() else "") + f"{m[1]}/{m[2]}", text)
    return _UNIT_POWER.sub("", _WRAPPER.sub(lambda m: m[0][-1] if m[0][-1] in "$%" else "", text))


def _unclear(rest: str, plain: str) -> bool:
    """True where what is left beside the numbers changes their meaning: other digits, other LaTeX, a loose minus."""
    return "\\" in rest or "\u00b1" in rest or plain.lstrip().startswith("- ") or any(c.isnumeric() for c in rest)


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


def last_number(text: str) -> str | None:
    """The last thing in a text that looks like a number, as it is written (`-5`, `1,234.50`, `1/2`), or None."""
    found = None
    for found in _LAST.finditer(text.translate(_SIGNS)):
        pass
    return found[0].rstrip(".,") if found else None


# --- equality --------------------------------------------------------------------------------------------------


def same_answer(given: str | None, gold: str) -> bool:
    """Whether two answers say the same: equal text (case and spaces aside), else equal value, else equal LaTeX.

    Words beside a number count only where the gold has some: `42 apples` is 42, but `5 miles` is not `5 km`.
    """
    if given is None:
        return False
    mine, theirs = _normal(given), _normal(gold)
    if not mine or not theirs or mine == theirs:
        return bool(mine) and mine == theirs
    left, right = _read(given), _read(gold)
    if left and right:
        return left.value == right.value and (not left.words or right.words <= left.words)
    return False


def _normal(text: str) -> str:
    return " ".join(text.casefold().split()).strip("*`\"'").rstrip(". ")


# --- judges ----------------------------------------------------------------------------------------------------


def judge_xml(text: str, gold: str) -> Judgement:
    """For answers in `<answer>` behind `<reasoning>`. Lenient reads the last answer block, else the last number."""
    tagged = extract_xml_answer(text)
    extracted = tagged if tagged is not None else _loose(text, gold)
    formatted, right = well_formed(text), same_answer(extracted, gold)
    return Judgement(extracted, strict=formatted and right, lenient=right, formatted=formatted)


def judge_hash(text: str, gold: str) -> Judgement:
    """For answers behind `####`, which stands once with something behind it on its line, and nothing after that."""
    marked = extract_hash_answer(text)
    behind = text.partition("####")[2].strip()
    formatted = bool(behind) and "####" not in behind and "\n" not in behind
    extracted = marked if marked is not None else _loose(text, gold)
    right = same_answer(extracted, gold)
    return Judgement(extracted, strict=formatted and right, lenient=right, formatted=formatted)


def judge_plain(text: str, gold: str) -> Judgement:
    """For answers that are the whole completion: one line. Lenient reads the last number or the last line."""
    whole = text.strip()
    formatted = bool(whole) and "\n" not in whole
    strict = formatted and same_answer(whole, gold)
    extracted = whole if strict else _loose(text, gold)
    return Judgement(extracted, strict=strict, lenient=strict or same_answer(extracted, gold), formatted=formatted)


def _loose(text: str, gold: str) -> str | None:
    """Where a person would look without any mark: the last number for a number, else the last line."""
    if parse_number(gold) is not None:
        return last_number(text)
    return text.strip().rpartition("\n")[2] or None


JUDGES: dict[str, Callable[[str, str], Judgement]] = {"xml": judge_xml, "hash": judge_hash, "plain": judge_plain}
