"""How a user's mistake is said: what was given, what is allowed, what to change.

`raise UserError(...)` anywhere; the scripts print it without a traceback and exit with 2.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any


class UserError(ValueError):
    """A mistake in what the user gave us (config, data, arguments), told in the user's words."""


class NotAtHandError(UserError):
    """Data that are not there, or cannot be reached from here: a plan can be made without them."""


def first_line(error: Exception) -> str:
    """The first line of what a library says."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def hub_errors() -> tuple[type[Exception], ...]:
    """What a question to the Hub may raise: huggingface_hub's own errors are kinds of these, and so is what comes
    through it from the libraries beneath, of a proxy that refuses (httpx) or a download that breaks off (Xet)."""
    import httpx

    return OSError, ValueError, RuntimeError, httpx.HTTPError


def did_you_mean(given: str, allowed: Iterable[str]) -> str:
    """' Did you mean X?' with the nearest allowed name; else what is allowed (of a long list, the five nearest)."""
    names = sorted(allowed)
    near = difflib.get_close_matches(given, names, n=1, cutoff=0.6)
    near = near or [name for name in names if "".join(part[:1] for part in name.split("_")) == given.lower()]
    if near:
        return f" Did you mean '{near[0]}'?"
    if len(names) > 20:
        five = difflib.get_close_matches(given, names, n=5, cutoff=0)
        return f" None of the {len(names)} names is near; the nearest are {', '.join(five)}."
    return f" Allowed: {', '.join(names) or 'nothing'}."


def not_there(path: Path) -> str:
    """'there is no file X.', with the nearest of its kind beside it."""
    beside = [other.name for other in path.parent.glob(f"*{path.suffix}")]
    return f"there is no file {path}.{did_you_mean(path.name, beside) if beside else ''}"


def check_choice(where: str, given: Any, allowed: Iterable[str]) -> None:
    """Refuse a word that is none of those allowed, as `where: there is no 'given'`."""
    if given not in (names := list(allowed)):
        raise UserError(f"{where}: there is no '{given}'.{did_you_mean(str(given), names)}")


_TYPES = {"int": int, "float": (int, float), "bool": bool, "str": str, "None": type(None), "dict": dict, "list": list,
          "Mapping": dict}  # fmt: skip


def fits(value: Any, annotation: str) -> bool:
    """True where the value is of the annotated type, or where the annotation is not made of plain types."""
    names = [part.strip().split("[")[0] for part in annotation.replace("Optional[", "None | ").split("|")]
    if not all(name in _TYPES for name in names):
        return True
    if isinstance(value, bool):
        return "bool" in names
    return any(isinstance(value, _TYPES[name]) for name in names)


def check_arguments(function: Callable[..., Any], args: Mapping[str, Any], where: str) -> None:
    """Refuse keyword arguments that `function` does not name (or lacks), with the nearest name.

    Only keyword-only parameters count as arguments a config may set; positional ones are the caller's.
    A function with `**kwargs` and no keyword-only parameter takes anything (somebody else's reward).
    """
    parameters = inspect.signature(function).parameters.values()
    allowed = {p.name for p in parameters if p.kind is p.KEYWORD_ONLY}
    if not allowed and any(p.kind is p.VAR_KEYWORD for p in parameters):
        return
    for name in args:
        if name not in allowed:
            raise UserError(f"{where}: unknown argument '{name}'.{did_you_mean(name, allowed)}")
        annotation = next(p.annotation for p in parameters if p.name == name)
        if isinstance(annotation, str) and not fits(args[name], annotation):
            raise UserError(f"{where}.{name}: {args[name]!r} given, it takes {annotation}.")
    missing = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY and p.default is p.empty and p.name not in args]
    if missing:
        raise UserError(f"{where}: needs {', '.join(missing)}.")
