"""Which keys may stand under `grpo:`, read from the source of the installed TRL and transformers.

Importing TRL takes seconds and would come before Unsloth; its field names are in its text.
"""

from __future__ import annotations

import ast
import functools
import importlib.util
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from llm_grpo.config.old_names import OWNED_ELSEWHERE, said_today
from llm_grpo.errors import did_you_mean, fits

_SOURCES = (("transformers", "training_args.py"), ("trl", "trainer/base_config.py"), ("trl", "trainer/grpo_config.py"))
# Words that TRL checks only when the first loss is computed, or never (TRL 1.15).
_CHOICES = {
    "loss_type": ("grpo", "dr_grpo", "dapo", "bnpo", "cispo", "sapo", "luspo", "vespo"),
    "scale_rewards": ("group", "batch", "none", True, False),
    "importance_sampling_level": ("token", "sequence"),
    "multi_objective_aggregation": ("sum_then_normalize", "normalize_then_sum"),
    "save_strategy": ("steps", "epoch", "no"),  # "best" needs an evaluation of TRL's; the best adapter is kept anyway
}


_RANGES: tuple[tuple[tuple[str, ...], Callable[[float], bool], str], ...] = (
    (("per_device_train_batch_size", "gradient_accumulation_steps", "max_completion_length", "num_iterations",
      "steps_per_generation", "generation_batch_size", "logging_steps", "save_steps", "learning_rate", "temperature",
      "num_train_epochs"), lambda value: value > 0, "above 0"),
    (("beta", "epsilon", "epsilon_high", "weight_decay", "max_grad_norm", "warmup_steps", "top_k"),
     lambda value: value >= 0, "0 or above"),
    (("adam_beta1", "adam_beta2"), lambda value: 0 <= value < 1, "from 0 to below 1"),
    (("top_p",), lambda value: 0 < value <= 1, "above 0 and at most 1"),
    (("min_p",), lambda value: 0 <= value <= 1, "from 0 to 1"),
)  # fmt: skip
_NEEDED = ("num_generations", "max_completion_length")  # TRL lets them be null; our arithmetic needs them


def _classes(package: str, file: str) -> list[ast.ClassDef]:
    """The classes in the source of an installed package; none where it is not installed."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        return []
    tree = ast.parse((Path(spec.origin).parent / file).read_text(encoding="utf-8"))
    return [node for node in tree.body if isinstance(node, ast.ClassDef)]


@functools.cache
def grpo_fields() -> dict[str, str]:
    """{field name: annotation} of the installed TRL's GRPOConfig; {} where TRL is not installed."""
    read = [_classes(*source) for source in _SOURCES]
    classes = [node for found in read for node in found if node.name.endswith(("TrainingArguments", "Config"))]
    body = [line for node in classes for line in node.body if isinstance(line, ast.AnnAssign)]
    lines = [line for line in body if isinstance(line.target, ast.Name)]
    fields = {line.target.id: ast.unparse(line.annotation) for line in lines} if all(read) else {}
    return {name: annotation for name, annotation in fields.items() if "ClassVar" not in annotation}


@functools.cache
def _enums() -> dict[str, tuple[str, ...]]:
    """{class: its values} of the enumerations that annotate fields of GRPOConfig (optim, lr_scheduler_type)."""
    found = {}
    for node in (*_classes("transformers", "training_args.py"), *_classes("transformers", "trainer_utils.py")):
        if any(ast.unparse(base) == "ExplicitEnum" for base in node.bases):
            values = [line.value for line in node.body if isinstance(line, ast.Assign)]
            found[node.name] = tuple(value.value for value in values if isinstance(value, ast.Constant))
    return found


def where_today(name: str) -> str | None:
    """What to write for a key that another section, or another version, knows; None for one that nobody knows."""
    if name in OWNED_ELSEWHERE:
        return f" It belongs to {OWNED_ELSEWHERE[name]}."
    return said_today(name) or (f" Write it under grpo: as grpo.{name}." if name in grpo_fields() else None)


def completed(given: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """What stands under `grpo:` over the defaults, with what follows from another value where it is left open.

    `epsilon_high` is `epsilon`, as TRL has it: left open, Unsloth takes 0.28 for dapo on a GPU. DAPO's 0.28 acts where
    a generation batch makes several updates; with one, as in every config here, all ratios are 1. cispo caps the ratio
    itself there, at the 5.0 that TRL recommends. dr_grpo does not divide by the deviation (arXiv:2503.20783): left
    open, TRL does and Unsloth does not.
    """
    values = {**defaults, **({"max_steps": -1} if "num_train_epochs" in given else {}), **given}
    if values["epsilon_high"] is None:
        values["epsilon_high"] = 5.0 if values["loss_type"] == "cispo" else values["epsilon"]
    if values["scale_rewards"] is None:
        plain = values["loss_type"] == "dr_grpo" and values["multi_objective_aggregation"] == "sum_then_normalize"
        values["scale_rewards"] = "none" if plain else "group"
    return values


def faults_under_grpo(given: Mapping[str, Any], defaults: Mapping[str, Any]) -> list[str]:
    """One sentence per key under `grpo:` that TRL would not take, or that another section owns.

    `defaults` fills in what the batch arithmetic needs and the user did not give.
    """
    fields = grpo_fields()
    faults = []
    for name, value in given.items():
        if name in OWNED_ELSEWHERE:
            faults.append(f"grpo.{name}: belongs to {OWNED_ELSEWHERE[name]}.")
        elif fields and name not in fields:
            today = said_today(str(name)) or did_you_mean(str(name), fields)
            faults.append(f"grpo.{name}: TRL's GRPOConfig has no such field.{today}")
        elif fields and not fits(value, fields[name]) and not (name == "scale_rewards" and isinstance(value, bool)):
            faults.append(f"grpo.{name}: {value!r} given, TRL takes {fields[name]}.")
        elif name in _CHOICES and value not in _CHOICES[name]:
            faults.append(f"grpo.{name}: {value!r} given. Allowed: {', '.join(map(str, _CHOICES[name]))}.")
        elif fields and (words := _enums().get(fields[name].split(" | ")[0])) and value not in words:
            faults.append(f"grpo.{name}: {value!r} given.{did_you_mean(str(value), words)}")
    if given.get("max_steps", -1) != -1 and "num_train_epochs" in given:
        faults.append("grpo.num_train_epochs: max_steps is given too and would win. Set grpo.max_steps=-1 for epochs.")
    return faults or _value_faults({**defaults, **given})


def _value_faults(values: Mapping[str, Any]) -> list[str]:
    """Values that are of the right type and cannot work; TRL would say so only after the model was loaded."""
    faults = [
        f"grpo.{name}: {values[name]} given, must be {said}."
        for names, fitting, said in _RANGES
        for name in names
        if values.get(name) is not None and not fitting(values[name])
    ]
    faults += _generation_faults(values.get("generation_kwargs") or {})
    faults += [f"grpo.{name}: null given, it has to be a number." for name in _NEEDED if values[name] is None]
    if faults:
        return faults
    if values["max_steps"] == 0 or values["max_steps"] < -1:
        faults.append(f"grpo.max_steps: {values['max_steps']} given; above 0, or -1 with num_train_epochs.")
    if values["num_generations"] < 2:
        faults.append(
            f"grpo.num_generations: {values['num_generations']} given. GRPO compares answers to one prompt: at least 2."
        )
    per_objective = values.get("multi_objective_aggregation") == "normalize_then_sum"
    if per_objective and values["scale_rewards"] not in (None, "group", True):
        faults.append("grpo.scale_rewards: TRL reads it only with multi_objective_aggregation: sum_then_normalize.")
    if faults:
        return faults
    micro, whole_batch = values["per_device_train_batch_size"], values.get("generation_batch_size")
    if whole_batch is not None and values.get("steps_per_generation") is not None:
        return ["grpo.generation_batch_size: steps_per_generation is given too and says the same. Give one of them."]
    if whole_batch is not None and whole_batch % micro:
        return [f"grpo.generation_batch_size: {whole_batch} given, must be a multiple of per_device_train_batch_size "
                f"({micro})."]  # fmt: skip
    batch = whole_batch or micro * (values.get("steps_per_generation") or values["gradient_accumulation_steps"])
    if batch % values["num_generations"]:
        faults.append(
            f"grpo.num_generations: {values['num_generations']} does not divide the {batch} completions of a batch "
            f"(per_device_train_batch_size x steps_per_generation or gradient_accumulation_steps)."
        )
    return faults


def _generation_faults(given: Mapping[str, Any]) -> list[str]:
    """What under `grpo.generation_kwargs` fails in the first step, or says again what has a name of its own."""
    reasons = {
        "stop_strings": "TRL hands generate no tokenizer to find them with. An answer ends with the model's end token.",
        "num_beams": "GRPO compares samples, and beams are none. Leave it away.",
    }
    reasons |= {name: f"write it as grpo.{name}." for name in given if name in grpo_fields()}
    reasons |= {name: said.strip() for name in given if (said := said_today(str(name)))}
    return [f"grpo.generation_kwargs.{name}: {reasons[name]}" for name in given if name in reasons]
