"""Unsloth's rewriting of TRL's trainers, as it happens on every GPU, on a machine without one. To be imported first.

It is asked for by UNSLOTH_ALLOW_CPU=1 in the environment (Unsloth then believes in a "cuda" device), and over its CPU
model: the kernels are the CPU's, the trainer is the generated one.
"""

from __future__ import annotations

import os
from typing import Any

assert os.environ.get("UNSLOTH_ALLOW_CPU") == "1", "start this by tests/test_rewritten_trainer.py"

from llm_grpo.loaders import unsloth as loading  # noqa: E402, I001  (first)
from unsloth.models.rl import PatchFastRL  # noqa: E402
from unsloth_zoo.cpu import FastCPUModel  # noqa: E402


class InFloat32(FastCPUModel):
    """Unsloth's CPU loader; the mark keeps the generated trainer from bfloat16, as a float32 model's does on a GPU."""

    @staticmethod
    def from_pretrained(*args: Any, **options: Any) -> tuple[Any, Any]:
        model, tokenizer = FastCPUModel.from_pretrained(*args, **options)
        model._unsloth_user_float32 = True
        return model, tokenizer

    @staticmethod
    def get_peft_model(*args: Any, **options: Any) -> Any:
        model = FastCPUModel.get_peft_model(*args, **options)
        model._unsloth_user_float32 = True
        return model


os.environ["UNSLOTH_ALLOW_CPU"] = "0"  # which would spare TRL the rewriting
PatchFastRL()
os.environ["UNSLOTH_ALLOW_CPU"] = "1"
loading.unsloth.FastLanguageModel = InFloat32
