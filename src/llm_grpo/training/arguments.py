"""The `grpo:` section as TRL's GRPOConfig, and what the libraries made of it without a word."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from llm_grpo import policy as _unsloth_first  # noqa: F401  (unsloth has to be imported before trl)

import torch  # isort: skip
from transformers import Trainer, get_scheduler  # isort: skip
from trl import GRPOConfig  # isort: skip

from llm_grpo.config.schema import Config
from llm_grpo.device import compute_dtype, has_gpu
from llm_grpo.errors import UserError
from llm_grpo.runs import Run


def grpo_arguments(config: Config, run: Run, weights: list[float], engine: str) -> GRPOConfig:
    """The `grpo:` section as TRL's GRPOConfig, with what our other sections own and what the device decides."""
    cuda, (dtype, _) = has_gpu(), compute_dtype()
    device = {
        "bf16": dtype == "bfloat16",
        "fp16": dtype == "float16",
        "use_cpu": not cuda,
        "dataloader_pin_memory": cuda,
    }
    with told_by_trl():
        return GRPOConfig(
            **{**device, **config.grpo},
            output_dir=str(run.checkpoints),
            run_name=config.run.name,
            seed=config.run.seed,
            reward_weights=weights,
            use_vllm=engine == "unsloth",
            **({"vllm_mode": "colocate"} if engine == "unsloth" else {}),
            report_to=config.logging.report_to or "none",
            disable_tqdm=True,
            remove_unused_columns=False,
        )


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


def changed_in_silence(config: Config, arguments: GRPOConfig) -> dict[str, str]:
    """What Unsloth or transformers made of a value under `grpo:` without a word, to be said and kept with the run."""
    held = {f"grpo.{name}": (value, getattr(arguments, name, None)) for name, value in config.grpo.items()}
    changed = {name: pair for name, pair in held.items() if pair[0] != pair[1] and name != "grpo.scale_rewards"}
    return {
        name: f"{wanted} was asked for, the trainer holds {getattr(now, 'value', now)}"
        for name, (wanted, now) in changed.items()
    }
