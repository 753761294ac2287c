"""The trainable model: what a loader makes of the base (loaders/), with a LoRA, or all of it; saved and put back."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from inspect import signature
from pathlib import Path
from typing import Any

import torch

from llm_grpo import processes
from llm_grpo.config.schema import Config
from llm_grpo.device import compute_dtype, has_gpu
from llm_grpo.errors import UserError
from llm_grpo.files import swap_in
from llm_grpo.loaders import bring_loader, choose_loader
from llm_grpo.prompts import prepare_tokenizer
from llm_grpo.rollouts import Engine, choose_engine, choose_four_bit
from llm_grpo.rollouts.endings import end_as_the_base_says, pad_with_no_end


@dataclass(frozen=True)
class Policy:
    """The model that learns, its tokenizer, who generates from it, and why things were chosen so."""

    model: Any
    tokenizer: Any
    engine: Engine
    choices: dict[str, str]


def load_policy(config: Config) -> Policy:
    """The base model in 4-bit or in float32 (CPU), bfloat16 or float16 (GPU), with a fresh LoRA; all of it in float32
    where `lora` is null. Whoever imports trl, transformers or peft before asks `bring_loader` first.

    Raises UserError where the config asks for what cannot be had here.
    """
    engine, reason = choose_engine(config.rollouts.engine, training=config)
    dtype, dtype_reason = compute_dtype()
    four_bit, four_bit_reason = choose_four_bit(config.model.load_in_4bit, config.lora is not None)
    loader, loader_reason = choose_loader(config)
    loaded_by = bring_loader(config)
    model, tokenizer = loaded_by.load(config, engine, getattr(torch, dtype), four_bit)
    _check_quantisation(model, four_bit)
    count_positions_from_mask(model)
    end_as_the_base_says(model, tokenizer, config.model.name, config.model.revision)
    pad_with_no_end(model, tokenizer, required=is_rewritten())
    if config.lora:
        model = loaded_by.with_lora(model, config, _targets(model, config.lora.target_modules))
    choices = {
        "model.loader": f"{loader}: {loader_reason}",
        "rollouts.engine": f"{engine}: {reason}",
        "dtype": f"{dtype}: {dtype_reason}",
        "model.load_in_4bit": f"{str(four_bit).lower()}: {four_bit_reason}",
        **prepare_tokenizer(tokenizer, config.prompt),
    }
    return Policy(model, tokenizer, _engine(engine, model, tokenizer, config), choices)


def is_rewritten() -> bool:
    """Whether `trl.GRPOTrainer` is the one that Unsloth generates, as on every GPU that it is imported on."""
    import trl

    return not trl.GRPOTrainer.__module__.startswith("trl.")


def _engine(name: str, model: Any, tokenizer: Any, config: Config) -> Engine:
    thinking = config.prompt.thinking
    if name == "transformers":
        from llm_grpo.rollouts.transformers import TransformersEngine

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
    """Stock TRL's trainers cast the LoRA of a 4-bit model to bfloat16, where a step of 5e-6 moves 2 % of the weights
    and leaves the rest as they were; on a GPU Unsloth takes that cast out (docs/correctness.md)."""
    for parameter in policy.model.parameters() if not (has_gpu() and is_rewritten()) else ():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


def save_weights(policy: Policy, folder: Path) -> None:
    """What was learned and the tokenizer, under a temporary name until it is whole. By all processes, as below."""
    draft = folder.with_name(f".{folder.name}.draft")
    if processes.is_first():
        shutil.rmtree(draft, ignore_errors=True)
    write_weights(policy, draft)
    if processes.is_first():
        swap_in(draft, folder)


def write_weights(policy: Policy, folder: Path) -> None:
    """The LoRA or the whole model, and the tokenizer, as files in a folder. The first process writes; where the model
    is sharded all have to call this, since each holds a part of what is written."""
    with _gathered(policy.model):
        tensors = _tensors(policy.model)
        if processes.is_first():
            # With beta > 0 TRL keeps the starting weights as a second adapter, "ref"; it is no part of the result.
            only = {"selected_adapters": ["default"]} if hasattr(policy.model, "peft_config") else {}
            policy.model.save_pretrained(str(folder), state_dict=tensors, **only)
            policy.tokenizer.save_pretrained(str(folder))


def load_weights(policy: Policy, folder: Path) -> None:
    """Put saved weights, of the kind the policy learns, into it, in place; and see that it holds them. By all processes
    where the model is sharded.

    Raises UserError where a file is torn or of another kind, something that is trained is in no file, or the policy
    holds other values than the files after all.
    """
    from peft import get_peft_model_state_dict, set_peft_model_state_dict
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    model = policy.model
    if hasattr(model, "peft_config"):
        held = lambda: get_peft_model_state_dict(model, _tensors(model), save_embedding_layers=False)  # noqa: E731
        load, missing = set_peft_model_state_dict, set(held())
    else:
        held, load = model.state_dict, partial(type(model).load_state_dict, strict=False)
        missing = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    wrong: set[str] = set()
    for file in sorted(folder.glob("*.safetensors")):  # a large model comes in several
        try:
            saved = load_file(file)
        except SafetensorError as error:
            raise UserError(f"{file} cannot be read ({error}). Without {folder} others are used.") from error
        with _gathered(model):
            wrong |= set(load(model, _in_pieces(saved, model)).unexpected_keys)
            wrong |= {n for n, value in held().items() if n in saved and not torch.equal(value, saved[n].to(value))}
        missing -= saved.keys()
    if wrong or missing:
        fault = "is not held by the policy after loading" if wrong else "is trained, and in none of its files"
        raise UserError(f"{folder}: {min(wrong or missing)} {fault}. Nothing was overwritten.")


def _tensors(model: Any) -> dict[str, Any]:
    """The model's tensors by name. A LoRA's that FSDP2 has cut are put together, which all processes have to ask for;
    its base stays in pieces."""
    tensors = model.state_dict()
    pieces = {name: value for name, value in tensors.items() if ".lora_" in name and hasattr(value, "full_tensor")}
    return tensors | {name: value.full_tensor() for name, value in pieces.items()}


def _in_pieces(saved: dict[str, Any], model: Any) -> dict[str, Any]:
    """Saved tensors, cut as FSDP2 has cut the model's of their name. torch 2.11 copies none that is whole into one that
    is in pieces; later versions do. All processes have to call this."""
    from peft import get_peft_model_state_dict
    from torch.distributed.tensor import DTensor, distribute_tensor

    if not any(isinstance(value, DTensor) for value in model.parameters()):
        return saved
    held = get_peft_model_state_dict(model, model.state_dict(), save_embedding_layers=False)
    cut = {name: value for name, value in held.items() if name in saved and isinstance(value, DTensor)}
    return saved | {
        name: distribute_tensor(saved[name].to(like.device), like.device_mesh, like.placements)
        for name, like in cut.items()
    }


@contextmanager
def _gathered(model: Any) -> Iterator[None]:
    """The same for DeepSpeed's ZeRO-3, while this lasts; what is changed meanwhile is cut again. (Not tried.)"""
    pieces = [value for value in model.parameters() if value.requires_grad and hasattr(value, "ds_id")]
    if not pieces:
        yield
        return
    from deepspeed.zero import GatheredParameters

    with GatheredParameters(pieces, modifier_rank=0):
        yield


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
