"""One YAML for all verbs: the schema, where each value came from, and messages a person can act on.

    config = load_config("configs/demo.yaml", overrides=["grpo.max_steps=10"])

Precedence: default < file < environment < command line. No torch, no trl: a typo answers in under a second.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from llm_grpo.config.grpo_fields import faults_under_grpo
from llm_grpo.config.yaml_text import parse_value, read_yaml
from llm_grpo.errors import UserError, did_you_mean

# Environment variables that override the file (the names system S5 is known by).
ENVIRONMENT = {"MODEL_NAME": "model.name", "OUTPUT_DIR": "run.output_dir", "RUN_NAME": "run.name"}

# What every run states, because TRL, transformers and Unsloth disagree on it and Unsloth would change it silently
# (unsloth 2026.10.9, models/rl.py). A value under `grpo:` in the file replaces it.
GRPO_DEFAULTS: dict[str, Any] = {
    "max_steps": 250,
    "learning_rate": 5e-6,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 0,
    "optim": "adamw_torch_fused",
    "adam_beta1": 0.9,
    "adam_beta2": 0.99,
    "weight_decay": 0.0,
    "max_grad_norm": 0.1,
    "per_device_train_batch_size": 8,
    "gradient_accumulation_steps": 1,
    "num_generations": 8,
    "num_iterations": 1,
    "max_completion_length": 512,
    "temperature": 1.0,
    "top_p": 1.0,
    "beta": 0.0,
    "epsilon": 0.2,
    "use_bias_correction_kl": True,
    "loss_type": "dapo",
    "scale_rewards": "group",
    "importance_sampling_level": "token",
    "multi_objective_aggregation": "sum_then_normalize",
    "mask_truncated_completions": False,
    "vllm_importance_sampling_correction": True,
    "router_aux_loss_coef": 0.0,
    "gradient_checkpointing": True,
    "torch_empty_cache_steps": None,
    "logging_nan_inf_filter": False,
    "project": "llm-grpo",
    "logging_steps": 1,
    "save_strategy": "steps",
    "save_steps": 100,
    "save_total_limit": 2,
}

Positive = Annotated[int, Field(gt=0)]
Count = Annotated[int, Field(ge=0)]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, protected_namespaces=())


class RunSection(Section):
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")] = "grpo"
    output_dir: str = "outputs"
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0


class ModelSection(Section):
    name: str
    revision: str | None = None
    load_in_4bit: Literal[True, False, "auto"] = False  # auto: on a GPU that can, not on a CPU
    max_seq_length: Positive = 2048
    gpu_memory_utilization: Annotated[float, Field(gt=0, le=1)] = 0.6
    merge_base: str | None = None
    trust_remote_code: bool = False


class LoraSection(Section):
    r: Positive = 64
    alpha: Annotated[float, Field(gt=0)] = 64
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    target_modules: list[str] | None = None  # null: the projections of the architecture


class TaskSection(Section):
    name: str
    args: dict[str, Any] = {}


class PromptSection(Section):
    system: str | None = None  # null: the task's own
    examples: Count = 0  # solved examples shown before the question, taken from the train split
    template: str | None = None  # null: the tokenizer's own, or a plain one where it has none
    too_long: Literal["error", "leave_out"] = "error"  # a prompt that leaves no room for the answer in the window


class RewardSpec(Section):
    name: str
    weight: float = 1.0
    args: dict[str, Any] = {}


class RolloutsSection(Section):
    engine: Literal["auto", "unsloth", "vllm", "transformers"] = "auto"
    standby: bool = False  # unsloth: lend vLLM's cache memory to the update; Unsloth then sets its share by itself


class EvaluationSection(Section):
    limit: Positive | None = 500  # problems of the test split, before and after; null: all
    validation_limit: Positive = 200  # problems of the validation split, during training
    samples: Positive = 1  # above 1: that many sampled answers per problem besides the greedy one
    every_steps: Count = 50  # 0: no evaluation during training
    batch_size: Positive = 128
    max_tokens: Positive | None = None  # null: grpo.max_completion_length


class LoggingSection(Section):
    report_to: list[Literal["wandb", "tensorboard", "trackio"]] = []
    sample_every: Count = 0  # print a question, gold, response and extracted answer every N steps

    @field_validator("report_to", mode="before")
    @classmethod
    def _one_name_is_a_list(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) and value != "none" else [] if value in (None, "none") else value


class ThresholdsSection(Section):
    """How far the merged model may be from the adapter (export/proof.py). Worse than any of these, it is not pushed."""

    mean_logprob_gap: Annotated[float, Field(ge=0)] = 0.05  # nats per token of the adapter's own answers
    max_logprob_gap: Annotated[float, Field(ge=0)] = 3.0  # the worst single token; in 16-bit an unlikely one may be far
    kl: Annotated[float, Field(ge=0)] = 0.01  # nats per token
    share_of_effect: Annotated[float, Field(ge=0)] = 0.25  # the KL, as a share of what the adapter did to its base
    token_agreement: Annotated[float, Field(ge=0, le=1)] = 0.97  # tokens where both would write the same
    text_agreement: Annotated[float, Field(ge=0, le=1)] = 0.5  # prompts with the same answer
    p_value: Annotated[float, Field(ge=0, le=1)] = 0.05  # refused when it loses accuracy and the paired test is below


class MergeSection(Section):
    method: Literal["merged_16bit", "lora", "gguf"] = "merged_16bit"
    thresholds: ThresholdsSection = ThresholdsSection()
    push_to: str | None = None


class Config(Section):
    """The whole of a YAML file. `origins` tells where each value came from, by dotted path."""

    run: RunSection = RunSection()
    model: ModelSection
    lora: LoraSection | None = LoraSection()  # null: all weights are trained
    task: TaskSection
    prompt: PromptSection = PromptSection()
    rewards: Annotated[list[RewardSpec], Field(min_length=1)]
    rollouts: RolloutsSection = RolloutsSection()
    grpo: dict[str, Any] = {}
    evaluation: EvaluationSection = EvaluationSection()
    logging: LoggingSection = LoggingSection()
    merge: MergeSection = MergeSection()
    origins: dict[str, str] = Field(default={}, exclude=True)

    def as_dict(self) -> dict[str, Any]:
        """The effective config, every default written out, as it is saved in the run's folder."""
        return self.model_dump(mode="json")

    def settings(self) -> Iterator[tuple[str, Any, str]]:
        """(dotted path, value, origin) of every setting, in the schema's order."""
        for path, value in leaves(self.as_dict()):
            yield path, value, self.origins.get(path, "default")


def load_config(
    path: str | Path, overrides: Sequence[str] = (), environment: Mapping[str, str] | None = None
) -> Config:
    """Read a YAML file, put environment and `section.key=value` overrides over it, and check all of it.

    `environment` is os.environ unless given. Raises UserError with every fault at once, each by its dotted path.
    """
    environment = os.environ if environment is None else environment
    data = read_yaml(Path(path))
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
    return check(data, origins, source=str(path))


def check(data: dict[str, Any], origins: dict[str, str], source: str) -> Config:
    """Validate a plain dict as a Config, or raise one UserError that lists every fault."""
    faults = []
    if "origins" in data:
        faults.append(f"origins: unknown key.{did_you_mean('origins', _fields(Config))}")
    grpo = data.get("grpo") or {}
    if isinstance(grpo, dict):
        faults += faults_under_grpo(grpo, GRPO_DEFAULTS)
        data = {**data, "grpo": {**GRPO_DEFAULTS, **({"max_steps": -1} if "num_train_epochs" in grpo else {}), **grpo}}
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
    if config.lora is None and config.model.load_in_4bit is True:
        faults.append("lora: null trains all weights; 4-bit ones cannot be trained. Set model.load_in_4bit=false.")
    return faults


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


def put(data: dict[str, Any], dotted: str, value: Any) -> None:
    """Set a value deep in nested dicts and lists, making the dicts on the way."""
    *way, last = dotted.split(".")
    node: Any = data
    for depth, key in enumerate([*way, last]):
        is_last = depth == len(way)
        if isinstance(node, list):
            if not key.isdigit() or int(key) >= len(node):
                raise UserError(
                    f"{dotted}: '{key}' is not an index of a list with {len(node)} entries (0 is the first)."
                )
            key = int(key)
        elif not isinstance(node, dict):
            raise UserError(f"{dotted}: '{'.'.join(way[:depth])}' is a single value, nothing can be set below it.")
        if is_last:
            node[key] = value
        else:
            if not isinstance(node, list) and node.get(key) is None:
                node[key] = {}
            node = node[key]


def _fields(section: type[BaseModel]) -> list[str]:
    return [name for name in section.model_fields if name != "origins"]


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
        return f"{dotted}: unknown key.{did_you_mean(str(path[-1]), _fields(_section_at(path)))}"
    if fault["type"] == "missing":
        return f"{dotted}: missing; every config has to say it."
    if fault["type"] == "literal_error":
        return f"{dotted}: {given!r} is not allowed. Allowed: {fault['ctx']['expected']}."
    if isinstance(given, (dict, list)) and len(str(given)) > 60:
        given = f"a {type(given).__name__}"
    return f"{dotted}: {given!r} given. {fault['msg']}."
