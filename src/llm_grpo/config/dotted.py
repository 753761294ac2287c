"""Values deep in nested dicts and lists by dotted path, as `section.key=value` names them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from llm_grpo.config.yaml_text import parse_value
from llm_grpo.errors import UserError


def leaves(node: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted path, value) of everything in a nested dict; lists are walked by index, empty ones are leaves."""
    entries = list(node.items() if isinstance(node, Mapping) else enumerate(node) if isinstance(node, list) else ())
    if not entries:
        yield path, node
    for key, value in entries:
        yield from leaves(value, f"{path}.{key}" if path else str(key))


def split_override(text: str) -> tuple[str, Any]:
    """`grpo.learning_rate=1e-5` -> ("grpo.learning_rate", 1e-05). Raises UserError where there is no key or `=`."""
    dotted, sign, value = text.partition("=")
    if not sign or not all(dotted.strip().split(".")):
        raise UserError(f"'{text}' is not an override. Write section.key=value, for example grpo.max_steps=10.")
    return dotted.strip(), parse_value(value, where=dotted.strip())


def put(node: Any, dotted: str, value: Any, above: str = "") -> None:
    """Set a value deep in nested dicts and lists, making the dicts on the way. above: where the node stands."""
    key, _, rest = dotted.partition(".")
    if isinstance(node, list):
        if not key.isdigit() or int(key) >= len(node):
            there = f"'{key}' is not an index of a list with {len(node)} entries (0 is the first)."
            raise UserError(f"{above}{dotted}: {there}")
        key = int(key)
    elif not isinstance(node, dict):
        raise UserError(f"{above}{dotted}: '{above[:-1]}' is a single value, nothing can be set below it.")
    if not rest:
        node[key] = value
        return
    if isinstance(node, dict) and node.get(key) is None:
        node[key] = {}
    put(node[key], rest, value, f"{above}{key}.")
