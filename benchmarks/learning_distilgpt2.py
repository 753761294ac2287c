"""System S3: a small GPT-2 without a chat template, asked through the plain one, learns from the seven rewards."""

from __future__ import annotations

import random

from benchmarks.warm_start import Stage, System
from examples.make_tiny_model import in_format, mixed_habit, written
from llm_grpo.records import Example


def careful(rng: random.Random, example: Example) -> str:
    """Every step, in the format that is asked for, right."""
    return written("careful", example)


def habits(rng: random.Random, example: Example) -> str:
    """In a fifth of the answers the steps are said over and over, in front of the right answer; the others are the
    mixture of habits of examples/make_tiny_model.py: careful for half of the one-step stories and a sixth of the
    others; the usual thing is to stop after the first step of two, and to forget the tags with three."""
    if rng.random() < 0.2:
        return in_format("\n".join([*example.meta["steps"]] * 2), example.answer)
    return written(mixed_habit(rng, example), example)


OVERRIDES = (
    "task={name: word_problems, args: {train_size: 20000, validation_size: 500, test_size: 1000}}",
    "logging={report_to: [], sample_every: 20}",
    "model.max_seq_length=256",
    "lora={r: 64, alpha: 64}",
    "grpo.max_steps=100",
    "grpo.learning_rate=3.0e-4",  # 1e-4 is slower, 1e-3 ends lower on validation
    "grpo.lr_scheduler_type=constant_with_warmup",
    "grpo.warmup_steps=5",
    "grpo.per_device_train_batch_size=64",
    "grpo.gradient_accumulation_steps=1",
    "grpo.gradient_checkpointing=false",
    "grpo.max_completion_length=72",
    "grpo.max_grad_norm=1.0",
    "evaluation={limit: 500, validation_limit: 200, every_steps: 20}",
)
SYSTEM = System("configs/distilgpt2.yaml", "gpt2", (Stage(careful, 3000), Stage(habits, 300, 7e-4)), OVERRIDES)
