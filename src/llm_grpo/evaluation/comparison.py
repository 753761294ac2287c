"""Is it really better? Intervals, the paired test on the same items, and estimates over several samples.

Pure arithmetic on plain numbers: no torch, no scipy.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from llm_grpo.answers.calculation import value_of
from llm_grpo.errors import UserError

Report = Mapping[str, Any]
Z_95 = 1.959963984540054  # the 97.5 % point of the standard normal


def wilson_interval(successes: int, n: int) -> tuple[float, float]:
    """95 % interval of a share (Wilson 1927, without continuity correction). n = 0 gives (0, 1): nothing is known."""
    if n == 0:
        return 0.0, 1.0
    share, z2 = successes / n, Z_95**2
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = Z_95 / (1 + z2 / n) * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)


def mcnemar_p(gained: int, lost: int) -> float:
    """Exact two-sided McNemar test (McNemar 1947; binomial form): of the items that changed, could half have gone
    either way by chance? In logarithms, so that thousands of items neither overflow nor take long."""
    n = gained + lost
    if n == 0:
        return 1.0
    tail = sum(
        math.exp(math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1) - n * math.log(2))
        for k in range(min(gained, lost) + 1)
    )
    return min(1.0, 2 * tail)


def pass_at_k(n: int, correct: int, k: int) -> float:
    """Chance that at least one of k draws out of n samples, `correct` of them right, is right: 1 - C(n-c, k) / C(n, k),
    the unbiased estimator of Chen et al. 2021 (arXiv:2107.03374, equation 1)."""
    if not 0 <= correct <= n or not 1 <= k <= n:
        raise ValueError(f"pass@k needs 0 <= correct <= n and 1 <= k <= n, not n={n}, correct={correct}, k={k}")
    return 1.0 - math.comb(n - correct, k) / math.comb(n, k)


def majority_is_right(answers: Sequence[str | None], right: Sequence[bool]) -> float:
    """1.0 where the most frequent answer is a right one; ties count by the share of tied answers that are right.

    Right answers are one answer, whatever the judge goes by, and so are wrong ones of one value (1,234 and 1234.0).
    `None` (nothing could be extracted) does not vote.
    """
    given = [(answer, is_right) for answer, is_right in zip(answers, right, strict=True) if answer is not None]
    votes = Counter(True if is_right else _ballot(answer) for answer, is_right in given)
    top = [ballot for ballot, count in votes.items() if count == max(votes.values())]
    return (True in top) / len(top) if top else 0.0


def _ballot(answer: str) -> tuple[object]:
    value = value_of(answer)
    return (" ".join(answer.casefold().split()) if value is None else value,)


def bootstrap_interval(values: Sequence[float], draws: int = 1000) -> tuple[float, float]:
    """95 % percentile interval of a mean over problems (Efron 1979), always with the same draws."""
    rng, n = random.Random(0), len(values)
    means = sorted(sum(rng.choices(values, k=n)) / n for _ in range(draws))
    return means[int(0.025 * draws)], means[int(0.975 * draws) - 1]


def compare(before: Report, after: Report) -> dict[str, Any]:
    """The paired comparison of two evaluations of the same items. Raises UserError where the items differ.

    gained, lost, p_value are of strict accuracy; `lenient` holds the same for lenient accuracy. The strict gain is
    split into what was wrong before however one reads it (newly_right) and what was right but could not be read by the
    strict parser (was_unreadable). `sampled`, where both have as many samples, drawn alike: the change of avg@k,
    strict, with its 95 % interval over the problems.
    """
    old, new = ({item["id"]: item for item in report["items"]} for report in (before, after))
    if list(old) != list(new) or any(old[i]["answer"] != new[i]["answer"] for i in old):
        only = sorted(set(old) ^ set(new))[:3]
        raise UserError(
            f"The two evaluations are not of the same items ({len(old)} and {len(new)}"
            f"{', for example ' + ', '.join(only) if only else ', same ids in another order or with other answers'}). "
            "Compare files made with the same task, split and limit."
        )
    gained = [i for i in old if new[i]["strict"] and not old[i]["strict"]]
    lost = [i for i in old if old[i]["strict"] and not new[i]["strict"]]
    lenient = [
        sum(new[i]["lenient"] and not old[i]["lenient"] for i in old),
        sum(old[i]["lenient"] and not new[i]["lenient"] for i in old),
    ]
    unreadable = sum(old[i]["lenient"] for i in gained)
    return {
        "n": len(old),
        "gained": len(gained),
        "lost": len(lost),
        "p_value": mcnemar_p(len(gained), len(lost)),
        "newly_right": len(gained) - unreadable,
        "was_unreadable": unreadable,
        "lenient": {"gained": lenient[0], "lost": lenient[1], "p_value": mcnemar_p(*lenient)},
        **_sampled(before, after),
        "gained_items": gained,
        "lost_items": lost,
    }


def stages(before: Report | None, after_sft: Report | None, after: Report | None) -> list[tuple[str, Report]]:
    """What a run evaluated, by name, the first first; what there is none of is left out."""
    named = [("before", before), ("after SFT", after_sft), ("after GRPO" if after_sft else "after", after)]
    return [(name, report) for name, report in named if report]


def pairs_of(found: Sequence[tuple[str, Report]]) -> list[tuple[tuple[str, Report], tuple[str, Report]]]:
    """Each of the stages with the one before it; the last with the first too."""
    return [*pairwise(found), *([(found[0], found[-1])] if len(found) > 2 else [])]


def _sampled(before: Report, after: Report) -> dict[str, Any]:
    old, new = (report.get("sampled") for report in (before, after))
    if not old or not new or any(old.get(name) != new.get(name) for name in ("k", "temperature", "top_p")):
        return {}
    passed = [report["sampled"].get("strict", {}).get("passed", []) for report in (before, after)]
    if not len(passed[0]) == len(passed[1]) == len(after["items"]) > 0:  # files of a release before
        return {}
    changes = [(b - a) / new["k"] for a, b in zip(*passed, strict=True)]
    change = {"change": sum(changes) / len(changes), "change_ci95": list(bootstrap_interval(changes))}
    return {"sampled": {"k": new["k"], **change}}
