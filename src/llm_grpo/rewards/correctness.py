"""Is the answer right, and is it an integer: two of the five published rewards, corrected, each for one completion."""

from __future__ import annotations

from llm_grpo.answers import JUDGES, MATCHES, extract_xml_answer, only_answer, parse_number
from llm_grpo.errors import UserError, did_you_mean


def correctness(
    text: str, answer: str | None, *, published: bool = False, answer_format: str = "xml", match: str = "value"
) -> float | None:
    """0 or 2: the one answer in its tags has the gold's value (published: its exact characters, tags or not).

    Without tags, or with several answer blocks, there is no answer to pay. None where the row has no gold.
    answer_format: xml, hash or plain, as the task asks for it. match: value, number, text or exact, as the task says.
    """
    _known(answer_format)
    if match not in MATCHES:
        raise UserError(f"match: there is no '{match}'.{did_you_mean(str(match), MATCHES)}")
    if published:
        return 2.0 if extract_xml_answer(text, published=True) == answer else 0.0
    if answer is None or not answer.strip():
        return None
    return 2.0 if MATCHES[match](only_answer(text, answer_format), answer) else 0.0


def int_reward(
    text: str, answer: str | None = None, *, published: bool = False, answer_format: str = "xml"
) -> float | None:
    """0 or 0.5: the one answer in its tags is an integer, right or wrong (published: only digits, tags or not).

    By value, so that `-5`, `1,234` and `42.0` count and a superscript does not. None where the gold is known and is
    no integer: otherwise a wrong integer would be paid for what the right answer cannot have.
    answer_format: xml, hash or plain, as the task asks for it.
    """
    _known(answer_format)
    if published:
        return 0.5 if (extract_xml_answer(text, published=True) or "").isdigit() else 0.0
    if answer and answer.strip() and not _is_integer(answer):
        return None
    return 0.5 if _is_integer(only_answer(text, answer_format) or "") else 0.0


def _is_integer(text: str) -> bool:
    number = parse_number(text)
    return number is not None and number.denominator == 1


def _known(answer_format: str) -> None:
    if answer_format not in JUDGES:
        raise UserError(f"answer_format: there is no '{answer_format}'.{did_you_mean(str(answer_format), JUDGES)}")
