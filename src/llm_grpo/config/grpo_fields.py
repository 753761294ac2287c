"""Which keys may stand under `grpo:`, read from the source of the installed TRL and transformers.

Importing TRL takes seconds and would come before Unsloth; its field names are in its text.
"""

from __future__ import annotations

import ast
import functools
import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llm_grpo.errors import did_you_mean, fits

# A fact has one owner: what TRL names as well is set in one place only.
OWNED_ELSEWHERE = {
    "output_dir": "run.output_dir and run.name",
    "run_name": "run.name",
    "seed": "run.seed",
    "data_seed": "run.seed",
    "report_to": "logging.report_to",
    "log_completions": "logging.sample_every (every completion is in the run's completions/ anyway)",
    "trackio_space_id": "logging.report_to",
    "use_vllm": "rollouts.engine",
    "vllm_mode": "rollouts.engine",
    "vllm_gpu_memory_utilization": "model.gpu_memory_utilization",
    "vllm_max_model_length": "model.max_seq_length",
    "reward_weights": "the weight of each entry under rewards",
    "trust_remote_code": "model.trust_remote_code",
    "model_init_kwargs": "model",
    "do_train": "the verb: src/train.py",
    "do_eval": "evaluation",
    "do_predict": "evaluation",
    "eval_strategy": "evaluation.every_steps",
    "eval_steps": "evaluation.every_steps",
    "eval_on_start": "evaluation (it always runs before training)",
    "load_best_model_at_end": "evaluation.every_steps (the best adapter is always kept)",
    "metric_for_best_model": "evaluation (strict accuracy on the validation split)",
    "disable_tqdm": "nowhere: the progress bar is ours",
    "remove_unused_columns": "nowhere: rewards need every column",
    "resume_from_checkpoint": "the command line: --resume",
    "push_to_hub": "merge.push_to",
    "hub_model_id": "merge.push_to",
    "hub_token": "the environment variable HF_TOKEN",
    "hub_strategy": "merge.push_to",
}
_SOURCES = (("transformers", "training_args.py"), ("trl", "trainer/base_config.py"), ("trl", "trainer/grpo_config.py"))
# Words that TRL checks only when the first loss is computed, or never (TRL 1.15).
_CHOICES = {
    "loss_type": ("grpo", "dr_grpo", "dapo", "bnpo", "cispo", "sapo", "luspo", "vespo"),
    "scale_rewards": ("group", "batch", "none", True, False),
    "importance_sampling_level": ("token", "sequence"),
    "multi_objective_aggregation": ("sum_then_normalize", "normalize_then_sum"),
}


@functools.cache
def grpo_fields() -> dict[str, str]:
    """{field name: annotation} of the installed TRL's GRPOConfig; {} where TRL is not installed."""
    fields: dict[str, str] = {}
    for package, file in _SOURCES:
        spec = importlib.util.find_spec(package)
        if spec is None or spec.origin is None:
            return {}
        tree = ast.parse((Path(spec.origin).parent / file).read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef) and node.name.endswith(("TrainingArguments", "Config")):
                fields |= {
                    line.target.id: ast.unparse(line.annotation)
                    for line in node.body
                    if isinstance(line, ast.AnnAssign)
                    and isinstance(line.target, ast.Name)
                    and "ClassVar" not in ast.unparse(line.annotation)
                }
    return fields


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
            faults.append(f"grpo.{name}: TRL's GRPOConfig has no such field.{did_you_mean(str(name), fields)}")
        elif fields and not fits(value, fields[name]) and not (name == "scale_rewards" and isinstance(value, bool)):
            faults.append(f"grpo.{name}: {value!r} given, TRL takes {fields[name]}.")
        elif name in _CHOICES and value not in _CHOICES[name]:
            faults.append(f"grpo.{name}: {value!r} given. Allowed: {', '.join(map(str, _CHOICES[name]))}.")
    if given.get("max_steps", -1) != -1 and "num_train_epochs" in given:
        faults.append("grpo.num_train_epochs: max_steps is given too and would win. Set grpo.max_steps=-1 for epochs.")
    return faults or _value_faults({**defaults, **given})


def _value_faults(values: Mapping[str, Any]) -> list[str]:
    """Values that are of the right type and cannot work; TRL would say so only after the model was loaded."""
    whole = ("per_device_train_batch_size", "gradient_accumulation_steps", "max_completion_length", "num_iterations",
             "steps_per_generation", "logging_steps", "save_steps", "learning_rate", "temperature")  # fmt: skip
    faults = [
        f"grpo.{n}: {values[n]} given, must be above 0."
        for n in whole
        if (values.get(n) or 1) <= 0 or values.get(n) == 0
    ]
    if values["max_steps"] == 0 or values["max_steps"] < -1:
        faults.append(f"grpo.max_steps: {values['max_steps']} given; above 0, or -1 with num_train_epochs.")
    if values["num_generations"] < 2:
        faults.append(
            f"grpo.num_generations: {values['num_generations']} given. GRPO compares answers to one prompt: at least 2."
        )
    per_objective = values.get("multi_objective_aggregation") == "normalize_then_sum"
    if per_objective and values.get("scale_rewards", "group") not in ("group", True):
        faults.append("grpo.scale_rewards: TRL reads it only with multi_objective_aggregation: sum_then_normalize.")
    if faults:
        return faults
    rounds = values.get("steps_per_generation") or values["gradient_accumulation_steps"]
    batch = values.get("generation_batch_size") or values["per_device_train_batch_size"] * rounds
    if batch % values["num_generations"]:
        faults.append(
            f"grpo.num_generations: {values['num_generations']} does not divide the {batch} completions of a batch "
            f"(per_device_train_batch_size x steps_per_generation or gradient_accumulation_steps)."
        )
    return faults
