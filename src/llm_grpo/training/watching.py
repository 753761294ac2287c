"""Around TRL's training loop: the bar, the metrics file, validation with the best adapter, a gentle stop."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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
from llm_grpo.report.page import write_report
from llm_grpo.report.tables import sample_text
from llm_grpo.runs import Run


@dataclass(frozen=True)
class Watch:
    """The callbacks of one training run."""

    validation: Validation
    stop: GentleStop
    bar: ProgressBar
    metrics: MetricsFile
    samples: SampleEvery
    drift: DriftWarning
    report: ReportRefresh

    def callbacks(self) -> list[TrainerCallback]:
        return list(vars(self).values())


class MetricsFile(TrainerCallback):
    """Every logged step as one line of metrics.jsonl, whatever logging.report_to says."""

    def __init__(self, run: Run) -> None:
        self.run = run

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        if logs and "reward" in logs:
            runs.append_jsonl(self.run.metrics, [{"step": state.global_step, "time": round(time.time(), 3), **logs}])


class DriftWarning(TrainerCallback):
    """Says once, with the likely causes, when engine and trainer disagree on the tokens that were sampled."""

    def __init__(self, console: Console) -> None:
        self.console, self.drift = console, Drift()

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        said = self.drift(logs[METRIC]) if logs and METRIC in logs else None
        if said:
            self.console.print(f"step {state.global_step}: {said}", style="yellow", highlight=False, soft_wrap=True)


class ProgressBar(TrainerCallback):
    """A bar with reward and accuracy; where the output is no terminal, a line for every tenth of the way."""

    def __init__(self, console: Console) -> None:
        self.console, self.said = console, 0
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
        self.bar.start()

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        if not logs or "reward" not in logs:
            return
        said = f"reward {_number(logs['reward'])}  accuracy {_number(logs.get('accuracy'))}"
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
        self.seconds = 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.every and state.global_step == 0:
            self._validate(0)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.every and (state.global_step % self.every == 0 or state.global_step == state.max_steps):
            self._validate(state.global_step)

    def _validate(self, step: int) -> None:
        start = time.perf_counter()
        report = self.evaluate()
        runs.append_jsonl(self.run.validation, [{"step": step, **report}])
        if step and report["strict_accuracy"] >= self.run.best_validation().get("strict_accuracy", -1):
            self.save(self.run.best)
            runs.write_json(self.run.best / "validation.json", {"step": step, **report})
        if step and self.metrics is not None:
            for name in ("strict_accuracy", "lenient_accuracy", "format_rate"):
                self.metrics[f"validation/{name}"].append(report[name])
            self.metrics["seconds/validation"].append(time.perf_counter() - start)
        self.seconds += time.perf_counter() - start


class GentleStop(TrainerCallback):
    """Ctrl-C (or SIGTERM): finish the step, save a checkpoint, stop. A second one stops at once."""

    def __init__(self, console: Console) -> None:
        self.console, self.asked = console, False

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.asked:
            control.should_training_stop = control.should_save = True

    @contextmanager
    def listening(self) -> Iterator[None]:
        """While this lasts, the first signal is a wish and the second a KeyboardInterrupt."""
        before = {number: signal.signal(number, self._ask) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _ask(self, number: int, frame: Any) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
        self.console.print("\nStopping after this step; press Ctrl-C again to stop at once.")


class SampleEvery(TrainerCallback):
    """Print a question, its gold answer, a response and what was extracted from it, every N steps."""

    def __init__(self, run: Run, every: int, console: Console) -> None:
        self.run, self.every, self.console = run, every, console

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.every and state.global_step % self.every == 0:
            files = sorted(self.run.completions.glob("step_*.jsonl"))  # several updates may share a generation batch
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
        Validation(run, config.evaluation.every_steps, evaluate, save),
        GentleStop(console),
        ProgressBar(console),
        MetricsFile(run),
        SampleEvery(run, config.logging.sample_every, console),
        DriftWarning(console),
        ReportRefresh(run),
    )


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
