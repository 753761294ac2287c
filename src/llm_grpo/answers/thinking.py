"""What a reasoning model thinks before it answers: `<think> ... </think>`, and where its answer begins.

`prompt.thinking` says what a thought is: part of the answer (`answer`), or `apart` from it. Judges, rewards, the pages
and the record all ask here; the record keeps the thought either way.
"""

from __future__ import annotations

OPEN, CLOSE = "<think>", "</think>"


def thought_of(text: str, thinking: str = "apart") -> str:
    """The beginning of a completion that is thought, up to and with the last `</think>` and the blanks behind it.

    All of the text where a block stays open: there is no answer then. Nothing where there is no block, or where
    thinking is `answer`.
    """
    if thinking == "answer":
        return ""
    end = text.rfind(CLOSE)
    answer = text if end < 0 else text[end + len(CLOSE) :].lstrip()
    return text if OPEN in answer else text[: len(text) - len(answer)]


def words_of(thought: str) -> str:
    """A thought without its marks, to be shown."""
    return thought.strip().removeprefix(OPEN).removesuffix(CLOSE).strip()
