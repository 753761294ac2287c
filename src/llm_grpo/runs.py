"""The run folder: one place per run, everything in it readable without us, nothing in it half-written.

outputs/NAME/  config.yaml  environment.json  metrics.jsonl  completions/  checkpoints/  adapter/  adapter_best/
               merged/  curves.png  eval/before.json  eval/validation.jsonl  eval/after.json  summary.json

With `lora: null` whole models are learned: model/ and model_best/ stand where the adapters would. With `sft:` there are
sft/ (its metrics and checkpoints), adapter_sft/ and eval/after_sft.json besides.
"""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llm_grpo import checkpoints
from llm_grpo.checkpoints import Checkpoint
from llm_grpo.config.loading import load_config
from llm_grpo.config.schema import Config
from llm_grpo.config.yaml_text import write_yaml
from llm_grpo.errors import UserError
from llm_grpo.files import append_jsonl, read_json, read_jsonl, restore, write_text
from llm_grpo.lock import hold

PLACES = {
    "config_file": "config.yaml",
    "environment": "environment.json",
    "metrics": "metrics.jsonl",
    "findings": "findings.jsonl",
    "completions": "completions",
    "checkpoints": "checkpoints",
    "sft": "sft",
    "sft_metrics": "sft/metrics.jsonl",
    "adapter": "adapter",
    "adapter_best": "adapter_best",
    "model": "model",
    "model_best": "model_best",
    "merged": "merged",
    "curves": "curves.png",
    "report": "report.html",
    "before": "eval/before.json",
    "validation": "eval/validation.jsonl",
    "after_sft": "eval/after_sft.json",
    "after": "eval/after.json",
    "confusion": "eval/confusion.png",
    "summary": "summary.json",
    "progress": "progress.json",
    "log": "libraries.log",
    "reward_output": "rewards.log",
    "reward_troubles": "rewards.jsonl",
}
MOST_STEPS = 2048  # lines of metrics that are held at a time: ten megabytes


@dataclass(frozen=True)
class Run:
    """The paths of one run, as attributes named in PLACES. `create` makes the folders, `find` checks them.

    learns: what is learned here, and what its folders are called: "adapter", or "model" where all weights are trained.
    """

    folder: Path
    learns: str = "adapter"

    def __getattr__(self, name: str) -> Path:
        if name not in PLACES:
            raise AttributeError(name)
        return self.folder / PLACES[name]

    def config(self) -> Config:
        """The effective config the run was started with, whatever the environment says now."""
        return load_config(self.config_file, environment={})

    def last_checkpoint(self, *, hashes: bool = False) -> Checkpoint | None:
        """The newest whole checkpoint, of GRPO or else of the SFT before it; without hashes names and sizes tell."""
        return checkpoints.newest(self.checkpoints, hashes=hashes) or checkpoints.newest(self.sft, hashes=hashes)

    def steps(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl, MOST_STEPS of them or fewer in memory: of a longer run the means of 2, 4, 8 ...
        lines, which is what a larger logging_steps would have written."""
        rows: list[dict[str, Any]] = []
        waiting, together = [], 1
        for row in read_jsonl(self.metrics):
            waiting.append(row)
            if len(waiting) == together:
                rows.append(mean_of(waiting))
                waiting = []
            if len(rows) == MOST_STEPS:
                rows = [mean_of(pair) for pair in zip(rows[::2], rows[1::2], strict=True)]
                together *= 2
        return rows + ([mean_of(waiting)] if waiting else [])

    def completion_files(self) -> list[Path]:
        """What is in completions/, by step: one file for each update that generated."""
        return sorted(self.completions.glob("step_*.jsonl*"))

    @property
    def last(self) -> Path:
        """What was learned, as it was at the end."""
        return self.folder / self.learns

    @property
    def best(self) -> Path:
        """What was learned, as it was when it did best on validation."""
        return self.folder / f"{self.learns}_best"

    @property
    def warm(self) -> Path:
        """What SFT learned, and GRPO starts from."""
        return self.folder / f"{self.learns}_sft"

    @property
    def lock(self) -> Path:
        """Held while a process trains here; beside the folder, which may be set aside, or be a link."""
        folder = self.folder.resolve()
        return folder.with_name(f".{folder.name}.lock")

    @property
    def replaced(self) -> Path:
        """Where the run stands aside that this one replaces."""
        return self.folder.with_name(f".{self.folder.name}.replaced")

    def holds_results(self) -> bool:
        """Whether anything was learned here: an adapter or a model, a checkpoint (whole or not), a summary."""
        learned = (self.adapter, self.adapter_best, self.model, self.model_best)
        there = (self.summary, *learned, *checkpoints.by_step(self.checkpoints), *checkpoints.by_step(self.sft))
        return any(path.exists() for path in there)

    def chosen_weights(self) -> Path:
        """The adapter (or model) that was evaluated: the best by validation where there is one, else the last."""
        for folder in (self.best, self.last) if self.best_validation() else (self.last,):
            if (folder / "adapter_config.json").is_file() or is_whole_model(folder):
                return folder
        raise UserError(
            f"{self.folder}: holds no {self.learns} yet. Train it: python src/train.py --config {self.config_file}"
        )

    def best_validation(self) -> dict[str, Any]:
        """The validation report of the best weights, with its `step`; {} where there is none."""
        return read_json(self.best / "validation.json") or {}

    def chosen_step(self) -> int:
        """The step at which the chosen weights stood."""
        return self.best_validation()["step"] if self.chosen_weights() == self.best else last_step(self)


def mean_of(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Of each number, over the rows that have it; `step` and `time` are the last."""
    if len(rows) == 1:
        return dict(rows[0])
    names = dict.fromkeys(name for row in rows for name in row)
    there = {name: [row[name] for row in rows if row.get(name) is not None] for name in names}
    means = {name: sum(values) / len(values) for name, values in there.items() if values}
    return means | {name: rows[-1][name] for name in ("step", "time") if name in rows[-1]}


def is_whole_model(folder: Path) -> bool:
    """Whether a folder of weights needs no base: a model as transformers saves it, not an adapter."""
    return (folder / "config.json").is_file() and not (folder / "adapter_config.json").is_file()


def create(config: Config, *, overwrite: bool = False) -> Run:
    """A new run folder. What an existing run learned is never touched unless told to. Raises UserError.

    A run that stopped before it learned anything is simply begun again. A replaced run is set aside, and removed by
    `forget_replaced` when the new one is under way.
    """
    run = of(config)
    hold(run.lock)
    if run.folder.exists() and any(not path.name.startswith(".") for path in run.folder.iterdir()):
        if not run.config_file.is_file():
            raise UserError(f"{run.folder} has files and no config.yaml: not a run of ours. Change run.name.")
        if run.holds_results():
            if not overwrite:
                way = "Go on with it (--resume), choose" if run.last_checkpoint() else "Choose"
                raise UserError(
                    f"{run.folder} holds a run already. {way} another name (run.name=NAME), or --overwrite it."
                )
            shutil.rmtree(run.replaced, ignore_errors=True)
            run.folder.rename(run.replaced)
        else:  # by its config it is known as a run, whenever a kill comes
            for path in run.folder.iterdir():
                if path != run.config_file:
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
    return _laid_out(run, config)


def check_place(file: Path, config: Config) -> None:
    """A run's own config.yaml goes on with the run that it lies in. Raises UserError where its folder was moved."""
    here, said = file.resolve().parent, of(config).folder.resolve()
    if (here / PLACES["checkpoints"]).is_dir() and here != said:
        raise UserError(
            f"--resume: {file} lies in the folder of a run and names another, {said}. Where the folder was moved, add "
            f"run.output_dir={shlex.quote(str(here.parent))} run.name={here.name}"
        )


def reopen(config: Config, data: Mapping[str, str]) -> tuple[Run, Checkpoint]:
    """The folder of a run that goes on, and the newest whole checkpoint. data: `checkpoints.fingerprint` of its task.

    Raises UserError where there is nothing to go on from or nothing left to do, and where the config or the data would
    make another run of it.
    """
    run = of(config)
    hold(run.lock)
    checkpoint = run.last_checkpoint(hashes=True)
    if checkpoint is None:
        raise UserError(f"--resume: {run.folder} has no checkpoint to go on from. Start it without --resume.")
    checkpoints.check_unchanged(checkpoint, config, data)
    if checkpoint.finished(config.grpo) and (read_json(run.summary) or {}).get("steps") == checkpoint.step:
        raise UserError(f"--resume: {run.folder} is finished ({checkpoint.step} steps). Raise grpo.max_steps to go on.")
    for folder in (run.last, run.best):
        restore(folder)
    return _laid_out(run, config), checkpoint


def _laid_out(run: Run, config: Config) -> Run:
    """The folders of a run, and the config it runs with now."""
    text = write_yaml(
        config.as_dict(), "The effective config of this run, every default written out.\n" + origins(config)
    )
    try:
        write_text(run.config_file, text)
        for folder in (run.completions, run.checkpoints, run.before.parent):
            folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{run.folder} cannot be made ({error.strerror}). Change run.output_dir or run.name.") from None
    return run


def of(config: Config, folder: Path | None = None) -> Run:
    """Where the run of a config is, or will be."""
    return Run(folder or Path(config.run.output_dir) / config.run.name, "adapter" if config.lora else "model")


def forget_replaced(run: Run) -> None:
    """The new run is under way: what it replaced can go."""
    shutil.rmtree(run.replaced, ignore_errors=True)


def origins(config: Config) -> str:
    """One line per value that is not a default: where it came from."""
    return "\n".join(f"  {path}: {origin}" for path, _, origin in config.settings() if origin != "default")


def find(folder: str | Path) -> Run:
    """An existing run. Raises UserError with the runs that are there."""
    run = Run(Path(folder))
    if not run.config_file.is_file():
        near = sorted(str(p.parent) for p in run.folder.parent.glob("*/config.yaml"))
        raise UserError(f"{folder}: no run here (no config.yaml).{' There are: ' + ', '.join(near) if near else ''}")
    return of(run.config(), run.folder)


def forget_after(run: Run, checkpoint: Checkpoint | None) -> None:
    """Before a resume: drop what was logged after the checkpoint (None: all of it), because that is done again.

    The best weights stay, of whichever step: they were measured, and a better one takes their place.
    """
    step = checkpoint.step if checkpoint else -1
    logged = step if checkpoint is None or checkpoint.ended else step - 1
    for path, last in ((run.metrics, logged), (run.validation, logged), (run.findings, logged),
                       (run.reward_troubles, step)):  # fmt: skip
        cut_after(path, last)
    for path in run.completion_files():
        if int(path.name.partition(".")[0].rpartition("_")[2]) > step:
            path.unlink()


def cut_after(path: Path, step: int) -> None:
    """Drop the lines of later steps, where there is such a file."""
    if path.is_file():
        draft = path.with_name(f".{path.name}")
        draft.unlink(missing_ok=True)
        append_jsonl(draft, (row for row in read_jsonl(path) if (row["step"] or 0) <= step))
        draft.replace(path)


def last_step(run: Run) -> int:
    """The updates that the last weights have had, as the trainer counted them; 0 where there are none."""
    told = read_json(run.progress)
    return told["steps"] if told else max((row["step"] for row in read_jsonl(run.metrics)), default=0)
