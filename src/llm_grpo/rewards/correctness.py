"""Is the answer right, and is it an integer: two of the five published rewards, corrected, each for one completion."""

from __future__ import annotations

from llm_grpo.answers.equality import MATCHES
from llm_grpo.answers.formats import FORMATS, extract_xml_answer, only_answer
from llm_grpo.answers.numerals import parse_number
from llm_grpo.errors import UserError, check_choice


def correctness(
    text: str,
    answer: str | None,
    *,
    published: bool = False,
    fuzzy: bool = False,
    answer_format: str = "xml",
    match: str = "value",
) -> float | None:
    """0 or 2: the one answer in its tags has the gold's value (published: its exact characters, tags or not).

    Without tags, or with several answer blocks, there is no answer to pay. None where the row has no gold.
    answer_format (xml, hash, boxed, plain), match (value, number, calculation, text, exact): as the task asks for them.
    fuzzy belongs to one published function (S3): 1 point and a hundredth of the likeness in percent where that is 80 or
    more, so that 180 earns 1.8 where 18 is right.
    """
    check_choice("answer_format", answer_format, FORMATS)
    check_choice("match", match, MATCHES)
    if fuzzy and not published:
        raise UserError("fuzzy: true is a property of a published function; set published: true as well.")
    if published:
        given = extract_xml_answer(text, published=True) or ""
        return 2.0 if given == answer else _fuzzy(given.lower(), (answer or "").lower()) if fuzzy else 0.0
    if answer is None or not answer.strip():
        return None
    return 2.0 if MATCHES[match](only_answer(text, answer_format), answer) else 0.0


def int_reward(
    text: str, answer: str | None = None, *, published: bool = False, answer_format: str = "xml"
) -> float | None:
    """0 or 0.5: the one answer in its tags is an integer, right or wrong (published: only digits, tags or not).

    By value, so that `-5`, `1,234` and `42.0` count and a superscript does not. None where the gold is known and is
    no integer: otherwise a wrong integer would be paid for what the right answer cannot have.
    answer_format: xml, hash, boxed or plain, as the task asks for it.
    """
    check_choice("answer_format", answer_format, FORMATS)
    if published:
        return 0.5 if (extract_xml_answer(text, published=True) or "").isdigit() else 0.0
    if answer and answer.strip() and not _is_integer(answer):
        return None
    return 0.5 if _is_integer(only_answer(text, answer_format) or "") else 0.0


def _fuzzy(given: str, gold: str) -> float:
    """1 to 2 by the likeness in percent, where that is 80 or more."""
    if 2 * min(len(given), len(gold)) < 0.8 * (len(given) + len(gold)):  # it cannot be; keeps a long text cheap
        return 0.0
    from rapidfuzz.fuzz import ratio

    likeness = ratio(given, gold) if given else 0.0  # it calls two empty texts alike
    return 1 + likeness / 100 if likeness >= 80 else 0.0


def _is_integer(text: str) -> bool:
    number = parse_number(text)
    return number is not None and number.denominator == 1
