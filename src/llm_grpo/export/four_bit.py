"""What training on a 4-bit base costs: the adapter there, where it learned, against the adapter on the 16-bit base."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llm_grpo.config.schema import Config
from llm_grpo.errors import first_line
from llm_grpo.export.gaps import Answered, Reading, free, gaps
from llm_grpo.rollouts.transformers import load_engine


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
    source = {"revision": config.model.revision, "trust_remote_code": config.model.trust_remote_code}
    try:
        model = load_engine(config.model.name, adapter, config.prompt, load_in_4bit=True, **source).model
        if not getattr(model, "is_loaded_in_4bit", False):
            return {"measured": False, "why": "transformers loaded the base in 16-bit on this machine"}
        found = gaps(readings, model, pairs)
    except (ImportError, OSError, RuntimeError, ValueError) as error:
        return {"measured": False, "why": f"the 4-bit base cannot be run on this machine ({first_line(error)})"}
    finally:
        model = None
        free()
    return {"measured": True, **found}
