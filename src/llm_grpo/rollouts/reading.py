"""How generated tokens are read: one way for the trainer, for every engine and for the chat page."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llm_grpo.answers.thinking import thought_of
from llm_grpo.prompts import begun_thought, special_tags
from llm_grpo.records import Completion


class Reader:
    """Tokens to text, and where in it the answer begins. thinking: `prompt.thinking`.

    begun: what of a think block the prompt has opened; every text starts with it, so that a record is read alike by
    somebody who does not have the prompt.
    """

    def __init__(self, tokenizer: Any, thinking: str = "answer") -> None:
        self.tokenizer, self.thinking, self.begun = tokenizer, thinking, begun_thought(tokenizer)
        kept = special_tags(tokenizer)
        special = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
        self._cut = special - set(tokenizer.convert_tokens_to_ids(kept)) if kept else None

    def completion(self, tokens: Sequence[int], stops: set[int]) -> Completion:
        """The answer that generated tokens hold: up to the first stop token, which counts; without one it was cut."""
        end = next((index for index, token in enumerate(tokens) if token in stops), None)
        text = self.begun + self.decode(tokens[:end])
        length = len(tokens) if end is None else end + 1
        return Completion(text, length, end is None, thought_of(text, self.thinking))

    def decode(self, tokens: Sequence[int], **_: Any) -> str:
        """Text without special tokens, but for tags of the answer formats where a tokenizer holds them as such."""
        if self._cut is None:
            return self.tokenizer.decode(list(tokens), skip_special_tokens=True)
        return self.tokenizer.decode([token for token in tokens if token not in self._cut])
