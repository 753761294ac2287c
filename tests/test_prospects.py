"""Will it learn? The estimate against exact arithmetic and against drawing groups; what is said of it before and after."""

from __future__ import annotations

from itertools import combinations, product
from math import comb
from typing import Any

import pytest

from llm_grpo.diagnosis.prospects import checked, informative_share, prospects
from llm_grpo.records import Reward

GRPO = {"num_generations": 4, "multi_objective_aggregation": "sum_then_normalize"}


@pytest.mark.parametrize("p", [0.0, 0.1, 0.5, 0.93])
@pytest.mark.parametrize(("k", "group"), [(4, 2), (6, 4), (5, 5)])
def test_the_estimate_is_unbiased(p: float, k: int, group: int) -> None:
    """Over all outcomes of k draws, each with its chance: 1 - p^G - (1-p)^G, exactly."""
    mean = sum(
        comb(k, right) * p**right * (1 - p) ** (k - right) * informative_share([[1] * right + [0] * (k - right)], group)
        for right in range(k + 1)
    )
    assert mean == pytest.approx(1 - p**group - (1 - p) ** group)


@pytest.mark.parametrize("earned", [[0, 0, 1, 2, 2], [0.5, 1.5, 2.5, 3.5], [1, 1, 1, 1], [0, 1, 1, 1, 1, 1]])
def test_it_is_the_share_of_all_groups_that_can_be_made_of_the_samples(earned: list[float]) -> None:
    groups = list(combinations(earned, 3))
    assert informative_share([earned], 3) == pytest.approx(sum(len(set(group)) > 1 for group in groups) / len(groups))


def test_fewer_samples_than_a_group_give_a_lower_bound() -> None:
    for p in (0.1, 0.5, 0.9):
        chances = {draw: p ** sum(draw) * (1 - p) ** (3 - sum(draw)) for draw in product((0, 1), repeat=3)}
        mean = sum(chance * informative_share([draw], 8) for draw, chance in chances.items())
        assert mean <= 1 - p**8 - (1 - p) ** 8


def report(*items: dict[str, list[float | None]]) -> dict[str, Any]:
    k = len(next(iter(items[0].values())))
    strict = {"pass_at_k": {"1": 0.25, str(k): 0.75}}
    return {"sampled": {"k": k, "strict": strict}, "items": [{"sampled_rewards": item} for item in items]}


REWARDS = [Reward("a", len, 1.0), Reward("b", len, 2.0)]
SAID = [
    (report({"a": [1, 0, 0, 0] * 2, "b": [0] * 8}, {"a": [0] * 8, "b": [0] * 8}), {},
     ["Of 100 groups about 39 will", "grpo.num_generations=8 would make it 50", "25% to 75% right; a 0.12 to 0.50, b 0.00"]),
    (report({"a": [1, 0, 0], "b": [0] * 3}), {}, ["Of 100 groups at least 100 will teach something. From"]),
    (report({"a": [1, 0, 0, 0], "b": [None] * 4}), {}, ["about 100 will teach something. From", "b 0.00 to 0.00"]),
    (report({"a": [2, 0] * 2, "b": [0, 1] * 2}), {}, ["about 0 will"]),  # both add up to 2
    (report({"a": [2, 0] * 2, "b": [0, 1] * 2}), {"multi_objective_aggregation": "normalize_then_sum"}, ["about 100 will"]),
    (report({"a": [0.1] * 4, "b": [0.1, 0.1 + 1e-9] * 2}), {}, ["about 0 will"]),  # float32 cannot tell them apart
]  # fmt: skip


@pytest.mark.parametrize(("given", "grpo", "said"), SAID, ids=[row[2][0] for row in SAID])
def test_what_is_said(given: dict[str, Any], grpo: dict[str, Any], said: list[str]) -> None:
    told = prospects(given, REWARDS, GRPO | grpo)["said"]
    assert all(part in told for part in said), told
    assert told.count(". ") == 1, "two sentences"


def test_nothing_is_said_where_nothing_was_judged() -> None:
    assert prospects(report({"a": [None] * 4, "b": [None] * 4}), REWARDS, GRPO) is None


def test_the_first_fifty_steps_answer() -> None:
    told = prospects(SAID[0][0], REWARDS, GRPO)
    rows = [{"step": step, "informative_share": 0.4 if step <= 50 else 1.0} for step in range(1, 90)]
    found = checked(told, rows, 4)
    assert found["seen"] == pytest.approx(0.4) and found["predicted"] == told["informative_share"]["4"]
    assert found["said"] == "Predicted: 39 of 100 groups teach something; in the first 50 steps 40 did."
    assert checked(None, rows, 4) == {} == checked(told, [], 4)
