"""Who loads the policy: Unsloth, or transformers and PEFT. A file for each, with `load` and `with_lora`."""

from __future__ import annotations

import importlib
import os
from types import ModuleType

from llm_grpo.config.schema import Config
from llm_grpo.errors import UserError

SHARDING = {"ACCELERATE_USE_FSDP": "FSDP", "ACCELERATE_USE_DEEPSPEED": "DeepSpeed"}  # how `accelerate launch` says it


def sharded_by() -> str | None:
    """Who cuts the policy into pieces, one for each process of this launch; None where each process holds all of it."""
    return next((name for flag, name in SHARDING.items() if os.environ.get(flag, "").lower() in ("1", "true")), None)


def choose_loader(config: Config) -> tuple[str, str]:
    """(loader, reason) for `model.loader`. Raises UserError where Unsloth is asked for a model in pieces."""
    wanted, sharding = config.model.loader, sharded_by()
    if wanted == "unsloth" and sharding:
        raise UserError(
            f"model.loader: unsloth loads a whole model in every process, and accelerate was told to shard it with "
            f"{sharding}. Set model.loader=transformers, or launch without {sharding}."
        )
    if wanted != "auto":
        return wanted, "model.loader asks for it"
    if sharding:
        return "transformers", f"auto: accelerate was told to shard the model with {sharding}"
    return "unsloth", "auto: every process holds the whole model"


def bring_loader(config: Config) -> ModuleType:
    """The file of the chosen loader. To be called before trl, transformers and peft are imported: Unsloth patches them
    while it is imported; with transformers it is not imported at all."""
    return importlib.import_module(f"{__name__}.{choose_loader(config)[0]}")
