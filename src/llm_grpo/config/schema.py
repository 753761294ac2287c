"""One YAML for all verbs: its sections, their keys, their defaults."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, JsonValue, field_validator

from llm_grpo.config.dotted import leaves
from llm_grpo.diagnosis.live import CHECKS

# What every run states, because TRL, transformers and Unsloth disagree on it and Unsloth would change it silently
# (unsloth 2026.10.9, models/rl.py). A value under `grpo:` replaces it; None follows from others (grpo_fields.py).
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
    "epsilon_high": None,  # as epsilon
    "use_bias_correction_kl": True,
    "loss_type": "dapo",
    "scale_rewards": None,  # group, or none for dr_grpo
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
# A folder or file (~ is the home), or a name of the Hub.
Place = Annotated[str, Field(min_length=1), AfterValidator(os.path.expanduser)]


def _places_expanded(args: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a task or reward with the home in place of `~` where they name a file, a folder or a model."""
    places = {name for name, value in args.items() if isinstance(value, str) and name.endswith(("path", "model"))}
    home = os.path.expanduser  # as the shell does: Path.expanduser raises for a ~ that is nobody's
    return {name: home(value) if name in places else value for name, value in args.items()}


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, protected_namespaces=())


class RunSection(Section):
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")] = "grpo"
    output_dir: Place = "outputs"
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    halt_on: list[Literal[tuple(CHECKS)]] = []  # findings of the doctor that end the run; docs/diagnoses.md
    price_per_hour: Annotated[float, Field(gt=0)] | None = None  # of the machine; the hours of a run become money
    rehearse: bool = False  # an update of the longest batch before step 1, thrown away: does it fit the memory?


class ModelSection(Section):
    name: Place
    revision: str | None = None
    loader: Literal["auto", "unsloth", "transformers"] = "auto"  # auto: transformers where accelerate shards the model
    load_in_4bit: Literal[True, False, "auto"] = False  # auto: on a GPU that can, not on a CPU
    max_seq_length: Positive = 2048
    gpu_memory_utilization: Annotated[float, Field(gt=0, le=1)] = 0.6
    merge_base: Place | None = None
    trust_remote_code: bool = False

    def merge_source(self, base: str | None = None) -> tuple[str, str | None]:
        """(model, revision) of what an adapter is merged into: `base` if given, else merge_base, else what is trained.
        A revision is of one repository only."""
        source = base or self.merge_base or self.name
        return source, self.revision if source == self.name else None


class LoraSection(Section):
    r: Positive = 64
    alpha: Annotated[float, Field(gt=0)] = 64
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    target_modules: list[str] | None = None  # null: the projections of the architecture
    from_: Place | None = Field(default=None, alias="from")  # an adapter to go on from: a run, a folder, a Hub name


class SftSection(Section):
    """What comes before GRPO: the same weights learn the task's worked solutions, by TRL's SFTTrainer."""

    steps: Positive
    learning_rate: Annotated[float, Field(gt=0)] = 1e-4  # falls to 0 in a straight line
    warmup_steps: Count = 0
    batch_size: Positive = 8  # solutions in an update


class TaskSection(Section):
    name: str
    args: Annotated[dict[str, Any], AfterValidator(_places_expanded)] = {}


class PromptSection(Section):
    system: str | None = None  # null: the task's own
    examples: Count = 0  # solved examples shown before the question, taken from the train split
    template: Place | None = None  # null: the tokenizer's own, or a plain one where it has none
    template_args: dict[str, JsonValue] = {}  # what the template reads besides messages, such as enable_thinking: false
    thinking: Literal["answer", "apart"] = "answer"  # a <think> block: part of the answer, or apart from it
    too_long: Literal["error", "leave_out"] = "error"  # a prompt that leaves no room for the answer in the window


class RewardSpec(Section):
    """A reward, and the processes it has to itself, which can be ended (rewards/pool.py). Without: in the trainer's."""

    name: Place  # path/to/file.py:function too
    weight: float = 1.0
    args: Annotated[dict[str, Any], AfterValidator(_places_expanded)] = {}
    workers: Count | None = None  # such processes; 0: none; null: 1 for a function of your own file, none for ours
    timeout_s: Annotated[float, Field(gt=0, le=86_400)] = 5.0  # for a completion; a batch has as much for each of its
    per_completion: bool = False  # it judges each alone: they are spread over the workers, and one that hangs is one
    max_failed: Annotated[float, Field(ge=0, le=1)] = 0.1  # of the last 20 batches' completions; beyond, the run ends
    memory_gb: Annotated[float, Field(gt=0)] = 16.0
    environment: list[str] = []  # variables such as OPENAI_API_KEY it is given although they look like secrets


class RolloutsSection(Section):
    engine: Literal["auto", "unsloth", "vllm", "transformers", "server"] = "auto"
    url: Annotated[str, Field(pattern=r"^https?://[^\s@]+$")] | None = None  # server: http://HOST:PORT; docs/scaling.md
    shared_dir: Place | None = None  # server: where it finds adapters; null: memory of one machine, or run.output_dir
    timeout_s: Annotated[float, Field(gt=0, le=86_400)] = 600.0  # server: for the answers to a prompt
    skip: Literal[True, False, "auto"] = "auto"  # groups of equal rewards are left out of updates; auto: where exact
    standby: bool = False  # unsloth: lend vLLM's cache memory to the update; Unsloth then sets its share by itself


class SamplingSection(Section):
    """Which prompts are asked next (training/choosing.py). Shares are of the groups of a generation batch."""

    choose: bool = False  # by what is known of their pass rates; false: in TRL's order
    pass_rates: Place | None = None  # a report of `eval.py --split train --samples K`: what is known beforehand
    explore: Annotated[float, Field(ge=0, le=1)] = 0.25  # at least this share are prompts not asked before
    repeats: Positive = 4  # times a prompt is asked for its gain; the order of new ones comes round to all
    retire_at: Annotated[float, Field(gt=0, le=1)] = 0.9  # from this pass rate on a prompt is not asked
    forget: Annotated[float, Field(ge=0, lt=1)] = 0.05  # of what is known, with each generation batch
    refill: Annotated[float, Field(ge=0)] = 0.0  # groups beyond the batch, in place of those that teach nothing


class EvaluationSection(Section):
    limit: Positive | None = 500  # problems of the test split, before and after; null: all
    validation_limit: Positive = 200  # problems of the validation split, during training
    samples: Positive = 1  # above 1: that many sampled answers per problem besides the greedy one
    every_steps: Count = 50  # 0: no evaluation during training
    patience: Count = 0  # evaluations in a row without a higher strict accuracy that end the training; 0: none do
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
    sft: SftSection | None = None  # null: GRPO starts from the model as it is
    task: TaskSection
    prompt: PromptSection = PromptSection()
    rewards: Annotated[list[RewardSpec], Field(min_length=1)]
    rollouts: RolloutsSection = RolloutsSection()
    sampling: SamplingSection = SamplingSection()
    grpo: dict[str, Any] = {}
    evaluation: EvaluationSection = EvaluationSection()
    logging: LoggingSection = LoggingSection()
    merge: MergeSection = MergeSection()
    origins: dict[str, str] = Field(default={}, exclude=True)

    def as_dict(self) -> dict[str, Any]:
        """The effective config, every default written out, as it is saved in the run's folder."""
        return self.model_dump(mode="json", by_alias=True)

    def answer_tokens(self, split: str = "test") -> int:
        """Tokens an answer may have: in training TRL's, in an evaluation `evaluation.max_tokens` where it is set."""
        in_training = self.grpo["max_completion_length"]
        return in_training if split == "train" else self.evaluation.max_tokens or in_training

    def settings(self) -> Iterator[tuple[str, Any, str]]:
        """(dotted path, value, origin) of every setting, in the schema's order."""
        for path, value in leaves(self.as_dict()):
            yield path, value, self.origins.get(path, "default")
