"""Around TRL's training loop: the bar, the metrics file, validation with the best adapter, a gentle stop."""

from __future__ import annotations

import heapq
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import timedelta
from itertools import islice
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from transformers import TrainerCallback

from llm_grpo import processes, runs
from llm_grpo.config.schema import Config
from llm_grpo.diagnosis.live import CHECKS, Doctor
from llm_grpo.files import swap_in, write_json
from llm_grpo.planning.batch import explain_batch
from llm_grpo.report.notices import say_finding
from llm_grpo.report.page import write_report
from llm_grpo.report.tables import sample_text
from llm_grpo.runs import Run
from llm_grpo.training.stopping import HALTED, GentleStop

MOST_SHOWN = 2000  # characters of a completion that is kept as evidence


@dataclass(frozen=True)
class Watch:
    """The callbacks of one training run."""

    stop: GentleStop  # first, so that the others know of a stop
    validation: Validation
    bar: ProgressBar
    metrics: MetricsFile
    samples: SampleEvery
    doctor: LiveDoctor
    report: ReportRefresh

    def callbacks(self) -> list[TrainerCallback]:
        """All of them in the first process; in the others those that decide how the training goes on."""
        deciding = [self.stop, self.validation, self.metrics, self.doctor]
        return list(vars(self).values()) if processes.is_first() else deciding

    def say(self, line: str) -> None:
        """A line above the bar."""
        self.bar.console.print(line, style="yellow", highlight=False, markup=False, soft_wrap=True)


class MetricsFile(TrainerCallback):
    """Every logged step as one line of metrics.jsonl, whatever logging.report_to says.

    A step that trains on completions of an earlier one has a loss and no reward.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step >= state.max_steps:
            control.should_log = True  # the last steps too, where logging_steps does not divide their number

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        if logs and "loss" in logs:
            runs.append_jsonl(self.path, [{"step": state.global_step, "time": round(time.time(), 3), **logs}])


class LiveDoctor(TrainerCallback):
    """Says what goes wrong while it does (diagnosis/live.py), keeps it in findings.jsonl with two completions that show
    it, and ends the run where run.halt_on names it."""

    STEPS, GROUPS = 20, 100  # of a mean that says something, at least

    def __init__(self, config: Config, run: Run, console: Console, stop: GentleStop) -> None:
        self.config, self.run, self.console, self.stop = config, run, console, stop

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        batch = explain_batch(self.config, processes=processes.count())
        updates = max(self.STEPS, self.GROUPS / batch.prompts_per_update)
        a_line = max(state.logging_steps, batch.updates_per_generation)  # updates between two lines with a reward
        self.doctor = Doctor(max(1, min(math.ceil(updates / a_line), int(state.max_steps / a_line))))
        for row in runs.read_jsonl(self.run.metrics):  # a resume: what was told is not told again, nor halted on
            self.doctor.read(row)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        if logs and "loss" in logs:
            for why in processes.from_first(lambda: self._told({"step": state.global_step, **logs})):
                self.stop.end(control, why, HALTED)

    def _told(self, row: dict[str, Any]) -> list[str]:
        """What is new in a line of the log, told; why the run has to end."""
        why = []
        for finding in self.doctor.read(row):
            told = asdict(finding) | {"evidence": self._evidence(finding.name)}
            runs.append_jsonl(self.run.findings, [told])
            say_finding(self.console, told)
            if finding.name in self.config.run.halt_on:
                why.append(f"run.halt_on names {finding.name}. {finding.said}")
        return why

    def _evidence(self, name: str) -> list[dict[str, Any]]:
        """Two completions of the newest generation batch, not the same words of one problem if there are others."""
        rows = [row for file in self.run.completion_files()[-1:] for row in runs.read_jsonl(file)]
        apart = {(row["id"], row["completion"]): row for row in rows}.values()
        shown = [row for some in (apart, rows) for row in heapq.nlargest(2, some, key=CHECKS[name].shows)][:2]
        kept = ("step", "id", "strict", "advantage", "completion")
        return [{key: row[key] for key in kept} | {"completion": row["completion"][:MOST_SHOWN]} for row in shown]


class ProgressBar(TrainerCallback):
    """A bar with the last values of `shown`; where the output is no terminal, a line for every tenth of the way."""

    def __init__(self, console: Console, what: str = "training", shown: Sequence[str] = ("reward", "accuracy")) -> None:
        self.console, self.said, self.what = console, 0, what
        self.values: dict[str, float | None] = dict.fromkeys(shown)
        columns = (
            TextColumn(what),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        self.bar = Progress(  # a step may take longer than the 30 s that rich looks back
            *columns, TextColumn("{task.description}"), console=console, disable=not console.is_terminal,
            speed_estimate_period=3600,
        )  # fmt: skip

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.line = self.bar.add_task("", total=state.max_steps, completed=state.global_step)
        self.said = state.global_step * 10 // state.max_steps
        self.bar.start()

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        if not logs or "loss" not in logs:
            return
        # a step that uses a batch again has no reward
        self.values |= {name: logs[name] for name in self.values.keys() & logs.keys()}
        said = "  ".join(f"{name} {_number(value)}" for name, value in self.values.items())
        self.bar.update(self.line, completed=state.global_step, description=said)
        tenth = state.global_step * 10 // state.max_steps
        if not self.console.is_terminal and tenth > self.said:
            self.said = tenth
            left = timedelta(seconds=round(self.bar.tasks[0].time_remaining or 0))
            step = f"{self.what} step" if self.what != "training" else "step"
            done = f"{step} {state.global_step}/{state.max_steps}  {said}"
            self.console.print(f"{done}  {left} left", highlight=False)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.bar.stop()


class Validation(TrainerCallback):
    """Evaluate every N steps and at the end; keep the weights with the best strict accuracy (ties: the later one).
    Those of step 0 are among them where they have learned something before: by SFT, or in `lora.from`.

    After `patience` evaluations in a row that did not raise it, the training ends (0: never). due: the step that
    has just ended wants it. The trainer does it then (resuming.py): a stop may come meanwhile.
    """

    def __init__(
        self,
        config: Config,
        run: Run,
        evaluate: Callable[[], dict[str, Any]],
        save: Callable[[Path], None],
        stop: GentleStop,
    ) -> None:
        self.run, self.evaluate, self.save, self.stop = run, evaluate, save, stop
        self.every, self.patience = config.evaluation.every_steps, config.evaluation.patience
        self.learned_before = bool(config.sft or config.lora and config.lora.from_)
        self.highest, self.in_vain = -1.0, 0  # strict accuracy, and the evaluations since then
        self.metrics: dict[str, list[float]] | None = None  # TRL's, set once there is a trainer
        self.due = False

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        for row in runs.read_jsonl(self.run.validation):  # of a run that goes on
            self._count(row["strict_accuracy"])
        if self.every and state.global_step == 0:
            self.validate(0)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        step = state.global_step
        self.due = bool(self.every) and (step % self.every == 0 or step == state.max_steps)

    def held(self, state: Any, control: Any) -> None:
        """The validation that is due, and what follows from it for the training."""
        self.validate(state.global_step)
        if 0 < self.patience <= self.in_vain and state.global_step != state.max_steps:
            best = processes.from_first(lambda: f"the best are those of step {self.run.best_validation()['step']}")
            said = f"validation has not risen above {self.highest:.1%} in {self.in_vain} evaluations; {best}"
            self.stop.end(control, f"{said} (evaluation.patience).")

    def _count(self, accuracy: float) -> None:
        self.in_vain = 0 if accuracy > self.highest else self.in_vain + 1
        self.highest = max(self.highest, accuracy)

    def _is_best(self, step: int, report: dict[str, Any]) -> bool:
        best = self.run.best_validation().get("strict_accuracy", -1)
        return (step > 0 or self.learned_before) and report["strict_accuracy"] >= best

    def validate(self, step: int) -> None:
        start = time.perf_counter()
        found = self.evaluate()
        report = processes.from_first(lambda: found)  # a judge may say one thing here and another there
        runs.append_jsonl(self.run.validation, [{"step": step, **report}])
        self._count(report["strict_accuracy"])
        if processes.from_first(lambda: self._is_best(step, report)):
            draft = self.run.best.with_name(f".{self.run.best.name}.measured")
            self.save(draft)
            write_json(draft / "validation.json", {"step": step, **report})
            swap_in(draft, self.run.best)
        if step and self.metrics is not None:
            for name in ("strict_accuracy", "lenient_accuracy", "format_rate"):
                self.metrics[f"validation/{name}"].append(report[name])
            self.metrics["seconds/validation"].append(time.perf_counter() - start)
        self.due = False


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
    stop = GentleStop(console)
    return Watch(
        stop,
        Validation(config, run, evaluate, save, stop),
        ProgressBar(console),
        MetricsFile(run.metrics),
        SampleEvery(run, config.logging.sample_every, console),
        LiveDoctor(config, run, console, stop),
        ReportRefresh(run),
    )


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
