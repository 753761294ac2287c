"""The demo's task on a base made in a minute: the entry to copy for a system of your own."""

from __future__ import annotations

import random

from benchmarks.warm_start import Stage, System
from examples.make_tiny_model import in_format
from llm_grpo.records import Example


def write(rng: random.Random, example: Example) -> str:
    """Half give the right answer in the format, a fifth without tags, the others a number of the first step."""
    habit, steps = rng.random(), "\n".join(example.meta["steps"])
    if habit < 0.5:
        return in_format(steps, example.answer)
    if habit < 0.7:
        return f"{steps}\nThe answer is {example.answer}."
    return in_format(steps, example.meta["steps"][0].partition("=")[2])


SYSTEM = System("configs/demo.yaml", "qwen2", (Stage(write, updates=300),))
