"""From a YAML file, the environment and the command line to a checked Config, or to messages a person can act on.

    config = load_config("configs/demo.yaml", overrides=["grpo.max_steps=10"])

Precedence: default < file < environment < command line. No torch, no trl: a typo answers in under a second.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from llm_grpo.config.dotted import leaves, put, split_override
from llm_grpo.config.grpo_fields import completed, faults_under_grpo, where_today
from llm_grpo.config.schema import GRPO_DEFAULTS, Config, Section
from llm_grpo.config.yaml_text import read_yaml
from llm_grpo.errors import UserError, did_you_mean

# Environment variables that override the file (the names system S5 is known by).
ENVIRONMENT = {"MODEL_NAME": "model.name", "OUTPUT_DIR": "run.output_dir", "RUN_NAME": "run.name"}
# What pydantic calls a kind of value -> what it is in a YAML file.
_KINDS = {"model_type": "keys with values", "dict_type": "keys with values", "list_type": "a list",
          "string_type": "a text", "int_type": "a whole number", "float_type": "a number",
          "bool_type": "true or false"}  # fmt: skip


def load_config(
    path: str | Path, overrides: Sequence[str] = (), environment: Mapping[str, str] | None = None
) -> Config:
    """Read a YAML file, put environment and `section.key=value` overrides over it, and check all of it.

    `environment` is os.environ unless given. Raises UserError with every fault at once, each by its dotted path.
    """
    environment = os.environ if environment is None else environment
    data = read_yaml(Path(path).expanduser())
    origins = {dotted: "file" for dotted, _ in leaves(data)}
    given = [
        (ENVIRONMENT[name], environment[name], f"environment {name}") for name in ENVIRONMENT if environment.get(name)
    ]
    given += [(*split_override(text), "command line") for text in overrides]
    for dotted, value, origin in given:
        put(data, dotted, value)
        for stale in [key for key in origins if key == dotted or key.startswith(f"{dotted}.")]:
            del origins[stale]
        below = [f"{dotted}.{inner}" for inner, _ in leaves(value) if inner] if isinstance(value, dict) else []
        origins |= dict.fromkeys(below or [dotted], origin)
    return check(data, origins, source=f"{path} and the command line" if overrides else str(path))


def check(data: dict[str, Any], origins: dict[str, str], source: str) -> Config:
    """Validate a plain dict as a Config, or raise one UserError that lists every fault."""
    faults = [
        f"{dotted}: {value} given; it must be a finite number."
        for dotted, value in leaves(data)
        if isinstance(value, float) and not math.isfinite(value)
    ]
    if "origins" in data:
        faults.append(f"origins: unknown key.{did_you_mean('origins', _fields(Config))}")
    grpo = data.get("grpo") or {}
    if isinstance(grpo, dict):
        faults += faults_under_grpo(grpo, GRPO_DEFAULTS)
        data = {**data, "grpo": completed(grpo, GRPO_DEFAULTS)}
    try:
        config = Config.model_validate({**data, "origins": origins})
        faults += _faults_between(config) if not faults else []
    except ValidationError as error:
        faults = [_say(fault) for fault in error.errors()] + faults
    if faults:
        raise UserError(f"{source}: {len(faults)} fault{'s' if len(faults) > 1 else ''}\n  " + "\n  ".join(faults))
    return config


def _faults_between(config: Config) -> list[str]:
    """What two sections say that cannot go together."""
    window, completion = config.model.max_seq_length, config.grpo["max_completion_length"]
    full = f"grpo.max_completion_length: {completion} leaves no room for a prompt in model.max_seq_length ({window})."
    faults = [full] if window <= completion else []
    if window <= (config.evaluation.max_tokens or 0):
        faults.append(f"evaluation.max_tokens: {config.evaluation.max_tokens} is not below model.max_seq_length.")
    if config.evaluation.patience and not config.evaluation.every_steps:
        faults.append("evaluation.patience: without evaluation.every_steps there is nothing to wait for.")
    if (config.sampling.pass_rates or config.sampling.refill) and not config.sampling.choose:
        faults.append("sampling.pass_rates and sampling.refill need sampling.choose=true.")
    if config.rollouts.url and config.rollouts.engine != "server":
        faults.append(f"rollouts.url: rollouts.engine is {config.rollouts.engine} and asks none. Set it to server.")
    if config.sft and config.sft.warmup_steps >= config.sft.steps:
        faults.append(f"sft.warmup_steps: {config.sft.warmup_steps} leave none of the {config.sft.steps} steps.")
    if config.lora is None and config.model.load_in_4bit is True:
        faults.append("lora: null trains all weights; 4-bit ones cannot be trained. Set model.load_in_4bit=false.")
    return faults


def _fields(section: type[BaseModel]) -> list[str]:
    return [field.alias or name for name, field in section.model_fields.items() if name != "origins"]


def _section_at(path: Sequence[Any]) -> type[BaseModel]:
    """The schema class that a fault's path ends in, to name the nearest of its keys."""
    section: type[BaseModel] = Config
    for name in path[:-1]:
        if str(name) in section.model_fields:  # else the index of a list
            inner = section.model_fields[str(name)].annotation
            classes = [inner, *get_args(inner)]  # Section, Section | None, list[Section]
            section = next(c for c in classes if isinstance(c, type) and issubclass(c, Section))
    return section


def _say(fault: Mapping[str, Any]) -> str:
    """One pydantic fault in the user's words."""
    path = [part for part in fault["loc"] if not str(part).endswith("Section")]
    dotted, given = ".".join(map(str, path)), fault.get("input")
    if fault["type"] == "extra_forbidden":
        today = where_today(str(path[-1])) or did_you_mean(str(path[-1]), _fields(_section_at(path)))
        return f"{dotted}: unknown key.{today}"
    if fault["type"] == "missing":
        return f"{dotted}: missing; {'.'.join(map(str, path[:-1])) or 'every config'} needs it."
    if fault["type"] == "literal_error":
        return f"{dotted}: {given!r} is not allowed. Allowed: {fault['ctx']['expected']}."
    if isinstance(given, (dict, list)) and len(str(given)) > 60:
        given = f"a {type(given).__name__}"
    if fault["type"] in _KINDS:
        return f"{dotted}: {given!r} given, it takes {_KINDS[fault['type']]}."
    return f"{dotted}: {given!r} given. {fault['msg']}."
