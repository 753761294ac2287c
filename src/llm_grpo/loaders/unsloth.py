"""The policy by Unsloth's FastLanguageModel. The only module that imports unsloth.

Import it before trl, transformers and peft, always: Unsloth patches them while it is imported.
"""

from __future__ import annotations

import os
import sys
from typing import Any

import torch

from llm_grpo.config.schema import Config
from llm_grpo.device import has_gpu
from llm_grpo.errors import UserError

if not torch.cuda.is_available():
    # Inductor spends 5 to 20 s a step compiling layers on a CPU; a small model never earns that back.
    os.environ.setdefault("UNSLOTH_COMPILE_DISABLE", "1")
    # Unsloth loads vLLM's extension to see whether it is broken. That of the CPU build is for AVX-512 with bfloat16 and
    # ends the process on any other CPU ("Illegal instruction"); vLLM itself takes the one of its three that fits.
    sys.modules.setdefault("vllm._C", None)

assert "trl" not in sys.modules or "unsloth" in sys.modules, "loaders.bring_loader has to come before trl"
import unsloth  # noqa: E402, I001

if sys.modules.get("vllm._C", unsloth) is None:
    del sys.modules["vllm._C"]


def load(config: Config, engine: str, dtype: torch.dtype, four_bit: bool) -> tuple[Any, Any]:
    """(model, tokenizer). With the engine `unsloth` vLLM is opened over the same weights."""
    fast, whole = {}, {}
    if engine == "unsloth":
        memory = config.model.gpu_memory_utilization
        fast = {"fast_inference": True, "max_lora_rank": config.lora.r, "gpu_memory_utilization": memory}
    if config.lora is None:  # in float32 on every device: in bfloat16 a step of 1e-6 rounds away
        whole = {"full_finetuning": True} | ({"float32_mixed_precision": True} if has_gpu() else {})
    try:
        return unsloth.FastLanguageModel.from_pretrained(
            model_name=config.model.name,
            # Else Unsloth takes a 4-bit copy of its own of a model that it knows, some layers of it in 16 bit: infer,
            # eval and merge would work on another base than the one that was trained on, and a revision is dropped.
            use_exact_model_name=True,
            revision=config.model.revision,
            max_seq_length=config.model.max_seq_length,
            dtype=dtype,
            load_in_4bit=four_bit,
            trust_remote_code=config.model.trust_remote_code,
            use_gradient_checkpointing=_checkpointing(config),
            **fast,
            **whole,
        )
    except NotImplementedError as error:
        raise UserError(f"Unsloth cannot load {config.model.name} with these settings: {error}") from error


def with_lora(model: Any, config: Config, targets: list[str]) -> Any:
    return unsloth.FastLanguageModel.get_peft_model(
        model,
        r=config.lora.r,
        lora_alpha=config.lora.alpha,
        lora_dropout=config.lora.dropout,
        target_modules=targets,
        use_gradient_checkpointing=_checkpointing(config),
        random_state=config.run.seed,
    )


def _checkpointing(config: Config) -> str | bool:
    return "unsloth" if config.grpo["gradient_checkpointing"] and has_gpu() else False
