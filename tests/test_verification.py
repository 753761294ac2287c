"""The real TRL trainer on Unsloth's model against the float64 reference, and the reference against its own mutants."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import ROOT, TINY
from datasets import Dataset
from transformers import AutoTokenizer, Qwen2Config, Qwen2ForCausalLM
from trl import GRPOTrainer

from llm_grpo import runs
from llm_grpo.config import load_config
from llm_grpo.errors import UserError
from llm_grpo.policy import load_policy
from llm_grpo.training import grpo_arguments
from llm_grpo.verification import Reference, exact_model, formulas, subject, verify_update

TOKENS = 592  # of the shipped tokenizer; all but the first 20 are never sampled, so that some completions end
BASE = [
    "model.max_seq_length=128",
    "lora.r=8",
    "lora.alpha=12",
    "grpo.per_device_train_batch_size=8",
    "grpo.num_generations=4",
    "grpo.max_completion_length=10",
    "grpo.temperature=0.9",
    f"grpo.generation_kwargs={{suppress_tokens: {[0, 1, *range(20, TOKENS)]}}}",
]
PROMPTS = ["one two", "three and four and five and six", "x", "how many are there"]
ACCUMULATED = ["grpo.per_device_train_batch_size=4", "grpo.gradient_accumulation_steps=2"]


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Qwen2 of two layers, with grouped heads and biases, sharp enough that attention matters."""
    folder = tmp_path_factory.mktemp("random_qwen2")
    torch.manual_seed(0)
    shape = Qwen2Config(
        vocab_size=TOKENS, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, initializer_range=0.1, tie_word_embeddings=True, pad_token_id=0, eos_token_id=2,
    )  # fmt: skip
    Qwen2ForCausalLM(shape).save_pretrained(folder)
    AutoTokenizer.from_pretrained(TINY).save_pretrained(folder)
    return folder


def length(completions: list[str], **_: object) -> list[float]:
    return [float(len(text) % 5) for text in completions]


def unsure(completions: list[str], **_: object) -> list[float | None]:
    """Sometimes it cannot judge; of the last completion of a prompt nobody can say anything in `cannot`."""
    return [None if i % 5 == 0 else float(i % 3) for i, _ in enumerate(completions)]


def disturb(model: torch.nn.Module, seed: int) -> None:
    """B starts at zero, and so does the gradient of A: a LoRA that has learnt something is put in its place."""
    noise = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B.default" in name:
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=noise).to(parameter))


def build(
    tiny: Path, *overrides: str, rewards: tuple[Callable, ...] = (length, unsure), kind: type = GRPOTrainer
) -> GRPOTrainer:
    """TRL's trainer under our settings, on a model that is away from its KL reference."""
    config = load_config(ROOT / "configs" / "demo.yaml", [f"model.name={tiny}", *BASE, *overrides], environment={})
    policy = load_policy(config)
    disturb(policy.model, seed=1)
    trainer = kind(
        model=policy.model,
        processing_class=policy.tokenizer,
        reward_funcs=list(rewards),
        args=grpo_arguments(config, runs.Run(tiny / "run"), [1.0, 0.5][: len(rewards)], "transformers"),
        train_dataset=Dataset.from_dict({"prompt": PROMPTS}),
    )
    disturb(policy.model, seed=2)
    return trainer


LEVELS = {"token": [], "sequence": ["grpo.importance_sampling_level=sequence", "grpo.epsilon=3.0e-2"]}


@pytest.mark.parametrize("off_policy", [False, True], ids=["on-policy", "off-policy"])
@pytest.mark.parametrize("beta", [0.0, 0.1])
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("loss_type", formulas.LOSS_TYPES)
def test_the_update_is_the_formula(tiny: Path, loss_type: str, level: str, beta: float, off_policy: bool) -> None:
    trainer = build(tiny, f"grpo.loss_type={loss_type}", f"grpo.beta={beta}", *LEVELS[level])
    found = verify_update(trainer, off_policy=off_policy)
    assert found.ok, found
    assert (found.settings.loss_type, found.settings.level, found.settings.beta) == (loss_type, level, beta)
    assert {q.name for q in found.quantities} == {"logps", "advantages", "loss", "gradient"} | (
        {"reference_logps"} if beta else set()
    )
    assert found.trainer == "trl.trainer.grpo_trainer.GRPOTrainer.compute_loss", "stock TRL, and it says so"
    assert found.dtype == "float32" and found.gradient_norm > 0.01
    assert (0.2 < found.clipped < 0.8) if off_policy else found.clipped == 0


SETTINGS = [
    ("batch", ["grpo.scale_rewards=batch"], "one deviation for all groups"),
    ("none", ["grpo.scale_rewards=none"], "Dr. GRPO: no deviation at all"),
    ("normalize_then_sum", ["grpo.multi_objective_aggregation=normalize_then_sum"], "each reward on its own scale"),
    ("clip_higher", ["grpo.epsilon_high=0.28"], "DAPO's two bounds"),
    ("plain_kl", ["grpo.beta=0.1", "grpo.use_bias_correction_kl=false"], "the KL of the GRPO paper"),
    ("truncated", ["grpo.mask_truncated_completions=true"], "whole rows are masked, in attention too"),
    ("dropout", ["lora.dropout=0.5"], "switched off while the two are compared"),
    ("iterations", ["grpo.num_iterations=2"], "old log-probabilities come with the batch"),
    *[
        (f"{kind}_accumulated", [*ACCUMULATED, f"grpo.loss_type={kind}", "grpo.beta=0.1"], "two parts, one update")
        for kind in formulas.LOSS_TYPES
    ],
    *[
        (f"{kind}_two_updates", [*ACCUMULATED, f"grpo.loss_type={kind}", "grpo.steps_per_generation=4"], "two updates of two parts")
        for kind in formulas.LOSS_TYPES
    ],
    ("half_an_update", ["grpo.gradient_accumulation_steps=2", "grpo.steps_per_generation=1"], "two batches, one update"),
]  # fmt: skip


@pytest.mark.parametrize(("overrides", "why"), [row[1:] for row in SETTINGS], ids=[row[0] for row in SETTINGS])
def test_settings_that_change_the_update(tiny: Path, overrides: list[str], why: str) -> None:
    found = verify_update(build(tiny, *overrides), off_policy=True)
    assert found.ok, f"{why}\n{found}"


@pytest.mark.parametrize("mode", ["token_truncate", "token_mask", "sequence_truncate", "sequence_mask"])
def test_the_correction_for_another_engine(tiny: Path, mode: str) -> None:
    """As if vLLM had sampled by slightly other probabilities; TRL's weights are computed here as TRL computes them."""
    trainer = build(tiny, f"grpo.vllm_importance_sampling_mode={mode}", "grpo.vllm_importance_sampling_clip_max=1.3",
                    "grpo.vllm_importance_sampling_clip_min=0.8")  # fmt: skip
    batch = subject.generate(trainer)
    old = subject.logps(trainer, batch)
    gap = 0.3 * torch.randn(old.shape, generator=torch.Generator().manual_seed(0)) * batch["completion_mask"]
    weight = (gap.sum(1, keepdim=True) if "sequence" in mode else gap).exp()
    batch |= {
        "old_per_token_logps": old,
        "sampling_per_token_logps": old - gap,
        "importance_sampling_ratio": weight.clamp(0.8, 1.3) if "truncate" in mode
        else torch.where((weight < 0.8) | (weight > 1.3), 0.0, weight),
    }  # fmt: skip
    trainer.use_vllm = True
    for off_policy in (False, True):
        found = verify_update(trainer, dict(batch), off_policy=off_policy)
        assert found.ok, found
