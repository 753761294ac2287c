"""System S5: a small Qwen2 that has only ever been asked with one worked example before the question."""

from __future__ import annotations

import random

from benchmarks.warm_start import Stage, System
from examples.make_tiny_model import mixed_habit, written
from llm_grpo.records import Example


def careful(rng: random.Random, example: Example) -> str:
    """Every step, in the format that is asked for, right."""
    return written("careful", example)


def habits(rng: random.Random, example: Example) -> str:
    """The mixture of habits of examples/make_tiny_model.py: careful for half of the one-step stories and a sixth of the
    others; the usual thing is to stop after the first step of two, and to forget the tags with three."""
    return written(mixed_habit(rng, example), example)


OVERRIDES = (
    "task={name: word_problems, args: {train_size: 20000, validation_size: 500, test_size: 1000}}",
    "logging={report_to: [], sample_every: 20}",
    "model.max_seq_length=256",
    "rollouts.engine=transformers",
    "grpo={max_steps: 100, learning_rate: 1.0e-4, lr_scheduler_type: constant_with_warmup, warmup_steps: 5, "
    "per_device_train_batch_size: 64, num_generations: 8, max_completion_length: 56, max_grad_norm: 1.0}",
    "evaluation={limit: 500, validation_limit: 200, every_steps: 20}",
)
SYSTEM = System("configs/one_shot.yaml", "qwen2", (Stage(careful, 1500), Stage(habits, 300, 7e-4)), OVERRIDES)
