"""The trainable model: Unsloth's FastLanguageModel with a LoRA, or all of it. The only module that imports unsloth.

Import it before trl, transformers and peft, always: Unsloth patches them while it is imported (and without it TRL
1.15 has no language-model head for a CPU).
"""

from __future__ import annotations

import os
import re
import shutil
import sys
from dataclasses import dataclass
from functools import partial
from inspect import signature
from pathlib import Path
from typing import Any

import torch

if not torch.cuda.is_available():
    # Inductor spends 5 to 20 s a step compiling layers on a CPU; a small model never earns that back.
    os.environ.setdefault("UNSLOTH_COMPILE_DISABLE", "1")
    # Unsloth loads vLLM's extension to see whether it is broken. That of the CPU build is for AVX-512 with bfloat16 and
    # ends the process on any other CPU ("Illegal instruction"); vLLM itself takes the one of its three that fits.
    sys.modules.setdefault("vllm._C", None)

import unsloth  # noqa: E402, I001

if sys.modules.get("vllm._C", unsloth) is None:
    del sys.modules["vllm._C"]

from llm_grpo import processes
from llm_grpo.config.schema import Config
from llm_grpo.device import compute_dtype, has_gpu
from llm_grpo.errors import UserError
from llm_grpo.files import swap_in
from llm_grpo.prompts import prepare_tokenizer
from llm_grpo.rollouts import Engine, choose_engine, choose_four_bit
from llm_grpo.rollouts.endings import end_as_the_base_says, pad_with_no_end
from llm_grpo.rollouts.transformers import TransformersEngine


@dataclass(frozen=True)
class Policy:
    """The model that learns, its tokenizer, who generates from it, and why things were chosen so."""

    model: Any
    tokenizer: Any
    engine: Engine
    choices: dict[str, str]


def load_policy(config: Config) -> Policy:
    """The base model in 4-bit or in float32 (CPU), bfloat16 or float16 (GPU), with a fresh LoRA; all of it in float32
    where `lora` is null.

    Raises UserError where the config asks for what cannot be had here.
    """
    engine, reason = choose_engine(config.rollouts.engine, training=config)
    dtype, dtype_reason = compute_dtype()
    four_bit, four_bit_reason = choose_four_bit(config.model.load_in_4bit, config.lora is not None)
    model, tokenizer = _loaded(config, engine, getattr(torch, dtype), four_bit)
    _check_quantisation(model, four_bit)
    count_positions_from_mask(model)
    end_as_the_base_says(model, tokenizer, config.model.name, config.model.revision)
    pad_with_no_end(model, tokenizer, required=is_rewritten())
    model = _with_lora(model, config) if config.lora else model
    choices = {
        "rollouts.engine": f"{engine}: {reason}",
        "dtype": f"{dtype}: {dtype_reason}",
        "model.load_in_4bit": f"{str(four_bit).lower()}: {four_bit_reason}",
        **prepare_tokenizer(tokenizer, config.prompt),
    }
    return Policy(model, tokenizer, _engine(engine, model, tokenizer, config), choices)


def _loaded(config: Config, engine: str, dtype: torch.dtype, four_bit: bool) -> tuple[Any, Any]:
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


def is_rewritten() -> bool:
    """Whether `trl.GRPOTrainer` is the one that Unsloth generates, as on every GPU."""
    import trl

    return not trl.GRPOTrainer.__module__.startswith("trl.")


def _engine(name: str, model: Any, tokenizer: Any, config: Config) -> Engine:
    thinking = config.prompt.thinking
    if name == "transformers":
        return TransformersEngine(model, tokenizer, config.evaluation.batch_size, thinking)
    if name == "unsloth":
        from llm_grpo.rollouts.unsloth import UnslothEngine

        return UnslothEngine(model, tokenizer, thinking)
    if name == "server":
        from llm_grpo.rollouts.server import policy_engine

        return policy_engine(model, tokenizer, config)
    from llm_grpo.rollouts.vllm import policy_engine

    options = {"revision": config.model.revision, "trust_remote_code": config.model.trust_remote_code}
    options |= {"gpu_memory_utilization": config.model.gpu_memory_utilization, "seed": config.run.seed}
    return policy_engine(model, tokenizer, config.model.name, config.model.max_seq_length, thinking, **options)


def _with_lora(model: Any, config: Config) -> Any:
    return unsloth.FastLanguageModel.get_peft_model(
        model,
        r=config.lora.r,
        lora_alpha=config.lora.alpha,
        lora_dropout=config.lora.dropout,
        target_modules=_targets(model, config.lora.target_modules),
        use_gradient_checkpointing=_checkpointing(config),
        random_state=config.run.seed,
    )


def count_positions_from_mask(model: Any) -> None:
    """Learned positions of a left-padded row start at its first real token, in every forward that is not told others.

    GPT-2 and its like count padding too unless they get `position_ids`. `generate` gives them, TRL 1.15's GRPOTrainer
    does not (its issue 6800 is about the same in other trainers): it would train another policy than the one that
    sampled, off by half a nat a token or more. Nothing is done where only distances count (RoPE), or where the model
    sees to the padding itself (RoBERTa).
    """
    decoder = model.base_model
    by_itself = any(hasattr(module, "create_position_ids_from_input_ids") for module in decoder.modules())
    rope = getattr(model.config, "rope_parameters", None)
    if not rope and not by_itself and "position_ids" in signature(decoder.forward).parameters:
        decoder.register_forward_pre_hook(_with_positions, with_kwargs=True)


def _with_positions(
    _: torch.nn.Module, args: tuple[Any, ...], words: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    mask, past = words.get("attention_mask"), words.get("past_key_values")
    started = past is not None and past.get_seq_length() > 0
    if words.get("position_ids") is None and mask is not None and mask.dim() == 2 and not started:
        words["position_ids"] = (mask.long().cumsum(-1) - 1).clamp(min=0)
    return args, words


def learn_in_float32(policy: Policy) -> None:
    """On a CPU TRL's trainers cast the LoRA of a 4-bit model to bfloat16, where a step of 5e-6 moves 2 % of the weights
    and leaves the rest as they were; on a GPU Unsloth takes that cast out (docs/correctness.md)."""
    for parameter in policy.model.parameters() if not has_gpu() else ():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


def save_weights(policy: Policy, folder: Path) -> None:
    """What was learned and the tokenizer, under a temporary name until it is whole. Of several processes the first
    writes."""
    if not processes.is_first():
        return
    draft = folder.with_name(f".{folder.name}.draft")
    shutil.rmtree(draft, ignore_errors=True)
    write_weights(policy, draft)
    swap_in(draft, folder)


def write_weights(policy: Policy, folder: Path) -> None:
    """The LoRA or the whole model, and the tokenizer, as files in a folder."""
    # With beta > 0 TRL keeps the starting weights as a second adapter, "ref"; it is no part of the result.
    only = {"selected_adapters": ["default"]} if hasattr(policy.model, "peft_config") else {}
    policy.model.save_pretrained(str(folder), **only)
    policy.tokenizer.save_pretrained(str(folder))


def load_weights(policy: Policy, folder: Path) -> None:
    """Put saved weights, of the kind the policy learns, into it, in place; and see that it holds them.

    Raises UserError where a file is torn or of another kind, something that is trained is in no file, or the policy
    holds other values than the files after all.
    """
    from peft import get_peft_model_state_dict, set_peft_model_state_dict
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    model = policy.model
    if hasattr(model, "peft_config"):
        held, load = partial(get_peft_model_state_dict, model, save_embedding_layers=False), set_peft_model_state_dict
        missing = set(held())
    else:
        held, load = model.state_dict, partial(type(model).load_state_dict, strict=False)
        missing = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    wrong: set[str] = set()
    for file in sorted(folder.glob("*.safetensors")):  # a large model comes in several
        try:
            saved = load_file(file)
        except SafetensorError as error:
            raise UserError(f"{file} cannot be read ({error}). Without {folder} others are used.") from error
        wrong |= set(load(model, saved).unexpected_keys)
        wrong |= {n for n, value in held().items() if n in saved and not torch.equal(value, saved[n].to(value))}
        missing -= saved.keys()
    if wrong or missing:
        fault = "is not held by the policy after loading" if wrong else "is trained, and in none of its files"
        raise UserError(f"{folder}: {min(wrong or missing)} {fault}. Nothing was overwritten.")


def _checkpointing(config: Config) -> str | bool:
    return "unsloth" if config.grpo["gradient_checkpointing"] and has_gpu() else False


def _check_quantisation(model: Any, wanted: bool) -> None:
    """Unsloth falls back to 16-bit with a printed line where 4-bit cannot be had; we do not."""
    found = any(type(module).__name__ == "Linear4bit" for module in model.modules())
    if wanted and not found:
        raise UserError(
            "model.load_in_4bit is true, but the model was loaded in 16-bit: bitsandbytes is missing or fails here. "
            "Install it (pip install bitsandbytes), or set model.load_in_4bit=false."
        )


def _targets(model: Any, wanted: list[str] | None) -> list[str]:
    """The modules that get a LoRA: those asked for, else every linear layer of the decoder's blocks, by last name.

    Raises UserError naming the modules there are, where one is not there.
    """
    there = {name.rpartition(".")[2] for name, module in model.named_modules() if hasattr(module, "weight")}
    targets = wanted or _block_layers(model)
    unknown = [name for name in targets if name not in there]
    if unknown or not targets:
        raise UserError(
            f"lora.target_modules: {', '.join(unknown) or 'no linear layer of a decoder block'} not in this model. "
            f"It has: {', '.join(sorted(there))}."
        )
    return targets


def _block_layers(model: Any) -> list[str]:
    """The linear layers inside numbered blocks (`h.0.attn.c_attn`, `layers.0.mlp.up_proj`), in the model's order.

    Embeddings and the output layer stand outside of them. GPT-2's Conv1D is linear too; its weight lies as (in, out).
    """
    from transformers.pytorch_utils import Conv1D

    linear = [name for name, module in model.named_modules() if isinstance(module, (torch.nn.Linear, Conv1D))]
    return list(dict.fromkeys(name.rpartition(".")[2] for name in linear if re.search(r"\.\d+\.", name)))
