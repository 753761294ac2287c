"""Correctness and int, corrected: what is paid, what is not, and what cannot be judged."""

from __future__ import annotations

import pytest

from llm_grpo.errors import UserError
from llm_grpo.rewards.correctness import correctness, int_reward


def tagged(answer: str) -> str:
    return f"<reasoning>x</reasoning><answer>{answer}</answer>"


CORRECT = [
    (tagged("$1,234.00"), "1234", 2.0, "by value"),
    (tagged("-5"), "-5", 2.0, "negative"),
    (tagged("5"), "-5", 0.0, "the sign counts"),
    (tagged("180"), "18", 0.0, "similar is not equal"),
    (tagged("Paris"), "paris", 2.0, "text golds"),
    (tagged("41 or 42"), "42", 0.0, "a hedge"),
    (tagged(", ".join(map(str, range(100)))), "42", 0.0, "every number is no answer"),
    (tagged("42") + tagged("42"), "42", 0.0, "two answer blocks, even equal ones"),
    ("42", "42", 0.0, "without tags"),
    ("<answer>42", "42", 0.0, "never closed"),
    ("<answer></answer>42", "42", 0.0, "outside the tags"),
    ("", "42", 0.0, "empty"),
    (tagged(""), "", None, "no gold: cannot be judged"),
    (tagged("42"), "  ", None, "a blank gold: cannot be judged"),
    (tagged("42"), None, None, "no gold at all"),
]


@pytest.mark.parametrize(("text", "gold", "score", "why"), CORRECT)
def test_correctness(text: str, gold: str | None, score: float | None, why: str) -> None:
    assert correctness(text, gold) == score, why


INTEGERS = [
    (tagged("42"), "7", 0.5, "right or wrong"),
    (tagged("-5"), None, 0.5, "negative; without a gold as well"),
    (tagged("1,234"), "7", 0.5, "thousands"),
    (tagged("42.0"), "7", 0.5, "an integer by value"),
    (tagged("42.5"), "7", 0.0, "no integer"),
    (tagged("1/2"), "7", 0.0, "no integer"),
    (tagged("\u00b2"), "7", 0.0, "a superscript"),
    (tagged("\u0663"), "7", 0.0, "another script's digit"),
    (tagged("1 2 3"), "7", 0.0, "several"),
    (tagged(""), "7", 0.0, "nothing"),
    ("42", "7", 0.0, "without tags"),
    (tagged("1") + tagged("2"), "7", 0.0, "two blocks"),
    (tagged("42"), "0.5", None, "the right answer is no integer: nobody is paid for one"),
    (tagged("42"), "Paris", None, "nor where it is a word"),
]


@pytest.mark.parametrize(("text", "gold", "score", "why"), INTEGERS)
def test_int(text: str, gold: str | None, score: float | None, why: str) -> None:
    assert int_reward(text, gold) == score, why


def test_other_answer_formats() -> None:
    assert correctness("6 x 7\n#### 42", "42", answer_format="hash") == 2.0
    assert correctness("#### 41\n#### 42", "42", answer_format="hash") == 0.0
    assert correctness("Budget", "budget", answer_format="plain") == 2.0
    assert correctness("41\n42", "42", answer_format="plain") == 0.0
    assert int_reward("#### 42", "7", answer_format="hash") == 0.5
    assert correctness("6 x 7 is \\boxed{42}, as said", "42", answer_format="boxed") == 2.0
    assert correctness("\\boxed{41} or \\boxed{42}", "42", answer_format="boxed") == 0.0
    assert correctness("42", "42", answer_format="boxed") == 0.0
    with pytest.raises(UserError, match="no 'hsh'. Did you mean 'hash'"):
        correctness("42", "42", answer_format="hsh")
