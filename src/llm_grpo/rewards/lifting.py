"""From a reward for one completion to TRL's shape, f(prompts, completions, **columns) -> list[float | None]."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from llm_grpo.errors import UserError
from llm_grpo.records import RewardFunction


def lift(score: Callable[..., float | None], name: str) -> RewardFunction:
    """TRL's shape for `score(text, *columns, **args)`; columns are taken by the names of its positional parameters.

    The result is also called as the published functions are: `f(completions)`, `f(prompts, completions, answer)`.
    """
    parameters = list(inspect.signature(score).parameters.values())
    columns_of = {p.name: p for p in parameters[1:] if p.kind is p.POSITIONAL_OR_KEYWORD}
    arguments = {p.name for p in parameters if p.kind is p.KEYWORD_ONLY}

    def lifted(*given: Any, **columns: Any) -> list[float | None]:
        names = ("completions",) if len(given) == 1 else ("prompts", "completions", *columns_of)
        columns.update(zip(names, given, strict=False))
        texts = [text_of(completion) for completion in columns["completions"]]
        args = {key: columns[key] for key in arguments if key in columns and not isinstance(columns[key], list)}
        rows = [_column(name, parameter, columns, len(texts)) for parameter in columns_of.values()]
        return [score(*row, **args) for row in zip(texts, *rows, strict=True)]

    lifted.__name__ = lifted.__qualname__ = name
    lifted.__doc__ = score.__doc__
    lifted.__wrapped_reward__ = score
    return lifted


def _column(name: str, parameter: inspect.Parameter, columns: Mapping[str, Any], count: int) -> list[str | None]:
    """The column a reward reads, as text; its default where the data lack it."""
    if parameter.name not in columns:
        if parameter.default is parameter.empty:
            raise UserError(f"reward '{name}' reads the column '{parameter.name}', which the data do not have.")
        return [parameter.default] * count
    return [None if value is None else str(value) for value in columns[parameter.name]]


def text_of(completion: Any) -> str:
    """The text of a completion: a string, or the content of the last message of a conversation."""
    if isinstance(completion, str):
        return completion
    content = completion[-1].get("content") if completion else ""
    if isinstance(content, list):  # messages in parts, as multimodal chat templates have them
        return "".join(part.get("text") or "" for part in content)
    return content or ""


def bind(function: RewardFunction, args: Mapping[str, Any], name: str) -> RewardFunction:
    """The function with its arguments from the config; they win over a column of the same name."""

    def bound(prompts: list[Any], completions: list[Any], **columns: Any) -> list[float | None]:
        return function(prompts=prompts, completions=completions, **{**columns, **args})

    bound.__name__ = bound.__qualname__ = name
    bound.__doc__ = function.__doc__
    return bound
