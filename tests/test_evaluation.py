"""Scores and reports: the gold answer earns everything, a wrong one does not, and the numbers are counted right."""

from __future__ import annotations

import pytest
from conftest import ROOT

from llm_grpo.config.loading import load_config
from llm_grpo.config.schema import RewardSpec
from llm_grpo.errors import UserError
from llm_grpo.evaluation.scoring import evaluate, report_on, score, without_items
from llm_grpo.problems import build_rewards
from llm_grpo.records import Completion, Example, Problem
from llm_grpo.rollouts import Sampling
from llm_grpo.tasks import build_task

TEMPLATE = "<reasoning>\nBecause.\n</reasoning>\n<answer>\n{}\n</answer>"


def problems(*answers: str) -> list[Problem]:
    return [Problem(Example(str(i), ({"role": "user", "content": "q"},), a), ()) for i, a in enumerate(answers)]


@pytest.fixture
def task():
    return build_task("word_problems", {})


@pytest.fixture
def rewards():
    return build_rewards(load_config(ROOT / "configs" / "grpo.yaml", environment={}).rewards)


def test_the_gold_answer_earns_full_marks_and_a_wrong_one_does_not(task, rewards) -> None:
    right, wrong = score(task, problems("42", "42"), [Completion(TEMPLATE.format(a), 9) for a in ("42", "41")], rewards)
    assert right.judgement.strict and right.judgement.lenient and right.judgement.formatted
    assert sum(right.rewards.values()) == 4.0, "2 + 4 x 0.5 is the most the five can pay"
    assert not wrong.judgement.strict and not wrong.judgement.lenient and wrong.judgement.formatted
    assert sum(wrong.rewards.values()) <= 2.0


def test_shares_are_counted(task, rewards) -> None:
    texts = [TEMPLATE.format("1"), "It is 1", TEMPLATE.format("2"), "no idea"]
    completions = [
        Completion(text, tokens, truncated=tokens == 40) for text, tokens in zip(texts, (10, 20, 30, 40), strict=True)
    ]
    report = report_on(score(task, problems(*"1111"), completions, rewards), rewards)
    assert (report["n"], report["strict_accuracy"], report["lenient_accuracy"], report["format_rate"]) == (
        4,
        0.25,
        0.5,
        0.5,
    )
    assert (report["mean_tokens"], report["truncated_share"]) == (25, 0.25)
    assert report["rewards"]["correctness_reward_func"] == 0.5
    assert report["strict_accuracy_ci95"][0] < 0.25 < report["strict_accuracy_ci95"][1]
    assert [item["extracted"] for item in report["items"]] == ["1", "1", "2", None]
    assert "items" not in without_items(report)


def test_weights_make_the_sum(task) -> None:
    specs = [
        RewardSpec(name="correctness_reward_func", weight=0.5),
        RewardSpec(name="strict_format_reward_func", weight=4.0),
    ]
    rewards = build_rewards(specs)
    report = report_on(score(task, problems("1"), [Completion(TEMPLATE.format("1"), 1)], rewards), rewards)
    assert report["reward"] == 0.5 * 2.0 + 4.0 * 0.5


def test_a_reward_that_stands_twice_keeps_its_own_column() -> None:
    twice = [
        RewardSpec(name="correctness_reward_func"),
        RewardSpec(name="correctness_reward_func", args={"published": True}),
    ]
    assert [r.label for r in build_rewards(twice)] == ["correctness_reward_func", "correctness_reward_func#2"]


def test_an_unknown_reward_names_the_nearest() -> None:
    with pytest.raises(UserError, match="correctness_reward_func"):
        build_rewards([RewardSpec(name="corectness_reward_func")])


class Scripted:
    """An engine that answers from a list: the evaluation is what is tried here, not a model."""

    name = "scripted"

    def __init__(self, *answers: str) -> None:
        self.answers = answers

    def generate(self, prompts, sampling, on_done=None):
        chosen = self.answers[: sampling.n] if sampling.n > 1 else self.answers[:1]
        return [[Completion(TEMPLATE.format(a), 5) for a in chosen] for _ in prompts]


def test_samples_give_avg_maj_and_pass(task, rewards) -> None:
    engine = Scripted("2", "1", "1", "3")
    report = evaluate(engine, task, problems("1"), rewards, 16, Sampling(16, temperature=1.0, n=4))
    assert report["strict_accuracy"] == 0.0, "greedy is the first answer"
    strict = report["sampled"]["strict"]
    assert strict["avg_at_k"] == 0.5 and strict["maj_at_k"] == 1.0
    assert strict["pass_at_k"] == {"1": 0.5, "2": pytest.approx(1 - 1 / 6), "4": 1.0}
