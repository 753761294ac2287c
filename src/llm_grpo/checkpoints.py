"""What a run can go on from: a checkpoint is whole when its manifest says so, and the manifest is written last.

checkpoints/checkpoint-N/  what transformers and TRL keep, progress.pt (training/resuming.py), and manifest.json: names,
                           sizes and hashes of all of it, the config and the fingerprint of the data it was made with
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llm_grpo import processes
from llm_grpo.config.dotted import leaves
from llm_grpo.config.loading import check
from llm_grpo.config.schema import Config
from llm_grpo.errors import UserError
from llm_grpo.files import sha256, write_json
from llm_grpo.records import Split

MANIFEST = "manifest.json"
PROGRESS = "progress.pt"  # without it a checkpoint holds a model only (grpo.save_only_model)
OF_SFT = {"rng_state.pth", "rng_state_0.pth"}  # of transformers' own trainer, which does the SFT before GRPO

# What may be another on a resume, because nothing that was learned or measured so far depends on it. More steps are
# looked at apart (`_more_steps`).
MAY_CHANGE = (
    *("run.name", "run.output_dir", "logging.", "merge.", "evaluation.every_steps", "evaluation.batch_size"),
    *("run.halt_on", "evaluation.patience"),
    *("grpo.logging_steps", "grpo.save_steps", "grpo.save_total_limit", "grpo.max_steps", "grpo.num_train_epochs"),
    *("run.rehearse", "run.price_per_hour", "model.gpu_memory_utilization", "rollouts.standby"),
    *("rollouts.url", "rollouts.shared_dir", "rollouts.timeout_s", "grpo.vllm_server_timeout"),
    "grpo.torch_empty_cache_steps",
)
LIMITS = (".workers", ".timeout_s", ".memory_gb")  # of a reward: where it runs, not what it says
ENDLESS = ("constant", "constant_with_warmup", "inverse_sqrt")  # schedules that do not look at the number of steps


@dataclass(frozen=True)
class Checkpoint:
    """A whole checkpoint. step: updates done; planned: those the run was to have; facts: config, data and machine.

    passed_over: what is wrong with those that are newer.
    """

    folder: Path
    step: int
    planned: int
    facts: Mapping[str, Any]
    passed_over: tuple[str, ...] = ()

    @property
    def ended(self) -> bool:
        """Whether its step is logged, and validated where that was due; else the resume does it."""
        return self.facts.get("ended", True)

    def config(self) -> Config:
        return check(dict(self.facts["config"]), {}, source=str(self.folder / MANIFEST))

    @property
    def of_grpo(self) -> bool:
        """Else it is of the SFT before it."""
        return (self.folder / PROGRESS).is_file()

    def finished(self, grpo: Mapping[str, Any]) -> bool:
        """Whether all steps are done that these settings ask for."""
        own = self.facts["config"]["grpo"]
        return self.step >= self.planned and all(own.get(n) == grpo.get(n) for n in ("max_steps", "num_train_epochs"))


def progress_file(rank: int) -> str:
    """Of several processes each has its own: random numbers, the rows in hand."""
    return f"progress_{rank}.pt" if rank else PROGRESS


def seal(folder: Path, step: int, planned: int, facts: Mapping[str, Any]) -> None:
    """Write the manifest of a folder that is complete."""
    files = {str(path.relative_to(folder)): _described(path) for path in sorted(folder.rglob("*")) if path.is_file()}
    write_json(folder / MANIFEST, {"step": step, "planned": planned, "files": files, **facts})


def _described(path: Path) -> dict[str, Any]:
    return {"bytes": path.stat().st_size, "sha256": sha256(path)}


def by_step(folder: Path) -> list[Path]:
    """All that is named like a checkpoint, newest first."""
    found = [path for path in folder.glob("checkpoint-*") if path.name.rpartition("-")[2].isdigit()]
    return sorted(found, key=lambda path: int(path.name.rpartition("-")[2]), reverse=True)


def newest(folder: Path, *, hashes: bool) -> Checkpoint | None:
    """The newest whole checkpoint, with what was passed over to get there; None where there is none.

    hashes: read every file, as a resume does; without, names and sizes tell.
    """
    passed: list[str] = []
    for path in by_step(folder):
        if fault := _fault(path, hashes):
            passed.append(f"{path.name}: {fault}")
            continue
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        facts = {name: manifest[name] for name in manifest.keys() - {"step", "planned", "files"}}
        return Checkpoint(path, manifest["step"], manifest["planned"], facts, tuple(passed))
    if passed and hashes:
        raise UserError(f"--resume: no whole checkpoint in {folder}: {'; '.join(passed)}. Start again (--overwrite).")
    return None


def _fault(folder: Path, hashes: bool) -> str:
    """Why a folder is no checkpoint to go on from; "" where it is one."""
    try:
        files = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"]
    except FileNotFoundError:
        return "has no manifest.json (not written to its end, or by an older version)"
    except (ValueError, KeyError, TypeError):
        return "its manifest.json cannot be read"
    if not files.keys() & {PROGRESS, *OF_SFT}:
        return "holds the model alone (grpo.save_only_model)"
    return next(_wrong_files(folder, files, hashes), "")


def _wrong_files(folder: Path, files: Mapping[str, Mapping[str, Any]], hashes: bool) -> Iterator[str]:
    for name, told in files.items():
        path = folder / name
        if not path.is_file():
            yield f"{name} is missing"
        elif path.stat().st_size != told["bytes"]:
            yield f"{name} has {path.stat().st_size:,} bytes instead of {told['bytes']:,}"
        elif hashes and _described(path) != told:
            yield f"{name} is not what was written"


def forget_old(folder: Path, keep: int | None) -> None:
    """Delete whole checkpoints beyond the newest `keep` (None or 0: none)."""
    whole = [path for path in by_step(folder) if not _fault(path, hashes=False)]
    for path in whole[keep:] if keep else ():
        shutil.rmtree(path, ignore_errors=True)


def fingerprint(load: Callable[[str], Split]) -> dict[str, str]:
    """One hash per split of a task's examples: ids, prompts, answers, columns, and their order."""
    hashes = {}
    for split in ("train", "validation", "test"):
        hashed = hashlib.sha256()
        for e in load(split).examples:
            row = (e.id, e.prompt, e.answer, dict(e.meta))
            hashed.update(json.dumps(row, sort_keys=True, default=str).encode() + b"\n")
        hashes[split] = hashed.hexdigest()
    return hashes


def facts(config: Config, load: Callable[[str], Split], made_with: Mapping[str, Any]) -> dict[str, Any]:
    """What a manifest says besides its files, and a resume is compared with."""
    base = mark_of_base(config.model.name, config.model.revision)
    made = {"made_with": made_with, "processes": processes.count()}
    return {"config": config.as_dict(), "data": fingerprint(load), "base": base, **made}


def mark_of_base(name: str, revision: str | None = None) -> str | None:
    """A hash that changes with the weights that a run trains on, of sizes and samples: gigabytes are not read.

    None where they are not on this machine (yet): neither a folder, nor in the Hub's cache.
    """
    folder = Path(name)
    if not folder.is_dir():
        from huggingface_hub import try_to_load_from_cache

        cached = try_to_load_from_cache(name, "config.json", revision=revision) if name.count("/") == 1 else None
        if not isinstance(cached, str):
            return None
        folder = Path(cached).parent
    hashed = hashlib.sha256()
    for path in sorted(path for path in folder.iterdir() if path.suffix in (".safetensors", ".bin")):
        size = path.stat().st_size
        hashed.update(f"{path.name} {size}".encode())
        with path.open("rb") as file:
            for place in range(0, size, max(4096, size // 64)):
                file.seek(place)
                hashed.update(file.read(4096))
    return hashed.hexdigest()


def check_unchanged(checkpoint: Checkpoint, config: Config, data: Mapping[str, str]) -> None:
    """A resume goes on with the same run: raises UserError with the names of what would change in its middle."""
    old, new = (dict(leaves(c.as_dict())) for c in (checkpoint.config(), config))
    changed = [name for name in sorted(old.keys() | new.keys()) if old.get(name) != new.get(name)]
    fixed = [name for name in changed if not name.startswith(MAY_CHANGE)]
    fixed = [name for name in fixed if not (name.startswith("rewards.") and name.endswith(LIMITS))]
    if fixed:
        raise UserError(
            f"--resume: {', '.join(fixed)} would change in the middle of a run. Start another one (run.name=NAME)."
        )
    trained, now = checkpoint.facts.get("processes", 1), processes.count()
    if trained != now:
        raise UserError(
            f"--resume: {checkpoint.folder} is of {trained} process(es), and now there are {now}: the batch would be "
            "another. Start as many (torchrun --nproc_per_node)."
        )
    moved = [split for split, told in checkpoint.facts["data"].items() if told != data.get(split)]
    if moved:
        raise UserError(
            f"--resume: the {' and '.join(moved)} data of task {config.task.name} are not those that "
            f"{checkpoint.folder} was trained with. Put them back, or start another run (run.name=NAME)."
        )
    base, now = checkpoint.facts.get("base"), mark_of_base(config.model.name, config.model.revision)
    if base and now and base != now:
        raise UserError(
            f"--resume: {config.model.name} holds other weights than those that {checkpoint.folder} was trained on. "
            "Put them back, or start another run (run.name=NAME)."
        )
    _more_steps([name for name in changed if name in ("grpo.max_steps", "grpo.num_train_epochs")], old, new, checkpoint)


def _more_steps(changed: Sequence[str], old: Mapping[str, Any], new: Mapping[str, Any], checkpoint: Checkpoint) -> None:
    """Fewer steps are none to go on with; more need a learning rate that did not count on the old number."""
    for name in changed:
        was, now = old.get(name), new.get(name)
        if was is None or now is None or now < was:
            raise UserError(
                f"--resume: {name} was {was} and cannot become {now} in the middle of a run; it can only grow."
            )
        schedule, warmup = old.get("grpo.lr_scheduler_type"), old.get("grpo.warmup_steps") or 0
        if schedule not in ENDLESS or 0 < warmup < 1:
            raise UserError(
                f"--resume: {name}={now}, but the learning rate ('{schedule}') was planned over {checkpoint.planned} "
                f"steps{' and is at its end there' if schedule not in ENDLESS else ''}. Train the merged model on in a "
                "run of its own (model.name=RUN/merged run.name=NAME), or plan for more steps with a schedule that has "
                f"no end: {', '.join(ENDLESS)}."
            )
