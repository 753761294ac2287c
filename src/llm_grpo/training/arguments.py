"""The `grpo:` section as TRL's GRPOConfig, and what the libraries made of it without a word."""

from __future__ import annotations

from llm_grpo import policy as _unsloth_first  # noqa: F401  (unsloth has to be imported before trl)

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
    try:
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
    except ValueError as error:
        raise UserError(f"grpo: TRL refuses these values: {error}") from None


def changed_in_silence(config: Config, arguments: GRPOConfig) -> dict[str, str]:
    """What Unsloth or transformers made of a value under `grpo:` without a word, to be said and kept with the run."""
    held = {f"grpo.{name}": (value, getattr(arguments, name, None)) for name, value in config.grpo.items()}
    changed = {name: pair for name, pair in held.items() if pair[0] != pair[1] and name != "grpo.scale_rewards"}
    return {
        name: f"{wanted} was asked for, the trainer holds {getattr(now, 'value', now)}"
        for name, (wanted, now) in changed.items()
    }
