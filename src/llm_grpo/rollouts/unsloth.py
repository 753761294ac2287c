"""Generation by Unsloth's vLLM engine, which shares the policy's base weights (`fast_inference=True`; GPU).

This file does not import unsloth: it is handed a model that policy.py loaded.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from typing import Any

from llm_grpo.prompts import render
from llm_grpo.records import Completion, Message
from llm_grpo.rollouts import Sampling


class UnslothEngine:
    """An Engine over `model.fast_generate`, with the policy's present LoRA weights."""

    name = "unsloth"

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self.model, self.tokenizer = model, tokenizer

    def generate(
        self, prompts: Sequence[Sequence[Message]], sampling: Sampling, on_done: Callable[[int], None] | None = None
    ) -> list[list[Completion]]:
        """completions_by_prompt; the adapter goes to vLLM through a temporary folder under a new id each time."""
        from vllm import SamplingParams

        params = SamplingParams(
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            n=sampling.n,
            seed=sampling.seed,
            max_tokens=sampling.max_tokens,
        )
        # The rendered text holds its special tokens, so vLLM is given token ids and adds none.
        ids = [self.tokenizer(render(p, self.tokenizer), add_special_tokens=False)["input_ids"] for p in prompts]
        with tempfile.TemporaryDirectory() as folder:
            self.model.save_lora(folder)
            outputs = self.model.fast_generate(
                [{"prompt_token_ids": row} for row in ids],
                sampling_params=params,
                lora_request=self.model.load_lora(folder),
                use_tqdm=False,
            )
        if on_done:
            on_done(len(ids))
        return [
            [Completion(o.text, len(o.token_ids), truncated=o.finish_reason == "length") for o in request.outputs]
            for request in outputs
        ]
