"""Generation by transformers: anywhere, with or without an adapter, memory bounded by the batch size."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig

from llm_grpo.config.schema import PromptSection
from llm_grpo.device import compute_dtype, has_gpu
from llm_grpo.errors import UserError, first_line
from llm_grpo.records import Completion, Message
from llm_grpo.rollouts import Sampling, stop_tokens, token_ids
from llm_grpo.rollouts.grouped_attention import attend_in_groups
from llm_grpo.rollouts.loading import load_tokenizer, not_there
from llm_grpo.rollouts.reading import Reader
from llm_grpo.rollouts.sampled import sampled_logprobs
from llm_grpo.runs import is_whole_model


class TransformersEngine:
    """An Engine over a model that is in memory. Prompts are sorted by length, so that little is padded."""

    name = "transformers"

    def __init__(self, model: Any, tokenizer: Any, batch_size: int = 64, thinking: str = "answer") -> None:
        self.model, self.tokenizer, self.batch_size = model, tokenizer, batch_size
        self.reader = Reader(tokenizer, thinking)
        self.window = getattr(model.config, "max_position_embeddings", None)
        attend_in_groups()

    def generate(
        self, prompts: Sequence[Sequence[Message]], sampling: Sampling, on_done: Callable[[int], None] | None = None
    ) -> list[list[Completion]]:
        """completions_by_prompt. The caller's random state and the model's train/eval mode are left as they were."""
        ids = token_ids(prompts, self.tokenizer, sampling, self.window)
        order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
        rows = [i for i in order for _ in range(sampling.n)]  # one for each answer, so that n may exceed a batch
        completions: list[list[Completion]] = [[] for _ in ids]
        was_training = self.model.training
        self.model.eval()
        try:
            with torch.random.fork_rng(devices=_cuda_devices(self.model)), torch.no_grad():
                # Without a seed a new one, since fork_rng puts the generator back: the next call would draw the same.
                torch.manual_seed(sampling.seed) if sampling.seed is not None else torch.seed()
                for start in range(0, len(rows), self.batch_size):
                    batch = rows[start : start + self.batch_size]
                    for index, one in zip(batch, self._batch([ids[i] for i in batch], sampling), strict=True):
                        completions[index].append(one)
                    if on_done:
                        on_done((start + len(batch)) // sampling.n - start // sampling.n)
        finally:
            self.model.train(was_training)
        return completions

    def stream(self, prompt: Sequence[Message], temperature: float, top_p: float, max_tokens: int) -> Iterator[str]:
        """One answer in pieces of text, as it is written; shorter than max_tokens where the window ends before."""
        from transformers import TextIteratorStreamer

        ids = torch.tensor(token_ids([prompt], self.tokenizer, Sampling(1), self.window), device=self.model.device)
        left = max_tokens if self.window is None else min(max_tokens, self.window - ids.shape[1])
        pieces = TextIteratorStreamer(self.reader, skip_prompt=True)  # of a tokenizer it only asks decode

        def write() -> None:
            try:
                settings = self._settings(Sampling(left, temperature, top_p))
                self.model.generate(
                    ids, attention_mask=torch.ones_like(ids), generation_config=settings, streamer=pieces
                )
            finally:
                pieces.end()  # whoever reads would wait forever

        with ThreadPoolExecutor(1) as thread:
            writing = thread.submit(write)
            yield self.reader.begun
            yield from pieces
            writing.result()  # raises what generate raised

    def _batch(self, ids: list[list[int]], sampling: Sampling) -> list[Completion]:
        """One padded batch: token ids of prompts -> an answer to each."""
        longest = max(map(len, ids))
        device = self.model.device
        tokens = torch.tensor([[self._pad()] * (longest - len(row)) + row for row in ids], device=device)
        mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in ids], device=device)
        settings, stops = self._settings(sampling), self._stops()
        with torch.no_grad(), sampled_logprobs(self.model, None, in_stages=not has_gpu()) as draw:  # not tried on a GPU
            output = draw(tokens, mask, settings)
        return [self.reader.completion(row, stops) for row in output[:, longest:].tolist()]

    def _settings(self, sampling: Sampling) -> GenerationConfig:
        drawn = {"temperature": None, "top_p": None, "top_k": None, "min_p": None}
        if sampling.temperature:
            drawn = {"temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": 0, "min_p": 0.0}
        return GenerationConfig(
            max_new_tokens=sampling.max_tokens,
            do_sample=bool(sampling.temperature),
            num_return_sequences=1,
            pad_token_id=self._pad(),
            eos_token_id=sorted(self._stops()) or None,
            # Said, or the base's generation_config would say it: Qwen2.5-Instruct's has a penalty of 1.05, by which an
            # answer would be another than the policy's own, and than vLLM's.
            repetition_penalty=1.0,
            no_repeat_ngram_size=0,
            **drawn,
        )

    def _stops(self) -> set[int]:
        return stop_tokens(self.model.generation_config.eos_token_id, self.tokenizer)

    def _pad(self) -> int:
        tokenizer = self.tokenizer
        return tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id


def load_engine(
    model_name: str, adapter: Path | None, prompt: PromptSection | None, **options: Any
) -> TransformersEngine:
    """A model (folder or Hub name) with an optional adapter, without unsloth. options: revision, trust_remote_code,
    batch_size, load_in_4bit, dtype: unless given float32 on a CPU, bfloat16 or float16 on a GPU. prompt: of the config,
    None where there is none. Raises UserError.

    adapter: what a run learned; where that is a whole model it is opened by itself, in place of its base."""
    if adapter is not None and is_whole_model(adapter):
        model_name, adapter, options = str(adapter), None, {**options, "revision": None}
    trust = {"trust_remote_code": options.get("trust_remote_code", False), "revision": options.get("revision")}
    dtype = getattr(torch, options.get("dtype") or compute_dtype()[0])
    tokenizer, _ = load_tokenizer(model_name, adapter, prompt, **trust)
    model = load_model(model_name, dtype, bool(options.get("load_in_4bit")), **trust)
    if adapter is not None:
        from peft import PeftModel

        try:
            model = PeftModel.from_pretrained(model, str(adapter))
        except (ValueError, RuntimeError) as error:
            raise UserError(f"{adapter} does not fit {model_name}: {first_line(error)}") from error
    thinking = prompt.thinking if prompt else "answer"
    return TransformersEngine(model.eval(), tokenizer, options.get("batch_size", 64), thinking)


def load_model(name: str, dtype: torch.dtype, four_bit: bool, *, sharded: bool = False, **options: Any) -> Any:
    """A causal language model (folder or Hub name) on this process's device; where it is to be sharded, wherever
    transformers puts it until then. options: revision, trust_remote_code. Raises UserError."""
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM

    if four_bit:
        options |= {"quantization_config": _nf4(dtype, sharded)} | ({} if sharded else {"device_map": {"": _device()}})
    try:
        model = AutoModelForCausalLM.from_pretrained(name, dtype=dtype, **options)
    except (OSError, ValueError) as error:  # a missing folder, an unknown Hub name, no network, no config.json
        raise not_there(name, error) from error
    except SafetensorError as error:
        raise UserError(f"{name}: its weights cannot be read ({first_line(error)}).") from error
    return model if four_bit or sharded else model.to(_device())


def _device() -> str:
    return f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if has_gpu() else "cpu"


def _nf4(dtype: torch.dtype, sharded: bool) -> Any:
    """For the 4-bit base Unsloth trains on: NF4 with double quantisation, as in QLoRA. FSDP2 cuts only weights that are
    stored as floats."""
    from transformers import BitsAndBytesConfig

    stored = {"bnb_4bit_quant_storage": dtype} if sharded else {}
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
                              bnb_4bit_compute_dtype=dtype, **stored)  # fmt: skip


def _cuda_devices(model: Any) -> list[int]:
    return [model.device.index or 0] if model.device.type == "cuda" else []
