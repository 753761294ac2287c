"""A prompt goes through the model once for all its answers: one row [prompt, answer, answer, ...] in place of one each.

An answer sees the prompt and itself, at the positions it would have behind the prompt, so its log-probabilities and
every gradient are what they were, up to the order in which floats are added. One forward pass of an ordinary model does
it: the mask says who sees whom. The last token of the prompt stands before each answer, since it predicts its first.

What all prompts begin with (a system prompt, worked examples) goes through it once for all of them, where nothing is
computed again in the backward pass (grpo.gradient_checkpointing): its keys and values are the rows' past, and pass
their gradients back.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from llm_grpo import processes
from llm_grpo.loaders import sharded_by
from llm_grpo.policy import is_rewritten
from llm_grpo.rollouts.sampled import BEGINNING, attends_to_everything, decoder_of


def why_not(model: Any) -> str | None:
    """Why prompts cannot be shared in this model; None where they can."""
    config = model.config
    if is_rewritten():
        return "Unsloth's trainer packs rows by itself"
    if config._attn_implementation != "sdpa":
        return f"its attention ({config._attn_implementation}) takes no mask of ours"
    if not attends_to_everything(model):
        return "its layers do not attend to everything, or its positions cannot be given"
    if _drops(model):
        return "dropout would be the same for all answers to a prompt"
    return None


def _drops(model: Any) -> bool:
    by_layer = any(isinstance(module, torch.nn.Dropout) and module.p > 0 for module in model.modules())
    return by_layer or bool(getattr(model.config, "attention_dropout", 0.0))


def keeps_a_past(model: Any) -> bool:
    """Whether rows can have a past with gradients. A recomputed layer is given none, a wrapper of several processes or
    cards has to see every pass, and a RoPE that goes by the length of a pass would turn a part of it otherwise."""
    if processes.count() > 1 or sharded_by() or isinstance(model, torch.nn.DataParallel):
        return False
    decoder = decoder_of(model)
    rope = getattr(decoder.config, "rope_parameters", None) or {}
    kinds = {of.get("rope_type") for of in (rope, *rope.values()) if isinstance(of, dict)}
    return not decoder.is_gradient_checkpointing and not kinds & {"dynamic", "longrope"}


def score(
    model: Any, hidden: int, ids: Tensor, mask: Tensor, answer_tokens: int, batch_size: int | None = None, **_: Any
) -> tuple[Tensor, Tensor | None, None] | None:
    """What TRL's `_get_per_token_logps_and_entropies` says of the same rows, batch_size at once; None where a row for
    each answer costs less."""
    size, apart = batch_size or len(ids), keeps_a_past(model)
    folded = [Folded.of(ids[i : i + size], mask[i : i + size], answer_tokens, apart) for i in range(0, len(ids), size)]
    if not all(rows.pays(hidden) for rows in folded):
        return None
    logprobs, entropies = zip(*(rows.scored_by(model) for rows in folded), strict=True)
    return torch.cat(logprobs), None if entropies[0] is None else torch.cat(entropies), None


class Folded:
    """N prompts and their answers, folded into one row for each prompt that differs.

    plain: (rows, width) of what a row for each answer would be; width: C, the columns of an answer. beginning: [B],
    what all prompts begin with, where it is read apart. ids, positions, labels: [G, T], of the rest; mask:
    [G, 1, T, B + T], True where a token (third axis) sees another. `unfold` puts what the model says of the labels,
    [G, T - 1], where TRL has it: [N, C], zero where there is no token.
    """

    def __init__(
        self, prompts: list[Tensor], answers: list[Tensor], plain: tuple[int, ...], width: int, apart: bool = False
    ) -> None:
        self.plain, self.width = plain, width
        numbers: dict[tuple[int, ...], int] = {}
        of_prompt = [numbers.setdefault(tuple(prompt.tolist()), len(numbers)) for prompt in prompts]
        begun = _in_common(prompts) if apart and len(numbers) > 1 else 0
        self.beginning, ids = prompts[0][:begun], prompts[0]
        rows: dict[int, list[tuple[Tensor, int, int, bool]]] = {}  # pieces: tokens, first position, owner, an answer
        self.places: list[tuple[int, int, int]] = []  # of each row: its prompt's, where its first token stands, length
        ends: dict[int, int] = {}
        for row, (prompt, known, said) in enumerate(zip(of_prompt, prompts, answers, strict=True)):
            if prompt not in rows:
                rows[prompt], ends[prompt] = [(known[begun:-1], begun, 0, False)], len(known) - 1 - begun
            answer = torch.cat([known[-1:], said])
            self.places.append((prompt, ends[prompt], len(said)))
            rows[prompt].append((answer, len(known) - 1, row + 1, True))
            ends[prompt] += len(answer)
        longest = max(ends.values())
        self.ids, self.positions = ids.new_zeros(len(rows), longest), ids.new_zeros(len(rows), longest)
        self.labels, owner = ids.new_full((len(rows), longest), -100), ids.new_full((len(rows), longest), -1)
        for prompt, pieces in rows.items():
            at = 0
            for tokens, first, whose, is_answer in pieces:
                end = at + len(tokens)
                self.ids[prompt, at:end], owner[prompt, at:end] = tokens, whose
                self.positions[prompt, at:end] = torch.arange(first, first + len(tokens), device=ids.device)
                if is_answer:
                    self.labels[prompt, at + 1 : end] = tokens[1:]
                at = end
        seen = (owner[:, None, :] == 0) | (owner[:, None, :] == owner[:, :, None])
        seen &= torch.ones(longest, longest, dtype=torch.bool, device=ids.device).tril()
        self.mask = torch.nn.functional.pad(seen, (begun, 0), value=True)[:, None]

    @classmethod
    def of(cls, ids: Tensor, mask: Tensor, answer_tokens: int, apart: bool = False) -> Folded:
        """TRL's rows, [N, M + C] with left-padded prompts."""
        start = ids.shape[1] - answer_tokens
        prompts = [row[there] for row, there in zip(ids[:, :start], mask[:, :start].bool(), strict=True)]
        lengths = mask[:, start:].sum(dim=1).tolist()
        answers = [row[start : start + length] for row, length in zip(ids, lengths, strict=True)]
        return cls(prompts, answers, tuple(ids.shape), answer_tokens, apart)

    def pays(self, hidden: int) -> bool:
        """Whether the rows [prompt, answers] cost less than an answer's own each, in a model of that width.

        By the products of a decoder's layer: 24 hidden^2 a token, and 4 hidden a pair of tokens for the attention.
        """
        (folded, longest), (rows, width), begun = self.ids.shape, self.plain, len(self.beginning)
        cost = folded * longest * (6 * hidden + begun + longest) + begun * (6 * hidden + begun)
        return cost < rows * width * (6 * hidden + width)

    def inputs(self, model: Any) -> dict[str, Any]:
        """What a model with TRL's head is called with."""
        past = None
        if len(self.beginning):
            past = DynamicCache(config=decoder_of(model).config)
            positions = torch.arange(len(self.beginning), device=self.ids.device)[None]
            decoder_of(model)(
                input_ids=self.beginning[None], position_ids=positions, past_key_values=past, use_cache=True
            )
            past.batch_repeat_interleave(len(self.ids))
        return {"input_ids": self.ids, "attention_mask": self.mask, "position_ids": self.positions,
                "past_key_values": past, "labels": self.labels}  # fmt: skip

    def scored_by(self, model: Any) -> tuple[Tensor, Tensor | None]:
        """(log-probabilities, entropies) of the answers, [N, C], by a model with TRL's head."""
        said = model(**self.inputs(model), fused_lm_head=True)
        return self.unfold(said.log_probs), None if said.entropy is None else self.unfold(said.entropy)

    def unfold(self, values: Tensor) -> Tensor:
        rows = [values[prompt, start : start + length] for prompt, start, length in self.places]
        padded = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
        return torch.nn.functional.pad(padded, (0, self.width - padded.shape[1]))


def _in_common(prompts: list[Tensor]) -> int:
    """How many tokens all of them begin with; 0 where they are few. The last of each stands before its answers."""
    shortest = min(map(len, prompts)) - 1
    same = torch.stack([prompt[:shortest] == prompts[0][:shortest] for prompt in prompts]).all(dim=0)
    found = int(same.cumprod(dim=0).sum())
    return found if found >= BEGINNING else 0
