"""Will it learn? From a few sampled answers to each problem, before training: how many groups will teach something, and
how much better the best of them is than one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from math import comb
from typing import Any

from llm_grpo.records import Reward, weighted_sum

FIRST_STEPS = 50  # of a run, that the prediction is compared with


def prospects(report: Mapping[str, Any], rewards: Sequence[Reward], grpo: Mapping[str, Any]) -> dict[str, Any] | None:
    """Of an evaluation with sampled answers (evaluation.samples above 1); None where no problem has two that could be
    judged. `informative_share` is by size of a group; `said` is all of it in two sentences."""
    k, group = report["sampled"]["k"], grpo["num_generations"]
    drawn = [_by_answer(item["sampled_rewards"]) for item in report["items"]]
    apart = grpo["multi_objective_aggregation"] != "sum_then_normalize"  # then one reward that differs is enough
    earned = [[_earned(rewards, scores, apart) for scores in answers] for answers in drawn]
    judged = [[value for value in values if value is not None] for values in earned]
    judged = [values for values in judged if len(values) > 1]
    if not judged:
        return None
    other = min(2 * group, k)  # the larger group that can still be told
    shares = {str(size): informative_share(judged, size) for size in (group, other) if size >= group}
    passed = report["sampled"]["strict"]["pass_at_k"]
    best = {r.label: _best([[r.weight * scores[r.label] for scores in answers if scores[r.label] is not None]
                            for answers in drawn]) for r in rewards}  # fmt: skip
    said = f"Of 100 groups {'about' if k >= group else 'at least'} {100 * shares[str(group)]:.0f} will teach something"
    said += f"; grpo.num_generations={other} would make it {100 * shares[str(other)]:.0f}." if other > group else "."
    gains = ", ".join(f"{label} {one:.2f} to {most:.2f}" for label, (one, most) in best.items())
    said += f" From one answer to the best of {k}: {passed['1']:.0%} to {passed[str(k)]:.0%} right; {gains}."
    return {"samples": k, "informative_share": shares, "pass_at_k": passed, "rewards": best, "said": said}


def informative_share(earned: Sequence[Sequence[Hashable]], group: int) -> float:
    """The mean over prompts of the chance that `group` answers do not all earn the same, from what k samples earned.

    That chance is 1 - sum over v of p_v^G; for rewards of 0 and 1, 1 - p^G - (1-p)^G. With c_v of k samples that earned
    v, C(c_v, G) / C(k, G) estimates p_v^G without bias: Hoeffding's U-statistic (1948), on which pass@k stands too
    (Chen et al. 2021, arXiv:2107.03374, equation 1). From fewer samples than G there is no estimate without bias; then
    G is k, and the share a lower bound, because larger groups differ more often.
    """
    return sum(_differs(values, min(group, len(values))) for values in earned) / len(earned)


def _differs(values: Sequence[Hashable], group: int) -> float:
    return 1 - sum(comb(count, group) for count in Counter(values).values()) / comb(len(values), group)


def checked(prediction: Mapping[str, Any] | None, rows: Sequence[Mapping[str, Any]], group: int) -> dict[str, Any]:
    """The prediction against the first steps of a run, from its metrics; {} where there is nothing to compare."""
    early = {row["step"]: row.get("informative_share") for row in rows if row["step"] <= FIRST_STEPS}
    shares = [share for share in early.values() if share is not None]
    if not prediction or not shares:
        return {}
    predicted, seen = prediction["informative_share"][str(group)], sum(shares) / len(shares)
    least = "" if prediction["samples"] >= group else "at least "
    said = f"Predicted: {least}{100 * predicted:.0f} of 100 groups teach something; in the first {max(early)} steps "
    return {"predicted": predicted, "seen": seen, "said": f"{said}{100 * seen:.0f} did."}


def _by_answer(columns: Mapping[str, Sequence[float | None]]) -> list[dict[str, float | None]]:
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def _earned(rewards: Sequence[Reward], scores: Mapping[str, float | None], apart: bool) -> Hashable:
    """What is compared within a group, to the six digits of the trainer's float32; None: not judged."""
    total = weighted_sum(rewards, scores)
    if total is None:
        return None
    return tuple(scores.values()) if apart else f"{total:.6g}"


def _best(earned: Sequence[Sequence[float]]) -> tuple[float, float]:
    """Means over prompts of one answer and of the best."""
    earned = [values for values in earned if values] or [[0.0]]
    return sum(sum(values) / len(values) for values in earned) / len(earned), sum(map(max, earned)) / len(earned)
