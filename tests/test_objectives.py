"""Several objectives through the real trainer: TRL's two ways of adding them up, against a computation by hand."""

from __future__ import annotations

from pathlib import Path
from statistics import mean, stdev

import pytest
from conftest import ROOT
from test_training import trained

from llm_grpo import runs
from llm_grpo.evaluation.scoring import report_on
from llm_grpo.records import Completion, Example, Judgement, Reward, Scored, weighted_sum

FILE = """
def texts(completions):
    return [completion[0]["content"] for completion in completions]

def vowels(completions, **columns):
    return [sum(text.count(v) for v in "aeiou") % 5 for text in texts(completions)]

def sometimes(completions, **columns):  # cannot judge every third length
    return [None if len(text) % 3 == 0 else len(text) % 7 for text in texts(completions)]

def watched(completions, **columns):
    return [1000.0 * len(text) for text in texts(completions)]
"""
WEIGHTS = {"vowels": 2.0, "sometimes": -0.5, "watched": 0.0}
Row = dict[str, float | None]


def normal(values: list[float | None]) -> list[float | None]:
    """(x - mean) / (std + 1e-4) over those that are known, with the unbiased standard deviation."""
    known = [value for value in values if value is not None]
    if len(known) < 2:
        return [None] * len(values)
    centre, spread = mean(known), stdev(known) + 1e-4
    return [None if value is None else (value - centre) / spread for value in values]


def added(row: Row) -> float:
    return sum(WEIGHTS[name] * value for name, value in row.items() if value is not None)


def sum_then_normalize(groups: list[list[Row]]) -> list[float]:
    return [value for group in groups for value in normal([added(row) for row in group])]


def normalize_then_sum(groups: list[list[Row]]) -> list[float]:
    totals = []
    for group in groups:
        columns = {name: normal([row[name] for row in group]) for name in WEIGHTS}
        totals += [added({name: columns[name][i] for name in WEIGHTS}) for i in range(len(group))]
    return normal(totals)


@pytest.mark.parametrize("by_hand", [sum_then_normalize, normalize_then_sum], ids=lambda f: f.__name__)
def test_advantages_are_those_computed_by_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by_hand) -> None:
    monkeypatch.chdir(ROOT)
    file = tmp_path / "mine.py"
    file.write_text(FILE)
    listed = ", ".join(f"{{name: '{file}:{name}', weight: {weight}}}" for name, weight in WEIGHTS.items())
    aggregation = f"grpo.multi_objective_aggregation={by_hand.__name__}"
    _, run, _ = trained(tmp_path, f"rewards=[{listed}]", aggregation, "grpo.max_steps=1")
    rows = list(runs.read_jsonl(run.completions / "step_000001.jsonl.gz"))
    scores = [row["rewards"] for row in rows]
    assert any(row["sometimes"] is None for row in scores), "some could not be judged"
    assert [row["advantage"] for row in rows] == pytest.approx(by_hand([scores[:8], scores[8:]]), abs=1e-4)
    logged = next(runs.read_jsonl(run.metrics))
    for name in WEIGHTS:
        known = [row[name] for row in scores if row[name] is not None]
        assert logged[f"rewards/{name}/mean"] == pytest.approx(mean(known)), "each apart, unweighted"
    assert logged["reward"] == pytest.approx(mean(map(added, scores)), abs=1e-5), "the weighted sum, either way"


def test_an_objective_without_weight_changes_nothing_but_the_log() -> None:
    rows = [
        {"vowels": float(i % 3), "sometimes": None if i % 4 == 0 else float(i), "watched": i * 1e3} for i in range(16)
    ]
    blind = [{**row, "watched": 0.0} for row in rows]
    for by_hand in (sum_then_normalize, normalize_then_sum):
        assert by_hand([rows[:8], rows[8:]]) == pytest.approx(by_hand([blind[:8], blind[8:]]))


def test_the_evaluation_adds_up_as_trl_does() -> None:
    rewards = [Reward(name, lambda **_: [], weight) for name, weight in WEIGHTS.items()]
    rows: list[Row] = [
        {"vowels": 1.0, "sometimes": None, "watched": 5.0},
        {"vowels": None, "sometimes": 2.0, "watched": None},
        {"vowels": None, "sometimes": None, "watched": None},
    ]
    assert [weighted_sum(rewards, row) for row in rows] == [2.0, -1.0, None]
    judgement = Judgement(None, strict=False, lenient=False, formatted=False)
    example = Example("1", ({"role": "user", "content": "?"},), "1")
    report = report_on([Scored(example, Completion("", 1), judgement, row) for row in rows], rewards)
    assert report["reward"] == 0.5, "the mean over what could be judged at all"
    assert report["rewards"] == {"vowels": 1.0, "sometimes": 2.0, "watched": 5.0}, "each apart, unweighted"
