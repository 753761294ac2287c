"""The answer formats (xml, hash, boxed, plain): how an answer is marked, taken out of a text, and written.

Everything works on the positions of the marks and takes linear time, because model output is data.
"""

from __future__ import annotations

import re
from collections.abc import Callable

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


def only_answer(text: str, answer_format: str = "xml") -> str | None:
    """The answer of a completion that gives exactly one, in that format (xml, hash, boxed, plain), else None.

    Two answer blocks, two `####` or two boxes are a hedge and not an answer; plain is one line.
    """
    if answer_format == "plain":
        return text.strip() if is_one_line(text) else None
    if answer_format == "boxed":
        return extract_boxed_answer(text) if has_one_box(text) else None
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


def is_one_line(text: str) -> bool:
    return bool(text.strip()) and "\n" not in text.strip()


def has_one_box(text: str) -> bool:
    """One `\\boxed{...}` with something in it, whatever stands around; one that is begun twice or left open is none."""
    return sum(len(brace[0]) > 2 for brace in _BRACE.finditer(text)) == 1 and bool(extract_boxed_answer(text))


def _one_mark(text: str) -> bool:
    behind = text.partition("####")[2]
    return "####" not in behind and is_one_line(behind)


# Whether a completion has exactly the form that an answer format asks for.
FORMATS: dict[str, Callable[[str], bool]] = {
    "xml": well_formed, "hash": _one_mark, "boxed": has_one_box, "plain": is_one_line,
}  # fmt: skip


def write_answer(answer_format: str, reasoning: str, answer: str) -> str:
    """The completion that was asked for, as a chat model ends it: without a newline. plain takes no reasoning."""
    if answer_format == "plain":
        return answer
    if answer_format == "hash":
        return f"{reasoning}\n#### {answer}"
    if answer_format == "boxed":  # a solution from MATH boxes its answer already
        return reasoning if extract_boxed_answer(reasoning) == answer else f"{reasoning}\n\\boxed{{{answer}}}"
    return f"<reasoning>\n{reasoning}\n</reasoning>\n<answer>\n{answer}\n</answer>"
