"""A LoRA adapter as PEFT saves it: its tensors by module, and a refusal by name of whatever is not a plain LoRA."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llm_grpo.errors import UserError
from llm_grpo.export.tensors import FLOATS, Stored, read_header
from llm_grpo.rollouts.loading import ADAPTER, adapter_settings
from llm_grpo.runs import is_whole_model

# Fields of PEFT's LoraConfig (0.21) that say nothing of the arithmetic, or that are looked at below. Any other field
# that is set changes what the adapter computes, in this version of PEFT or a later one, and is refused.
UNDERSTOOD = {
    "alpha_pattern", "auto_mapping", "base_model_name_or_path", "bias", "corda_config", "eva_config", "exclude_modules",
    "fan_in_fan_out", "inference_mode", "init_lora_weights", "layers_pattern", "layers_to_transform", "loftq_config",
    "lora_alpha", "lora_dropout", "lora_ga_config", "megatron_core", "modules_to_save", "peft_type", "peft_version",
    "qalora_group_size", "r", "rank_pattern", "revision", "target_modules", "task_type", "use_rslora",
}  # fmt: skip
# The other ways to initialise (pissa, olora, corda, loftq, lora_ga) change the base as well: the adapter alone does not
# say by how much, so that adding it to the published base would be wrong.
PLAIN_STARTS = (True, False, None, "gaussian", "orthogonal", "eva")
PREFIX = "base_model.model."
HALF = re.compile(r"(?P<module>.+)\.lora_(?:(?P<half>[AB])\.weight|embedding_(?P<embedding_half>[AB]))")


@dataclass(frozen=True)
class Pair:
    """The two halves of one module's LoRA: a (r, in), b (out, r)."""

    a: Stored
    b: Stored
    scale: float
    embedding: bool  # the weight lies as (in, out): one row per token

    @property
    def shape(self) -> tuple[int, int]:
        return self.b.shape[0], self.a.shape[1]


@dataclass(frozen=True)
class Adapter:
    """base: the name it was trained on. pairs: by module. replaced: whole tensors (modules_to_save) by tensor name.

    A run that trained all weights learned a whole model: that is its own base, with nothing to add to it.
    """

    folder: Path
    base: str
    revision: str | None
    fan_in_fan_out: bool
    pairs: Mapping[str, Pair]
    replaced: Mapping[str, Stored]

    @property
    def is_whole(self) -> bool:
        return not self.pairs and not self.replaced


def read_adapter(folder: Path) -> Adapter:
    """The adapter in that folder. Raises UserError for a missing file and for every kind that cannot be merged."""
    if is_whole_model(folder):
        return Adapter(folder, str(folder), None, False, {}, {})
    config = _read_config(folder)
    weights = folder / "adapter_model.safetensors"
    if not weights.is_file():
        raise UserError(f"{folder}: no adapter_model.safetensors. Save the adapter with safe_serialization=True.")
    halves: dict[str, dict[str, Stored]] = {}
    replaced: dict[str, Stored] = {}
    for key, stored in read_header(weights)[0].items():
        name = key.removeprefix(PREFIX)
        match = HALF.fullmatch(name)
        if match:
            slot = match["half"] or "embedding_" + match["embedding_half"]
            halves.setdefault(match["module"], {})[slot] = stored
        elif "lora_" in name:
            raise UserError(f"{weights}: '{key}' is not a tensor of a plain LoRA; it cannot be merged.")
        else:
            replaced[re.sub(r"\.(base_layer|modules_to_save)\b", "", name)] = stored
    pairs = {module: _pair(module, found, config) for module, found in halves.items()}
    if not pairs and not replaced:
        raise UserError(f"{weights} holds no LoRA tensors.")
    base, revision = config.get("base_model_name_or_path") or "", config.get("revision")
    return Adapter(folder, base, revision, bool(config.get("fan_in_fan_out")), pairs, replaced)


def _read_config(folder: Path) -> dict[str, Any]:
    config, file = adapter_settings(folder), folder / ADAPTER
    faults = [f"{name}={value!r}" for name, value in config.items() if value and name not in UNDERSTOOD]
    if config.get("peft_type") != "LORA":
        faults = [f"peft_type={config.get('peft_type')!r}"]
    if config.get("bias", "none") != "none":
        faults.append(f"bias={config['bias']!r}")
    if config.get("init_lora_weights") not in PLAIN_STARTS:
        faults.append(f"init_lora_weights={config['init_lora_weights']!r}")
    if faults:
        raise UserError(f"{file}: only a plain LoRA (or rsLoRA) can be merged, not one with {', '.join(faults)}.")
    return config


def _pair(module: str, found: Mapping[str, Stored], config: Mapping[str, Any]) -> Pair:
    if found.keys() not in ({"A", "B"}, {"embedding_A", "embedding_B"}):
        raise UserError(f"The adapter's module '{module}' has only {', '.join(sorted(found))} of its LoRA tensors.")
    a, b = (found[slot] for slot in sorted(found))
    if len(a.shape) != 2 or len(b.shape) != 2 or a.shape[0] != b.shape[1] or not {a.dtype, b.dtype} <= FLOATS.keys():
        raise UserError(
            f"The adapter's module '{module}' has tensors of {a.dtype} {a.shape} and {b.dtype} {b.shape}; "
            "only LoRA of linear layers and embeddings can be merged."
        )
    return Pair(a, b, _scale(module, a.shape[0], config), embedding="embedding_A" in found)


def _scale(module: str, rank: int, config: Mapping[str, Any]) -> float:
    """alpha / r, or alpha / sqrt(r) for rsLoRA (https://arxiv.org/abs/2312.03732); the first fitting pattern wins.

    The rank is read from the tensor, so `rank_pattern` need not be. Patterns match as in PEFT 0.21, get_pattern_key.
    """
    patterns: Mapping[str, float] = config.get("alpha_pattern") or {}
    fitting = (alpha for key, alpha in patterns.items() if re.match(rf"(.*\.)?({key})$", module))
    alpha = next(fitting, config["lora_alpha"])
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
