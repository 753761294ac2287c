"""Named faults of an evaluation: a collapse, nothing readable; and silence where there is none."""

from __future__ import annotations

from typing import Any

import pytest

from llm_grpo.diagnosis.diagnoses import diagnose


def report(
    answers: list[str | None], golds: list[str], formatted: float = 1.0, truncated: float = 0.0
) -> dict[str, Any]:
    items = [{"extracted": a, "answer": g} for a, g in zip(answers, golds, strict=True)]
    return {"items": items, "format_rate": formatted, "truncated_share": truncated}


SETS = ["None", "Budget", "Need", "Budget, Need"] * 10
REPORTS = [
    (report(["None"] * 40, SETS), "Collapsed: 40 of 40 answers are 'None', while 4 different", "one answer to all"),
    (report(["None"] * 37 + SETS[:3], SETS), "Collapsed: 38 of 40", "one answer to nearly all"),
    (report(["x" * 500] * 40, SETS), "are 'xxx", "a long answer is cut"),
    (report([None] * 40, SETS, formatted=0.0), "Unreadable: only 0%", "no answer in the format"),
    (report(SETS, SETS, truncated=0.95), "Truncated: 95%", "answers that never end"),
]


@pytest.mark.parametrize(("given", "said", "why"), REPORTS, ids=[row[2] for row in REPORTS])
def test_faults_of_an_evaluation(given: dict[str, Any], said: str, why: str) -> None:
    (told,) = diagnose(given)
    assert said in told and len(told) < 250, why


SOUND = [
    (report(SETS, SETS), "as many answers as golds"),
    (report(["None"] * 30 + SETS[:10], SETS), "a habit is no collapse"),
    (report(["None"] * 40, ["None"] * 40), "one answer is right for all"),
    (report(["None"] * 5, SETS[:5]), "five answers say nothing"),
]


@pytest.mark.parametrize(("given", "why"), SOUND, ids=[row[1] for row in SOUND])
def test_nothing_is_said_without_a_fault(given: dict[str, Any], why: str) -> None:
    assert diagnose(given) == []


STEPS = [
    ([{"failed/reward/own": 0.5}, {"reward": 1.0}], "Failed: own gave no score in 1 of 2 steps", "a reward hung once"),
    ([{"loss": 0.1}], "", "nothing failed"),
    ([], "", "no steps"),
]


@pytest.mark.parametrize(("steps", "said", "why"), STEPS, ids=[row[2] for row in STEPS])
def test_rewards_that_failed(steps: list[dict[str, float]], said: str, why: str) -> None:
    told = diagnose(report(SETS, SETS), steps)
    assert said in told[0] if said else told == [], why
