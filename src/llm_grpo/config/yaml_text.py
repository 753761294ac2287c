"""YAML as people write it: `1e-5` is a number, a key that stands twice is an error, faults name file and line."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import yaml

from llm_grpo.errors import UserError, not_there
from llm_grpo.text_files import open_text, read_text


class Loader(yaml.SafeLoader):
    """YAML 1.1 as PyYAML reads it, less three surprises: `1e-5` a string, `no` a boolean, silent duplicate keys."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                mark = key_node.start_mark
                raise yaml.constructor.ConstructorError(None, None, f"the key '{key}' stands twice", mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


# Only true and false are booleans, as in YAML 1.2: `save_strategy: no` is a word.
Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in rules if tag != "tag:yaml.org,2002:bool"]
    for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
Loader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)
Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d[\d_]*\.?\d*|\.\d+)[eE][-+]?\d+$"),
    list("-+0123456789."),
)


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file. Raises UserError for a missing file, broken YAML, or anything but a mapping."""
    if not path.exists():
        raise UserError(not_there(path))
    if path.is_dir():
        raise UserError(f"{path} is a folder; of a run it is {path / 'config.yaml'} that is meant.")
    data = _load(read_text(open_text(path)), where=str(path))
    if not isinstance(data, dict):
        raise UserError(f"{path}: holds {type(data).__name__}, not sections with keys. See configs/demo.yaml.")
    return data


def parse_value(text: str, where: str) -> Any:
    """One value from the command line, read as YAML: `1e-5`, `true`, `null`, `[a, b]`, `{k: 1}`; other words are a text
    (`Note: be brief` too, although YAML would make a mapping of it)."""
    if ": " in text and text.lstrip()[:1] not in "{['\"":
        return text
    return _load(text, where)


def write_yaml(data: dict[str, Any], comment: str = "") -> str:
    """The text of a YAML file with its keys in the order given, under an optional comment."""
    head = "".join(f"# {line}\n" for line in comment.splitlines())
    return head + yaml.safe_dump(data, sort_keys=False, allow_unicode=True, width=120)


def _load(text: str, where: str) -> Any:
    try:
        data = yaml.load(text, Loader)  # noqa: S506 (Loader is a SafeLoader)
        json.dumps(data, default=str)  # refuses an anchor that holds itself
        return data
    except (RecursionError, TypeError, ValueError):
        raise UserError(f"{where}: not a config (a key that is a list, or an anchor that holds itself).") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f":{mark.line + 1}" if mark else ""
        raise UserError(f"{where}{place}: not valid YAML ({getattr(error, 'problem', None) or error}).") from None
