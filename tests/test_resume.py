"""A run that was stopped and resumed is the run that was not: completions, log and adapter, bit for bit."""

from __future__ import annotations

import inspect
import os
import re
import shutil
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import ROOT
from rich.console import Console
from safetensors.torch import load_file, save_file
from transformers import Trainer
from trl import GRPOTrainer

from llm_grpo import runs
from llm_grpo.checkpoints import by_step, fingerprint, newest
from llm_grpo.config.loading import load_config
from llm_grpo.config.schema import Config
from llm_grpo.errors import UserError
from llm_grpo.evaluation.scoring import evaluate, without_items
from llm_grpo.policy import load_policy, load_weights, save_weights
from llm_grpo.problems import build_rewards, prepare
from llm_grpo.tasks import build_task
from llm_grpo.training.optimising import Trained, optimise
from llm_grpo.training.recording import Recorder
from llm_grpo.training.trainer import build_trainer
from llm_grpo.training.watching import Validation, watch

SMALL = [
    "grpo={max_steps: 6, save_steps: 1, save_total_limit: null, learning_rate: 1e-3, lr_scheduler_type: constant, "
    "per_device_train_batch_size: 8, num_generations: 4, max_completion_length: 12, warmup_steps: 0}",
    "task.args={train_size: 24, validation_size: 8, test_size: 8}",
    "lora.r=8",
    "evaluation.every_steps=2",
]
ALIVE = []
TIMES = re.compile(r"time$|second|memory_peak_gb|wasted_share")


def train(config: Config, run: runs.Run, checkpoint=None) -> Trained:
    policy, rewards = load_policy(config), build_rewards(config.rewards)
    if policy.engine.name == "vllm":
        ALIVE.append(policy)  # when a vLLM goes it takes the process groups of the next one with it
    task = build_task(config.task.name, config.task.args)
    data, check = (prepare(task, split, config, policy.tokenizer, 24) for split in ("train", "validation"))
    watched = watch(
        config, run, Console(quiet=True),
        lambda: without_items(evaluate(policy.engine, task, check.problems, rewards, 12)),
        lambda folder: save_weights(policy, folder),
    )  # fmt: skip
    trainer = build_trainer(config, policy, task, data.problems, rewards, run, watched)
    return optimise(trainer, watched, run, checkpoint)


def resumed_at(step: int, run: runs.Run, folder: Path) -> runs.Run:
    """What was on disk of a run when it was killed just after it had saved that step, or some steps later."""
    shutil.copytree(run.folder, folder / run.folder.name)
    copy = runs.Run(folder / run.folder.name, run.learns)
    for path in copy.checkpoints.glob("checkpoint-*"):
        if int(path.name.rpartition("-")[2]) > step:
            shutil.rmtree(path)
    return copy


def told(run: runs.Run) -> dict[str, list]:
    """Everything a run says of itself, but for how long it took."""
    files = {"metrics": [run.metrics], "validation": [run.validation], "completions": run.completion_files()}
    return {
        name: [{key: value for key, value in row.items() if not TIMES.search(key)} for file in found
               for row in runs.read_jsonl(file)]
        for name, found in files.items()
    }  # fmt: skip


def weights(folder: Path) -> dict[str, bytes]:
    (file,) = folder.glob("*.safetensors")
    return {name: value.numpy().tobytes() for name, value in load_file(file).items()}


# (what is special, overrides, the step after which it is resumed)
RUNS = [
    ("a batch used twice", ["grpo.num_iterations=2"], 3),
    ("a batch over two updates", ["grpo.steps_per_generation=2"], 3),
    ("both, accumulated, logged rarely, a KL term",
     ["grpo.steps_per_generation=4", "grpo.gradient_accumulation_steps=2", "grpo.num_iterations=2", "grpo.beta=0.04",
      "grpo.logging_steps=5"], 3),
    ("batches within an update", ["grpo.gradient_accumulation_steps=2", "grpo.steps_per_generation=1", "grpo.logging_steps=4"], 2),
    ("epochs", ["grpo.num_train_epochs=2", "grpo.max_steps=-1", "grpo.per_device_train_batch_size=32",
                "grpo.num_iterations=2", "lora.dropout=0.1", "task.args.train_size=16"], 5),
    ("all weights, a KL term", ["lora=null", "grpo.beta=0.04", "grpo.num_iterations=2", "grpo.logging_steps=4"], 5),
    ("prompts chosen, some refilled, a batch used twice",
     ["sampling={choose: true, refill: 1.0, explore: 0.0}", "grpo.num_iterations=2"], 3),
    ("vLLM", ["rollouts.engine=vllm", "grpo.num_iterations=2"], 3),
]  # fmt: skip


@pytest.mark.parametrize(("overrides", "step"), [row[1:] for row in RUNS], ids=[row[0] for row in RUNS])
def test_a_resumed_run_is_the_run_that_was_not_interrupted(
    tmp_path: Path, overrides: list[str], step: int, monkeypatch
):
    monkeypatch.chdir(ROOT)
    if "rollouts.engine=vllm" in overrides:
        pytest.importorskip("vllm")
    words = [f"run.output_dir={tmp_path}", *SMALL, *overrides]
    config = load_config(ROOT / "configs" / "demo.yaml", words, environment={})
    run = runs.create(config)
    whole = train(config, run)
    assert whole.finished and whole.steps == runs.last_step(run)
    copy = resumed_at(step, run, tmp_path / "again")
    again = train(config, copy, newest(copy.checkpoints, hashes=True))
    assert again.steps == whole.steps
    assert told(copy) == told(run)
    assert weights(copy.last) == weights(run.last) != weights(copy.checkpoints / f"checkpoint-{step}")
    assert weights(copy.best) == weights(run.best)


def test_a_stop_leaves_to_the_resume_what_it_came_before(tmp_path: Path, monkeypatch) -> None:
    """Inside a generation batch and between two lines of the log: in a step that ends with a validation, in that
    validation, and in the one at the end. Two resumes from one checkpoint (a kill came after the first) write no line
    twice."""
    monkeypatch.chdir(ROOT)
    words = [f"run.output_dir={tmp_path}", *SMALL, "grpo.num_iterations=3", "grpo.logging_steps=2",
             "grpo.save_steps=100"]  # fmt: skip

    def config_of(name: str) -> Config:
        return load_config(ROOT / "configs" / "demo.yaml", [*words, f"run.name={name}"], environment={})

    run = runs.create(config_of("whole"))
    assert train(config_of("whole"), run).finished
    record, validate = Recorder.__call__, Validation.validate

    def in_the_step(self: Recorder, step: int, *rest: Any) -> Any:
        if step == 4:
            os.kill(os.getpid(), signal.SIGTERM)
        return record(self, step, *rest)

    def in_the_validation(at: int) -> Any:
        def interrupted(self: Validation, step: int) -> None:
            if step == at:
                for _ in range(2):
                    os.kill(os.getpid(), signal.SIGINT)
            validate(self, step)

        return interrupted

    stops = [  # name, what is patched, by what, the step
        ("step", "training.recording.Recorder.__call__", in_the_step, 4),
        ("validation", "training.watching.Validation.validate", in_the_validation(4), 4),
        ("end", "training.watching.Validation.validate", in_the_validation(6), 6),
    ]
    for name, place, interrupted, at in stops:
        stopped = runs.create(config_of(name))
        with monkeypatch.context() as patch:
            patch.setattr(f"llm_grpo.{place}", interrupted)
            assert train(config_of(name), stopped).steps == at, name
        checkpoint = newest(stopped.checkpoints, hashes=True)
        assert checkpoint.step == at and not checkpoint.ended, name
        for of in (stopped.validation, stopped.metrics):
            assert max(row["step"] for row in runs.read_jsonl(of)) == at - 2, name
        for _ in range(2 if name == "validation" else 1):
            again = train(config_of(name), stopped, checkpoint)
            assert again.finished and told(stopped) == told(run), name
            assert weights(stopped.last) == weights(run.last) and weights(stopped.best) == weights(run.best), name


def test_new_steps_for_logging_and_saving_take_effect(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(ROOT)
    words = [f"run.output_dir={tmp_path}", *SMALL, "grpo.max_steps=2", "evaluation.every_steps=0"]
    config = load_config(ROOT / "configs" / "demo.yaml", words, environment={})
    run = runs.create(config)
    train(config, run)
    more = load_config(
        run.config_file, ["grpo.max_steps=8", "grpo.save_steps=3", "grpo.logging_steps=4"], environment={}
    )
    _, checkpoint = runs.reopen(more, fingerprint(build_task(more.task.name, more.task.args).load))
    train(more, run, checkpoint)
    assert [row["step"] for row in runs.read_jsonl(run.metrics)] == [1, 2, 4, 8]
    assert [path.name.rpartition("-")[2] for path in by_step(run.checkpoints)] == ["8", "6", "3", "2", "1"]
    finished = newest(run.checkpoints, hashes=True)
    (run.last / "adapter_model.safetensors").unlink()
    assert train(more, run, finished).steps == 8, "only what follows the training is left to do"
    assert weights(run.last) == weights(finished.folder)


def test_weights_that_are_not_those_of_the_file_are_refused_and_nothing_is_overwritten(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(ROOT)
    config = load_config(ROOT / "configs" / "demo.yaml", [f"run.output_dir={tmp_path}", *SMALL], environment={})
    run, policy = runs.create(config), load_policy(config)
    save_weights(policy, run.last)
    kept = weights(run.last)
    file = run.last / "adapter_model.safetensors"
    saved = load_file(file)
    save_file({name: value for name, value in saved.items() if "layers.0.self_attn.q_proj.lora_A" not in name}, file)
    with pytest.raises(UserError, match="q_proj.lora_A.weight is trained, and in none of its files. Nothing was"):
        load_weights(policy, run.last)
    save_file(saved, file)
    assert weights(run.last) == kept
    monkeypatch.setattr("peft.set_peft_model_state_dict", lambda *_: SimpleNamespace(unexpected_keys=[]))
    save_file({name: value + 1 for name, value in saved.items()}, file)
    with pytest.raises(UserError, match="is not held by the policy after loading"):
        load_weights(policy, run.last)


def test_the_seams_of_transformers_and_trl_are_there() -> None:
    for name in ("_get_train_sampler", "_init_training_state", "_maybe_log_save_evaluate", "_get_grad_norm", "_save",
                 "_save_checkpoint", "_get_output_dir", "_save_rng_state", "_load_from_checkpoint", "_load_rng_state",
                 "_buffered_inputs"):  # fmt: skip
        assert name in vars(GRPOTrainer) or hasattr(Trainer, name) or name in inspect.getsource(GRPOTrainer), name
    loop = inspect.getsource(Trainer._run_epoch)
    ends = ("_load_rng_state(", "_get_grad_norm(", "optimizer.step(", "on_step_end(", "_maybe_log_save_evaluate(")
    places = [loop.index(end) for end in ends]
    assert places == sorted(places), "the order in which a step ends"
