"""Kill a run at random moments, look at what lies on disk, go on, and compare the end with a run that nobody disturbed.

    python benchmarks/faults.py --kills 200          # minutes each; stopped and started again, it goes on where it was

A run of configs/demo.yaml with few steps is killed (kill -9, SIGTERM, Ctrl-C) in a phase drawn by lot: loading,
training, saving, keeping the best, the evaluation after, merging. After each kill every file under its final
name has to be readable, nothing that was finished may be gone, and the next start has to go on. When a run reaches its
end, its adapter has to be, to the bit, that of the undisturbed run.

What was done so far stands in FOLDER/faults.json; with --output it is also written as a result. Exit code 1 where
anything was found. Not covered yet: pushing, a full disk, a read-only folder, files torn by hand.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "src"))

from llm_grpo.runs import Run, read_jsonl  # noqa: E402

STEPS = 8
SMALL = (
    *(f"grpo.max_steps={STEPS}", "grpo.save_steps=2", "grpo.per_device_train_batch_size=16"),
    *("evaluation.limit=24", "evaluation.validation_limit=8", "evaluation.every_steps=2"),
)
SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT)  # the hardest twice as often
PATIENCE_S = 600  # for one start: more is a hang, which is a fault
POLL_S = 0.005


def lines(run: Run) -> int:
    """Steps that were logged so far; read as bytes, because somebody is writing."""
    return run.metrics.read_bytes().count(b"\n") if run.metrics.is_file() else 0


def newest(run: Run, *patterns: str) -> float:
    """When the youngest of some paths was changed, drafts included."""
    found = 0.0
    for path in (path for pattern in patterns for path in run.folder.glob(pattern)):
        try:
            found = max(found, path.stat().st_mtime)
        except FileNotFoundError:
            continue
    return found


# What is watched in each phase: when it changes, the phase has begun. `loading` is a matter of time alone.
PHASES: dict[str, Callable[[Run], Any]] = {
    "loading": lambda run: None,
    "training": lines,
    "saving": lambda run: newest(run, "checkpoints/*", "checkpoints/.*"),
    "the best": lambda run: newest(run, "*_best*", ".*_best*"),
    "evaluating after": lambda run: lines(run) >= STEPS,
    "merging": lambda run: newest(run, "merged*", ".merged*"),
}


def start(run: Run, log: Path) -> subprocess.Popen[bytes]:
    """train.py as a person would start it: --resume where there is something to go on from."""
    words = ["src/train.py", "--config", "configs/demo.yaml", f"run.output_dir={run.folder.parent}"]
    words += [f"run.name={run.folder.name}", *SMALL, "--resume" if run.last_checkpoint() else "--overwrite"]
    with log.open("ab") as file:
        return subprocess.Popen([sys.executable, *words], cwd=ROOT, stdout=file, stderr=file, start_new_session=True)


def disturb(run: Run, log: Path, rng: random.Random) -> dict[str, Any]:
    """One start and one kill; the run may come to its end before its phase does. Returns what happened."""
    phase, number = rng.choice(list(PHASES)), rng.choice(SIGNALS)
    watched, before = PHASES[phase], PHASES[phase](run)
    delay = rng.uniform(0, 20) if phase == "loading" else rng.choice([0.0, rng.uniform(0, 0.05), rng.uniform(0, 1)])
    process, begun = start(run, log), time.monotonic()
    while process.poll() is None and time.monotonic() < begun + PATIENCE_S:
        if phase == "loading" or watched(run) != before:
            time.sleep(delay)
            break
        time.sleep(POLL_S)
    killed = process.poll() is None
    if killed:
        process.send_signal(number)
    hung = False
    try:
        code = process.wait(PATIENCE_S)
    except subprocess.TimeoutExpired:
        hung, code = True, None
        process.kill()
        process.wait()
    told = {"phase": phase, "signal": number.name if killed else None, "code": code, "steps": lines(run)}
    return {**told, "faults": [f"{number.name} did not end it within {PATIENCE_S} s"] if hung else []}


def unreadable(folder: Path) -> Iterator[str]:
    """Files under their final names that cannot be read whole. Drafts (a leading dot) may be anything."""
    from safetensors import SafetensorError, safe_open

    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        if any(part.startswith(".") for part in path.relative_to(folder).parts):
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
        except (ValueError, OSError, SafetensorError) as error:
            yield f"{path}: {type(error).__name__}: {error}"


def finished(run: Run) -> set[str]:
    """What is done and has to stay: the evaluations, the weights, the newest step that was saved."""
    places = (run.before, run.after, run.summary, run.best, run.last, run.merged)
    return {str(path.relative_to(run.folder)) for path in places if path.exists()}


def saved_step(run: Run) -> int:
    checkpoint = run.last_checkpoint()
    return int(getattr(checkpoint, "folder", checkpoint).name.rpartition("-")[2]) if checkpoint else 0


def adapter(run: Run) -> str:
    return hashlib.sha256((run.last / "adapter_model.safetensors").read_bytes()).hexdigest()


def once(run: Run, log: Path, rng: random.Random, expected: str) -> dict[str, Any]:
    """A kill and all that has to be true after it."""
    had, step = finished(run), saved_step(run)
    told = disturb(run, log, rng)
    faults = told["faults"] + list(unreadable(run.folder) if run.folder.exists() else ())
    # Without a checkpoint the next start begins again, and what stood there was of no run that could go on.
    faults += [f"{name} is gone" for name in sorted(had - finished(run) if step else ())]
    faults += [f"the newest checkpoint was of step {step}"] if saved_step(run) < step else []
    if told["signal"] is None and told["code"] != 0:
        faults.append(f"nobody killed it and it ended with {told['code']}: {log}")
    if told["code"] == 0 and not run.summary.is_file():
        faults.append("exit code 0 without a summary")
    if told["code"] == 0 and adapter(run) != expected:
        faults.append("the adapter is not that of the undisturbed run")
    return {**told, "faults": faults}


def undisturbed(folder: Path) -> str:
    """The hash of the adapter of a run that nobody kills."""
    run = Run(folder / "undisturbed")
    if not run.summary.is_file():
        code = start(run, folder / "undisturbed.log").wait()
        assert code == 0, f"the undisturbed run ended with {code}: {folder / 'undisturbed.log'}"
    return adapter(run)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200, help="in all, those of earlier goes included")
    parser.add_argument("--folder", type=Path, default=ROOT / "outputs" / "faults")
    parser.add_argument("--output", type=Path, help="write the result there as well (benchmarks/results/...)")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    book, commit = args.folder / "faults.json", git("rev-parse", "HEAD")
    result = json.loads(book.read_text(encoding="utf-8")) if book.is_file() else {"commit": commit, "starts": []}
    if result["commit"] != commit:
        print(f"{book} is of commit {result['commit']}, this is {commit}: give another --folder.", file=sys.stderr)
        return 2
    expected, starts = undisturbed(args.folder), result["starts"]
    while sum(told["signal"] is not None for told in starts) < args.kills:
        run = Run(args.folder / f"run-{sum(told['code'] == 0 for told in starts)}")
        rng = random.Random(f"{commit} {len(starts)}")
        starts.append(once(run, run.folder.with_suffix(".log"), rng, expected))
        print(json.dumps(starts[-1]), flush=True)
        if starts[-1]["code"] == 0 and not starts[-1]["faults"]:
            shutil.rmtree(run.folder)
        save(book, result)
    summed = summary(result)
    save(args.output or book, summed)
    print(json.dumps({key: value for key, value in summed.items() if key != "starts"}, indent=2))
    return 1 if summed["faults"] else 0


def summary(result: dict[str, Any]) -> dict[str, Any]:
    starts = result["starts"]
    kills = [told for told in starts if told["signal"]]
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": "python benchmarks/faults.py " + " ".join(sys.argv[1:]),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "kills": len(kills),
        "kills_by_phase": {phase: sum(told["phase"] == phase for told in kills) for phase in PHASES},
        "runs_finished": sum(told["code"] == 0 for told in starts),
        "faults": [fault for told in starts for fault in told["faults"]],
        **result,
    }


def save(path: Path, data: dict[str, Any]) -> None:
    draft = path.with_name(f".{path.name}")
    draft.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    draft.replace(path)


def git(*words: str) -> str:
    return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True).stdout.strip()


if __name__ == "__main__":
    sys.exit(main())
