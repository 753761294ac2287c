"""Will it learn? From a few sampled answers to each problem, before training: how many groups will teach something, and
how much better the best of them is than one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from math import comb
from statistics import fmean
from typing import Any

from llm_grpo.records import Reward, weighted_sum

FIRST_STEPS = 50  # of a run, that the prediction is compared with


def prospects(report: Mapping[str, Any], rewards: Sequence[Reward], grpo: Mapping[str, Any]) -> dict[str, Any] | None:
    """Of an evaluation with sampled answers (evaluation.samples above 1); None where no problem has two that could be
    judged. `informative_share` is by size of a group; `said` is all of it in two sentences."""
    k, group = report["sampled"]["k"], grpo["num_generations"]
    columns = [item["sampled_rewards"] for item in report["items"]]
    apart = grpo["multi_objective_aggregation"] != "sum_then_normalize"  # then one reward that differs is enough
    judged = [values for values in (_earned(rewards, column, apart) for column in columns) if len(values) > 1]
    if not judged:
        return None
    other = min(2 * group, k)  # the larger group that can still be told
    shares = {str(size): informative_share(judged, size) for size in (group, other) if size >= group}
    said = f"Of 100 groups {'about' if k >= group else 'at least'} {100 * shares[str(group)]:.0f} will teach something"
    if other > group:
        said += f"; grpo.num_generations={other} would make it {100 * shares[str(other)]:.0f}"
    passed, best = report["sampled"]["strict"]["pass_at_k"], {}
    for reward in rewards:
        paid = [[reward.weight * value for value in column[reward.label] if value is not None] for column in columns]
        paid = [values for values in paid if values] or [[0.0]]
        best[reward.label] = fmean(map(fmean, paid)), fmean(map(max, paid))
    gains = ", ".join(f"{label} {one:.2f} to {most:.2f}" for label, (one, most) in best.items())
    said += f". From one answer to the best of {k}: {passed['1']:.0%} to {passed[str(k)]:.0%} right; {gains}."
    return {"samples": k, "informative_share": shares, "pass_at_k": passed, "rewards": best, "said": said}


def informative_share(earned: Sequence[Sequence[Hashable]], group: int) -> float:
    """The mean over prompts of the chance that `group` answers do not all earn the same, from what k samples earned.

    That chance is 1 - sum over v of p_v^G; for rewards of 0 and 1, 1 - p^G - (1-p)^G. With c_v of k samples that earned
    v, C(c_v, G) / C(k, G) estimates p_v^G without bias: Hoeffding's U-statistic (1948), on which pass@k stands too
    (Chen et al. 2021, arXiv:2107.03374, equation 1). From fewer samples than G there is no estimate without bias; then
    G is k, and the share a lower bound, because larger groups differ more often.
    """

    def alike(values: Sequence[Hashable], size: int) -> float:
        return sum(comb(count, size) for count in Counter(values).values()) / comb(len(values), size)

    return 1 - fmean(alike(values, min(group, len(values))) for values in earned)


def checked(prediction: Mapping[str, Any] | None, rows: Sequence[Mapping[str, Any]], group: int) -> dict[str, Any]:
    """The prediction against the first steps of a run, from its metrics; {} where there is nothing to compare."""
    early = {row["step"]: row.get("informative_share") for row in rows if row["step"] <= FIRST_STEPS}
    shares = [share for share in early.values() if share is not None]
    if not prediction or not shares:
        return {}
    predicted, seen = prediction["informative_share"][str(group)], fmean(shares)
    least = "" if prediction["samples"] >= group else "at least "
    said = f"Predicted: {least}{100 * predicted:.0f} of 100 groups teach something; in the first {max(early)} steps "
    return {"predicted": predicted, "seen": seen, "said": f"{said}{100 * seen:.0f} did."}


def _earned(rewards: Sequence[Reward], column: Mapping[str, Sequence[float | None]], apart: bool) -> list[Hashable]:
    """What is compared within a group, of each sample that was judged, to the six digits of the trainer's float32."""
    answers = [dict(zip(column, values, strict=True)) for values in zip(*column.values(), strict=True)]
    totals = [weighted_sum(rewards, scores) for scores in answers]
    known = [(scores, total) for scores, total in zip(answers, totals, strict=True) if total is not None]
    return [tuple(scores.values()) if apart else f"{total:.6g}" for scores, total in known]
