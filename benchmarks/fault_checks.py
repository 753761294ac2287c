"""What has to be true of a run's folder, and of the Hub, whatever happened (benchmarks/faults.py)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

from hub_server import HubServer, Repository

from llm_grpo.errors import UserError
from llm_grpo.runs import Run, read_jsonl


def unreadable(folder: Path) -> Iterator[str]:
    """Files under their final names that cannot be read whole. Drafts (a leading dot) may be anything."""
    from safetensors import SafetensorError, safe_open

    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        parts = path.relative_to(folder).parts
        if any(part.startswith(".") or part in ("merged.partial", "merged.replaced") for part in parts):
            continue
        try:
            if path.suffix == ".json":
                json.loads(path.read_text(encoding="utf-8"))
            elif path.suffix in (".jsonl", ".gz"):
                list(read_jsonl(path))
            elif path.suffix == ".safetensors":
                with safe_open(path, "np") as tensors:
                    list(tensors.keys())
            elif path.suffix == ".png" and not path.read_bytes().endswith(b"IEND\xaeB`\x82"):
                yield f"{path}: cut off"
        except (ValueError, OSError, UserError, SafetensorError) as error:
            yield f"{path}: {type(error).__name__}: {error}"


def finished(run: Run) -> set[str]:
    """What is done and has to stay: the evaluations, the weights."""
    places = (run.before, run.after, run.summary, run.best, run.last, run.merged)
    return {str(path.relative_to(run.folder)) for path in places if path.exists()}


def saved_step(run: Run) -> int:
    checkpoint = run.last_checkpoint()
    return checkpoint.step if checkpoint else 0


def result_of(run: Run) -> dict[str, str]:
    """Hashes of what a run came to."""
    files = (run.last / "adapter_model.safetensors", run.merged / "model.safetensors")
    return {path.parent.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files if path.is_file()}


def pushed(hub: HubServer, run: Run) -> Iterator[str]:
    """What the Hub holds is nothing, or all of it."""
    held = hub.repositories.get(f"user/{run.folder.name}", Repository()).files
    for name in ("README.md", "config.json", "model.safetensors") if held else ():
        if held.get(name) != (run.merged / name).read_bytes():
            yield f"the Hub's {name} is not that of the run"
