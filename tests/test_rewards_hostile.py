"""No text is too bad: every reward, judge and reader takes linear time on hostile families, and values stay in range."""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_grpo.answers.equality import same_answer
from llm_grpo.answers.formats import extract_boxed_answer, extract_hash_answer, extract_xml_answer, only_answer
from llm_grpo.answers.judging import JUDGES
from llm_grpo.answers.numerals import last_said, parse_number
from llm_grpo.rewards import REWARDS
from llm_grpo.rewards.calculations import calculations

FAMILIES: dict[str, str] = {  # a unit to repeat, and in braces what stands before and behind
    "open answers": "<answer>",
    "open reasonings": "<reasoning>",
    "closed answers": "</answer>",
    "turns without an end": "</reasoning>\n<answer>\n",
    "turns on one line": "</reasoning><answer>",
    "whole blocks": "<reasoning>\nx\n</reasoning>\n<answer>\n42\n</answer>\n",
    "tags with spaces between": "</reasoning>          <answer>",
    "digits": "7",
    "groups": "1,234,567",
    "slashes": "1/",
    "signs": "-",
    "points": "1.",
    "currency": "$",
    "letters without a space": "a",
    "line breaks": "\n",
    "spaces": " ",
    "hashes": "#",
    "boxes": r"\boxed{",
    "roots": r"\sqrt{",
    "towers": "9^{",
    "superscripts": "\u00b2",
    "half tags": "<answer",
    "open actions": "<respond>",
    "actions": "<respond> Need </respond>",
    "labels": "Need, ",
    "half closing actions": "< / respond ",
    "numbers and words": "42 or ",
    "bounds": "at.",
    "sums": "1+1=2 ",
    "sums without an end": "1+",
    "brackets": "((1",
    "accents": "e\u0301",
    "combining marks": "\u0301\u0323",
    "fraction signs": "\u00bd",
    "powers of ten": "10^3",
    "quarters of braces": "{}}{",
}
FRAMES = ("{}", "<reasoning>\n{}", "<reasoning>\nx\n</reasoning>\n<answer>\n{}\n</answer>\n")

READERS: dict[str, Callable[[str], Any]] = {
    "extract_xml_answer": extract_xml_answer,
    "extract_xml_answer, published": partial(extract_xml_answer, published=True),
    "extract_hash_answer": extract_hash_answer,
    "extract_boxed_answer": extract_boxed_answer,
    "only_answer, boxed": partial(only_answer, answer_format="boxed"),
    "only_answer": only_answer,
    "parse_number": parse_number,
    "last_said": last_said,
    "calculations": lambda text: list(calculations(text)),
    "same_answer, text": lambda text: same_answer(text, text + "x"),
    "same_answer, LaTeX": lambda text: same_answer(text, r"\frac{1}{2}"),
    **{f"judge_{name}": partial(judge, gold="42") for name, judge in JUDGES.items()},
}


def _settings(name: str) -> list[dict[str, bool]]:
    known = inspect.signature(REWARDS[name]).parameters
    flags = {"dotall": False, "anywhere": True, "fuzzy": True, "graded": True}
    return [{}, {"published": True}, *({"published": True, name: flags[name]} for name in flags if name in known)]


def _seconds(function: Callable[[str], Any], text: str) -> float:
    """Of the processor, not of the clock."""
    start = time.thread_time()
    function(text)
    return time.thread_time() - start


def _assert_linear(function: Callable[[str], Any], unit: str, frame: str) -> None:
    """Noise goes in one direction only: one good time of the long text says enough, the short one is the best of four."""
    short, long = (frame.replace("{}", unit * (size // len(unit))) for size in (10_000, 100_000))
    for _ in range(12):
        seconds = _seconds(function, long)
        if seconds < 0.01 or seconds <= 20 * min(_seconds(function, short) for _ in range(4)):
            return
    raise AssertionError(f"{seconds:.4f} s for 100,000 characters, more than 20 times the time for 10,000")


@pytest.mark.parametrize("frame", FRAMES)
@pytest.mark.parametrize("family", FAMILIES)
def test_rewards_take_linear_time(family: str, frame: str) -> None:
    for name, reward in REWARDS.items():
        for args in _settings(name):
            call = partial(_score, reward, args)
            _assert_linear(call, FAMILIES[family], frame)


def _score(reward: Any, args: dict[str, bool], text: str) -> list[float | None]:
    return reward(completions=[text, text], answer=["42", "Need"], **args)  # each reward can judge one of the two


@pytest.mark.parametrize("family", FAMILIES)
def test_readers_take_linear_time(family: str) -> None:
    for reader in READERS.values():
        _assert_linear(reader, FAMILIES[family], "{}")
        _assert_linear(reader, FAMILIES[family], "<answer>{}</answer>")


def test_the_measurement_sees_a_quadratic_function() -> None:
    """Otherwise the tests above could not fail."""
    with pytest.raises(AssertionError, match="more than 20 times"):
        _assert_linear(lambda text: [text.count("x") for _ in text[::20]], "a", "{}")


TEXTS = st.one_of(
    st.text(max_size=60),
    st.text(alphabet=st.characters(categories=("Cs", "Nd", "No", "Nl", "Sc", "Cf")), max_size=20),  # surrogates too
    st.lists(
        st.sampled_from(
            [*FAMILIES.values(), "<reasoning>", "<answer>", "42", "-5", "%", "½", "\\frac{1}{2}", "{", "}"]
        ),
        max_size=14,
    ).map("".join),
)


@settings(max_examples=400, deadline=None)
@given(TEXTS, TEXTS | st.none())
def test_every_text_and_gold_gets_a_value_in_the_stated_range(text: str, gold: str | None) -> None:
    for name, reward in REWARDS.items():
        said, _, _ = inspect.getdoc(reward).partition(": ")  # "0 or 2", "0 to 0.5"
        low, _, high = said.split()
        for args in _settings(name):
            score = reward(completions=[text], answer=[gold], **args)[0]
            assert score is None or score <= float(high), (name, args)
            assert score is None or score >= float(low) or name == "xmlcount_reward_func" and args, (name, args)
