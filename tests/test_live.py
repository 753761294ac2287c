"""The doctor beside a run: a bench of synthetic pathologies, each found with its first step, and silence over healthy
runs; what is measured of groups; one real run that its config ends."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from math import cos, nan, pi
from pathlib import Path
from typing import Any

import pytest
from conftest import SMALL, run_script

from llm_grpo import runs
from llm_grpo.diagnosis.drift import METRIC
from llm_grpo.diagnosis.live import CHECKS, Doctor
from llm_grpo.training.recording import of_groups

STEPS, WINDOW = 120, 20
Row = dict[str, Any]


def healthy(step: int, noise: random.Random) -> Row:
    """A line of a run that learns: what rises rises slowly, and everything trembles."""

    def about(value: float, by: float = 0.03) -> float:
        return value + noise.uniform(-by, by)

    way = step / STEPS
    row = {
        "step": step, "loss": about(0.0), "reward": about(1 + way), "accuracy": about(0.3 + 0.4 * way),
        "format_rate": about(0.7 + 0.2 * way), "entropy": about(0.5 - 0.2 * way), "grad_norm": about(0.1, 0.05),
        "truncated_share": about(0.05), "completions/mean_length": about(200 + 40 * way, 10), "learning_rate": 1e-5,
        "informative_share": about(0.8), "groups/solved": about(0.1), "groups/unsolved": about(0.07), "groups/blind": 0.03,
        "variance_share/correct": about(0.7), "variance_share/format": about(0.3), "reward_accuracy_correlation": about(0.8),
        METRIC: about(0.004, 0.001),
    }  # fmt: skip
    if step % 10 == 0:
        row["validation/strict_accuracy"] = 0.3 + 0.4 * way
    return row


def findings(change: Callable[[Row, int], Row], steps: int = STEPS) -> dict[str, tuple[int, str]]:
    """{name: (first step, sentence)} over a healthy run that `change` was put over; every line as the log keeps it."""
    noise, doctor, found = random.Random(0), Doctor(WINDOW), {}
    for step in range(1, steps + 1):
        row = healthy(step, noise)
        row = json.loads(json.dumps({k: v for k, v in (row | change(row, step)).items() if v != "absent"}))
        for each in doctor.read(row):
            assert each.name not in found and each.step == step >= each.since and each.change
            found[each.name] = (each.since, each.said)
    assert all(len(points) <= max(WINDOW, 20) for points in doctor.points.values()), "memory does not grow"
    return found


def late(row: dict[str, Callable[[int], Any] | Any], start: int = 41) -> Callable[[Row, int], Row]:
    """These values from a step on; a function is of the steps since then."""
    return lambda _, step: (
        {name: value(step - start) if callable(value) else value for name, value in row.items()}
        if step >= start
        else {}
    )


# Those values that a pathology takes, the step it begins at, its name, the numbers that are said.
SICK = [
    (late({"informative_share": 0.02, "groups/solved": 0.9, "groups/unsolved": 0.08}), 41, "no_signal", "all right in "),
    (late({"informative_share": 0.0, "groups/unsolved": 1.0, "accuracy": 0.0}, 1), 1, "no_signal", "all wrong in 100%"),
    (late({"informative_share": 0.3, "groups/solved": 0.65}), 41, "solved", "of the groups all answers earned the same (all right in "),
    (late({"informative_share": 0.3, "groups/unsolved": 0.65}), 41, "unsolved", "all wrong in "),
    (late({"informative_share": 0.3, "groups/blind": 0.65}), 41, "blind", "right and wrong alike in "),
    (late({"truncated_share": 0.6}), 41, "truncated", "of the answers ran into the token limit"),
    (late({"entropy": 0.001, "accuracy": 0.4}), 41, "entropy_collapse", "nats, accuracy from"),
    (late({"variance_share/format": 0.99, "variance_share/correct": 0.01, "reward_accuracy_correlation": 0.05}), 41,
     "one_reward", "format makes 9"),
    (late({"variance_share/format": 1.0, "variance_share/correct": 0.0, "reward_accuracy_correlation": None}, 1), 1,
     "one_reward", "correlation 0.00"),  # nothing was ever right: there is nothing to go with
    (lambda row, step: {"accuracy": 0.3, "format_rate": 0.95 if step > 40 else 0.5}, 41, "format_only", "format from 50% to"),
    (lambda row, step: {"accuracy": 0.3, "format_rate": 0.42 if step > 40 else 0.22}, 41, "format_only",
     "from 22% to 42%"),  # only the mean, rounded up, is 20 points above
    (lambda row, step: {"accuracy": 0.3, "completions/mean_length": 600 if step > 40 else 200}, 41, "length_inflation", "tokens"),
    (lambda row, step: {"validation/strict_accuracy": 0.6 - max(0, step - 50) / 100} if step % 10 == 0 else {}, 50, "parting",
     "validation fell from 60%"),
    (lambda row, step: {"grad_norm": 5.0} if step in (47, 52, 53) else {}, 47, "gradient_spikes", "3 gradient norms above 10"),
    (lambda row, step: {"grad_norm": nan} if step == 33 else {}, 33, "gradient_spikes", "the gradient norm is nan"),
    (late({METRIC: 0.7}, 60), 60, "drift", "0.7 nats"),
    (late({"learning_rate": 0.0}, 81), 81, "no_learning_rate", "0 in 3 lines of the log in a row"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "since", "name", "said"), SICK, ids=[f"{row[2]} {row[1]}" for row in SICK])
def test_every_pathology_is_found_with_its_first_step(change, since: int, name: str, said: str) -> None:
    found = findings(change)
    assert found[name][0] == since and said in found[name][1], found
    early = {"no_signal": {"solved"}}  # on the way there
    assert set(found) - {name} <= early.get(name, set()), found


def test_every_finding_has_a_row() -> None:
    assert {row[2] for row in SICK} == set(CHECKS)


FINE = [
    (lambda row, step: {}, "it learns"),
    (lambda row, step: {"informative_share": 0.55, "groups/unsolved": 0.4}, "hard problems, half of the groups teach"),
    (lambda row, step: {"informative_share": float(step % 5 != 0)}, "one group a step: it teaches or does not"),
    (late({"accuracy": lambda n: 0.4 + n / 200, "completions/mean_length": lambda n: 240 + 6 * n}, 21), "longer, and better"),
    (lambda row, step: {"format_rate": min(1.0, 0.2 + step / 50), "accuracy": min(0.8, 0.1 + step / 100)}, "both rise"),
    (lambda row, step: {"entropy": 0.5 * 0.95**step, "accuracy": min(0.95, 0.3 + step / 50)}, "sure of itself, and right"),
    (late({"variance_share/format": 0.0, "variance_share/correct": 1.0}), "only right answers differ: format is learned"),
    (late({f"variance_share/{name}": None for name in ("format", "correct")}, 1), "one reward alone"),
    (lambda row, step: {"learning_rate": 1e-5 * (1 + cos(pi * step / STEPS)) * (step > 1)}, "warm-up and cosine"),
    (lambda row, step: {"grad_norm": 3.0} if step == 30 else {}, "one outlier, clipped"),
    (lambda row, step: {"grad_norm": 0.0 if step % 3 else 0.2}, "batches without a gradient"),
    (lambda row, step: {"validation/strict_accuracy": 0.5 + 0.04 * (step % 20 == 0)} if step % 10 == 0 else {},
     "validation goes up and down within its noise"),
    (lambda row, step: {"reward": 1.5, **({"validation/strict_accuracy": 0.6 - step / 400} if step % 10 == 0 else {})},
     "validation falls, and the reward does not rise"),
    (lambda row, step: dict.fromkeys(set(row) - {"step", "loss", "grad_norm", "learning_rate"}, "absent") if step % 2 else {},
     "a batch used twice: no reward"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "why"), FINE, ids=[row[1] for row in FINE])
def test_a_healthy_run_is_left_in_peace(change, why: str) -> None:
    assert findings(change, STEPS) == {}, why


def test_a_resume_reads_the_log_again_and_goes_on_as_if_it_had_not_stopped() -> None:
    rows = [healthy(step, random.Random(step)) | SICK[2][0]({}, step) for step in range(1, 61)]
    whole, first, second = Doctor(WINDOW), Doctor(WINDOW), Doctor(WINDOW)
    told = [finding for row in rows for finding in whole.read(row)]
    before = [finding for row in rows[:45] for finding in first.read(row)]
    [second.read(row) for row in rows[:45]]
    assert before == [] and [finding for row in rows[45:] for finding in second.read(row)] == told != []


def group(*answers: tuple[bool, float, float], name: str = "p") -> list[Row]:
    """(right, what the two rewards gave) of each answer to a prompt."""
    return [{"id": name, "strict": right, "rewards": {"a": a, "b": b}} for right, a, b in answers]


YES, NO = (True, 1.0, 0.5), (False, 0.0, 0.5)
GROUPS = [
    (group(YES, YES), [False] * 2, {"groups/solved": 1.0, "groups/unsolved": 0.0}, "all right"),
    (group(NO, NO), [False] * 2, {"groups/unsolved": 1.0, "groups/solved": 0.0}, "all wrong"),
    (group((True, 1, 1), (False, 1, 1)), [False] * 2, {"groups/blind": 1.0}, "the rewards do not see it"),
    (group(YES, NO) + group(NO, NO, name="q"), [True] * 2 + [False] * 2,
     {"groups/unsolved": 0.5, "variance_share/a": 1.0, "reward_accuracy_correlation": 1.0}, "one of two teaches"),
    (group((True, 0, 3), (False, 1, 0)), [True] * 2,
     {"variance_share/a": 0.1, "variance_share/b": 0.9, "reward_accuracy_correlation": 1.0}, "the weight counts"),
    (group((True, 0, 0), (False, 1, 0)), [True] * 2, {"reward_accuracy_correlation": -1.0}, "wrong answers are paid"),
    (group((False, None, 1), (False, 1, 0)), [True] * 2, {"variance_share/a": 0.5}, "not judged counts nothing"),
]  # fmt: skip


@pytest.mark.parametrize(("rows", "informative", "expected", "why"), GROUPS, ids=[row[3] for row in GROUPS])
def test_what_is_measured_of_groups(rows: list[Row], informative: list[bool], expected: Row, why: str) -> None:
    found = of_groups(rows, informative, {"a": 1.0, "b": 1.0})
    assert {name: found[name] for name in expected} == pytest.approx(expected), why
    assert "reward_accuracy_correlation" in found or len({row["strict"] for row in rows}) < 2 or not any(informative)


def test_a_run_that_learns_nothing_ends_by_itself_with_everything_whole(tmp_path: Path) -> None:
    """A warm-up that floats round down to 0: run.halt_on ends it, killed in its last evaluation it is summed up, and where it is asked
    to go on, evaluation.patience has counted from the beginning."""
    words = ["--config", "configs/demo.yaml", f"run.output_dir={tmp_path}", *SMALL, "run.halt_on=[no_learning_rate]",
             "grpo.learning_rate=5.0e-324", "grpo.max_steps=6", "grpo.save_steps=100", "evaluation.every_steps=1",
             "evaluation.limit=8", "evaluation.samples=2", "grpo.warmup_steps=100"]  # fmt: skip
    done = run_script("src/train.py", *words)
    assert done.returncode == 3, done.stdout + done.stderr
    printed, run = " ".join(done.stdout.split()), runs.Run(tmp_path / "demo")
    assert (
        "Of 100 groups at least" in printed and "The training ends here: run.halt_on names no_learning_rate" in printed
    )
    (found,) = runs.read_jsonl(run.findings)
    assert (found["since"], found["step"]) == (1, 3) and "0 in 3 lines of the log" in found["said"]
    assert len(found["evidence"]) == 2 and all(row["completion"] and row["step"] == 3 for row in found["evidence"])
    summary = json.loads(run.summary.read_text())
    assert summary["steps"] == 3 and "no_learning_rate" in summary["ended"] and summary["findings"] == [found]
    assert found["said"] in summary["diagnoses"] and summary["prospects"]["said"] in printed
    rows = list(runs.read_jsonl(run.metrics))
    assert summary["prospects"]["seen"] == pytest.approx(sum(row["informative_share"] for row in rows) / 3)
    for row in rows:
        equal = sum(row[f"groups/{kind}"] for kind in ("solved", "unsolved", "blind"))
        assert equal == pytest.approx(1 - row["informative_share"]), "the kinds are those of all groups without signal"
    page = run.report.read_text(encoding="utf-8")
    assert "Findings, from their first step on" in page and "Ended early: run.halt_on" in page
    assert (run.adapter / "adapter_model.safetensors").is_file() and (run.merged / "model.safetensors").is_file()
    assert run.last_checkpoint().step == 3

    run.summary.unlink()  # as if it had been killed in its last evaluation
    done = run_script("src/train.py", "--config", run.config_file, "--resume")
    assert done.returncode == 3 and json.loads(run.summary.read_text())["steps"] == 3, done.stdout + done.stderr
    done = run_script("src/train.py", "--config", run.config_file, "--resume", "evaluation.patience=4")
    assert done.returncode == 0, done.stdout + done.stderr
    assert [row["step"] for row in runs.read_jsonl(run.validation)] == [0, 1, 2, 3, 4]
    summary = json.loads(run.summary.read_text())
    assert summary["steps"] == 4 and summary["findings"] == [found], "not halted again for what was told"
    assert "in 4 evaluations; the best are those of step 4 (evaluation.patience)" in summary["ended"]
