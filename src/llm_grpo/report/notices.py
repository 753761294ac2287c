"""What a verb tells the person who started it: choices with reasons, what was left out, where things are, what next."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping
from typing import Any

from rich.console import Console
from rich.panel import Panel
from rich.text import Text

from llm_grpo import command, processes
from llm_grpo.problems import Prepared
from llm_grpo.report.tables import harmless
from llm_grpo.runs import Run

QUESTION = "Mia has 6 boxes with 7 pens in each and gives 12 to Tom. How many pens are left?"


def say_choices(console: Console, choices: Mapping[str, str]) -> None:
    for name, reason in choices.items():
        console.print(f"  {name}: {reason}", style="dim")


def say_diagnoses(console: Console, diagnoses: Iterable[str]) -> None:
    for said in diagnoses:
        console.print(said, style="bold yellow", soft_wrap=True)


def say_finding(console: Console, finding: Mapping[str, Any]) -> None:
    """What the doctor found in a run that goes on, with the value to change and two completions that show it."""
    said = f"step {finding['step']}: {finding['said']} Change: {finding['change']}."
    console.print(said, style="yellow", highlight=False, markup=False, soft_wrap=True)
    for row in finding["evidence"]:
        shown = " ".join(harmless(row["completion"]).split())
        console.print(Text(f"  {row['id']}, step {row['step']}: {shown[:160]}"), style="dim", soft_wrap=True)


def say_prospects(console: Console, told: Mapping[str, Any]) -> None:
    """Will it learn, or has it? Of a report or a summary; known with evaluation.samples above 1."""
    if found := told.get("prospects"):
        console.print(found["said"], style="bold", highlight=False, markup=False, soft_wrap=True)


def say_left_out(console: Console, data: Iterable[Prepared], shown: int = 5) -> None:
    """Name the rows that could not be used and the prompts that do not fit, a few each, with counts.

    Splits cut from one file report the same bad rows; each is said once.
    """
    told: set[str] = set()
    for prepared in data:
        said = [str(row) for row in prepared.bad_rows]
        said += [f"{name}: its prompt has {tokens} tokens and does not fit" for name, tokens in prepared.too_long]
        news = [line for line in said if line not in told]
        told.update(news)
        if news:
            console.print(f"{prepared.split}: {len(news)} left out, {len(prepared.problems)} used", style="yellow")
            more = [f"... and {len(news) - shown} more"] if len(news) > shown else []
            for line in [*news[:shown], *more]:
                console.print(f"  {line}")


def cannot_run(missing: Iterable[str]) -> Panel:
    """One screen: what is missing here, and what can be done instead."""
    lines = "\n".join(f"- {line}" for line in missing)
    said = f"This machine lacks what the config asks for:\n{lines}\n\nWhat works here:\n"
    said += "  make demo                                                    the same job on a small model, on a CPU\n"
    said += "  python src/train.py --config YAML --dry-run                  what this config would do"
    return Panel(said, title="Cannot run here", title_align="left")


def where(run: Run) -> Panel:
    """The places of a finished run."""
    said = (
        f"{run.learns:<15}{run.chosen_weights()}\n"
        f"merged model   {run.merged}\n"
        f"numbers        {run.summary}, {run.metrics}, {run.folder / 'eval'}\n"
        f"every answer   {run.completions}\n"
        f"curves         {run.curves}\n"
        f"to look into   {run.report} (open it in a browser)"
    )
    return Panel(said, title="Where everything is", title_align="left")


def try_next(run: Run) -> str:
    """Whole lines, to be copied."""
    python, folder, file = command.python(), shlex.quote(str(run.folder)), shlex.quote(str(run.config_file))
    return (
        f"Try next:\n"
        f"  {python} src/infer.py --run {folder} --prompt '{QUESTION}'\n"
        f"  {python} src/eval.py --config {file} --run {folder} --split test --samples 4\n"
        f"  {python} src/train.py --config configs/grpo.yaml --dry-run"
    )


def again(run: Run) -> str:
    """The command that goes on; without a checkpoint there is nothing to go on from."""
    count = processes.count()
    start = f"torchrun --nproc_per_node {count}" if count > 1 else command.python()
    command_line = f"{start} src/train.py --config {shlex.quote(str(run.config_file))}"
    if run.last_checkpoint() is None:
        return f"There is no checkpoint yet (grpo.save_steps); begin again with:\n  {command_line} --overwrite"
    return f"Go on with:\n  {command_line} --resume"
