"""Any reward function, made safe: whatever is wrong with its scores is said with its name, the step and the row."""

from __future__ import annotations

import asyncio
import inspect
import traceback
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from numbers import Real
from typing import Any

from llm_grpo.errors import UserError
from llm_grpo.records import RewardFunction


class RewardError(UserError):
    """A reward function that raised, or returned what is no list of scores. `row` counts from 0 within the batch."""

    def __init__(self, message: str, *, name: str, row: int | None = None) -> None:
        super().__init__(message)
        self.name, self.row = name, row


def guard(function: RewardFunction, name: str, step: Callable[[], int] | None = None) -> RewardFunction:
    """`function` with its scores checked and turned to floats; raises RewardError.

    step: tells the training step for the message; without it TRL's `trainer_state` is asked, where it is among the
    columns. Functions written with `async def` are awaited.
    """

    def guarded(prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float | None]:
        who = f"reward '{name}'{_when(step, columns)}"
        batch = {"prompts": prompts, "completions": completions, **columns}
        try:
            scores = _call(function, batch)
        except Exception as error:  # the function may be anybody's: every failure of it is the same kind of news
            raise _failure(function, batch, error, name, who) from error
        return check_scores(name, scores, len(completions), who)

    guarded.__name__ = guarded.__qualname__ = name
    guarded.__doc__ = function.__doc__
    return guarded


def check_scores(name: str, scores: Any, expected_count: int, who: str | None = None) -> list[float | None]:
    """The scores as floats (None stays None: "cannot be judged"). Raises RewardError with the first row at fault."""
    who = who or f"reward '{name}'"
    if isinstance(scores, str | bytes | Mapping) or not hasattr(scores, "__iter__") or getattr(scores, "ndim", 1) != 1:
        raise RewardError(f"{who} returned {_kind(scores)}; it must return a list with one score each.", name=name)
    values = list(scores)
    if len(values) != expected_count:
        message = f"{who} returned {len(values)} scores for {expected_count} completions; it must return one for each."
        raise RewardError(message, name=name)
    return [_score(value, name, row, who) for row, value in enumerate(values)]


def _score(value: Any, name: str, row: int, who: str) -> float | None:
    if value is None:
        return None
    plain = value.item() if hasattr(value, "item") and getattr(value, "ndim", 1) == 0 else value  # numpy, torch
    wrong = None
    if not isinstance(plain, Real):
        wrong = f"{_kind(value)}; a number or None is needed."
    elif not -1e38 < plain < 1e38:  # nan as well; TRL keeps rewards in float32
        shown = plain if isinstance(plain, float) else "too large"
        wrong = f"{shown}; it must be finite, or None where a completion cannot be judged."
    if wrong:
        raise RewardError(f"{who}, row {row}: the score is {wrong}", name=name, row=row)
    return float(plain)


def _kind(value: Any) -> str:
    shown = repr(value) if isinstance(value, str | bytes) else ""
    return f"{type(value).__name__} {shown[:60]}".rstrip()


def _when(step: Callable[[], int] | None, columns: Mapping[str, Any]) -> str:
    done = getattr(columns.get("trainer_state"), "global_step", None)  # TRL counts the steps that are finished
    number = step() if step else None if done is None else done + 1
    return "" if number is None else f" at step {number}"


def _call(function: RewardFunction, batch: Mapping[str, Any]) -> Any:
    result = function(**batch)
    if not inspect.isawaitable(result):
        return result
    with ThreadPoolExecutor(1) as thread:  # not here: a notebook's event loop may already run on this thread
        return thread.submit(asyncio.run, _awaited(result)).result()


async def _awaited(result: Any) -> Any:
    return await result


def _failure(function: RewardFunction, batch: Mapping[str, Any], error: Exception, name: str, who: str) -> RewardError:
    """The message of a reward that raised: what, in which row, and where in whose file."""
    if isinstance(error, UserError):
        return RewardError(f"{who}: {error}", name=name)
    row = _failing_row(function, batch)
    place = traceback.extract_tb(error.__traceback__)[-1]
    row_text = "" if row is None else f", row {row}"
    said = f"{who}{row_text} raised {type(error).__name__}: {str(error)[:500]} ({place.filename}:{place.lineno})"
    return RewardError(said, name=name, row=row)


def _failing_row(function: RewardFunction, batch: Mapping[str, Any]) -> int | None:
    """The first row that also fails alone. The run is lost anyhow: calling again costs nothing more."""
    count = len(batch["completions"])
    for row in range(count):
        single = {key: value[row : row + 1] if _is_column(value, count) else value for key, value in batch.items()}
        try:
            _call(function, single)
        except Exception:  # the same wide net as in guarded
            return row
    return None


def _is_column(value: Any, count: int) -> bool:
    return isinstance(value, list | tuple) and len(value) == count
