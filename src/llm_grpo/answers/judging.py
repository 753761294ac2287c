"""How an answer is taken out of a text, when two answers are equal, and what a judge says of a completion.

Everything works on tag positions and takes linear time, because model output is data. Numbers are read in numerals.py,
LaTeX in latex.py (which imports math-verify late, and only for short and tame formulas).
"""

from __future__ import annotations

import re
from collections.abc import Callable

from llm_grpo.answers.latex import same_latex
from llm_grpo.answers.numerals import last_number, parse_number, read_number
from llm_grpo.records import Judgement

__all__ = [
    "FORMATS",
    "JUDGES",
    "MATCHES",
    "TAGS",
    "extract_hash_answer",
    "extract_xml_answer",
    "format_of",
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

_WRAPPED = re.compile(r"^\\(?:boxed|text|textbf|mathrm)\{(.*)\}$", re.DOTALL)
TAGS = ("<reasoning>", "</reasoning>", "<answer>", "</answer>")


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


def only_answer(text: str, answer_format: str = "xml") -> str | None:
    """The answer of a completion that gives exactly one, in that format (xml, hash, plain), else None.

    Two answer blocks, or two `####`, are a hedge and not an answer; plain is one line.
    """
    if answer_format == "plain":
        return text.strip() if _is_one_line(text) else None
    marks = ("####",) if answer_format == "hash" else TAGS[2:]
    if any(text.count(mark) != 1 for mark in marks):
        return None
    return extract_hash_answer(text) if answer_format == "hash" else extract_xml_answer(text)


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


# --- equality --------------------------------------------------------------------------------------------------


def same_answer(given: str | None, gold: str) -> bool:
    """Whether two answers say the same: equal text (case and spaces aside), else equal value, else equal LaTeX.

    Words beside a number count only where both have some: `42 apples` is 42, but `5 miles` is not `5 km`.
    An empty answer equals nothing.
    """
    if given is None or not _normal(given):
        return False
    if _normal(given) == _normal(gold):
        return True
    mine, theirs = read_number(given), read_number(gold)
    if mine and theirs:
        return mine.value == theirs.value and (not mine.words or theirs.words <= mine.words)
    return same_latex(given, gold)


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
    "value": same_answer, "number": same_number, "text": same_text, "exact": same_characters,
}  # fmt: skip


def _normal(text: str) -> str:
    """Case, spaces, quotes, emphasis, a LaTeX wrapper and the full stop do not make another answer.

    A leading point does (`.5`), and so does a superscript: Unicode normalisation would make it a digit.
    """
    for _ in range(2):  # \boxed{\text{Paris}}, but no loop as long as the model likes
        text = _WRAPPED.sub(r"\1", text.strip())
    return " ".join(text.casefold().split()).lstrip("*`\"'").rstrip(". *`\"'")


# --- judges ----------------------------------------------------------------------------------------------------


Same = Callable[["str | None", str], bool]


def judge_xml(text: str, gold: str, same: Same = same_answer) -> Judgement:
    """For answers in `<answer>` behind `<reasoning>`. Lenient reads the last answer block, else the last number."""
    tagged = extract_xml_answer(text)
    extracted = tagged if tagged is not None else _loose(text, gold)
    formatted, right = well_formed(text), same(extracted, gold)
    return Judgement(extracted, strict=formatted and right, lenient=right, formatted=formatted)


def judge_hash(text: str, gold: str, same: Same = same_answer) -> Judgement:
    """For answers behind `####`, which stands once with something behind it on its line, and nothing after that."""
    marked = extract_hash_answer(text)
    extracted = marked if marked is not None else _loose(text, gold)
    formatted, right = FORMATS["hash"](text), same(extracted, gold)
    return Judgement(extracted, strict=formatted and right, lenient=right, formatted=formatted)


def judge_plain(text: str, gold: str, same: Same = same_answer) -> Judgement:
    """For answers that are the whole completion: one line. Lenient reads the last number or the last line."""
    whole, formatted = text.strip(), _is_one_line(text)
    strict = formatted and same(whole, gold)
    extracted = whole if strict else _loose(text, gold)
    return Judgement(extracted, strict=strict, lenient=strict or same(extracted, gold), formatted=formatted)


def _is_one_line(text: str) -> bool:
    return bool(text.strip()) and "\n" not in text.strip()


def _one_mark(text: str) -> bool:
    behind = text.partition("####")[2]
    return "####" not in behind and _is_one_line(behind)


# Whether a completion has exactly the form that an answer format asks for.
FORMATS: dict[str, Callable[[str], bool]] = {"xml": well_formed, "hash": _one_mark, "plain": _is_one_line}


def _loose(text: str, gold: str) -> str | None:
    """Where a person would look without any mark: the last number for a number, else the last line."""
    if parse_number(gold) is not None:
        return last_number(text)
    return text.strip().rpartition("\n")[2] or None


JUDGES: dict[str, Callable[..., Judgement]] = {"xml": judge_xml, "hash": judge_hash, "plain": judge_plain}


def format_of(judge: Callable[[str, str], Judgement]) -> str | None:
    """xml, hash or plain: which of the three formats a task's judge reads; None for a judge of its own."""
    judge = getattr(judge, "func", judge)  # a task may have bound how answers are compared
    return next((name for name, known in JUDGES.items() if known is judge), None)


def write_answer(answer_format: str, reasoning: str, answer: str) -> str:
    """The completion that was asked for, as a chat model ends it: without a newline. plain takes no reasoning."""
    if answer_format == "plain":
        return answer
    if answer_format == "hash":
        return f"{reasoning}\n#### {answer}"
    return f"<reasoning>\n{reasoning}\n</reasoning>\n<answer>\n{answer}\n</answer>"
