"""What a judge says of a completion: strict reads only the form that was asked for, lenient as a person would."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from llm_grpo.answers.equality import same_answer
from llm_grpo.answers.formats import FORMATS, extract_boxed_answer
from llm_grpo.answers.numerals import last_said, parse_number
from llm_grpo.records import Judgement

Same = Callable[["str | None", str], bool]


def judge(text: str, gold: str, same: Same = same_answer, *, answer_format: str) -> Judgement:
    """Lenient reads the last marked answer (plain: the whole), else where a person would look without the mark."""
    asked = FORMATS[answer_format]
    extracted, formatted = asked.answer(text), asked.formed(text)
    marked = extracted is not None and (answer_format != "plain" or (formatted and same(extracted, gold)))
    extracted, clear = (extracted, True) if marked else _loose(text, gold)
    right = clear and same(extracted, gold)
    return Judgement(extracted, strict=formatted and marked and right, lenient=right, formatted=formatted)


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


JUDGES: dict[str, Callable[..., Judgement]] = {name: partial(judge, answer_format=name) for name in FORMATS}


def format_of(judge: Callable[[str, str], Judgement]) -> str | None:
    """xml, hash, boxed or plain: which of the formats a task's judge reads; None for a judge of its own."""
    return getattr(judge, "keywords", {}).get("answer_format")  # of the partials in JUDGES, and of partials of them
