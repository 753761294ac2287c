"""W&B, TensorBoard and Trackio, each told of a real run and read back by its own reader; Trackio's page in a browser."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browser import find_chromium, free_port
from conftest import ROOT, run_script
from llama import make_llama

from llm_grpo import runs
from llm_grpo.config.loading import load_config

WATCHED = (
    "reward", "loss", "grad_norm", "learning_rate", "accuracy", "format_rate", "truncated_share", "tokens_per_second",
    "frac_reward_zero_std", "completions/mean_length", "seconds/generation", "seconds/rewards", "seconds/update",
    "seconds/validation", "step_time", "memory_peak_gb", "validation/strict_accuracy",
)  # fmt: skip
CHROMIUM = find_chromium()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> runs.Run:
    """Three steps of a small Llama, logged to all three at once."""
    folder = tmp_path_factory.mktemp("watched")
    rows = [{"question": f"What is {n} + 1?", "answer": f"{n}+1={n + 1}\n#### {n + 1}"} for n in range(200)]
    data = "".join(json.dumps({**row, "pair_id": str(number)}) + "\n" for number, row in enumerate(rows))
    (folder / "qa.jsonl").write_text(data)
    make_llama(folder / "llama", [row["question"] + row["answer"] for row in rows])
    done = run_script(
        "src/train.py", "--config", "configs/qa_llama1b.yaml", f"model.name={folder / 'llama'}", "grpo.max_steps=3",
        f"task.args.path={folder / 'qa.jsonl'}", f"run.output_dir={folder}", "grpo.max_completion_length=16",
        "task.args.validation_share=0.1", "task.args.test_share=0.1", "grpo.per_device_train_batch_size=16",
        "evaluation={limit: 4, validation_limit: 4, every_steps: 1}", WANDB_MODE="offline",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "wandb: offline" in done.stdout and f"tensorboard --logdir {folder}" in done.stdout.replace("\n", "")
    return runs.find(folder / "qa-llama-1b")


LOGINS = [
    ({}, "", "offline: no WANDB_API_KEY in the environment or .env, no `wandb login`", "no key at all"),
    ({"WANDB_API_KEY": "a" * 40}, "", "online: a key was found", "in the environment"),
    ({"WANDB_API_KEY": "short"}, "", "offline: WANDB_API_KEY invalid", "no key of W&B's"),
    ({"WANDB_MODE": "offline", "WANDB_API_KEY": "a" * 40}, "", "offline: WANDB_MODE", "a wish"),
    ({}, "machine wandb.mine.example login user password " + "b" * 40, "offline: no WANDB_API_KEY", "for another host"),
    ({"WANDB_BASE_URL": "https://wandb.mine.example"}, "machine wandb.mine.example login user password " + "b" * 40,
     "online: a key was found", "`wandb login` on a server of one's own"),
]  # fmt: skip


@pytest.mark.parametrize(("environment", "netrc", "said", "why"), LOGINS, ids=[row[3] for row in LOGINS])
def test_whether_wandb_is_online_is_its_own_word(
    environment: dict[str, str], netrc: str, said: str, why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from llm_grpo.planning.preflight import logging_choice

    for name in [name for name in os.environ if name.startswith(("WANDB_", "TENSORBOARD_", "TRACKIO_"))]:
        monkeypatch.delenv(name)
    (tmp_path / ".netrc").write_text(netrc)
    (tmp_path / ".netrc").chmod(0o600)
    with monkeypatch.context() as here:
        for name, value in {**environment, "HOME": str(tmp_path), "NETRC": str(tmp_path / ".netrc")}.items():
            here.setenv(name, value)
        kept = dict(os.environ)
        config = load_config(ROOT / "configs" / "demo.yaml", ["logging.report_to=wandb"], environment={})
        try:
            assert logging_choice(config, tmp_path)["wandb"].startswith(said), why
        finally:  # what it has set for the run
            for name in os.environ.keys() - kept.keys():
                del os.environ[name]


def logged(run: runs.Run) -> list[dict[str, Any]]:
    return list(runs.read_jsonl(run.metrics))


def effective(run: runs.Run) -> dict[str, Any]:
    return load_config(run.config_file, environment={}).as_dict()


def test_every_indicator_is_in_metrics_jsonl(run: runs.Run) -> None:
    for row in logged(run):
        assert [name for name in WATCHED if not isinstance(row.get(name), int | float)] == []


def wandb_records(run: runs.Run) -> Iterator[Any]:
    """The records of an offline run: protobuf messages in LevelDB's log format (blocks of 32 KiB, 7-byte headers)."""
    from wandb.proto.wandb_internal_pb2 import Record

    (file,) = run.folder.glob("wandb/offline-run-*/*.wandb")
    data, place, message = file.read_bytes(), 7, b""
    assert data[:4] == b":W&B"
    while place + 7 <= len(data):
        if 32768 - place % 32768 < 7:
            place += 32768 - place % 32768
        _, length, kind = struct.unpack("<IHB", data[place : place + 7])
        message += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # a whole message, or the last part of one
            record = Record()
            record.ParseFromString(message)
            yield record
            message = b""


def test_wandb_has_every_hyperparameter_and_every_indicator(run: runs.Run) -> None:
    config: dict[str, Any] = {}
    history: list[dict[str, Any]] = []
    for record in wandb_records(run):
        updates = [*record.run.config.update, *record.config.update]
        config |= {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in updates}
        if record.HasField("history"):
            items = record.history.item
            history.append({i.key or "/".join(i.nested_key): json.loads(i.value_json) for i in items})
    assert config["llm_grpo"] == effective(run), "the whole config.yaml, every default written out"
    assert config["learning_rate"] == config["llm_grpo"]["grpo"]["learning_rate"], "and TRL's own arguments"
    steps = [row for row in history if "train/reward" in row]
    assert [row["train/global_step"] for row in steps] == [1, 2, 3]
    for row, wanted in zip(steps, logged(run), strict=True):
        assert {name: row.get(f"train/{name}") for name in WATCHED} == {name: wanted[name] for name in WATCHED}


def test_tensorboard_reads_the_same_numbers(run: runs.Run) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run.folder / "tensorboard"))
    events.Reload()
    for name in WATCHED:
        found = [(event.step, event.value) for event in events.Scalars(f"train/{name}")]
        assert found == [(row["step"], pytest.approx(row[name], rel=1e-6)) for row in logged(run)], name
    (told,) = events.Tensors("llm_grpo/text_summary")
    assert (
        b"answer_format: hash" in told.tensor_proto.string_val[0]
        and b"learning_rate" in told.tensor_proto.string_val[0]
    )


@pytest.fixture(scope="module")
def dashboard(run: runs.Run) -> Iterator[str]:
    """The address of Trackio's own dashboard over the run's files, started as its user would."""
    port = free_port()
    code = f"import trackio; trackio.show('llm-grpo', open_browser=False, block_thread=True, server_port={port})"
    environment = {**os.environ, "TRACKIO_DIR": str(run.folder / "trackio")}
    process = subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.DEVNULL)
    address = f"http://127.0.0.1:{port}/?project=llm-grpo"
    try:
        wait_for(address, process)
        yield address
    finally:
        process.terminate()
        process.wait(20)


def wait_for(address: str, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 60
    while True:
        try:
            assert urllib.request.urlopen(address, timeout=5).status == 200
            return
        except OSError:
            assert process.poll() is None and time.monotonic() < deadline, "the dashboard did not start"
            time.sleep(0.2)


def test_trackio_has_the_numbers_and_the_config(run: runs.Run) -> None:
    code = (
        "import json, trackio; run = trackio.Api().runs('llm-grpo')[0]\n"
        "from trackio.sqlite_storage import SQLiteStorage as S\n"
        "print(json.dumps([run.name, S.get_logs('llm-grpo', run.name), S.get_run_config('llm-grpo', run.name)]))"
    )
    environment = {**os.environ, "TRACKIO_DIR": str(run.folder / "trackio")}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    name, rows, config = json.loads(done.stdout.splitlines()[-1])
    assert name == "qa-llama-1b" and config["llm_grpo"] == effective(run)
    steps = [row for row in rows if "train/reward" in row]
    for row, wanted in zip(steps, logged(run), strict=True):
        assert {key: row.get(f"train/{key}") for key in WATCHED} == pytest.approx({key: wanted[key] for key in WATCHED})


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine (Debian: apt-get install chromium)")
def test_the_dashboard_opens_in_a_browser(dashboard: str, tmp_path: Path) -> None:
    quiet = ("--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking")
    quiet += ("--disable-component-update", "--disable-sync", f"--user-data-dir={tmp_path}")
    words = [CHROMIUM, "--headless", "--no-sandbox", *quiet, "--virtual-time-budget=20000", "--dump-dom", dashboard]
    page = subprocess.run(words, capture_output=True, text=True, timeout=120).stdout
    assert "qa-llama-1b" in page and "llm-grpo" in page
    for name in ("grad_norm", "accuracy", "format_rate"):
        assert name in page, name
