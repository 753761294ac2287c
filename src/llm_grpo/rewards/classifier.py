"""A sequence classifier of transformers that scores texts in batches as it would one by one. torch comes late."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llm_grpo.device import has_gpu
from llm_grpo.errors import UserError, first_line
from llm_grpo.records import Message

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Classifier:
    """A model with its tokenizer. window: tokens it can read; pad: the id by which it knows padding, if it has one."""

    model: Any
    tokenizer: Any
    labels: tuple[str, ...]
    window: int
    pad: int | None

    def harmless(self, text: str) -> str:
        """What a model wrote, as text: a special token that it spelled out must not open a turn, nor end one."""
        special = [token.content for token in self.tokenizer.added_tokens_decoder.values() if token.special]
        text = text.encode("utf-8", "replace").decode()  # tokenizers refuse lone surrogates
        return re.sub("|".join(map(re.escape, special)), " ", text) if special else text

    def dialogue(self, messages: list[Message]) -> str:
        from jinja2 import TemplateError

        try:
            return self.tokenizer.apply_chat_template(messages, tokenize=False)
        except TemplateError as error:
            roles = ", ".join(dict.fromkeys(message["role"] for message in messages))
            raise UserError(
                f"the reward model's chat template cannot render a conversation of {roles}: {error}. "
                "args.question_only=true leaves system prompt and worked examples out."
            ) from error

    def encode(self, text: str, second: str | None, *, chat: bool, limit: int | None) -> dict[str, list[int]]:
        """Token ids and what else the tokenizer gives; with a limit the beginning is cut. A chat is taken as it is."""
        how = {"truncation": True, "max_length": limit} if limit else {}
        # verbose=False: its own warning of a long text would be wrong, the text is cut
        row = dict(self.tokenizer(text, second, add_special_tokens=not chat, verbose=False, **how))
        return row if row["input_ids"] else dict(self.tokenizer(self.tokenizer.eos_token or " "))

    def scores(self, rows: Sequence[dict[str, list[int]]], label: int | None) -> list[float]:
        import torch

        with torch.inference_mode():
            logits = self.model(**self._padded(rows)).logits.float()
        if label is None:
            return logits[:, 0].tolist()
        independent = self.model.config.problem_type == "multi_label_classification"
        return (logits.sigmoid() if independent else logits.softmax(-1))[:, label].tolist()

    def _padded(self, rows: Sequence[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
        """Padded on the right, whatever the tokenizer's habit.

        Decoders pay the last token that is not config.pad_token_id, or the very last one where that is not set: then
        an id that no text of the batch holds is put there, so that a batch is read as a single text is.
        """
        import torch

        used = {token for row in rows for token in row["input_ids"]}
        pad = self.pad if self.pad is not None else next(i for i in range(len(used) + 1) if i not in used)
        self.model.config.get_text_config().pad_token_id = pad
        width = max(len(row["input_ids"]) for row in rows)
        padded = {
            name: [row[name] + [pad if name == "input_ids" else 0] * (width - len(row[name])) for row in rows]
            for name in rows[0]
        }
        return {name: torch.tensor(lists, device=self.model.device) for name, lists in padded.items()}


def load(name: str, revision: str | None, device: str, dtype: str) -> Classifier:
    """The model in evaluation mode on its device. Raises UserError where it or a trained head cannot be had."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    cuda = has_gpu()
    if device.startswith("cuda") and not cuda:
        raise UserError(f"reward_model: device is '{device}', and torch sees no GPU here. Set it to auto or cpu.")
    place = ("cuda" if cuda else "cpu") if device == "auto" else device
    precision = "auto" if dtype == "auto" and place != "cpu" else getattr(torch, dtype.replace("auto", "float32"))
    options = {"revision": revision, "trust_remote_code": False}
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, truncation_side="left", **options)
        model, report = AutoModelForSequenceClassification.from_pretrained(
            name, dtype=precision, output_loading_info=True, **options
        )
    except (OSError, ValueError) as error:  # a missing folder, an unknown name, no network, another architecture
        said = first_line(error)
        raise UserError(f"reward_model: {name} cannot be had as a sequence classifier ({said})") from error
    if report["missing_keys"]:
        random = ", ".join(sorted(report["missing_keys"])[:3])
        raise UserError(f"reward_model: {name} is no trained reward model: {random} would be random numbers.")
    config = model.config
    labels = tuple(config.id2label[i] for i in range(config.num_labels))
    positions = getattr(config.get_text_config(), "max_position_embeddings", None)
    window = min(filter(None, (tokenizer.model_max_length, positions)))
    return Classifier(model.eval().to(place), tokenizer, labels, window, config.get_text_config().pad_token_id)
