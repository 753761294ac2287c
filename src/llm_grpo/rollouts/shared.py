"""An evaluation's prompts shared out between the trainer's processes: each answers every count-th, and all get all."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from llm_grpo import processes
from llm_grpo.records import Completion, Message
from llm_grpo.rollouts import Engine, Sampling


class SharedEngine:
    """An Engine over the one that each process has. Greedy answers are those of one process; what is sampled is not,
    since each process draws from a seed of its own."""

    def __init__(self, engine: Engine) -> None:
        self.engine, self.name, self.window, self.reader = engine, engine.name, engine.window, engine.reader

    def generate(
        self, prompts: Sequence[Sequence[Message]], sampling: Sampling, on_done: Callable[[int], None] | None = None
    ) -> list[list[Completion]]:
        """completions_by_prompt, the same in all processes."""
        if sampling.seed is not None:
            sampling = replace(sampling, seed=sampling.seed + processes.rank())
        all_done = on_done and (lambda done: on_done(done * processes.count()))
        return processes.shared_out(lambda own: self.engine.generate(own, sampling, all_done), prompts)


def shared(engine: Engine) -> Engine:
    """The engine of an evaluation: the policy's own, where one process trains."""
    return SharedEngine(engine) if processes.count() > 1 else engine
