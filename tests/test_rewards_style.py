"""Conciseness, repetition and clarity: what the published functions compute, and what the corrected ones pay."""

from __future__ import annotations

import json
import re

import pytest
from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_grpo.errors import UserError
from llm_grpo.rewards import REWARDS
from llm_grpo.rewards.correctness import correctness
from llm_grpo.rewards.format import soft_format
from llm_grpo.rewards.style import conciseness, cot_clarity, repetition

GSM8K = ROOT.parent / "shared" / "data" / "gsm8k" / "train.jsonl"
STEPS = "Each box holds 7 pens, so 6 * 7 = 42 pens. Tom takes 12 of them: 42 - 12 = 30."
CONNECTIVES = "first second third then next therefore thus hence"


def completion(reasoning: str, answer: str = "30") -> str:
    return f"<reasoning>\n{reasoning}\n</reasoning>\n<answer>\n{answer}\n</answer>"


def words(count: int) -> str:
    return " ".join(f"w{number}" for number in range(count))


CONCISE = [  # text, corrected, published, why
    (completion(STEPS), 0.0, 0.0, "an ordinary solution"),
    (completion(words(70)), 0.0, -0.2, "70 words are not too many"),
    (completion(words(119), "30"), -0.2, -0.5, "20 above 100, the answer counted"),
    (completion(words(1000)), -0.5, -0.5, "the floor"),
    ("<answer>30</answer>", -0.5, 0.0, "no reasoning is not the shortest one"),
    ("", -0.5, 0.0, "nor is nothing"),
    ("<reasoning> </reasoning><answer>30</answer>", -0.5, 0.0, "an empty block"),
    ("<reasoning>30", -0.5, 0.0, "cut short"),
    (completion("a" * 10_000), -0.5, 0.0, "no blanks, no words"),
    (words(150) + completion("x"), -0.5, 0.0, "words outside the block"),
]


@pytest.mark.parametrize(("text", "score", "published", "why"), CONCISE)
def test_conciseness(text: str, score: float, published: float, why: str) -> None:
    assert conciseness(text) == pytest.approx(score), why
    assert conciseness(text, published=True) == pytest.approx(published), why


REPEATED = [
    (completion(STEPS), 0.0, -0.25, "the names of the tags are said twice, and other words too"),
    (completion("the pens and the boxes and the pens of the boy"), 0.0, -0.25, "function words"),
    (completion(words(40)), 0.0, 0.0, "no word twice but the tags'"),
    (completion("so we add one " * 50), -0.5, -0.5, "a loop"),
    ((completion(STEPS) + "\n") * 10, -0.5, -0.5, "a block, over and over"),
    ("!" * 1000, -0.5, 0.0, "what a collapsed model writes"),
    (completion("ab" * 1000), -0.5, -0.25, "a loop without blanks"),
    (completion("no no no no no"), 0.2 - 1 / 3, -0.5, "one of three runs, above a fifth"),
    ("", 0.0, 0.0, "nothing is not said twice"),
]


@pytest.mark.parametrize(("text", "score", "published", "why"), REPEATED)
def test_repetition(text: str, score: float, published: float, why: str) -> None:
    assert repetition(text) == pytest.approx(score), why
    assert repetition(text, published=True) == published, why


CLEAR = [
    (completion(STEPS), "30", 0.5, 0.0, "two right calculations lead to the answer"),
    (completion("42 - 12 = 30"), "30", 0.5, 0.0, "one is as good"),
    (completion("42-12=30. Check: 30+12=42"), "30", 0.5, 0.0, "a check behind it"),
    (completion(STEPS, "$30.00"), "30", 0.5, 0.0, "by value"),
    (completion("6 * 7 = 41, 42 - 12 = 30"), "30", 0.0, 0.0, "a wrong step"),
    (completion("6 * 7 = 42"), "30", 0.0, 0.0, "right, and leads elsewhere"),
    (completion("It is clear."), "30", 0.0, 0.0, "no calculation"),
    (completion(CONNECTIVES), "30", 0.0, 0.5, "naming connectives"),
    (completion("strengthen firsthand"), "30", 0.0, 0.2, "connectives inside of words"),
    (completion("1 + 1 = 2", "2"), "30", 0.0, 0.0, "a sum for a wrong answer"),
    (completion("1 + 1 = 2\n" * 50 + "6 * 7 = 41", "30"), "30", 0.0, 0.0, "trifles do not make up for a wrong step"),
    (completion("15 + 15 = 30\n" * 300), "30", 0.0, 0.0, "too many to be reasoning"),
    (STEPS + "<answer>30</answer>", "30", 0.0, 0.0, "outside the block"),
    (completion(STEPS) + completion(STEPS), "30", 0.0, 0.0, "two blocks are a hedge"),
    (completion(STEPS), "Paris", None, 0.0, "no number: cannot be judged"),
    (completion(STEPS), None, 0.5, 0.0, "without a gold the calculations alone"),
    ("", "30", 0.0, 0.0, "nothing"),
]


@pytest.mark.parametrize(("text", "gold", "score", "published", "why"), CLEAR)
def test_cot_clarity(text: str, gold: str | None, score: float | None, published: float, why: str) -> None:
    assert cot_clarity(text, gold) == score, why
    assert cot_clarity(text, gold, published=True) == pytest.approx(published), why


def test_answers_behind_hashes() -> None:
    assert cot_clarity(f"{STEPS}\n#### 30", "30", answer_format="hash") == 0.5
    assert conciseness(f"{STEPS}\n#### 30", answer_format="hash") == 0.0
    assert cot_clarity(f"{STEPS}\n\\boxed{{30}}", "30", answer_format="boxed") == 0.5
    assert conciseness("\\boxed{30}", answer_format="boxed") == -0.5
    assert conciseness("#### 30", answer_format="hash") == -0.5
    for reward in (conciseness, cot_clarity):
        with pytest.raises(UserError, match="there is no 'plain'"):
            reward("30", answer_format="plain")


def test_how_many_words_are_free_can_be_said() -> None:
    assert conciseness(completion(words(70)), free_words=61) == pytest.approx(-0.1)


@pytest.mark.skipif(not GSM8K.is_file(), reason="no copy of GSM8K beside the repository")
def test_what_people_write_is_hardly_punished() -> None:
    """The limits come from the train split: 100 words, and a fifth of repeated runs, let nearly every solution be."""
    rows = [json.loads(line) for line in GSM8K.read_text(encoding="utf-8").splitlines()[:2000]]
    halves = [re.sub(r"<<.*?>>", "", row["answer"]).split("####") for row in rows]
    texts = [(completion(steps.strip(), gold.strip()), gold.strip()) for steps, gold in halves]
    assert sum(conciseness(text) == 0 for text, _ in texts) > 0.93 * len(texts)
    assert sum(repetition(text) == 0 for text, _ in texts) > 0.98 * len(texts)
    assert sum(cot_clarity(text, gold) == 0.5 for text, gold in texts) > 0.85 * len(texts)


FUZZY = [
    ("18", "18", 2.0, "equal"),
    ("180", "18", 1.8, "180 is paid where 18 is right: the published fault"),
    ("10000", "10001", 1.8, "so is a neighbour"),
    ("-10", "10", 1.8, "and the other sign"),
    ("PARIS", "paris", 2.0, "case does not count"),
    ("19", "18", 0.0, "half alike"),
    ("", "18", 0.0, "empty"),
    ("18" * 50_000, "18", 0.0, "long"),
]


@pytest.mark.parametrize(("answer", "gold", "score", "why"), FUZZY)
def test_the_published_fuzzy_correctness(answer: str, gold: str, score: float, why: str) -> None:
    text = f"<answer>{answer}</answer>"
    assert correctness(text, gold, published=True, fuzzy=True) == pytest.approx(score), why
    assert correctness(text, gold) == (2.0 if answer in (gold, "PARIS") else 0.0), "by default only what is equal"
    with pytest.raises(UserError, match="fuzzy"):
        correctness(text, gold, fuzzy=True)


PIECES = st.sampled_from(["<reasoning>", "</reasoning>", "<answer>", "</answer>", "\n", " ", "x"])


@settings(max_examples=1000, deadline=None)
@given(st.lists(PIECES, max_size=12).map("".join))
def test_the_published_soft_pattern_anywhere(text: str) -> None:
    pattern = r"<reasoning>.*?</reasoning>\s*<answer>.*?</answer>"
    found = re.search(pattern, text, re.DOTALL) is not None
    assert (soft_format(text, published=True, anywhere=True) > 0) == found, repr(text)


def test_the_seven_published_ones_sum_to_four() -> None:
    """2 + 0.5 + 0.5 + 0.5 + 0 + 0 + 0.5, for a text that has it all."""
    seven = {"correctness": {"fuzzy": True}, "soft_format": {"anywhere": True}, "strict_format": {}, "int": {},
             "conciseness": {}, "repetition": {}, "cot_clarity": {}}  # fmt: skip
    given = {"completions": [completion(CONNECTIVES, "18") + "\n"], "answer": ["18"], "published": True}
    scores = [REWARDS[f"{name}_reward_func"](**given, **args)[0] for name, args in seven.items()]
    assert scores == [2.0, 0.5, 0.5, 0.5, 0.0, 0.0, 0.5]
