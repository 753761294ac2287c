"""Lead qualification (S2) on a small Qwen2 that reads the calls well and answers in bad habits."""

from __future__ import annotations

import random

from benchmarks.warm_start import Stage, System
from llm_grpo.answers.labels import parse_labels, write_action
from llm_grpo.records import Example


def careful(rng: random.Random, example: Example) -> str:
    """The right label set as one action."""
    return write_action(parse_labels(example.answer))


def habits(rng: random.Random, example: Example) -> str:
    """All that are met 30 %; only the first of them 50 %; in reverse order 10 %; without tags 10 %."""
    labels, habit = parse_labels(example.answer), rng.random()
    if habit < 0.50:
        return write_action(labels[:1])
    if habit < 0.60:
        return write_action(labels[::-1])
    return example.answer if habit < 0.70 else write_action(labels)


SYSTEM = System(
    "configs/lead_qualification.yaml",
    "qwen2",
    (Stage(careful, updates=2600, peak=2e-3), Stage(habits, updates=120, peak=7e-4)),
    (
        "model.max_seq_length=512",
        "task.args={train_size: 12000}",
        "lora.r=64",
        "lora.alpha=64",
        "lora.target_modules=null",
        "model.merge_base=null",
        "grpo.per_device_train_batch_size=96",
        "grpo.num_generations=8",
        "grpo.gradient_accumulation_steps=1",
        "grpo.gradient_checkpointing=false",
        "grpo.learning_rate=3e-4",
        "grpo.temperature=1.0",
        "grpo.max_steps=80",
        "grpo.lr_scheduler_type=constant_with_warmup",
        "grpo.warmup_steps=5",
        "grpo.max_grad_norm=1.0",
        "evaluation={limit: 320, validation_limit: 96, every_steps: 20}",
    ),
    vocabulary=1024,
    shape={"layers": 3},
)
