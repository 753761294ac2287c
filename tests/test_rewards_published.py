"""The published semantics, point by point (published=True), and what the corrected default says of the same texts.

The numbers are those of the published functions, bugs and all: an old curve must be comparable with a new one.
"""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_grpo.rewards import REWARDS
from llm_grpo.rewards.format import soft_format, strict_format, xmlcount

TWO_LINES = "6 boxes\n7 x 6: 42"  # 17 characters, so that the penalties come out as in the published example


def completion(answer: str, reasoning: str = TWO_LINES, end: str = "\n") -> str:
    return f"<reasoning>\n{reasoning}\n</reasoning>\n<answer>\n{answer}\n</answer>{end}"


TWO_BLOCKS = completion("7") + "<answer>\n42\n</answer>\n"
CUT_SHORT = f"<reasoning>\n{TWO_LINES}\n</reasoning>\n<answer>\n42"
INLINE = "<reasoning>x</reasoning><answer>42</answer>"

# text, gold, published: correctness, int, (soft without, with DOTALL), (strict without, with), xmlcount
PUBLISHED = [
    ("ideal, two lines", completion("42"), "42", 2, 0.5, (0, 0.5), (0, 0.5), 0.5),
    ("ends at </answer>", completion("42", end=""), "42", 2, 0.5, (0, 0.5), (0, 0), 0.437),
    ("ideal, one line", completion("42", "one line"), "42", 2, 0.5, (0, 0.5), (0.5, 0.5), 0.5),
    ("inline", INLINE, "42", 2, 0.5, (0.5, 0.5), (0, 0), 0),
    ("600 characters, ends at </answer>", completion("42", "x" * 600, ""), "42", 2, 0.5, (0, 0.5), (0, 0), -0.146),
    ("bare number", "42", "42", 2, 0.5, (0, 0), (0, 0), 0),
    ("answer block only", "<answer>\n42\n</answer>\n", "42", 2, 0.5, (0, 0), (0, 0), 0.125),
    ("missing </answer>", CUT_SHORT, "42", 2, 0.5, (0, 0), (0, 0), 0.321),
    ("two answer blocks, last right", TWO_BLOCKS, "42", 2, 0.5, (0, 0.5), (0, 0.5), 0.25),
    ("wrong answer", completion("7"), "42", 0, 0.5, (0, 0.5), (0, 0.5), 0.5),
    ("empty answer block", completion(""), "42", 0, 0, (0, 0.5), (0, 0.5), 0.5),
    ("currency", completion("$42"), "42", 0, 0, (0, 0.5), (0, 0.5), 0.5),
    ("full stop", completion("42."), "42", 0, 0, (0, 0.5), (0, 0.5), 0.5),
    ("decimal", completion("42.0"), "42", 0, 0, (0, 0.5), (0, 0.5), 0.5),
    ("percent", completion("42%"), "42", 0, 0, (0, 0.5), (0, 0.5), 0.5),
    ("unit", completion("42 apples"), "42", 0, 0, (0, 0.5), (0, 0.5), 0.5),
    ("thousands in the gold", completion("1234"), "1,234", 0, 0.5, (0, 0.5), (0, 0.5), 0.5),
    ("negative", completion("-5"), "-5", 2, 0, (0, 0.5), (0, 0.5), 0.5),
    ("superscript", completion("\u00b2"), "2", 0, 0.5, (0, 0.5), (0, 0.5), 0.5),
]

# corrected: correctness, int, soft, strict, xmlcount, and why it differs
CORRECTED = {
    "ideal, two lines": (2, 0.5, 0.5, 0.5, 0.5, "the maximum"),
    "ends at </answer>": (
        2,
        0.5,
        0.5,
        0.5,
        0.5,
        "chat models end here: no newline is asked for, no text counted twice",
    ),
    "ideal, one line": (2, 0.5, 0.5, 0.5, 0.5, "one line or many"),
    "inline": (2, 0.5, 0.5, 0.5, 0.5, "no line breaks are needed"),
    "600 characters, ends at </answer>": (2, 0.5, 0.5, 0.5, 0.5, "reasoning costs nothing"),
    "bare number": (0, 0, 0, 0, 0, "without tags there is no answer"),
    "answer block only": (2, 0.5, 0, 0, 0, "right, but an omitted block pays nothing"),
    "missing </answer>": (0, 0, 0, 0, 0.375, "cut short: three of four tags, and no answer"),
    "two answer blocks, last right": (0, 0, 0, 0, 0, "a hedge"),
    "wrong answer": (0, 0.5, 0.5, 0.5, 0.5, "well formed and wrong"),
    "empty answer block": (0, 0, 0, 0, 0, "an empty block is no block"),
    "currency": (2, 0.5, 0.5, 0.5, 0.5, "by value"),
    "full stop": (2, 0.5, 0.5, 0.5, 0.5, "by value"),
    "decimal": (2, 0.5, 0.5, 0.5, 0.5, "by value"),
    "percent": (2, 0.5, 0.5, 0.5, 0.5, "by value, percent as a unit"),
    "unit": (2, 0.5, 0.5, 0.5, 0.5, "by value"),
    "thousands in the gold": (2, 0.5, 0.5, 0.5, 0.5, "by value"),
    "negative": (2, 0.5, 0.5, 0.5, 0.5, "-5 is an integer"),
    "superscript": (0, 0, 0.5, 0.5, 0.5, "it is neither 2 nor an integer"),
}


def reward(name: str, text: str, gold: str, **args: bool) -> float | None:
    conversation = [[{"role": "assistant", "content": text}]]
    return REWARDS[f"{name}_reward_func"](prompts=["?"], completions=conversation, answer=[gold], **args)[0]


@pytest.mark.parametrize(("name", "text", "gold", "correct", "integer", "soft", "strict", "count"), PUBLISHED)
def test_published(name, text, gold, correct, integer, soft, strict, count) -> None:
    assert reward("correctness", text, gold, published=True) == correct
    assert reward("int", text, gold, published=True) == integer
    for dotall in (False, True):
        assert reward("soft_format", text, gold, published=True, dotall=dotall) == soft[dotall]
        assert reward("strict_format", text, gold, published=True, dotall=dotall) == strict[dotall]
    assert reward("xmlcount", text, gold, published=True) == pytest.approx(count, abs=1e-12)


@pytest.mark.parametrize(("name", "text", "gold"), [row[:3] for row in PUBLISHED])
def test_corrected(name: str, text: str, gold: str) -> None:
    *expected, why = CORRECTED[name]
    names = ("correctness", "int", "soft_format", "strict_format", "xmlcount")
    assert [reward(each, text, gold) for each in names] == expected, why


def test_published_maxima() -> None:
    """4.0 with DOTALL, 3.5 without (soft and strict then exclude each other)."""
    for dotall, maximum in ((True, 4.0), (False, 3.5)):
        best = 0.0
        for _, text, gold, correct, integer, soft, strict, count in PUBLISHED:
            assert reward("correctness", text, gold, published=True) == correct
            best = max(best, correct + integer + soft[dotall] + strict[dotall] + count)
        assert best == maximum


PIECES = st.sampled_from(
    ["<reasoning>", "</reasoning>", "<answer>", "</answer>", "\n", " ", "x", "\n\n", "\r", "\u2028", "<reasoning>\n"]
    + ["\n</reasoning>\n<answer>\n", "</reasoning><answer>", "\n</answer>\n", "</reasoning>\n <answer>", "42"]
)
SOUP = st.lists(PIECES, max_size=12).map("".join)
FILL = st.lists(PIECES, max_size=2).map("".join)
NEARLY = st.tuples(  # the published layout with something put in between: random soup seldom hits the pattern
    st.sampled_from(["<reasoning>\n", "<reasoning>", " <reasoning>\n"]),
    FILL,
    st.sampled_from(["\n</reasoning>\n<answer>\n", "</reasoning><answer>", "</reasoning>\n\n<answer>"]),
    FILL,
    st.sampled_from(["\n</answer>\n", "</answer>", "\n</answer>", "\n</answer>\n\n", "\n</answer>\n "]),
    FILL,
).map("".join)
STRICT = r"^<reasoning>\n.*?\n</reasoning>\n<answer>\n.*?\n</answer>\n$"
SOFT = r"<reasoning>.*?</reasoning>\s*<answer>.*?</answer>"


CORNERS = [
    ("<reasoning>\n\n</reasoning>\n<answer>\n</answer>\n", "one newline cannot end the opening and begin the end"),
    ("<reasoning>\n</reasoning>\n<answer>\n\n</answer>\n", "nor in the reasoning"),
    (
        "<reasoning></reasoning><answer></reasoning>\n<answer>x</answer>",
        "without DOTALL the second turn of a line matters",
    ),
    ("<reasoning></reasoning><answer>\n</reasoning><answer>x</answer>", "a turn behind the first line does not"),
    ("<reasoning></reasoning><answer>x</answer></reasoning><answer>", "nor does a turn behind the end"),
    ("<reasoning></reasoning>\n<answer>x\n</answer>", "nor an end behind the answer's line"),
]


@pytest.mark.parametrize(("text", "why"), CORNERS)
@pytest.mark.parametrize("dotall", [True, False])
def test_corners_of_the_published_patterns(text: str, why: str, dotall: bool) -> None:
    flags = re.DOTALL if dotall else 0
    assert (strict_format(text, published=True, dotall=dotall) > 0) == bool(re.match(STRICT, text, flags)), why
    assert (soft_format(text, published=True, dotall=dotall) > 0) == bool(re.match(SOFT, text, flags)), why


XMLCOUNT = [
    ("<reasoning>x</reasoning><answer>42</answer>", 0.5, "complete"),
    ("<reasoning>x</reasoning><answer>42", 0.375, "cut short"),
    ("<reasoning>x<answer>42</answer>", 0.375, "a tag forgotten"),
    ("<reasoning>x<answer>42</answer></reasoning>", 0.0, "nested"),
    ("<answer>42</answer><reasoning>x</reasoning>", 0.0, "the other way round"),
    ("<reasoning>x</reasoning>", 0.0, "an omitted answer pays nothing"),
    ("<answer>42</answer>", 0.0, "nor does an omitted reasoning"),
    ("<reasoning>x</reasoning><answer></answer>", 0.0, "nor an empty block"),
    ("<reasoning>x</reasoning><answer>42</answer>0123456789", 0.49, "0.001 for each character behind"),
    ("0123456789<reasoning>x</reasoning>0123456789<answer>42</answer>\n", 0.48, "and before and between"),
    ("<reasoning>x</reasoning><answer>42</answer>" + "x" * 10_000, 0.0, "never below zero"),
    (f"<reasoning>x</reasoning><answer>{'4' * 10_000}</answer>", 0.5, "the answer itself costs nothing"),
]


@pytest.mark.parametrize(("text", "score", "why"), XMLCOUNT)
def test_xmlcount_corrected(text: str, score: float, why: str) -> None:
    assert xmlcount(text) == pytest.approx(score, abs=1e-12), why


@settings(max_examples=1500, deadline=None)
@given(SOUP | NEARLY, st.booleans())
def test_positions_say_what_the_published_patterns_say(text: str, dotall: bool) -> None:
    flags = re.DOTALL if dotall else 0
    assert (strict_format(text, published=True, dotall=dotall) > 0) == bool(re.match(STRICT, text, flags)), repr(text)
    assert (soft_format(text, published=True, dotall=dotall) > 0) == bool(re.match(SOFT, text, flags)), repr(text)


@settings(max_examples=1000, deadline=None)
@given(SOUP | NEARLY)
def test_corrected_formats_agree_with_each_other(text: str) -> None:
    """What strict pays, soft and xmlcount pay in full; what soft refuses never earns xmlcount's maximum."""
    strict, soft, count = strict_format(text), soft_format(text), xmlcount(text)
    assert strict <= soft
    assert 0.0 <= count <= 0.5
    if strict:
        assert count == 0.5
    if not soft:
        assert count < 0.5
