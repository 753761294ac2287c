"""Where an answer ends: the tokens that end one, and a pad token that is none of them."""

from __future__ import annotations

from typing import Any

from llm_grpo.errors import UserError
from llm_grpo.rollouts import stop_tokens

SPARE = ("pad", "reserved", "unused", "placeholder", "unk")  # in the names of tokens that are there to be taken


def end_as_the_base_says(model: Any, tokenizer: Any, base: str, revision: str | None) -> None:
    """Put the tokens that end an answer where TRL, the engines and the recorder look, the model's generation_config:
    those of the base's generation_config.json and the tokenizer's.

    A model that Unsloth took out of its vLLM lacks the former; Qwen's answers that end with <|endoftext|> would count
    as cut off.
    """
    from transformers import GenerationConfig

    try:
        found = GenerationConfig.from_pretrained(base, revision=revision).eos_token_id
    except OSError:  # the base has no such file
        found = model.generation_config.eos_token_id
    ends = sorted(stop_tokens(found, tokenizer))
    model.generation_config.eos_token_id = ends if len(ends) > 1 else ends[0]


def pad_with_no_end(model: Any, tokenizer: Any, *, required: bool) -> None:
    """Pad with a token that ends no answer: Unsloth's trainer counts what is not the pad token, so an answer would lose
    its end. One of the tokenizer's special tokens takes its place, by its name one that no text holds.

    required: whether that trainer runs; TRL's own counts by position. Raises UserError where there is none to take.
    """
    ends = stop_tokens(model.generation_config.eos_token_id, tokenizer)
    if tokenizer.pad_token_id is not None and tokenizer.pad_token_id not in ends:
        return
    special = [str(token) for number, token in tokenizer.added_tokens_decoder.items() if number not in ends]
    spare = [token for word in SPARE for token in special if word in token.lower()]
    if spare:
        tokenizer.pad_token = spare[0]
    elif required:
        raise UserError(
            f"The tokenizer pads with {tokenizer.pad_token!r}, which ends an answer, and has no other special token: "
            "Unsloth's trainer would never see an end. Give the base's folder a tokenizer with a pad token of its own, "
            "and set model.name to that folder."
        )
