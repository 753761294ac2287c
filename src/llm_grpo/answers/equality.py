"""When two answers are equal: as text, else by value, else as formulas. Everything takes linear time."""

from __future__ import annotations

import re
from collections.abc import Callable

from llm_grpo.answers.calculation import same_calculation
from llm_grpo.answers.dress import typed, unwrapped
from llm_grpo.answers.latex import as_latex, same_latex
from llm_grpo.answers.numerals import Reading, parse_number, read_number
from llm_grpo.answers.vocabulary import MEASURES

_ABOUT_SIGNS = re.compile(r"\s*([^\w\s'\"])\s*")  # blanks beside a sign say nothing: (3, 4) and 2x + 3
_GOES_ON = re.compile(r"[0-9]\.\.+$")  # 0.333... is not 0.333
_CHOICE = re.compile(r"^[(\[{]?([a-z])[)\]}:]$")
_LEAD = re.compile(  # what people say before an answer
    r"^(?:(?:so|thus|hence|therefore),? )?(?:the )?(?:(?:final|correct|right|best) )?"
    r"(?:(?:answer|option|choice)(?: is:?|:|(?= [(\[]?[a-z][)\]]?$))|it is|it's)[*_]* (?=\S)"
)
_PUNCTUATED = re.compile(r"(?<=[^\W\d_]{2})[!,;:]+$")  # but 5! and n! are factorials
_UNDERLINED = re.compile(r"^(_{1,2})([^_]+)\1$")
_HUNDREDTHS = {"cent": ("dollar", "euro"), "pence": ("pound",)}


def same_answer(given: str | None, gold: str) -> bool:
    """Whether two answers say the same: equal text (case and spaces aside), else equal value, else equal LaTeX.

    A value is equal only if everything beside its digits is understood as harmless, or as what it does to the value
    (numerals.py): `minus 5` is -5, `3 million` is 3000000, `not 42` and `42 or more` are nothing. Words beside a number
    count only where both have some: `42 apples` is 42, but `5 miles` is not `5 km`, and 80 cents are $0.80. Values are
    compared exactly: 0.333 is not 1/3, in either direction, since how far a gold was rounded is not known. An empty
    answer equals nothing.
    """
    if given is None or not _normal(given):
        return False
    if _said(given) == _said(gold):
        return True
    mine, theirs = read_number(given), read_number(gold)
    if mine and theirs:
        return _same_reading(mine, theirs)
    if not (mine or theirs) and _closed_up(given) == _closed_up(gold):  # a blank would make a list of a number: 1, 234
        return True
    return same_latex(given, gold) if mine or theirs else same_latex(as_latex(given), as_latex(gold))


def same_number(given: str | None, gold: str) -> bool:
    """Whether both say one number each, and the same one, whatever words stand beside it."""
    mine, theirs = parse_number(given or ""), parse_number(gold)
    return mine is not None and mine == theirs


def same_text(given: str | None, gold: str) -> bool:
    """Whether both are the same words, case, spaces, emphasis and the full stop aside; `1.0` is not `1`."""
    return bool(_normal(given or "")) and _normal(given or "") == _normal(gold)


def same_characters(given: str | None, gold: str) -> bool:
    """Whether both are the same characters, but for spaces around them."""
    return bool((given or "").strip()) and (given or "").strip() == gold.strip()


# The ways to compare, by the names that a task and a reward take as `match`.
MATCHES: dict[str, Callable[[str | None, str], bool]] = {
    "value": same_answer, "number": same_number, "calculation": same_calculation, "text": same_text,
    "exact": same_characters,
}  # fmt: skip


def _same_reading(mine: Reading, theirs: Reading) -> bool:
    """Equal values of units that do not contradict each other."""
    if mine.money and theirs.money and mine.money != theirs.money:
        both = ((mine, theirs), (theirs, mine))
        return any(b.money in _HUNDREDTHS.get(a.money, ()) and a.value / 100 == b.value for a, b in both)
    one, other = (mine, theirs) if mine.money else (theirs, mine)
    if one.money and not other.money and other.words & (MEASURES - {one.money}):
        return False
    has_unit = mine.words or (mine.money and not theirs.money)
    return mine.value == theirs.value and (not has_unit or theirs.words <= mine.words)


def _normal(text: str) -> str:
    """Case, spaces, typography, emphasis, a LaTeX wrapper, the brackets of a choice `(A)` and the full stop do not make
    another answer. A leading point does (`.5`), and so does a superscript: it would become a digit."""
    text = " ".join(unwrapped(typed(text)).replace("\\&", "&").casefold().split()).lstrip("*`\"'").rstrip(" *`\"'")
    text = text if _GOES_ON.search(text) else text.rstrip(". *`\"'")
    return _CHOICE.sub(r"\1", text)


def _said(text: str) -> str:
    """Without what is said before it: `The answer is (A).` is A, and so is `Option A`."""
    said = _PUNCTUATED.sub("", _LEAD.sub("", _normal(text)).lstrip("*` "))
    return _CHOICE.sub(r"\1", _UNDERLINED.sub(r"\2", said))


def _closed_up(text: str) -> str:
    return _ABOUT_SIGNS.sub(r"\1", _said(as_latex(text)))
