"""Generation by Unsloth's vLLM engine, which shares the policy's base weights (`fast_inference=True`; GPU).

This file does not import unsloth: it is handed a model that loaders/unsloth.py loaded.
"""

from __future__ import annotations

import tempfile
from typing import Any

from llm_grpo.rollouts import stop_tokens
from llm_grpo.rollouts.reading import Reader
from llm_grpo.rollouts.vllm import VLLMEngine


class UnslothEngine(VLLMEngine):
    """An Engine over `model.fast_generate`, with the policy's present LoRA weights."""

    name = "unsloth"

    def __init__(self, model: Any, tokenizer: Any, thinking: str = "answer") -> None:
        self.model, self.tokenizer, self.reader = model, tokenizer, Reader(tokenizer, thinking)
        self.window = getattr(model, "max_seq_length", None)
        self.stops = stop_tokens(model.generation_config.eos_token_id, tokenizer)

    def _outputs(self, requests: list[dict[str, list[int]]], parameters: list[Any]) -> list[Any]:
        """The adapter goes to vLLM through a temporary folder under a new id each time."""
        with tempfile.TemporaryDirectory() as folder:
            self.model.save_lora(folder)
            adapter = self.model.load_lora(folder)
            return self.model.fast_generate(requests, sampling_params=parameters, lora_request=adapter, use_tqdm=False)
