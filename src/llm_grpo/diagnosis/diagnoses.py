"""What is wrong with an evaluation in a sentence, from its numbers alone: collapsed answers, nothing readable, rewards
that failed. What goes wrong in training is found while it does (live.py).

Works for every task; an empty list means that none of these was found, not that all is well.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

COLLAPSED = 0.9  # this share of the answers is one and the same
FEWEST = 10  # answers below which a share says nothing
LONGEST_SHOWN = 60  # characters of an answer that is named


def diagnose(report: Mapping[str, Any], steps: Sequence[Mapping[str, Any]] = ()) -> list[str]:
    """One sentence per fault of an evaluation (with its items) and of rewards in training (rows of metrics.jsonl)."""
    return [said for said in (*_answers(report), *_failed(steps)) if said]


def _answers(report: Mapping[str, Any]) -> list[str]:
    items = report["items"]
    if len(items) < FEWEST:
        return []
    said = []
    if report["format_rate"] <= 1 - COLLAPSED:
        said.append(
            f"Unreadable: only {report['format_rate']:.0%} of the answers are in the format that was asked for."
        )
    if (report["truncated_share"] or 0) >= COLLAPSED:
        cut = f"{report['truncated_share']:.0%} of the answers ran into the token limit"
        said.append(f"Truncated: {cut}; raise grpo.max_completion_length.")
    return [*said, _collapse([item["extracted"] for item in items], [item["answer"] for item in items])]


def _collapse(answers: Sequence[str | None], golds: Sequence[str]) -> str:
    """One answer to nearly everything, where the right answers differ; "" where that is not so."""
    (answer, count), (_, most) = Counter(answers).most_common(1)[0], Counter(golds).most_common(1)[0]
    if answer is None or count < COLLAPSED * len(answers) or most >= COLLAPSED * len(golds):
        return ""
    shown = answer if len(answer) <= LONGEST_SHOWN else f"{answer[:LONGEST_SHOWN]}..."
    return (
        f"Collapsed: {count} of {len(answers)} answers are '{shown}', while {len(set(golds))} different ones are right "
        f"(the most frequent for {most / len(golds):.0%})."
    )


def _failed(steps: Sequence[Mapping[str, Any]]) -> list[str]:
    """Rewards that hung, died or raised (rewards/pool.py logs their share of a batch where it is not 0)."""
    names = sorted({name for row in steps for name in row if name.startswith("failed/reward/")})
    counts = {name.rpartition("/")[2]: sum(name in row for row in steps) for name in names}
    said = "Failed: {} gave no score in {} of {} steps; rewards.jsonl says to which answers and why."
    return [said.format(name, count, len(steps)) for name, count in counts.items()]
