"""Any reward function, made safe: whatever is wrong with its scores is said with its name, the step and the row."""

from __future__ import annotations

import inspect
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from numbers import Real
from typing import Any

from llm_grpo.errors import UserError
from llm_grpo.records import RewardFunction


class RewardError(UserError):
    """A reward function that raised, or returned what is no list of scores. `row` counts from 0 within the batch.

    said: what is behind the name, for example " raised KeyError: 'y'" or ": the score is nan".
    """

    def __init__(self, said: str, *, name: str, step: int | None = None, row: int | None = None) -> None:
        super().__init__(f"reward '{name}'{at_step(step)}{'' if row is None else f', row {row}'}{said}")
        self.said, self.name, self.row = said, name, row


def guard(function: RewardFunction, name: str, args: Mapping[str, Any] | None = None) -> RewardFunction:
    """`function` with its arguments from the config, its scores checked and turned to floats; raises RewardError.

    The arguments win over a column of the same name. Functions written with `async def` are awaited.
    """

    def call(batch: Mapping[str, Any]) -> Any:
        return _awaited(function(**{**batch, **(args or {})}))

    def guarded(prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float | None]:
        batch = {"prompts": prompts, "completions": completions, **columns}
        try:
            scores = call(batch)
        except (Exception, SystemExit) as error:  # it may be anybody's: every failure of it is the same kind of news
            raise _failure(call, batch, error, name) from error
        return check_scores(name, scores, len(completions), step_of(columns))

    guarded.__name__ = guarded.__qualname__ = name
    guarded.__doc__ = function.__doc__
    return guarded


def check_scores(name: str, scores: Any, expected_count: int, step: int | None = None) -> list[float | None]:
    """The scores as floats (None stays None: "cannot be judged"). Raises RewardError with the first row at fault."""
    if isinstance(scores, str | bytes | Mapping) or not hasattr(scores, "__iter__") or getattr(scores, "ndim", 1) != 1:
        said = f" returned {_kind(scores)}; it must return a list with one score each."
        raise RewardError(said, name=name, step=step)
    values = list(scores)
    if len(values) != expected_count:
        said = f" returned {len(values)} scores for {expected_count} completions; it must return one for each."
        raise RewardError(said, name=name, step=step)
    return [_score(value, name, row, step) for row, value in enumerate(values)]


def _score(value: Any, name: str, row: int, step: int | None) -> float | None:
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
        raise RewardError(f": the score is {wrong}", name=name, step=step, row=row)
    return float(plain)


def _kind(value: Any) -> str:
    shown = repr(value) if isinstance(value, str | bytes) else ""
    return f"{type(value).__name__} {shown[:60]}".rstrip()


def step_of(columns: Mapping[str, Any]) -> int | None:
    """The training step, from TRL's `trainer_state` among the columns, which counts those that are finished."""
    done = getattr(columns.get("trainer_state"), "global_step", None)
    return None if done is None else done + 1


def at_step(step: int | None) -> str:
    return "" if step is None else f" at step {step}"


def _awaited(result: Any) -> Any:
    if not inspect.isawaitable(result):
        return result
    import asyncio  # a quarter of a worker's start, and few rewards are coroutines
    from concurrent.futures import ThreadPoolExecutor

    async def whole() -> Any:
        return await result

    with ThreadPoolExecutor(1) as thread:  # not here: a notebook's event loop may already run on this thread
        return thread.submit(asyncio.run, whole()).result()


def timed(function: RewardFunction) -> RewardFunction:
    """The function, which tells TRL's `log_metric` how many seconds it took, where that is among the columns."""

    def measured(*given: Any, **columns: Any) -> list[float | None]:
        start = time.perf_counter()
        scores = function(*given, **columns)
        if columns.get("log_metric") is not None:
            columns["log_metric"](f"seconds/reward/{measured.__name__}", time.perf_counter() - start)
        return scores

    measured.__name__ = measured.__qualname__ = function.__name__
    measured.__doc__ = function.__doc__
    return measured


def _failure(
    call: Callable[[Mapping[str, Any]], Any], batch: Mapping[str, Any], error: BaseException, name: str
) -> RewardError:
    """The message of a reward that raised: what, in which row, and where in whose file."""
    step = step_of(batch)
    if isinstance(error, UserError):
        return RewardError(f": {error}", name=name, step=step)
    place = traceback.extract_tb(error.__traceback__)[-1]
    said = f" raised {type(error).__name__}: {str(error)[:500]} ({place.filename}:{place.lineno})"
    return RewardError(said, name=name, step=step, row=_failing_row(call, batch))


def _failing_row(call: Callable[[Mapping[str, Any]], Any], batch: Mapping[str, Any]) -> int | None:
    """The first row that also fails alone, looked for during a second: a worker's deadline goes on meanwhile."""
    count, end = len(batch["completions"]), time.monotonic() + 1
    for row in range(count):
        if time.monotonic() > end:
            break
        try:
            call({key: value[row : row + 1] if is_column(value, count) else value for key, value in batch.items()})
        except (Exception, SystemExit):  # the same wide net as in guarded
            return row
    return None


def is_column(value: Any, count: int) -> bool:
    """True for what has a value for each completion; else it is one value for all of them."""
    return isinstance(value, list | tuple) and len(value) == count
