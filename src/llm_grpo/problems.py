"""From a task's split to what the model is given: system prompt, worked examples, and nothing that does not fit."""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any

from llm_grpo.answers.formats import write_answer
from llm_grpo.answers.judging import format_of
from llm_grpo.config.schema import Config, RewardSpec
from llm_grpo.errors import UserError
from llm_grpo.files import read_json
from llm_grpo.prompts import split_by_length, with_known_roles, with_system
from llm_grpo.records import BadRow, Example, Message, Problem, Reward, Task
from llm_grpo.rewards import build_reward
from llm_grpo.runs import Run
from llm_grpo.tasks import build_task


@dataclass(frozen=True)
class Prepared:
    """The usable problems of one split, and what is not: rows by file and line, prompts by id and tokens."""

    split: str
    problems: tuple[Problem, ...]
    bad_rows: tuple[BadRow, ...]
    too_long: tuple[tuple[str, int], ...]


def prepare(task: Task, split: str, config: Config, tokenizer: Any, limit: int | None = None) -> Prepared:
    """The first `limit` problems of a split, prompts made. Those that leave no room for the completion are an error, or
    left out and named (prompt.too_long): a prompt is never cut, and none runs over the window.

    What is shown as a worked example is in no split. Raises UserError.
    """
    loaded = task.load(split)
    shown = _shown(task, config.prompt.examples)
    shots, taken = _as_messages(shown, task), {_words(example) for example in shown}
    examples = [e for e in loaded.examples if not taken or _words(e) not in taken][:limit]
    system = system_prompt(config, task)
    conversations = [(e, with_known_roles(with_system(e.prompt, system, shots), tokenizer)) for e in examples]
    answer = config.answer_tokens(split)
    kept, too_long = split_by_length(conversations, tokenizer, config.model.max_seq_length - answer)
    if too_long and config.prompt.too_long == "error":
        raise UserError(_too_long(split, too_long, len(examples), answer, config.model.max_seq_length))
    if not kept:
        raise UserError(f"The {split} split of task {task.name} is empty; give it some problems (task.args).")
    problems = tuple(Problem(example, tuple(messages)) for example, messages in kept)
    return Prepared(split, problems, loaded.bad_rows, tuple(too_long))


def _too_long(split: str, prompts: Sequence[tuple[str, int]], count: int, answer: int, window: int) -> str:
    named = ", ".join(f"{name} ({tokens} tokens)" for name, tokens in prompts[:5])
    more = f" and {len(prompts) - 5} more" if len(prompts) > 5 else ""
    return (
        f"{split}: {len(prompts)} of {count} prompts leave no room for an answer of {answer} tokens in the window of "
        f"{window}: {named}{more}.\nRaise model.max_seq_length, lower grpo.max_completion_length, shorten these, or "
        "go on without them: prompt.too_long=leave_out."
    )


def system_prompt(config: Config, task: Task | None = None) -> str:
    """What the model is told first: `prompt.system`, else the task's own."""
    if config.prompt.system is not None:
        return config.prompt.system
    return (task or build_task(config.task.name, config.task.args)).system


def worked_examples(config: Config, task: Task | None = None) -> tuple[Message, ...]:
    """The `prompt.examples` solved problems that stand before every question, as messages of user and assistant.

    The same wherever the model is asked (training, evaluation, inference, proof, card): neither a limit nor a window
    nor the tokenizer has a say in which they are. Raises UserError where the task has none to show.
    """
    if not config.prompt.examples:
        return ()
    task = task or build_task(config.task.name, config.task.args)
    return _as_messages(_shown(task, config.prompt.examples), task)


def first_example(config: Config) -> Example:
    """The first of the train split as the model is asked it, whatever its tokenizer. Raises UserError."""
    task = build_task(config.task.name, config.task.args)
    example = task.load("train").examples[0]
    messages = with_system(example.prompt, system_prompt(config, task), worked_examples(config, task))
    return replace(example, prompt=tuple(messages))


def build_rewards(specs: Sequence[RewardSpec], run: Run | None = None) -> list[Reward]:
    """The rewards of a config; a function that stands twice gets a number, so that logs keep them apart.

    run: where those with workers write what they printed and which completions they failed on, once it has a folder.
    """
    rewards: list[Reward] = []
    for spec in specs:
        function = build_reward(run=run, **spec.model_dump(exclude={"weight"}))
        count = sum(reward.label.split("#")[0] == function.__name__ for reward in rewards)
        if count:
            function.__name__ = f"{function.__name__}#{count + 1}"
        rewards.append(Reward(function.__name__, function, spec.weight))
    return rewards


def check_data(config: Config, task: Task) -> None:
    """Before a model is loaded: the train split has the worked solutions and the pass rates that the config asks for.
    Raises UserError."""
    if config.prompt.examples:
        _shown(task, config.prompt.examples)
    if config.sft:
        _solved(task, "sft", "null")
    if config.sampling.pass_rates:
        read_pass_rates(Path(config.sampling.pass_rates), {example.id for example in task.load("train").examples})


def read_pass_rates(path: Path, ids: Set[str]) -> dict[str, tuple[int, int]]:
    """Of a report of `eval.py --split train --samples K`: id -> (answers that passed, answers). Raises UserError where
    it is none, or knows nothing of the problems with these ids."""
    report = read_json(path)
    if report is None:
        raise UserError(f"sampling.pass_rates: {path} is not there.")
    try:
        passed, tried = report["sampled"]["strict"]["passed"], report["sampled"]["k"]
        found = {item["id"]: (count, tried) for item, count in zip(report["items"], passed, strict=True)}
    except (KeyError, TypeError, ValueError):
        raise UserError(
            f"sampling.pass_rates: {path} has no samples by problem. Make it with eval.py --split train --samples 8."
        ) from None
    if not found.keys() & ids:
        raise UserError(f"sampling.pass_rates: none of the problems of {path} is in the train split.")
    return found


def _solved(task: Task, wish: str, off: str) -> list[Example]:
    """The training examples with a worked solution, right or not.

    wish: the key of the config that asks for them, and `off` its value that does not. Raises UserError where the task
    has none.
    """
    examples = task.load("train").examples
    told = [example for example in examples if _solution(example) or format_of(task.judge) == "plain"]
    if format_of(task.judge) is None or not told:
        why = "its answers have a form of their own" if told else "its examples have no column 'solution'"
        raise UserError(f"{wish}: task {task.name} has no worked solutions ({why}). Set it to {off}.")
    return told


def worked_right(example: Example, task: Task) -> bool:
    """Whether the task's own judge calls its worked solution right."""
    return task.judge(worked(example, task), example.answer).strict


def _shown(task: Task, count: int) -> list[Example]:
    """The first of the train split that are no longer than half of it and whose solution is right."""
    if not count:
        return []
    usable = _solved(task, "prompt.examples", "0")
    usual = median(map(_length, usable))
    shown = list(islice((e for e in usable if _length(e) <= usual and worked_right(e, task)), count))
    if len(shown) < count:
        raise UserError(f"prompt.examples: {count} wanted, the train split of {task.name} has {len(shown)} to show.")
    return shown


def _as_messages(shown: Sequence[Example], task: Task) -> tuple[Message, ...]:
    """Each example's own messages (but for a system prompt), answered."""
    messages: list[Message] = []
    for example in shown:
        messages += [message for message in example.prompt if message["role"] != "system"]
        messages.append({"role": "assistant", "content": worked(example, task)})
    return tuple(messages)


def worked(example: Example, task: Task) -> str:
    """The answer the model should have written: the solution in the format the task asks for."""
    return write_answer(format_of(task.judge) or "", _solution(example), example.answer)


def _solution(example: Example) -> str:
    """How it is solved, without the line of the answer; empty where the data do not say."""
    text = str(example.meta.get("solution") or "")
    return (text.rpartition("####")[0] or text).strip()


def _length(example: Example) -> int:
    return sum(map(len, _words(example))) + len(_solution(example))


def _words(example: Example) -> tuple[str, ...]:
    """What is asked, whatever the case and the blanks: a question that stands twice is one question."""
    return tuple(" ".join(message["content"].split()).casefold() for message in example.prompt)
