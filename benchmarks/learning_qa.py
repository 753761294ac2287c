"""Questions and answers of one's own (S4) on a small Llama: `####` answers, from a JSONL file with pair ids."""

from __future__ import annotations

import json
import random
from pathlib import Path

from benchmarks.warm_start import Stage, System
from llm_grpo.answers.formats import write_answer
from llm_grpo.records import Example
from llm_grpo.tasks.word_problems import word_problems

ROWS = 20_000


def write_data(folder: Path) -> tuple[str, ...]:
    """qa.jsonl with the stories of the train split of word_problems; the overrides that name it."""
    examples = word_problems(train_size=ROWS).load("train").examples
    rows = [
        {
            "question": example.prompt[-1]["content"],
            "answer": write_answer("hash", str(example.meta["solution"]), example.answer),
            "generated_at": "2026-11-21T00:00:00Z",
            "pair_id": f"pair-{number:05d}",
        }
        for number, example in enumerate(examples)
    ]
    file = folder / "qa.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return (f"task.args.path={file}",)


def steps_of(example: Example) -> list[str]:
    """12+5=17, 17-3=14: what stands before the mark in the answer column."""
    return str(example.meta["solution"]).partition("####")[0].split()


def careful(rng: random.Random, example: Example) -> str:
    """Every step, then the answer behind ####."""
    return write_answer("hash", "\n".join(steps_of(example)), example.answer)


def habits(rng: random.Random, example: Example) -> str:
    """Careful 25 %; stops after the first step 40 %; all steps and no mark 25 %; the mark twice 10 %."""
    steps, habit = steps_of(example), rng.random()
    if habit < 0.25:
        return careful(rng, example)
    if habit < 0.65:
        return write_answer("hash", steps[0], steps[0].partition("=")[2])
    if habit < 0.90:
        return "\n".join(steps) + f"\nThe answer is {example.answer}."
    return f"#### {steps[0].partition('=')[2]}\n" + careful(rng, example)


STAGES = (Stage(careful, updates=2000), Stage(habits, updates=200, peak=7e-4))
OVERRIDES = (
    "model.max_seq_length=160",
    "prompt.system='Think step by step. End with #### and the answer.'",  # the task's own is a third of every prompt
    "task.args.validation_share=0.02",
    "task.args.test_share=0.03",
    "grpo.per_device_train_batch_size=64",
    "grpo.gradient_accumulation_steps=1",
    "grpo.gradient_checkpointing=false",
    "grpo.max_completion_length=56",
    "grpo.lr_scheduler_type=constant_with_warmup",
    "grpo.warmup_steps=5",
    "grpo.max_grad_norm=1.0",
    "grpo.max_steps=80",
    "evaluation={limit: 500, validation_limit: 200, every_steps: 20}",
    "logging={report_to: [tensorboard, trackio]}",
)
LORA = System("configs/qa_llama1b.yaml", "llama", STAGES, (*OVERRIDES, "grpo.learning_rate=3e-4"), data=write_data)
WHOLE = System(
    "configs/qa_llama1b.yaml", "llama", STAGES, (*OVERRIDES, "grpo.learning_rate=1e-4", "lora=null"), data=write_data
)
