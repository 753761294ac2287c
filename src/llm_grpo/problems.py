"""From a task's split to what the model is given: system prompt, worked examples, and nothing that does not fit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from llm_grpo.config import Config, RewardSpec
from llm_grpo.errors import UserError
from llm_grpo.prompts import split_by_length, with_system
from llm_grpo.records import BadRow, Example, Problem, Reward, Task
from llm_grpo.rewards import build_reward
from llm_grpo.tasks import build_task


@dataclass(frozen=True)
class Prepared:
    """The usable problems of one split, and what is not: rows by file and line, prompts by id and tokens."""

    split: str
    problems: tuple[Problem, ...]
    bad_rows: tuple[BadRow, ...]
    too_long: tuple[tuple[str, int], ...]


def prepare(task: Task, split: str, config: Config, tokenizer: Any, limit: int | None = None) -> Prepared:
    """The first `limit` problems of a split, prompts made, those left out that leave no room for the completion.

    Worked examples (prompt.examples) are the first of the train split and are not trained on. Raises UserError.
    """
    loaded = task.load(split)
    shots = _shots(task, config.prompt.examples)
    examples = [e for e in loaded.examples if e.id not in {shot["id"] for shot in shots}][:limit]
    conversations = [(e, with_system(e.prompt, system_prompt(config, task), shots)) for e in examples]
    window = config.model.max_seq_length - config.grpo["max_completion_length"]
    kept, too_long = split_by_length(conversations, tokenizer, window)
    if not kept:
        raise UserError(f"The {split} split of task {task.name} is empty; give it some problems (task.args).")
    problems = tuple(Problem(example, tuple(messages)) for example, messages in kept)
    return Prepared(split, problems, loaded.bad_rows, tuple(too_long))


def system_prompt(config: Config, task: Task | None = None) -> str:
    """What the model is told first: `prompt.system`, else the task's own."""
    if config.prompt.system is not None:
        return config.prompt.system
    return (task or build_task(config.task.name, config.task.args)).system


def build_rewards(specs: Sequence[RewardSpec]) -> list[Reward]:
    """The rewards of a config; a function that stands twice gets a number, so that logs keep them apart."""
    rewards: list[Reward] = []
    for spec in specs:
        function = build_reward(spec.name, spec.args)
        count = sum(reward.label.split("#")[0] == function.__name__ for reward in rewards)
        if count:
            function.__name__ = f"{function.__name__}#{count + 1}"
        rewards.append(Reward(function.__name__, function, spec.weight))
    return rewards


def _shots(task: Task, count: int) -> list[dict[str, str]]:
    """Worked examples from the train split; an example has to bring its solution for that."""
    shots = []
    for example in task.load("train").examples[:count] if count else ():
        if "solution" not in example.meta:
            raise UserError(
                f"prompt.examples: task {task.name} has no worked solutions to show; set prompt.examples=0."
            )
        shots.append({"id": example.id, "question": example.prompt[-1]["content"], "answer": _worked(example)})
    return shots


def _worked(example: Example) -> str:
    reasoning = str(example.meta["solution"]).rpartition("####")[0].strip() or str(example.meta["solution"])
    return f"<reasoning>\n{reasoning}\n</reasoning>\n<answer>\n{example.answer}\n</answer>"
