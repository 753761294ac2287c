"""The attack: the corrected rewards stand, the published ones fall, and each kind of fault is found by its own reward."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from llm_grpo.answers.judging import JUDGES
from llm_grpo.records import Example, Reward
from llm_grpo.rewards import REWARDS, RewardError, build_reward, guard, lift
from llm_grpo.rewards.attack import Verdict, attack, attack_cases, backwards, unsteady


def rewards_of(args: dict[str, object], *names: str) -> list[Reward]:
    return [Reward(name, build_reward(name, args), 1.0) for name in names or REWARDS]


def verdicts_of(score: Callable[[str], float], margin: float | None = None) -> dict[str, Verdict]:
    """The verdicts of one reward for itself, by the name of the case."""
    found, _ = attack([Reward("it", lift(score, "it"), 1.0)], "xml", margin)
    return {verdict.case.name: verdict for verdict in found}


def faults(verdicts: dict[str, Verdict]) -> set[str]:
    return {name for name, verdict in verdicts.items() if verdict.fault}


def test_the_corrected_rewards_stand() -> None:
    verdicts, margin = attack(rewards_of({}), "xml")
    assert [verdict.case.name for verdict in verdicts if verdict.fault] == []
    assert margin == pytest.approx(0.15), "a tenth of the 1.5 points that a right answer adds, where it is long"
    honest_right = [verdict.total for verdict in verdicts if verdict.case.kind == "right"]
    assert honest_right == [4.0, 3.5, 4.0, 4.0], "the maximum, however dressed; only the long one loses half a point"


def test_the_published_rewards_fall() -> None:
    verdicts, _ = attack(rewards_of({"published": True}), "xml")
    fallen = {verdict.case.name for verdict in verdicts if verdict.fault}
    assert {"bare number, right", "two answer blocks, right last", "tags only, in lines"} <= fallen


@pytest.mark.parametrize("answer_format", ["hash", "boxed", "plain"])
def test_the_other_answer_formats(answer_format: str) -> None:
    verdicts, _ = attack(rewards_of({"answer_format": answer_format}, "correctness_reward_func"), answer_format)
    assert [verdict.case.name for verdict in verdicts if verdict.fault] == []
    wrong_format, _ = attack(rewards_of({}, "correctness_reward_func"), answer_format)
    assert "honest wrong" in {verdict.case.name for verdict in wrong_format if verdict.fault}, "it pays nobody"


def test_every_format_has_cases() -> None:
    for answer_format in JUDGES:
        names = [case.name for case in attack_cases(answer_format)]
        assert len(set(names)) == len(names) >= 19


def finds_anywhere(text: str) -> float:
    return 2.0 * ("42" in text)


def counts_keywords(text: str) -> float:
    return 2.0 * ("\n42\n" in text or "\n-5\n" in text or "\n1,234\n" in text) + 0.3 * text.count("thus")


def likes_length(text: str) -> float:
    return len(text) / 1000


def finds_exact(text: str) -> float:
    return 2.0 * any(f"<answer>\n{gold}\n</answer>" in text for gold in ("42", "-5", "1,234")) * (len(text) < 5000)


def echoes(text: str) -> float:
    return finds_exact(text) + ("How many is that?" in text)


def pays_nothing(text: str) -> float:
    return 0.0


WEAK = [
    (finds_anywhere, {"several in one answer", "every number in prose", "right one outside the tags"}, "a substring"),
    (counts_keywords, {"keywords", "keywords, then wrong"}, "a keyword list"),
    (likes_length, {"100,000 letters", "12,500 open tags"}, "length"),
    (echoes, {"the question again"}, "words of the question"),
    (pays_nothing, {"honest wrong"}, "being right adds nothing"),
    (finds_anywhere, {"right number, denied", "right number, compared", "right number, at least"}, "words beside it"),
    (finds_anywhere, {"right number, several units", "the reasoning says right, the answer wrong"}, "and elsewhere"),
    (finds_exact, {"right, with a unit", "right, with decimals", "right, in LaTeX"}, "it refuses right answers"),
]


@pytest.mark.parametrize(("score", "cases", "why"), WEAK)
def test_a_weak_reward_is_found_out(score: Callable[[str], float], cases: set[str], why: str) -> None:
    assert cases <= faults(verdicts_of(score)), why


def test_a_reward_may_read_the_tasks_columns_and_its_prompt() -> None:
    def reads(prompts, completions, answer, level, **columns):
        return [
            2.0 * (level[0] == "hard" and prompts[0][-1]["content"] == "Q?" and a in c[0]["content"])
            for c, a in zip(completions, answer, strict=True)
        ]

    example = Example("1", ({"role": "user", "content": "Q?"},), "7", {"level": "hard"})
    verdicts, _ = attack([Reward("reads", guard(reads, "reads"), 1.0)], "xml", example=example)
    assert verdicts[0].total == 2.0 and verdicts[0].case.gold == "42", "the gold is the case's, the rest the example's"
    with pytest.raises(RewardError, match="level"):
        attack([Reward("reads", guard(reads, "reads"), 1.0)], "xml")


def test_a_reward_that_depends_on_chance_or_its_neighbours_is_named() -> None:
    calls = []

    def tires(completions, **columns):
        calls.append(1)
        return [float(len(calls))] * len(completions)

    def ranks(completions, **columns):
        return [float(place) for place in range(len(completions))]

    rewards = [Reward(function.__name__, guard(function, function.__name__), 1.0) for function in (tires, ranks)]
    assert unsteady(rewards_of({}), "xml") == []
    again, order = unsteady(rewards, "xml")
    assert again.startswith("tires") and "asked again" in again
    assert order.startswith("ranks") and "another order" in order


def test_a_negative_weight_is_named() -> None:
    both = rewards_of({}, "int_reward_func", "correctness_reward_func")
    turned = [both[0], Reward("correctness_reward_func", both[1].function, -0.1)]
    assert backwards(attack(both, "xml")[0], both) == []
    assert backwards(attack(turned, "xml")[0], turned) == [turned[1]]


SAME = ("42 apples", "42.00", "42.", "**42**", "1/2", r"\frac{1}{2}")  # the cases' other writings of the right answer


def test_the_margin_decides() -> None:
    def shaped(text: str) -> float:  # a degenerate text may earn 0.5 more than the honest wrong one
        said = (text.partition("<answer>\n")[2].partition("\n</answer>")[0],)
        right = any(said == (gold,) for gold in ("42", "-5", "1,234", *SAME))
        return 2.0 * (right and text.count("<answer>") == 1) + 0.5 * (text == "")

    assert faults(verdicts_of(shaped)) == {"empty"}
    assert verdicts_of(shaped)["empty"].fault == "beats the honest wrong"
    assert faults(verdicts_of(shaped, margin=0.5)) == set()
    assert faults(verdicts_of(shaped, margin=0.49)) == {"empty"}
