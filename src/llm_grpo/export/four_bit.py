"""What training on a 4-bit base costs: the adapter there, where it learned, against the adapter on the 16-bit base."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from llm_grpo.config import Config
from llm_grpo.export.gaps import Answered, Reading, free, gaps


def gap_to_four_bit(
    config: Config,
    adapter: Path,
    readings: Sequence[Reading],
    pairs: Sequence[Answered],
) -> dict[str, Any]:
    """How far the adapter on the 4-bit base, as it was trained, is from the adapter on the 16-bit base.

    This gap is the price of training in 4-bit, not a fault of the merge; no threshold is laid on it. The base is
    quantized here as QLoRA does it (NF4, double quantization) unless its files are quantized already; Unsloth's own
    copies leave some layers in 16-bit.
    """
    if importlib.util.find_spec("bitsandbytes") is None:
        return {"measured": False, "why": "bitsandbytes is not installed on this machine"}
    try:
        model = _load_four_bit(config, adapter)
        found = gaps(readings, model, pairs)
    except (ImportError, OSError, RuntimeError, ValueError) as error:
        line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        return {"measured": False, "why": f"the 4-bit base cannot be run on this machine ({line})"}
    finally:
        free()
    return {"measured": True, **found}


def _load_four_bit(config: Config, adapter: Path) -> Any:
    from peft import PeftModel
    from transformers import AutoConfig, AutoModelForCausalLM, BitsAndBytesConfig

    name, source = config.model.name, {"revision": config.model.revision}
    source["trust_remote_code"] = config.model.trust_remote_code
    dtype = torch.bfloat16 if not torch.cuda.is_available() or torch.cuda.is_bf16_supported() else torch.float16
    if getattr(AutoConfig.from_pretrained(name, **source), "quantization_config", None) is None:
        source["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
        )
    device = {"": 0 if torch.cuda.is_available() else "cpu"}
    model = AutoModelForCausalLM.from_pretrained(name, dtype=dtype, device_map=device, **source)
    if not getattr(model, "is_loaded_in_4bit", False):
        raise ValueError("it was loaded in 16-bit")
    return PeftModel.from_pretrained(model, str(adapter)).eval()
