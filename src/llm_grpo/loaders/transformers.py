"""The policy by transformers and PEFT, without Unsloth: the model is as its authors wrote it, so that accelerate can
shard it (FSDP2, DeepSpeed ZeRO-3), and the trainer over it is stock TRL on every device.

Activations are checkpointed by transformers' own trainer (`grpo.gradient_checkpointing`), without reentrance.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers import AutoTokenizer
from trl.trainer import utils

from llm_grpo.config.schema import Config
from llm_grpo.device import has_gpu
from llm_grpo.loaders import sharded_by
from llm_grpo.rollouts.transformers import load_model

LOGITS_AT_ONCE = 2**24  # 64 MiB of float32: of 100 tokens with a vocabulary of 150,000


def load(config: Config, engine: str, dtype: torch.dtype, four_bit: bool) -> tuple[Any, Any]:
    """(model, tokenizer). Where accelerate shards the model it stays where transformers puts it, until it is cut: in
    the first process's memory alone."""
    if not has_gpu():
        utils._ChunkedLogProbFunction = SimpleNamespace(apply=fused_head)
    name, own = config.model.name, {"revision": config.model.revision}
    own |= {"trust_remote_code": config.model.trust_remote_code}
    dtype = dtype if config.lora else torch.float32  # in bfloat16 a step of 1e-6 rounds away
    model = load_model(name, dtype, four_bit, sharded=bool(sharded_by()), **own)
    return model, AutoTokenizer.from_pretrained(name, **own)


def with_lora(model: Any, config: Config, targets: list[str]) -> Any:
    """The LoRA is in float32, whatever the base is in, and the same in every process."""
    settings = LoraConfig(r=config.lora.r, lora_alpha=config.lora.alpha, lora_dropout=config.lora.dropout,
                          target_modules=targets, task_type="CAUSAL_LM")  # fmt: skip
    torch.manual_seed(config.run.seed)
    return get_peft_model(model, settings)


def fused_head(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, temperature: float, chunk: int,
    softcap: float | None = None, scale: float = 1.0, outputs: Sequence[str] = (),
) -> tuple[Tensor | None, ...]:  # fmt: skip
    """TRL's language-model head (ChunkedLogProbFunction of TRL 1.15) in torch: its own is for Triton, so for a GPU.

    hidden [N, H], weight [V, H], targets [N] -> log-probabilities, entropies, two that no trainer here asks for, and
    whether the target is the likeliest; [N] each. The logits are made twice, a part of the rows at a time.
    """
    rows = max(1, LOGITS_AT_ONCE // len(weight))
    score = partial(checkpoint, _scored, use_reentrant=False, preserve_rng_state=False)
    parts = [score(*part, weight, bias, temperature, softcap, scale)
             for part in zip(hidden.split(rows), targets.split(rows), strict=True)]  # fmt: skip
    found, entropy, is_top1 = (torch.cat(values) for values in zip(*parts, strict=True))
    return found, entropy if "entropy" in outputs else None, None, None, is_top1 if "is_top1" in outputs else None


def _scored(
    hidden: Tensor, targets: Tensor, weight: Tensor, bias: Tensor | None, temperature: float, softcap: float | None,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    logits = torch.nn.functional.linear(hidden, weight.to(hidden.dtype), bias) * scale
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    logits = softcap * (logits / softcap).tanh() if softcap else logits
    logps = (logits / temperature).log_softmax(-1)
    return logps.gather(1, targets[:, None]).squeeze(1), -(logps.exp() * logps).sum(-1), logits.argmax(-1) == targets
