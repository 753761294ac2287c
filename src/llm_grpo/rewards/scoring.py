"""A file of completions scored by rewards: every line keeps what it had and gains a field `scores`."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from llm_grpo.errors import UserError, did_you_mean, not_there
from llm_grpo.records import RewardFunction, columns_of_rows
from llm_grpo.rewards.guarding import RewardError
from llm_grpo.text_files import json_lines, open_json_lines, read_text

BATCH = 256  # lines held in memory at a time


@dataclass
class Tally:
    """What was scored: lines, lines without a gold, and of each reward the number of scores, their sum, and nulls."""

    lines: int = 0
    without_answer: int = 0
    scored: dict[str, int] = field(default_factory=dict)
    total: dict[str, float] = field(default_factory=dict)

    def add(self, row: Mapping[str, Any], scores: Mapping[str, float | None]) -> None:
        self.lines += 1
        self.without_answer += row.get("answer") is None
        for name, score in scores.items():
            self.scored[name] = self.scored.get(name, 0) + (score is not None)
            self.total[name] = self.total.get(name, 0.0) + (score or 0.0)


def score_file(rewards: Mapping[str, RewardFunction], source: Path, target: Path) -> Tally:
    """Score every line of `source` into `target`, which appears only when all of it is written.

    A line is an object with `completion` (a string or a list of messages) and, for most rewards, `answer`; other fields
    reach the rewards as columns. Raises UserError by file and line; the target is then as it was.
    """
    tally = Tally()
    rows = _rows(source)
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    try:
        # backslashreplace: half a character, which UTF-8 cannot hold, is written as JSON escapes it.
        with partial.open("w", encoding="utf-8", errors="backslashreplace") as out:
            while batch := list(islice(rows, BATCH)):
                for row, scores in _scored(rewards, batch, source):
                    tally.add(row, scores)
                    line = {**row, "scores": {**row.get("scores", {}), **scores}}
                    out.write(json.dumps(line, ensure_ascii=False) + "\n")
        if not tally.lines:
            raise UserError(f"{source} holds no completions.")
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)
    return tally


def _rows(source: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(FILE:LINE, row) of every line that is not blank."""
    if not source.is_file():
        raise UserError(not_there(source))
    for place, row in json_lines(read_text(open_json_lines(source)), str(source)):
        if not isinstance(row, dict):
            raise UserError(f'{place}: an object is needed, such as {{"completion": ..., "answer": ...}}.')
        if "completion" not in row:
            raise UserError(f"{place}: there is no field 'completion'.{did_you_mean('completion', row)}")
        if not _is_completion(row["completion"]):
            raise UserError(f"{place}: 'completion' must be a string or a list of messages with role and content.")
        if not isinstance(row.get("scores", {}), dict):
            raise UserError(f"{place}: the field 'scores' holds something of yours; rename it, they are written there.")
        yield place, row


def _is_completion(value: Any) -> bool:
    return isinstance(value, str) or (isinstance(value, list) and all(isinstance(item, dict) for item in value))


def _scored(
    rewards: Mapping[str, RewardFunction], batch: list[tuple[str, dict[str, Any]]], source: Path
) -> Iterator[tuple[dict[str, Any], dict[str, float | None]]]:
    rows = [row for _, row in batch]
    columns = columns_of_rows([{"answer": None, **row} for row in rows])
    columns.pop("scores", None)
    columns["answer"] = [str(gold) if isinstance(gold, int | float) else gold for gold in columns["answer"]]
    columns |= {
        "prompts": [row.get("prompt", "") for row in rows],
        "completions": [_messages(row["completion"]) for row in rows],
    }
    lists = {name: _called(reward, columns, batch, source) for name, reward in rewards.items()}
    for index, row in enumerate(rows):
        yield row, {name: values[index] for name, values in lists.items()}


def _messages(completion: str | list[dict[str, Any]]) -> list[dict[str, Any]]:
    """As the trainer hands them over: functions from notebooks read completion[0]["content"]."""
    return [{"role": "assistant", "content": completion}] if isinstance(completion, str) else completion


def _called(reward: RewardFunction, columns: Mapping[str, Any], batch: list[Any], source: Path) -> list[float | None]:
    try:
        return reward(**columns)
    except RewardError as error:
        place = source if error.row is None else batch[error.row][0]
        raise UserError(f"{place}: {error}") from error
