"""From a reward for one completion to TRL's shape, f(prompts, completions, **columns) -> list[float | None]."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from llm_grpo.errors import UserError
from llm_grpo.records import RewardFunction


def lift(score: Callable[..., float | None], name: str) -> RewardFunction:
    """TRL's shape for `score(text, *columns, **args)`; columns are taken by the names of its positional parameters.

    Completions are conversations ([{"role", "content"}]) or plain strings. Arguments are keyword-only parameters. The
    result can also be called as the published functions are: f(completions), f(prompts, completions, answer).
    """
    parameters = list(inspect.signature(score).parameters.values())
    read = [p for p in parameters[1:] if p.kind is not p.KEYWORD_ONLY]
    settings = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY]

    def lifted(*given: Any, **columns: Any) -> list[float | None]:
        columns.update(_named(given, read))
        texts = [text_of(completion) for completion in columns["completions"]]
        rows = [_column(parameter, columns, len(texts), name) for parameter in read]
        args = {key: columns[key] for key in settings if key in columns and not isinstance(columns[key], list)}
        return [score(*row, **args) for row in zip(texts, *rows, strict=True)]

    lifted.__name__ = lifted.__qualname__ = name
    lifted.__doc__ = score.__doc__
    lifted.__wrapped__ = score  # so that its signature shows the arguments
    return lifted


def _named(given: tuple[Any, ...], read: list[inspect.Parameter]) -> dict[str, Any]:
    """Positional arguments under the names the published functions have them."""
    names = ("completions",) if len(given) == 1 else ("prompts", "completions", *(p.name for p in read))
    if len(given) > len(names):
        raise TypeError(f"at most {len(names)} positional arguments: {', '.join(names)}")
    return dict(zip(names, given, strict=False))


def _column(parameter: inspect.Parameter, columns: Mapping[str, Any], count: int, name: str) -> list[str | None]:
    """The column a reward reads, as text; its default where the data lack it."""
    if parameter.name in columns:
        return [None if value is None else str(value) for value in columns[parameter.name]]
    if parameter.default is parameter.empty:
        others = ", ".join(key for key in columns if key not in ("prompts", "completions")) or "no columns"
        raise UserError(f"{name} needs the column '{parameter.name}'; the data have {others}.")
    return [parameter.default] * count


def text_of(completion: Any) -> str:
    """The text of a completion: a string, or the content of a conversation's last message (which may lie in parts)."""
    if isinstance(completion, str):
        return completion
    content = completion[-1].get("content") if completion else None
    if isinstance(content, list):
        return "".join(part.get("text") or "" for part in content)
    return content or ""
