"""Disturb a run at random moments, look at what lies on disk, go on, and compare the end with a run left in peace.

    python benchmarks/faults.py --kills 200          # stopped and started again, it goes on where it was

A run of configs/demo.yaml with few tiny steps (and a reward in a worker) is trained and pushed to a small Hub on this
machine, and each start of it is disturbed in a phase drawn by lot: killed (kill -9, SIGTERM, Ctrl-C); its disk becomes
full; its folder becomes read-only; or one of its files is torn before the start. After each, every file under its final
name has to be readable, nothing that was finished may be gone, what ends by itself has said one line, and the next
start has to go on. At a run's end its adapter, its merged model and what the Hub holds have to be, to the bit, those of
the run left in peace.

Most starts are forks of a process that has imported everything (`warm`), which is what makes 200 kills a matter of
minutes; a share is started by the command a person types (`cold`). The disk is a tmpfs, which needs root; a read-only
folder means something to root only without its capabilities, which such a start gives up.

What was done so far stands in FOLDER/faults.json, start by start, of one state of src/; its sums in FOLDER/summary.json
and, with --output, where results are. Exit code 1 where anything was found.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "src"), str(ROOT / "tests")]

from fault_checks import finished, pushed, result_of, saved_step, unreadable  # noqa: E402
from fault_starts import POLL_S, STEPS, Bench  # noqa: E402
from hub_server import HubServer  # noqa: E402

from llm_grpo.runs import Run  # noqa: E402

SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT)  # the hardest twice as often
OTHER = {"full disk": 0.08, "read-only": 0.06, "torn": 0.08}  # shares of the starts; the rest are kills
PATIENCE_S = 240  # for one start: more is a hang, which is a fault
AFTER_SIGNAL_S = 60
MOST_FAULTS = 10  # then it stops


def lines(run: Run) -> int:
    """Steps that were logged so far; read as bytes, because somebody is writing."""
    return run.metrics.read_bytes().count(b"\n") if run.metrics.is_file() else 0


def newest(run: Run, *patterns: str) -> float:
    """When the youngest of some paths was changed, drafts included."""
    found = 0.0
    for path in (path for pattern in patterns for path in run.folder.glob(pattern)):
        with contextlib.suppress(FileNotFoundError):
            found = max(found, path.stat().st_mtime)
    return found


# What is watched in each phase: when it changes, the phase has begun. `any time` is a matter of time alone.
TRAINING: dict[str, Callable[[Run, Bench], Any]] = {
    "any time": lambda run, _: None,
    "evaluating before": lambda run, _: run.metrics.exists() or run.before.exists() or run.config_file.exists(),
    "training": lambda run, _: lines(run),
    "saving": lambda run, _: newest(run, "checkpoints/*", "checkpoints/.*", "checkpoints/.draft/*"),
    "the best": lambda run, _: newest(run, "*_best*", ".*_best*", "eval/validation.jsonl"),
    "evaluating after": lambda run, _: run.progress.exists() and lines(run) >= STEPS,
    "merging": lambda run, _: newest(run, "summary.json", "merged*", ".merged*", ".merged*/*"),
}
OFTEN = {"training": 4, "saving": 3, "the best": 2}  # what has to be met before it is over
PUSHING: dict[str, Callable[[Run, Bench], Any]] = {
    "any time": lambda run, _: None,
    "merging": lambda run, _: newest(run, "merged*", ".merged*", ".merged*/*"),
    "proving": lambda run, _: newest(run, "libraries.log", "merged/*proof*"),
    "pushing": lambda run, bench: len(bench.hub.requests),
}


def disturb(bench: Bench, run: Run, log: Path, rng: random.Random) -> dict[str, Any]:
    """One start, disturbed; the run may come to its end before its phase does. Returns what happened."""
    kind = rng.choices([*OTHER, "kill"], [*OTHER.values(), 1 - sum(OTHER.values())])[0]
    pushes = run.summary.is_file()
    if kind == "full disk" and bench.no_disk or kind == "torn" and (pushes or not run.last_checkpoint()):
        kind = "kill"
    phases = PUSHING if pushes else TRAINING
    over = {name for name, watched in phases.items() if watched(run, bench) is True}  # what is begun and done
    over |= {"training", "saving"} if saved_step(run) == STEPS else set()
    left = [name for name in phases if name not in over]
    phase = rng.choices(left, [OFTEN.get(name, 1) for name in left])[0]
    told = {"kind": kind, "phase": phase, "stage": "push" if pushes else "train", "faults": []}
    if kind == "torn":
        told["torn"], undo = tear(run, rng)
    watched, before = phases[phase], phases[phase](run, bench)
    soon = rng.choice([0.0, rng.uniform(0, 0.02), rng.uniform(0, 0.1)])
    delay = rng.uniform(0.05, 6) if phase == "any time" else soon
    told["cold"] = kind == "kill" and rng.random() < bench.cold
    delay += 12 if told["cold"] and phase == "any time" else 0
    process = bench.start(run, log, told["cold"], weak=kind == "read-only")
    until = time.monotonic() + PATIENCE_S
    while kind != "torn" and process.wait(0) is None and time.monotonic() < until:
        if phase == "any time" or watched(run, bench) != before:
            time.sleep(delay)
            break
        time.sleep(POLL_S)
    logged, done = lines(run), process.wait(0) is not None
    if kind == "kill" and not done:
        number = rng.choice(SIGNALS)
        told["signal"], began = number.name, time.monotonic()
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, number)
        until = began + AFTER_SIGNAL_S
    elif kind == "full disk" and not done:
        left = rng.choice([0, 4096, 200_000, 2_000_000])
        with (bench.disk / "filler").open("wb") as file, contextlib.suppress(OSError):  # the run writes meanwhile
            while (size := shutil.disk_usage(bench.disk).free - left) > 0:
                os.posix_fallocate(file.fileno(), 0, file.seek(0, os.SEEK_END) + size)
    elif kind == "read-only" and not done:
        folders = [path for path in (run.folder, *run.folder.rglob("*")) if path.is_dir()]
        for folder in folders:
            folder.chmod(0o555)
    code = process.wait(max(1.0, until - time.monotonic()))
    if code is None:
        told["faults"].append("did not end in time")
        os.kill(process.pid, signal.SIGKILL)
        process.wait(30)
    (bench.disk / "filler").unlink(missing_ok=True)
    if kind == "read-only":
        for folder in [path for path in (run.folder, *run.folder.rglob("*")) if path.is_dir()]:
            folder.chmod(0o755)
    told |= {"code": code, "steps": lines(run)}
    told["faults"] += list(badly_ended(told, process.printed()))
    if told.get("signal") in ("SIGTERM", "SIGINT"):
        told["ended_after_s"] = round(time.monotonic() - began, 2)
        trained = phase in ("training", "saving", "the best") and code not in (0, None)
        if trained and saved_step(run) < logged:
            told["faults"].append(f"{logged} steps were logged and {saved_step(run)} are kept")
    if kind == "torn" and code == 2:  # it said what is wrong; whoever reads it puts the file back
        undo()
    return told


def badly_ended(told: dict[str, Any], printed: str) -> Iterator[str]:
    """An end by itself is 0, or one line that says why."""
    own = {"SIGKILL": (-9,), "SIGTERM": (-15, 143), "SIGINT": (-2, 130)}.get(told.get("signal", ""), ())
    if told["code"] in (0, None, *own):
        return
    if "signal" in told:
        yield f"{told['signal']}, and it ended with {told['code']}: {printed[-1500:]}"
    elif told["kind"] == "kill":
        yield f"nobody killed it and it ended with {told['code']}: {printed[-1500:]}"
    elif "Traceback" in printed or told["code"] not in (1, 2) or not ("error:" in printed or "Not merged" in printed):
        yield f"{told['kind']}: ended with {told['code']}: {printed[-1500:]}"


def tear(run: Run, rng: random.Random) -> tuple[str, Callable[[], None]]:
    """Cut, empty or blacken (as a power cut does) one file of a run, but for the weights beside the checkpoints, which
    have no hashes to be known by. Returns what, and how it is put back."""
    places = [run.folder.glob("*"), run.checkpoints.rglob("*"), run.completions.glob("*"), run.before.parent.glob("*")]
    path = rng.choice(sorted(path for place in places for path in place if path.is_file()))
    content = path.read_bytes()
    at, how = rng.randrange(len(content) + 1), rng.choice(["cut", "emptied", "blackened"])
    path.write_bytes({"cut": content[:at], "emptied": b"", "blackened": content[:at] + bytes(len(content) - at)}[how])

    def undo() -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)

    return f"{path.relative_to(run.folder)} {how} at {at} of {len(content)}", undo


def once(bench: Bench, run: Run, log: Path, rng: random.Random, expected: dict[str, str]) -> dict[str, Any]:
    """A disturbance and all that has to be true after it."""
    had, step = finished(run), saved_step(run)
    told = disturb(bench, run, log, rng)
    faults, torn, code = told["faults"], "torn" in told, told["code"]
    faults += [] if torn and code else unreadable(run.folder) if run.folder.exists() else ()
    # Without a checkpoint the next start begins again, and what stood there was of no run that could go on. A resume
    # may set aside what is swapped.
    faults += [f"{name} is gone" for name in sorted(had - finished(run) if step and not torn else ())]
    faults += [f"the newest checkpoint was of step {step}"] if saved_step(run) < step and not torn else []
    if code == 0 and not run.summary.is_file():
        faults.append("exit code 0 without a summary")
    if code == 0 and result_of(run) != expected:
        faults.append(f"it came to {result_of(run)}, the run left in peace to {expected}")
    if told["stage"] == "push":
        faults += pushed(bench.hub, run)
    told["done"] = told["stage"] == "push" and code == 0
    return told


def left_in_peace(bench: Bench) -> dict[str, str]:
    """What a run comes to that nobody disturbs, started by the command a person types (unless no start is)."""
    run, log = Run(bench.disk / "peace"), bench.folder / "peace.log"
    while not run.merged.is_dir():
        code = bench.start(run, log, cold=bench.cold > 0).wait(600)
        assert code == 0, f"the run left in peace ended with {code}: {log}"
    return result_of(run)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200, help="in all, those of earlier goes included")
    parser.add_argument("--folder", type=Path, default=ROOT / "outputs" / "faults")
    parser.add_argument("--output", type=Path, help="write the result there as well (benchmarks/results/...)")
    parser.add_argument("--cold", type=float, default=0.05, help="share of the kills that hit a start from nothing")
    parser.add_argument("--seed", default="0")
    args = parser.parse_args()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job hands down that it is ignored
    folder = args.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    book, source = folder / "faults.json", git("rev-parse", "HEAD:src")
    result = json.loads(book.read_text(encoding="utf-8")) if book.is_file() else {"src": source, "starts": []}
    if result["src"] != source:
        print(f"{book} is of another state of src/ ({result['src']}): give another --folder.", file=sys.stderr)
        return 2
    with HubServer() as hub:
        bench = Bench(folder, hub, args.cold)
        try:
            expected, starts = left_in_peace(bench), result["starts"]
            at = f"run-{len(starts)}"
            if starts and not (starts[-1]["done"] or starts[-1]["faults"]):
                at = starts[-1]["run"]
            while sum("signal" in told for told in starts) < args.kills:
                run, rng = Run(bench.disk / at), random.Random(f"{args.seed} {len(starts)}")
                told = once(bench, run, folder / f"{at}.log", rng, expected)
                starts.append({"run": at, **told})
                print(json.dumps(starts[-1], ensure_ascii=False), flush=True)
                if told["faults"] and run.folder.exists():  # kept to be looked into; the next is another run
                    shutil.move(run.folder, folder / f"fault-{len(starts)}")
                elif told["done"]:
                    shutil.rmtree(run.folder)
                if told["faults"] or told["done"]:
                    at = f"run-{len(starts)}"
                save(book, result)
                save(folder / "summary.json", summary(result, bench.no_disk))
                if sum(bool(told["faults"]) for told in starts) >= MOST_FAULTS:
                    break
        finally:
            if bench.disk.is_mount() and sum("signal" in told for told in result["starts"]) >= args.kills:
                subprocess.run(["umount", "-l", str(bench.disk)])
    summed = summary(result, bench.no_disk)
    if args.output:
        save(args.output, summed)
    print(json.dumps(summed, indent=2, ensure_ascii=False))
    return 1 if summed["faults"] else 0


def summary(result: dict[str, Any], no_disk: str) -> dict[str, Any]:
    starts = result["starts"]
    kills = [told for told in starts if "signal" in told]
    ends = sorted(told["ended_after_s"] for told in kills if "ended_after_s" in told)
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": "python benchmarks/faults.py " + " ".join(sys.argv[1:]),
        "commit": git("rev-parse", "HEAD"),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "kills": len(kills),
        "kills_cold": sum(told["cold"] for told in kills),
        "kills_by_signal": Counter(told["signal"] for told in kills),
        "kills_by_phase": Counter(f"{told['stage']}: {told['phase']}" for told in kills),
        "others": Counter(told["kind"] for told in starts if told["kind"] != "kill"),
        "full_disk_skipped": no_disk,
        "undisturbed": sum(told["kind"] == "kill" and "signal" not in told for told in starts),
        "runs_finished_and_compared": sum(told["done"] for told in starts),
        "longest_s_from_sigterm_or_ctrl_c_to_the_end": ends[-1] if ends else None,
        "faults": [fault for told in starts for fault in told["faults"]],
        "src": result["src"],
    }


def save(path: Path, data: dict[str, Any]) -> None:
    draft = path.with_name(f".{path.name}")
    draft.write_text(json.dumps(data, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    draft.replace(path)


def git(*words: str) -> str:
    return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True).stdout.strip()


if __name__ == "__main__":
    sys.exit(main())
