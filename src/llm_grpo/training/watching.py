"""Around TRL's training loop: the bar, the metrics file, validation with the best adapter, a gentle stop."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from transformers import TrainerCallback

from llm_grpo import runs
from llm_grpo.config.schema import Config
from llm_grpo.diagnosis.drift import METRIC, Drift
from llm_grpo.files import swap_in, write_json
from llm_grpo.report.page import write_report
from llm_grpo.report.tables import sample_text
from llm_grpo.runs import Run
from llm_grpo.training.stopping import GentleStop


@dataclass(frozen=True)
class Watch:
    """The callbacks of one training run."""

    stop: GentleStop  # first, so that the others know of a stop
    validation: Validation
    bar: ProgressBar
    metrics: MetricsFile
    samples: SampleEvery
    drift: DriftWarning
    report: ReportRefresh

    def callbacks(self) -> list[TrainerCallback]:
        return list(vars(self).values())


class MetricsFile(TrainerCallback):
    """Every logged step as one line of metrics.jsonl, whatever logging.report_to says.

    A step that trains on completions of an earlier one has a loss and no reward.
    """

    def __init__(self, run: Run) -> None:
        self.run = run

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step >= state.max_steps:
            control.should_log = True  # the last steps too, where logging_steps does not divide their number

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        if logs and "loss" in logs:
            runs.append_jsonl(self.run.metrics, [{"step": state.global_step, "time": round(time.time(), 3), **logs}])


class DriftWarning(TrainerCallback):
    """Says once, with the likely causes, when engine and trainer disagree on the tokens that were sampled."""

    def __init__(self, console: Console, run: Run | None = None) -> None:
        self.console, self.drift, self.run = console, Drift(), run

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        for row in runs.read_jsonl(self.run.metrics) if self.run else ():
            self.on_log(args, state, control, row) if METRIC in row and not self.drift.warned else None

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        said = self.drift(logs[METRIC]) if logs and METRIC in logs else None
        if said:
            self.console.print(f"step {state.global_step}: {said}", style="yellow", highlight=False, soft_wrap=True)


class ProgressBar(TrainerCallback):
    """A bar with reward and accuracy; where the output is no terminal, a line for every tenth of the way."""

    def __init__(self, console: Console) -> None:
        self.console, self.said = console, 0
        self.reward: float | None = None
        self.accuracy: float | None = None
        columns = (
            TextColumn("training"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        self.bar = Progress(
            *columns, TextColumn("{task.description}"), console=console, disable=not console.is_terminal
        )

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.line = self.bar.add_task("", total=state.max_steps, completed=state.global_step)
        self.said = state.global_step * 10 // state.max_steps
        self.bar.start()

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        if not logs or "loss" not in logs:
            return
        self.reward = logs.get("reward", self.reward)  # a step that uses a batch again has none
        self.accuracy = logs.get("accuracy", self.accuracy)
        said = f"reward {_number(self.reward)}  accuracy {_number(self.accuracy)}"
        self.bar.update(self.line, completed=state.global_step, description=said)
        tenth = state.global_step * 10 // state.max_steps
        if not self.console.is_terminal and tenth > self.said:
            self.said = tenth
            self.console.print(f"step {state.global_step}/{state.max_steps}  {said}", highlight=False)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.bar.stop()


class Validation(TrainerCallback):
    """Evaluate every N steps and at the end; keep the weights with the best strict accuracy (ties: the later one)."""

    def __init__(
        self, run: Run, every: int, evaluate: Callable[[], dict[str, Any]], save: Callable[[Path], None]
    ) -> None:
        self.run, self.every, self.evaluate, self.save = run, every, evaluate, save
        self.metrics: dict[str, list[float]] | None = None  # TRL's, set once there is a trainer
        self.postponed = False  # the validation of the step in hand waits for the resume

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.every and state.global_step == 0:
            self._validate(0)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        last = state.global_step == state.max_steps
        due = self.every and (state.global_step % self.every == 0 or last)
        self.postponed = bool(due) and control.should_training_stop and not last  # a stop is not held up by it
        if due and not self.postponed:
            self._validate(state.global_step)

    def _validate(self, step: int) -> None:
        start = time.perf_counter()
        report = self.evaluate()
        runs.append_jsonl(self.run.validation, [{"step": step, **report}])
        if step and report["strict_accuracy"] >= self.run.best_validation().get("strict_accuracy", -1):
            draft = self.run.best.with_name(f".{self.run.best.name}.measured")
            self.save(draft)
            write_json(draft / "validation.json", {"step": step, **report})
            swap_in(draft, self.run.best)
        if step and self.metrics is not None:
            for name in ("strict_accuracy", "lenient_accuracy", "format_rate"):
                self.metrics[f"validation/{name}"].append(report[name])
            self.metrics["seconds/validation"].append(time.perf_counter() - start)


class SampleEvery(TrainerCallback):
    """Print a question, its gold answer, a response and what was extracted from it, every N steps."""

    def __init__(self, run: Run, every: int, console: Console) -> None:
        self.run, self.every, self.console = run, every, console

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.every and state.global_step % self.every == 0:
            files = self.run.completion_files()  # several updates may share a generation batch
            for row in islice(runs.read_jsonl(files[-1]), 1) if files else ():
                self.console.print(sample_text(row, state.global_step), soft_wrap=True)


class ReportRefresh(TrainerCallback):
    """Writes report.html anew while the run goes, so seldom that it takes at most a hundredth of the time."""

    SHARE = 0.01

    def __init__(self, run: Run) -> None:
        self.run, self.next = run, time.perf_counter() + 30.0

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if (start := time.perf_counter()) >= self.next:
            write_report(self.run)
            self.next = time.perf_counter() + (time.perf_counter() - start) / self.SHARE


def watch(
    config: Config, run: Run, console: Console, evaluate: Callable[[], dict[str, Any]], save: Callable[[Path], None]
) -> Watch:
    """All of the above for one run. evaluate: () -> a validation report; save: a folder -> the weights are in it."""
    return Watch(
        GentleStop(console),
        Validation(run, config.evaluation.every_steps, evaluate, save),
        ProgressBar(console),
        MetricsFile(run),
        SampleEvery(run, config.logging.sample_every, console),
        DriftWarning(console, run),
        ReportRefresh(run),
    )


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
