"""The reward of lead qualification: -2, 0.5 or 2 as published, what the original's code pays, and per-label credit."""

from __future__ import annotations

import pytest

from llm_grpo.errors import UserError
from llm_grpo.rewards import REWARDS, build_reward

# completion, points by the README, points by the original's code, per-label credit, why; the gold is Budget, Need
POINTS = [
    ("<respond> Budget, Need </respond>", 2.0, 2.0, 2.0, "exact: 2 replaces the 0.5"),
    ("<respond> Budget </respond>", 0.5, 0.5, 1.625, "three of four labels are right"),
    ("<respond> None </respond>", 0.5, 0.5, 1.25, "two of four"),
    ("<respond> Authority, Timeline </respond>", 0.5, 0.5, 0.5, "valid and wrong in everything"),
    ("<respond> Budget, Budget, Need </respond>", -2.0, 2.0, -2.0, "a duplicate: rejected by the README, dropped by the code"),
    ("<respond></respond>", -2.0, 0.5, -2.0, "empty: malformed by the README, None by the code"),
    ("< RESPOND > Budget, Need </ respond >", -2.0, 2.0, -2.0, "tag case and blanks"),
    ('<respond> "Budget, Need" </respond>', -2.0, 2.0, -2.0, "quotes inside the tag"),
    ("<respond> none </respond>", -2.0, 0.5, -2.0, "none in lower case"),
    ("<respond> budget, need </respond>", -2.0, -2.0, -2.0, "labels in lower case"),
    ("<respond> Need, Budget </respond>", -2.0, -2.0, -2.0, "wrong order"),
    ("<respond> None, Budget </respond>", -2.0, -2.0, -2.0, "None is exclusive"),
    ("<respond> Budget, Need, Price </respond>", -2.0, -2.0, -2.0, "an unknown label"),
    ("It is <respond> Budget, Need </respond>", -2.0, -2.0, -2.0, "text before the tag"),
    ("<respond> Budget, Need </respond>.", -2.0, -2.0, -2.0, "text after the tag"),
    ("<respond> Budget </respond><respond> Need </respond>", -2.0, -2.0, -2.0, "two blocks"),
    ("Budget, Need", -2.0, -2.0, -2.0, "no tags"),
    ("", -2.0, -2.0, -2.0, "nothing"),
]  # fmt: skip


def points(text: str, gold: str | None, **args: bool) -> float | None:
    completions = [[{"role": "assistant", "content": text}]]
    return REWARDS["lead_qualification_reward_func"](["?"], completions, [gold], **args)[0]


@pytest.mark.parametrize(("text", "readme", "code", "credit", "why"), POINTS, ids=[row[4] for row in POINTS])
def test_points(text: str, readme: float, code: float, credit: float, why: str) -> None:
    assert points(text, "Budget, Need") == readme, why
    assert points(text, "Budget, Need", published=True) == code, why
    assert points(text, "Budget, Need", graded=True) == credit, why


@pytest.mark.parametrize("gold", [None, "", "42", "Need, Budget", "Price"])
def test_without_a_gold_that_is_a_set(gold: str | None) -> None:
    assert points("<respond> Need </respond>", gold) is None, "it cannot be judged"
    assert points("<respond> Need </respond>", gold, published=True) == 1.0, "as published"
    assert points("Need", gold, published=True) == -2.0


def test_per_label_credit_grows_with_every_label_that_is_right() -> None:
    texts = ("Authority, Timeline", "Authority, Budget, Timeline", "Budget, Timeline", "Budget", "Budget, Need")
    paid = [points(f"<respond> {text} </respond>", "Budget, Need", graded=True) for text in texts]
    assert paid == [0.5, 0.875, 1.25, 1.625, 2.0]


def test_arguments_are_checked() -> None:
    with pytest.raises(UserError, match="graded"):
        build_reward("lead_qualification_reward_func", {"graded": "yes"})
    with pytest.raises(UserError, match="Did you mean 'published'"):
        build_reward("lead_qualification_reward_func", {"publishd": True})
