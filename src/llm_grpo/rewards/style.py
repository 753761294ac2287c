"""How the reasoning is written: brief, without repeating itself, by calculations that hold.

Three of the seven rewards of system S3 (docs/distilgpt2.md). What the published functions measure is easier to have
than what they mean: a list of connectives is clear, and nearly every text is repetitive. `published=True` is that.
"""

from __future__ import annotations

import re
from itertools import islice

from llm_grpo.answers.equality import same_answer
from llm_grpo.answers.formats import FORMATS, TAGS, only_answer
from llm_grpo.answers.numerals import parse_number
from llm_grpo.errors import check_choice
from llm_grpo.rewards.calculations import calculations

# Long runs of characters count as several words, so that leaving out the blanks hides nothing.
_PIECE = re.compile(r"\w{1,20}|[^\w\s]{1,20}")
_TAG = re.compile("|".join(map(re.escape, TAGS)))
_CONNECTIVES = ("first", "second", "third", "then", "next", "therefore", "thus", "hence")
_SPAN = 4  # words in a row: single ones come back in any text, four seldom do
_FREE_SHARE = 0.2  # of those spans; hardly a solution of GSM8K repeats more (tests/test_rewards_style.py)
_MOST_CALCULATIONS = 200  # more is no reasoning, and would take its time
_FLOOR = -0.5


def conciseness(text: str, *, published: bool = False, answer_format: str = "xml", free_words: int = 100) -> float:
    """-0.5 to 0: minus 0.01 for each word above free_words, tags apart (published: above 50 in the reasoning).

    Without any reasoning it is -0.5: leaving it out must not be the shortest way. All words count, so that none are
    spared by writing them outside the block. answer_format: xml, hash or boxed, as the task asks for it.
    """
    if published:
        words, free = len(_published_reasoning(text).split()), 50
    elif not _reasoning(text, answer_format):
        return _FLOOR
    else:
        words, free = sum(1 + len(word) // 20 for word in _TAG.sub(" ", text).split()), free_words
    return max(_FLOOR, min(0.0, 0.01 * (free - words)))


def repetition(text: str, *, published: bool = False) -> float:
    """-0.5 to 0: minus the share of four words in a row that were written before, above a fifth (published: of words).

    Single words may come back: the names of the tags, function words, the numbers of the problem. published: in steps,
    -0.25 from a fifth and -0.5 from a half of the words on, which takes most ordinary texts.
    """
    if published:
        repeated = _repeated(re.findall(r"\w+", text.lower()), 1)
        return 0.0 if repeated < 0.2 else -0.25 if repeated < 0.5 else _FLOOR
    repeated = _repeated([piece.casefold() for piece in _PIECE.findall(_TAG.sub(" ", text))], _SPAN)
    return max(_FLOOR, min(0.0, _FREE_SHARE - repeated))


def cot_clarity(
    text: str, answer: str | None = None, *, published: bool = False, answer_format: str = "xml"
) -> float | None:
    """0 or 0.5: calculations lead to the right answer, and each is right (published: connectives, 0.1 for each of 8).

    At least one calculation of the reasoning comes to the answer that is given, none in it is wrong, and that answer is
    the gold's. A wrong answer is not paid for its style: any sum can be written down for any number. How many steps
    there are pays nothing, so that none are padded. Without a gold only the calculations are looked at; None where the
    gold is no number. answer_format: xml, hash or boxed, as the task asks for it.
    """
    if published:
        reasoning = _published_reasoning(text).lower()
        return min(0.5, 0.1 * sum(word in reasoning for word in _CONNECTIVES))
    has_gold = answer is not None and bool(answer.strip())
    if has_gold and parse_number(answer) is None:
        return None
    given = only_answer(text, answer_format)
    if has_gold and not same_answer(given, answer):
        return 0.0
    return 0.5 if _follows(parse_number(given or ""), _reasoning(text, answer_format)) else 0.0


def _follows(value: object, reasoning: str) -> bool:
    """Whether a calculation of the reasoning comes to that value, and all of its calculations are right."""
    if value is None or not reasoning:
        return False
    found = list(islice(calculations(reasoning), _MOST_CALCULATIONS + 1))
    comes_to_it = any(calculation.result == value for calculation in found)
    return comes_to_it and len(found) <= _MOST_CALCULATIONS and all(calculation.right for calculation in found)


def _repeated(words: list[str], span: int) -> float:
    """The share of runs of `span` words that stood before; 0 where there is none."""
    runs = list(zip(*(words[start:] for start in range(span)), strict=False))
    return 1 - len(set(runs)) / len(runs) if runs else 0.0


def _reasoning(text: str, answer_format: str) -> str:
    check_choice("answer_format", answer_format, [name for name, asked in FORMATS.items() if asked.reasoning])
    return FORMATS[answer_format].reasoning(text).strip()


def _published_reasoning(text: str) -> str:
    """What stands between the first `<reasoning>` and the first `</reasoning>` behind it; empty where there is none."""
    inside, closed, _ = text.partition(TAGS[0])[2].partition(TAGS[1])
    return inside if closed else ""
