"""What a run came to: summary.json, and the same numbers for a person."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rich.console import Console

from llm_grpo import runs
from llm_grpo.config.schema import Config
from llm_grpo.diagnosis.diagnoses import diagnose
from llm_grpo.diagnosis.prospects import checked
from llm_grpo.evaluation.comparison import compare, pairs_of, stages
from llm_grpo.evaluation.scoring import without_items
from llm_grpo.files import read_json
from llm_grpo.planning.memory import memory_of
from llm_grpo.planning.shapes import model_shape
from llm_grpo.report.confusion import draw_confusion
from llm_grpo.report.notices import say_diagnoses, say_prospects
from llm_grpo.report.tables import classes_table, comparison_table, spent_text
from llm_grpo.runs import Run
from llm_grpo.training.spending import of_run

if TYPE_CHECKING:
    from llm_grpo.training.optimising import Trained


def summarise(
    config: Config, run: Run, before: Mapping[str, Any], after: Mapping[str, Any], trained: Trained
) -> dict[str, Any]:
    """What summary.json holds; before and after are evaluations of the same problems, with their items."""
    rows, findings = run.steps(), list(runs.read_jsonl(run.findings))
    which = "best on validation" if run.chosen_weights() == run.best else "the last"
    if not run.chosen_step():
        which += ": GRPO has not bettered what it started from"
    return {
        "name": config.run.name,
        "model": config.model.name,
        "task": config.task.name,
        "seed": config.run.seed,
        "steps": runs.last_step(run),
        "train_seconds": round(trained.seconds, 1),
        "ended": trained.ended,
        "evaluated": f"{run.chosen_weights().name}, step {run.chosen_step()} ({which})",
        "spent": _spent(config, run, rows, trained.seconds),
        "prospects": checked(before.get("prospects"), rows, config.grpo["num_generations"]),
        "diagnoses": [*diagnose(after, rows), *(finding["said"] for finding in findings)],
        "findings": findings,
        "before": without_items(before),
        "after": without_items(after),
        "paired": compare(before, after),
        **_of_sft(run, before, after),
    }


def _spent(config: Config, run: Run, rows: list[dict[str, Any]], train_seconds: float) -> dict[str, Any]:
    """Time, tokens and memory of the training: `hours` are those of the updates, times the processes that trained."""
    machine = read_json(run.environment) or {}
    shape, card = model_shape(config.model.name), machine.get("gpu_memory_gb")
    planned = memory_of(config, shape, bool(card), card and card * 1e9).allocated if shape else None
    return of_run(rows) | {
        "hours": train_seconds * int(os.environ.get("WORLD_SIZE", 1)) / 3600,
        "device": machine.get("gpu") or f"{machine.get('torch_threads')} CPU threads",
        "price_per_hour": config.run.price_per_hour,
        "memory_planned_gb": planned and planned / 1e9,
        "memory_peak_gb": max((row.get("memory_peak_gb") or 0.0 for row in rows), default=0.0),
    }


def _of_sft(run: Run, before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    """What stood between the two phases, paired with what was before it and what came after; {} without SFT."""
    between = read_json(run.after_sft)
    if not between:
        return {}
    return {"after_sft": without_items(between), "sft": compare(before, between), "grpo": compare(between, after)}


def say_result(
    console: Console, run: Run, summary: Mapping[str, Any], before: Mapping[str, Any], after: Mapping[str, Any]
) -> None:
    """The tables of the end, the confusion matrix where the task has classes, and what is wrong."""
    for (left, old), (right, new) in pairs_of(stages(before, read_json(run.after_sft), after)):
        title = f"{after['n']} held-out problems, {left} and {right}"
        console.print(comparison_table(old, new, compare(old, new), title))
    if classes := classes_table(after, "after training, by class"):
        console.print(classes)
    draw_confusion({"before": before, "after": after}, run.confusion)
    say_diagnoses(console, summary["diagnoses"])
    say_prospects(console, summary)
    done = f"{summary['steps']} steps in {summary['train_seconds']:.0f} s of training"
    console.print(f"{done}; evaluated after: {summary['evaluated']}")
    console.print(spent_text(summary))
