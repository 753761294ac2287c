"""The `grpo:` section as TRL's GRPOConfig, and what the libraries made of it without a word."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from typing import Any

import torch
from transformers import Trainer, TrainingArguments, get_scheduler
from transformers.utils import is_liger_kernel_available
from trl import GRPOConfig

from llm_grpo import processes
from llm_grpo.config.schema import Config
from llm_grpo.device import compute_dtype, has_gpu
from llm_grpo.errors import UserError
from llm_grpo.runs import Run


def grpo_arguments(config: Config, run: Run, weights: list[float], engine: str) -> GRPOConfig:
    """The `grpo:` section as TRL's GRPOConfig, with what our other sections own and what the device decides."""
    with told_by_trl():
        arguments = GRPOConfig(**_stated(config, run, weights, engine))
    # Unsloth turns `group` off for dr_grpo; here that is the default (grpo_fields.py), and who asks for it gets it.
    scaling = config.grpo["scale_rewards"]
    arguments.scale_rewards = {True: "group", False: "none"}.get(scaling, scaling)
    return arguments


def device_arguments() -> dict[str, bool]:
    """What the device decides, of the arguments of any trainer."""
    cuda, (dtype, _) = has_gpu(), compute_dtype()
    return {"bf16": dtype == "bfloat16", "fp16": dtype == "float16", "use_cpu": not cuda, "dataloader_pin_memory": cuda}


def _stated(config: Config, run: Run, weights: list[float], engine: str) -> dict[str, Any]:
    # transformers would look through the graph in every step for what a LoRA leaves out; there is nothing.
    several = {"ddp_find_unused_parameters": False} if processes.count() > 1 else {}
    return {
        **device_arguments(),
        **several,
        **config.grpo,
        "output_dir": str(run.checkpoints),
        "run_name": config.run.name,
        "seed": config.run.seed,
        "reward_weights": weights,
        "use_vllm": engine == "unsloth",
        **({"vllm_mode": "colocate"} if engine == "unsloth" else {}),
        "report_to": config.logging.report_to or "none",
        "disable_tqdm": True,
        "remove_unused_columns": False,
    }


@contextmanager
def told_by_trl() -> Iterator[None]:
    """What the constructors of TRL and transformers refuse is the user's mistake, told in their words."""
    try:
        yield
    except (ValueError, TypeError, NotImplementedError, ImportError) as error:
        raise UserError(f"grpo: TRL refuses these values: {error}") from error


def check_arguments(config: Config, run: Run, weights: list[float]) -> None:
    """Before the model is loaded: what it would be trained with can be built. Raises UserError."""
    arguments = grpo_arguments(config, run, weights, "transformers")
    with told_by_trl():  # what they look at when the training starts
        Trainer.get_optimizer_cls_and_kwargs(arguments)
        learns = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=arguments.learning_rate)
        words = arguments.lr_scheduler_kwargs
        get_scheduler(arguments.lr_scheduler_type, learns, 0, 1000, scheduler_specific_kwargs=words)
        if arguments.use_liger_kernel and not is_liger_kernel_available():
            raise ImportError("use_liger_kernel needs liger-kernel (pip install liger-kernel)")


def wanted_arguments(config: Config, run: Run, weights: list[float], engine: str) -> dict[str, Any]:
    """Every field of GRPOConfig as it should be held: what the config says, else what TRL's own class makes of it.

    To be asked before the trainer is built: every TrainingArguments that is made resets Accelerate's state.
    """
    held = filled_by_trl(GRPOConfig, _stated(config, run, weights, engine))
    scaling = held["scale_rewards"]
    return held | config.grpo | {"scale_rewards": scaling}  # whose true and false are names for words


def filled_by_trl(kind: type[TrainingArguments], stated: dict[str, Any]) -> dict[str, Any]:
    """Every field of GRPOConfig or SFTConfig with what TRL's own class makes of these values; on a GPU the name stands
    for Unsloth's, whose defaults are others (two batches an update, 8-bit AdamW, a seed of its own)."""
    stock = [known for known in kind.__mro__ if known.__name__ == kind.__name__.removeprefix("Unsloth")][-1]
    plain = stock(**stated)
    return {field.name: getattr(plain, field.name) for field in fields(stock) if field.init}


def changed_in_silence(wanted: dict[str, Any], arguments: GRPOConfig) -> dict[str, str]:
    """What Unsloth or transformers changed or filled in without a word, to be said. TRL's evaluation is never run, and
    top_k is off at 0 (TRL's) and at -1 (Unsloth's)."""
    pairs = {name: (_word(value), _word(getattr(arguments, name, None))) for name, value in wanted.items()}
    return {
        f"grpo.{name}": f"{value} was to be, the trainer holds {held}"
        for name, (value, held) in pairs.items()
        if value != held
        and not name.startswith(("eval_", "per_device_eval_", "bf16_full_eval"))
        and not (name == "top_k" and value + held == -1)
    }


def _word(value: Any) -> Any:
    return None if value == {} else getattr(value, "value", value)  # of an enumeration
