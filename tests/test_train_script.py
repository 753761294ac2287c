"""python src/train.py, run as a user would: the demo with few steps, interruption, resume, refusals."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import ROOT, SMALL, run_script


def test_the_demo_leaves_everything_where_the_readme_says(demo_run) -> None:
    run, printed = demo_run
    names = ("config.yaml", "environment.json", "metrics.jsonl", "completions", "checkpoints", "adapter", "adapter_best", "merged",
             "curves.png", "eval/before.json", "eval/after.json", "eval/validation.jsonl", "summary.json")  # fmt: skip
    assert [name for name in names if not (run / name).exists()] == []
    assert (run / "curves.png").stat().st_size > 20_000
    assert len(list((run / "checkpoints").glob("checkpoint-*"))) == 2
    for said in ("strict accuracy", "McNemar p", "newly right", "The merged model answers", "Try next", str(run)):
        assert said in printed
    assert "Warning" not in printed and "Unsloth" not in printed, "no library talk on the screen"


def test_the_summary_has_the_promised_keys(demo_run) -> None:
    summary = json.loads((demo_run[0] / "summary.json").read_text())
    for side in ("before", "after"):
        assert summary[side]["n"] == 24
        assert {"strict_accuracy", "lenient_accuracy", "format_rate"} <= set(summary[side])
    assert {"gained", "lost", "p_value"} <= set(summary["paired"])
    assert summary["steps"] == 4 and summary["seed"] == 0 and summary["train_seconds"] > 0
    assert summary["evaluated"].startswith("adapter_best, step ")
    spent = summary["spent"]
    assert spent["hours"] == pytest.approx(summary["train_seconds"] / 3600, abs=1e-4)
    assert 0.3 < spent["memory_planned_gb"] / spent["memory_peak_gb"] < 2, spent


def test_the_environment_names_versions_and_choices_and_no_variable(demo_run) -> None:
    facts = json.loads((demo_run[0] / "environment.json").read_text())
    assert facts["versions"]["unsloth"] and "transformers" in facts["choices"]["rollouts.engine"]
    assert os.environ["PATH"] not in json.dumps(facts)


def test_the_merged_model_opens_without_peft_and_answers_as_the_adapter(demo_run) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    merged = AutoModelForCausalLM.from_pretrained(demo_run[0] / "merged", dtype=torch.float32)
    base = AutoModelForCausalLM.from_pretrained(ROOT / "examples" / "tiny_qwen2", dtype=torch.float32)
    adapted = PeftModel.from_pretrained(base, demo_run[0] / "adapter_best")
    assert type(merged).__name__ == "Qwen2ForCausalLM"
    ids = AutoTokenizer.from_pretrained(demo_run[0] / "merged")("Tom has 5 pens and buys 7 more.", return_tensors="pt")[
        "input_ids"
    ]
    with torch.no_grad():
        gap = (merged(ids).logits.log_softmax(-1) - adapted(ids).logits.log_softmax(-1)).abs().max()
    assert gap < 0.1, "16-bit weights against float32 base plus adapter"


def test_a_second_run_of_the_name_is_refused(demo_run) -> None:
    run, _ = demo_run
    before = (run / "summary.json").read_text()
    done = run_script("src/train.py", "--config", "configs/demo.yaml", f"run.output_dir={run.parent}", *SMALL)
    assert done.returncode == 2 and "--overwrite" in done.stderr
    assert (run / "summary.json").read_text() == before


def test_ctrl_c_leaves_an_adapter_and_resume_goes_on(tmp_path: Path) -> None:
    words = [sys.executable, "src/train.py", "--config", "configs/demo.yaml", f"run.output_dir={tmp_path}", *SMALL]
    words += ["grpo.max_steps=24", "evaluation.every_steps=0", "grpo.save_steps=1000"]
    process = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    run, deadline = tmp_path / "demo", time.monotonic() + 300
    while not ((run / "metrics.jsonl").is_file() and (run / "metrics.jsonl").read_text().count("\n") >= 2):
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()[0]
        time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    printed = process.communicate(timeout=120)[0]
    assert process.returncode == 130, printed
    assert f"--config {run / 'config.yaml'} --resume" in printed
    assert (run / "adapter" / "adapter_model.safetensors").is_file() and (run / "curves.png").is_file()
    stopped = max(json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines())
    assert (run / "checkpoints" / f"checkpoint-{stopped}").is_dir()

    assert stopped < 24
    done = run_script("src/train.py", "--config", run / "config.yaml", "--resume", "grpo.save_steps=20")
    assert done.returncode == 0, done.stdout + done.stderr
    metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in metrics] == list(range(1, 25)), "no step is missing, none stands twice"
    assert (
        json.loads((run / "summary.json").read_text())["train_seconds"] > sum(row["step_time"] for row in metrics) * 0.9
    )
    finished = (run / "summary.json").read_text()
    done = run_script("src/train.py", "--config", run / "config.yaml", "--resume")
    assert done.returncode == 2 and "is finished" in done.stderr and (run / "summary.json").read_text() == finished
    (run / "summary.json").unlink()  # as if it had been interrupted in its last evaluation, with files half written
    before = (run / "eval" / "before.json").read_text()
    for torn in (run / "eval" / "before.json", run / "environment.json"):
        torn.write_text(torn.read_text()[:100])
    done = run_script("src/train.py", "--config", run / "config.yaml", "--resume")
    assert done.returncode == 0, done.stdout + done.stderr
    assert len((run / "metrics.jsonl").read_text().splitlines()) == 24, "no step is trained twice"
    assert json.loads((run / "summary.json").read_text())["steps"] == 24
    assert json.loads((run / "eval" / "before.json").read_text())["items"] == json.loads(before)["items"]


def test_a_reward_that_never_returns_is_left_with_all_that_was_before_it(tmp_path: Path) -> None:
    """In a worker that has minutes for a batch; one Ctrl-C ends the run in seconds, and mended it goes on."""
    file = tmp_path / "mine.py"
    text = (
        "import pathlib, time\n"
        "def stuck(prompts, completions, trainer_state=None, **kwargs):\n"
        "    while trainer_state and trainer_state.global_step == 2:\n"
        "        try:\n"
        "            pathlib.Path(__file__).with_suffix('.stuck').touch()\n"
        "            time.sleep(60)\n"
        "        except BaseException:\n"
        "            pass\n"
        "    return [float(i) for i, _ in enumerate(completions)]\n"
    )
    file.write_text(text)
    words = [sys.executable, "src/train.py", "--config", "configs/demo.yaml", f"run.output_dir={tmp_path}", *SMALL]
    words += [f"rewards=[{{name: '{file}:stuck', timeout_s: 60}}]", "evaluation.every_steps=0", "grpo.save_steps=1000"]
    process = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    while not file.with_suffix(".stuck").exists():
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.2)
    second = subprocess.run([*words, "--overwrite"], cwd=ROOT, capture_output=True, text=True)
    assert second.returncode == 2 and f"is being trained now, by process {process.pid}" in second.stderr
    process.send_signal(signal.SIGINT)
    printed = process.communicate(timeout=90)[0]  # 16 completions of 60 s are 16 minutes
    assert process.returncode == 130 and "Stopping after this step, within" in printed, printed
    run = tmp_path / "demo"
    assert json.loads((run / "progress.json").read_text())["steps"] == 2
    assert (run / "adapter" / "adapter_model.safetensors").is_file()
    (run / "checkpoints" / "checkpoint-9").mkdir()  # as if a kill had come while a later one was written
    file.write_text(text.replace("== 2", "== 99"))
    done = run_script("src/train.py", "--config", run / "config.yaml", "--resume")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "step 2 of 4, checkpoint-2; passed over checkpoint-9: has no manifest.json" in done.stdout
    assert "; exact" in done.stdout
    assert [row["step"] for row in map(json.loads, (run / "metrics.jsonl").read_text().splitlines())] == [1, 2, 3, 4]


def test_a_reward_that_fails_costs_nothing_that_was_learned(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        "calls = []\n"
        "def moody(prompts, completions, **kwargs):\n"
        "    calls.append(1)\n"
        "    return [float(i) for i, _ in enumerate(completions)] if len(calls) < 4 else ['?'] * len(completions)\n"
    )
    words = ["--config", "configs/demo.yaml", f"run.output_dir={tmp_path}", *SMALL, "evaluation.every_steps=0"]
    done = run_script("src/train.py", *words, "grpo.save_steps=1000", f"rewards=[{{name: '{file}:moody', workers: 0}}]")
    assert done.returncode == 2 and "moody" in done.stderr and "step" in done.stderr, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert (tmp_path / "demo" / "adapter" / "adapter_model.safetensors").is_file()
    assert (tmp_path / "demo" / "checkpoints" / "checkpoint-2").is_dir(), (
        "two steps were sound, the evaluation before them too"
    )
    assert f"What was learned is in {tmp_path / 'demo' / 'adapter'}" in done.stdout and "at step 3" in done.stderr


def test_without_a_key_wandb_logs_offline_beside_tensorboard(tmp_path: Path) -> None:
    words = [
        "--config",
        "configs/demo.yaml",
        f"run.output_dir={tmp_path}",
        *SMALL,
        "grpo.max_steps=2",
        "evaluation.every_steps=0",
    ]
    done = run_script("src/train.py", *words, "logging={report_to: [wandb, tensorboard], sample_every: 1}")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "wandb: offline: no WANDB_API_KEY" in done.stdout
    assert "extracted" in done.stdout, "logging.sample_every shows an answer"
    assert list((tmp_path / "demo" / "wandb").glob("offline-run-*/*.wandb"))
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "demo" / "tensorboard"))
    events.Reload()
    scalars = events.Tags()["scalars"]
    assert {"train/reward", "train/accuracy", "train/format_rate", "train/seconds/generation"} <= set(scalars)
    metrics = [json.loads(line) for line in (tmp_path / "demo" / "metrics.jsonl").read_text().splitlines()]
    assert [event.value for event in events.Scalars("train/reward")] == pytest.approx(
        [row["reward"] for row in metrics]
    )


def test_a_training_goes_on_without_the_loggers_that_fail(tmp_path: Path) -> None:
    """W&B with a key and no server, TensorBoard whose folder is a file: said once each, and both steps are done. The reward
    file imports trl at its top, which without Unsloth before it cannot train on a CPU."""
    reward = tmp_path / "mine.py"
    reward.write_text(
        "import trl, sys\nassert 'unsloth' in sys.modules, 'Unsloth comes first'\n"
        "def length(completions, **kwargs):\n    return [float(len(c[0]['content'])) for c in completions]\n"
    )
    (tmp_path / "taken").write_text("")
    words = ["--config", "configs/demo.yaml", f"run.output_dir={tmp_path}", *SMALL, "evaluation.every_steps=0",
             "grpo.max_steps=2", "logging.report_to=[wandb, tensorboard]",
             f"rewards=[{{name: '{reward}:length', workers: 0}}]"]  # fmt: skip
    away = {"WANDB_API_KEY": "a" * 40, "WANDB_BASE_URL": "http://127.0.0.1:9", "WANDB_INIT_TIMEOUT": "2"}
    done = run_script("src/train.py", *words, **away, TENSORBOARD_LOGGING_DIR=str(tmp_path / "taken" / "tb"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stderr and "wandb: online: a key was found" in done.stdout
    assert done.stdout.count("W&B cannot be reached") == 1 and "logging offline" in done.stdout
    assert done.stdout.count("TensorBoard failed") == 1 and "the training goes on without it" in done.stdout
    assert len(list((tmp_path / "demo" / "wandb").glob("offline-run-*/*.wandb"))) == 1
    assert len((tmp_path / "demo" / "metrics.jsonl").read_text().splitlines()) == 2


@pytest.mark.skipif(torch.cuda.is_available(), reason="on a GPU the reference run would start")
def test_the_reference_run_says_in_one_screen_what_is_missing() -> None:
    done = run_script("src/train.py", "--config", "configs/grpo.yaml")
    assert done.returncode == 2
    assert "NVIDIA GPU" in done.stdout and "make demo" in done.stdout
    assert len(done.stdout.splitlines()) <= 24


def test_the_dry_run_of_the_reference_needs_no_gpu() -> None:
    done = run_script(
        "src/train.py", "--config", "configs/grpo.yaml", "--dry-run", "grpo.max_steps=100", MODEL_NAME="a/b"
    )
    assert done.returncode == 0, done.stderr
    for said in ("1 prompt x 8 generations = 8 completions", "command line", "environment MODEL_NAME", "share of the data seen",
                 "disk for checkpoints", "16,384 tokens"):  # fmt: skip
        assert said in done.stdout, said


WRONG = [
    (["--config", "configs/none.yaml"], "there is no file configs/none.yaml"),
    (["--config", "configs/demo.yaml", "grpo.max_stepz=1"], "Did you mean 'max_steps'?"),
    (["--config", "configs/demo.yaml", "task.name=word_problem"], "Did you mean 'word_problems'?"),
    (["--config", "configs/demo.yaml", "task.args={sede: 1}"], "Did you mean 'seed'?"),
    (
        ["--config", "configs/demo.yaml", "rewards.0.name=corectness_reward_func"],
        "Did you mean 'correctness_reward_func'?",
    ),
    (["--config", "configs/demo.yaml", "rewards.0.args={publishd: true}"], "Did you mean 'published'?"),
    (["--config", "configs/demo.yaml", "rewards.0.name=nowhere.py:f"], "nowhere.py"),
    (["--config", "configs/demo.yaml", "--dry-run", "grpo"], "section.key=value"),
    (["grpo.max_steps=3", "--config", "configs/demo.yaml", "grpo.sede=1"], "grpo.sede"),
]


@pytest.mark.parametrize(("words", "said"), WRONG, ids=[row[1][:30] for row in WRONG])
def test_bad_input_is_told_in_one_message(words: list[str], said: str) -> None:
    done = run_script("src/train.py", *words)
    assert done.returncode == 2 and said in done.stderr and "Traceback" not in done.stderr, done.stdout + done.stderr


def test_a_model_that_is_not_there(tmp_path: Path) -> None:
    words = ["--config", "configs/demo.yaml", f"run.output_dir={tmp_path}", "model.name=./nowhere"]
    done = run_script("src/train.py", *words)
    assert done.returncode == 2 and "nowhere" in done.stdout
    assert not (tmp_path / "demo").exists(), "nothing is left of a run that could not start"
