"""Generation by Unsloth's vLLM engine, which shares the policy's base weights (`fast_inference=True`; GPU).

This file does not import unsloth: it is handed a model that policy.py loaded.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from typing import Any

from llm_grpo.records import Completion, Message
from llm_grpo.rollouts import Sampling, stop_tokens, token_ids
from llm_grpo.rollouts.adapter_sync import isolated
from llm_grpo.rollouts.reading import Reader
from llm_grpo.rollouts.vllm import parameters


class UnslothEngine:
    """An Engine over `model.fast_generate`, with the policy's present LoRA weights."""

    name = "unsloth"

    def __init__(self, model: Any, tokenizer: Any, thinking: str = "answer") -> None:
        self.model, self.tokenizer, self.reader = model, tokenizer, Reader(tokenizer, thinking)
        self.window = getattr(model, "max_seq_length", None)

    def generate(
        self, prompts: Sequence[Sequence[Message]], sampling: Sampling, on_done: Callable[[int], None] | None = None
    ) -> list[list[Completion]]:
        """completions_by_prompt; the adapter goes to vLLM through a temporary folder under a new id each time."""
        ids = token_ids(prompts, self.tokenizer, sampling, self.window)
        if not ids:
            return []
        with tempfile.TemporaryDirectory() as folder, isolated():
            self.model.save_lora(folder)
            outputs = self.model.fast_generate(
                [{"prompt_token_ids": row} for row in ids],
                sampling_params=parameters(sampling, len(ids)),
                lora_request=self.model.load_lora(folder),
                use_tqdm=False,
            )
        if on_done:
            on_done(len(ids))
        stops = stop_tokens(self.model.generation_config.eos_token_id, self.tokenizer)
        return [[self.reader.completion(o.token_ids, stops) for o in r.outputs] for r in outputs]
