"""The answer formats (xml, hash, boxed, plain): how an answer is marked, taken out of a text, and written.

Everything works on the positions of the marks and takes linear time, because model output is data.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

TAGS = ("<reasoning>", "</reasoning>", "<answer>", "</answer>")
_BRACE = re.compile(r"\\(?:boxed|fbox)\s?\{|\\[{}]|[{}]")


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


def extract_boxed_answer(text: str) -> str | None:
    """What stands in the `\\boxed{...}` that is closed last, stripped; None where there is none. In one pass."""
    found, opened = None, []
    for brace in _BRACE.finditer(text):
        if brace[0] == "{" or len(brace[0]) > 2:
            opened.append(brace)
        elif brace[0] == "}" and opened:
            start = opened.pop()
            if len(start[0]) > 1:
                found = text[start.end() : brace.start()]
    return None if found is None else found.strip()


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


def is_one_line(text: str) -> bool:
    return bool(text.strip()) and "\n" not in text.strip()


def has_one_box(text: str) -> bool:
    """One `\\boxed{...}` with something in it, whatever stands around; one that is begun twice or left open is none."""
    return sum(len(brace[0]) > 2 for brace in _BRACE.finditer(text)) == 1 and bool(extract_boxed_answer(text))


def _reasoning_block(text: str) -> str:
    opened, closed = text.find(TAGS[0]), text.find(TAGS[1])
    once = text.count(TAGS[0]) == text.count(TAGS[1]) == 1
    return text[opened + len(TAGS[0]) : closed] if once and opened < closed else ""


@dataclass(frozen=True)
class AnswerFormat:
    """One way to mark an answer, and all that is asked of it.

    formed: whether a completion has exactly that form. answer: the last one that is marked, None where there is none.
    once: whether there is one mark alone; two answers are a hedge. reasoning: what stands before the answer, blank for
    nothing; None: there never is one. written: the completion that was asked for.
    """

    formed: Callable[[str], bool]
    answer: Callable[[str], str | None]
    once: Callable[[str], bool]
    reasoning: Callable[[str], str] | None
    written: str


FORMATS = {
    "xml": AnswerFormat(
        well_formed,
        extract_xml_answer,
        lambda text: text.count(TAGS[2]) == text.count(TAGS[3]) == 1,
        _reasoning_block,
        "<reasoning>\n{reasoning}\n</reasoning>\n<answer>\n{answer}\n</answer>",
    ),
    "hash": AnswerFormat(
        lambda text: text.count("####") == 1 and is_one_line(text.partition("####")[2]),
        extract_hash_answer,
        lambda text: text.count("####") == 1,
        lambda text: text.partition("####")[0] if "####" in text else "",
        "{reasoning}\n#### {answer}",
    ),
    "boxed": AnswerFormat(
        has_one_box,
        lambda text: extract_boxed_answer(text) or None,
        has_one_box,
        lambda text: text.rpartition("\\boxed")[0],
        "{reasoning}\n\\boxed{{{answer}}}",
    ),
    "plain": AnswerFormat(is_one_line, lambda text: text.strip() or None, is_one_line, None, "{answer}"),
}


def only_answer(text: str, answer_format: str = "xml") -> str | None:
    """The answer of a completion that gives exactly one, in that format, else None."""
    asked = FORMATS[answer_format]
    return asked.answer(text) if asked.once(text) else None


def write_answer(answer_format: str, reasoning: str, answer: str) -> str:
    """The completion that was asked for, as a chat model ends it: without a newline. plain takes no reasoning."""
    if answer_format == "boxed" and extract_boxed_answer(reasoning) == answer:
        return reasoning  # a solution from MATH boxes its answer already
    return FORMATS[answer_format].written.format(reasoning=reasoning, answer=answer)
