"""What a judge says of a completion: strict reads only the form that was asked for, lenient as a person would.

The door to the room: answers are taken out in formats.py and compared in equality.py.
"""

from __future__ import annotations

from collections.abc import Callable

from llm_grpo.answers.equality import MATCHES, same_answer, same_characters, same_number, same_text
from llm_grpo.answers.formats import (
    FORMATS,
    TAGS,
    extract_boxed_answer,
    extract_hash_answer,
    extract_xml_answer,
    is_one_line,
    only_answer,
    well_formed,
    write_answer,
)
from llm_grpo.answers.numerals import last_number, last_said, parse_number
from llm_grpo.records import Judgement

__all__ = [
    "FORMATS",
    "JUDGES",
    "MATCHES",
    "TAGS",
    "extract_boxed_answer",
    "extract_hash_answer",
    "extract_xml_answer",
    "format_of",
    "judge_boxed",
    "judge_hash",
    "judge_plain",
    "judge_xml",
    "last_number",
    "only_answer",
    "parse_number",
    "same_answer",
    "same_characters",
    "same_number",
    "same_text",
    "well_formed",
    "write_answer",
]


Same = Callable[["str | None", str], bool]


def judge_xml(text: str, gold: str, same: Same = same_answer) -> Judgement:
    """For answers in `<answer>` behind `<reasoning>`. Lenient reads the last answer block, else the last number."""
    tagged = extract_xml_answer(text)
    extracted, clear = (tagged, True) if tagged is not None else _loose(text, gold)
    formatted, right = well_formed(text), clear and same(extracted, gold)
    return Judgement(extracted, strict=formatted and right, lenient=right, formatted=formatted)


def judge_hash(text: str, gold: str, same: Same = same_answer) -> Judgement:
    """For answers behind `####`, which stands once with something behind it on its line, and nothing after that."""
    marked = extract_hash_answer(text)
    extracted, clear = (marked, True) if marked is not None else _loose(text, gold)
    formatted, right = FORMATS["hash"](text), clear and same(extracted, gold)
    return Judgement(extracted, strict=formatted and right, lenient=right, formatted=formatted)


def judge_boxed(text: str, gold: str, same: Same = same_answer) -> Judgement:
    """For answers in `\\boxed{}`, once, with prose around it. Lenient reads the last box, else the last number."""
    extracted, clear = _loose(text, gold)
    formatted, right = FORMATS["boxed"](text), clear and same(extracted, gold)
    return Judgement(extracted, strict=formatted and right, lenient=right, formatted=formatted)


def judge_plain(text: str, gold: str, same: Same = same_answer) -> Judgement:
    """For answers that are the whole completion: one line. Lenient reads the last number or the last line."""
    whole, formatted = text.strip(), is_one_line(text)
    strict = formatted and same(whole, gold)
    extracted, clear = (whole, True) if strict else _loose(text, gold)
    return Judgement(extracted, strict=strict, lenient=clear and same(extracted, gold), formatted=formatted)


def _loose(text: str, gold: str) -> tuple[str | None, bool]:
    """Where a person would look without the mark: the last box, else the last number (gold: a number) or line.

    And whether what stands around leaves it as it is: `It is not 42` says a number and no answer.
    """
    boxed = extract_boxed_answer(text)
    if boxed:
        return boxed, True
    if parse_number(gold) is not None:
        return last_said(text)
    return text.strip().rpartition("\n")[2] or None, True


JUDGES: dict[str, Callable[..., Judgement]] = {
    "xml": judge_xml, "hash": judge_hash, "boxed": judge_boxed, "plain": judge_plain,
}  # fmt: skip


def format_of(judge: Callable[[str, str], Judgement]) -> str | None:
    """xml, hash, boxed or plain: which of the formats a task's judge reads; None for a judge of its own."""
    judge = getattr(judge, "func", judge)  # a task may have bound how answers are compared
    return next((name for name, known in JUDGES.items() if known is judge), None)
