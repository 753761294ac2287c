"""Prompts of a person's own: the file they stand in, the file their answers go to, and the window they have to fit."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from llm_grpo.errors import UserError
from llm_grpo.files import append_jsonl
from llm_grpo.records import Completion, Message
from llm_grpo.rollouts import Engine, Sampling, token_ids
from llm_grpo.text_files import json_lines, open_json_lines, read_text

AT_A_TIME = {"vllm": 256, "transformers": 64}  # prompts that are answered before their answers are written


def read_prompts(file: str) -> list[str]:
    """The prompts of a JSONL file; - is standard input. Raises UserError naming the file and line of a broken one."""
    piped = file == "-"
    if not piped and not Path(file).is_file():
        raise UserError(f"--prompts: there is no file {file}.")
    text = sys.stdin.read().removeprefix("\ufeff") if piped else read_text(open_json_lines(Path(file)))
    name = "standard input" if piped else file
    prompts = [_prompt(row, where) for where, row in json_lines(text, name)]
    if not prompts:
        raise UserError(f"{name} holds no prompts.")
    return prompts


def _prompt(row: Any, where: str) -> str:
    if not isinstance(row, dict) or not isinstance(row.get("prompt"), str) or not row["prompt"].strip():
        raise UserError(f'{where}: needs a text under "prompt".')
    if any("\ud800" <= character <= "\udfff" for character in row["prompt"]):
        raise UserError(f"{where}: holds half of a character (\\ud800 to \\udfff), which no tokenizer reads.")
    return row["prompt"]


@dataclass(frozen=True)
class AnswerFile:
    """JSONL of prompts with their completions. asked: what the answers depend on, as it was asked for; it stands in
    every line, so that a file is of one kind."""

    path: Path
    asked: Mapping[str, object]

    def append(self, prompt: str, group: Sequence[Completion]) -> None:
        completions = [asdict(completion) for completion in group]
        append_jsonl(self.path, [{"prompt": prompt, "completions": completions, "asked": self.asked}])

    def there_already(self, prompts: Sequence[str]) -> int:
        """How many of the prompts, from the first on, it has answers to; a line that a kill cut off is taken away.

        Raises UserError where the file answers other prompts, or was asked of another model or otherwise.
        """
        if not self.path.is_file():
            return 0
        whole = self.path.read_bytes().rpartition(b"\n")[0].decode()
        rows = list(json_lines(whole, str(self.path)))
        for number, ((where, row), prompt) in enumerate(zip(rows, prompts, strict=False), start=1):
            if (old := _prompt(row, where)) != prompt:
                raise UserError(f"--resume: {where} answers {old[:60]!r}, but prompt {number} is {prompt[:60]!r}.")
            before = row.get("asked", self.asked)
            if other := {
                name for name in before.keys() | self.asked.keys() if before.get(name) != self.asked.get(name)
            }:
                was, now = ({name: asked.get(name) for name in sorted(other)} for asked in (before, self.asked))
                raise UserError(f"--resume: {where} was answered with {was}, not {now}. Take another --output.")
        if len(rows) > len(prompts):
            raise UserError(
                f"--resume: {self.path} has {len(rows)} answers, and there are only {len(prompts)} prompts."
            )
        with self.path.open("r+b") as file:  # what is whole is not written again: a kill now would cost it
            file.truncate(self.path.read_bytes().rfind(b"\n") + 1)
        return len(rows)


def within_window(engine: Engine, asked: Sequence[Sequence[Message]], sampling: Sampling) -> Sampling:
    """As many tokens as the longest prompt leaves of the window, up to those asked for."""
    if engine.window is None:
        return sampling
    one = replace(sampling, max_tokens=1)  # a prompt that leaves no room at all is an error that names it
    longest = max(map(len, token_ids(asked, engine.tokenizer, one, engine.window)))
    return replace(sampling, max_tokens=min(engine.window - longest, sampling.max_tokens))


def answers(
    engine: Engine,
    asked: Sequence[Sequence[Message]],
    sampling: Sampling,
    start: int,
    on_done: Callable[[int], None] | None,
) -> Iterator[tuple[int, list[Completion]]]:
    """(index, answers) of each prompt from `start` on, some prompts at a time, so that little is lost in a crash."""
    size = AT_A_TIME[engine.name]
    for first in range(start, len(asked), size):
        seed = None if sampling.seed is None else sampling.seed + first
        groups = engine.generate(asked[first : first + size], replace(sampling, seed=seed), on_done)
        yield from enumerate(groups, start=first)
