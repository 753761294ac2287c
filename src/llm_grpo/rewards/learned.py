"""A learned reward: what a sequence-classification model of transformers says of a completion.

    rewards: [{name: reward_model, weight: 0.5, args: {model: owner/name}}]

TRL takes a model's name among its reward functions too. Ours is a function as all others, so that evaluation, proof and
reward lab ask it as well, and it is guarded, batched and says what it cuts. And it refuses a model without a trained
head, where TRL (1.15) asks for num_labels=1 and transformers then makes a random one with a mere warning.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from llm_grpo.errors import UserError, check_choice
from llm_grpo.rewards.classifier import Classifier, load
from llm_grpo.rewards.lifting import text_of

logger = logging.getLogger(__name__)
RENDERS = ("chat", "pair", "completion")
DTYPES = ("auto", "float32", "bfloat16", "float16")


@dataclass(frozen=True, kw_only=True)
class RewardModel:
    """any number: what the classifier named in `model` says of the completion; with `label`, 0 to 1.

    model, revision: a folder or a Hub name; its own code is never run. It is loaded at the first call, once.
    render: chat (the conversation in the model's own chat template), pair (question and completion as the two texts of
        the tokenizer), completion (alone).
    question_only: the chat without system prompt and worked examples, for models that were trained without.
    label: a name or number among the model's labels, whose probability is paid; without it the model must have one
        label, whose logit is paid as it is.
    max_length: tokens; of what is longer the beginning is cut, and that is told. Default: the model's window.
    device: auto (the GPU where there is one), cpu, cuda, cuda:1. dtype: auto is float32 on a CPU, else as saved.
    """

    model: str
    revision: str | None = None
    render: str = "chat"
    question_only: bool = False
    label: str | int | None = None
    max_length: int | None = None
    batch_size: int = 16
    device: str = "auto"
    dtype: str = "auto"

    def __post_init__(self) -> None:
        for name, allowed in (("render", RENDERS), ("dtype", DTYPES)):
            check_choice(f"reward_model: {name}", getattr(self, name), allowed)
        if self.batch_size < 1 or (self.max_length or 1) < 1:
            raise UserError("reward_model: batch_size and max_length must be at least 1.")
        if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", self.device):
            raise UserError(f"reward_model: device '{self.device}': give auto, cpu, cuda or cuda:1.")

    def __call__(self, prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float]:
        """One score each; batched by length, which changes nothing but the time. TRL's shape."""
        pairs = [self._texts(*pair) for pair in zip(prompts, completions, strict=True)]
        rows = [self._loaded.encode(*pair, chat=self.render == "chat", limit=None) for pair in pairs]
        long = [i for i, row in enumerate(rows) if len(row["input_ids"]) > self._limit]
        for i in long:
            rows[i] = self._loaded.encode(*pairs[i], chat=self.render == "chat", limit=self._limit)
        self._tell(len(long), len(rows), columns.get("log_metric"))
        scores = [0.0] * len(rows)
        order = sorted(range(len(rows)), key=lambda i: len(rows[i]["input_ids"]))
        for start in range(0, len(order), self.batch_size):
            batch = order[start : start + self.batch_size]
            for i, score in zip(batch, self._loaded.scores([rows[i] for i in batch], self._label), strict=True):
                scores[i] = score
        return scores

    @cached_property
    def _loaded(self) -> Classifier:
        found = load(self.model, self.revision, self.device, self.dtype)
        if self.render == "chat" and not found.tokenizer.chat_template:
            raise UserError(
                f"{self.model} has no chat template: set args.render to 'pair' (question and completion as two texts) "
                "or 'completion', whichever it was trained with."
            )
        return found

    @cached_property
    def _label(self) -> int | None:
        """The column of the logits that is paid as a probability; None for a model of one label."""
        names = self._loaded.labels
        if self.label is None and len(names) == 1:
            return None
        if self.label in names:
            return names.index(str(self.label))
        if isinstance(self.label, int) and 0 <= self.label < len(names):
            return self.label
        given = "no label is given" if self.label is None else f"'{self.label}' is none of them"
        raise UserError(f"{self.model} has {len(names)} labels ({', '.join(names)}), and {given}: set args.label.")

    @cached_property
    def _limit(self) -> int:
        window = self._loaded.window
        if (self.max_length or 0) > window:
            raise UserError(f"reward_model: max_length is {self.max_length}; {self.model} reads {window} tokens.")
        return self.max_length or window

    def _texts(self, prompt: Any, completion: Any) -> tuple[str, str | None]:
        """What the model reads: one text, or two."""
        messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
        asked = [message for message in messages if message["role"] == "user"][-1:]
        said = self._loaded.harmless(text_of(completion))
        if self.render == "completion":
            return said, None
        if self.render == "pair":
            return (asked[0]["content"] if asked else ""), said
        dialogue = asked if self.question_only else messages
        return self._loaded.dialogue([*dialogue, {"role": "assistant", "content": said}]), None

    def _tell(self, cut: int, of: int, log_metric: Callable[[str, float], None] | None) -> None:
        """In the metrics of a training run each time (TRL's log_metric), in words the first time."""
        if log_metric is not None:
            log_metric("reward_model/truncated_share", cut / max(1, of))
        if cut and "_told" not in self.__dict__:
            self.__dict__["_told"] = True
            logger.warning(f"{self.model} reads {self._limit} tokens: {cut} of {of} texts lost their beginning.")
