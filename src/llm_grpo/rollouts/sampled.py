"""What transformers draws from a model, with its log-probabilities where they are wanted, for less than one `generate`.

Nothing that is computed changes, up to the order in which floats are added: a prompt is read once for all its answers
and what all prompts begin with (a system prompt, worked examples) once for all of them, rows that have ended leave the
batch, and a LoRA in float32 is added to its weights while it lasts. TRL keeps no log-probabilities there; with them
every run logs the same gap between who generates and who learns (drift.py).
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from inspect import signature
from typing import Any

import torch
import torch.nn.functional as F
from peft.tuners.lora import LoraLayer
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList
from transformers.cache_utils import DynamicCache, DynamicLayer
from transformers.pytorch_utils import Conv1D

STAGE = 8  # tokens after which rows that have ended leave the batch
ROOM = 32  # tokens
COUNTED = ("cache_implementation", "min_new_tokens", "min_length", "begin_suppress_tokens")  # of a model, by its makers
BEGINNING = 16  # tokens; a shorter one is not worth a pass of its own


class Watching(LogitsProcessor):
    """Keeps log p(token) of each token that one call of `generate` samples, at the temperature that is trained with."""

    def __init__(self, temperature: float) -> None:
        self.temperature = temperature
        self._columns: list[Tensor] = []  # one (batch,) a step
        self._last: Tensor | None = None  # (batch, vocabulary) of the newest step

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        if self._last is not None:  # what was drawn from the step before stands at the end of input_ids now
            self._columns.append(self._last.gather(1, input_ids[:, -1:]).squeeze(1))
        self._last = (scores.float() / self.temperature).log_softmax(-1)
        return scores

    def of(self, drawn: Tensor) -> Tensor:
        """(batch, steps), of the tokens (batch, steps) that came out. On a GPU generate may run some steps further,
        before it sees that all have ended, and takes them back."""
        columns = [*self._columns, self._last.gather(1, drawn[:, -1:]).squeeze(1)]
        return torch.stack(columns[: drawn.shape[1]], dim=1)


class RoomyLayer(DynamicLayer):
    """Keys and values with room for ROOM tokens behind them. A token is written into it, where DynamicLayer copies all
    that came before with each one: 39 % of the time of an answer of SmolLM2. Not for what is differentiated."""

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.dtype, self.device, self.is_initialized = key_states.dtype, key_states.device, True
        self._hold([part[:, :, :0] for part in (key_states, value_states)], 0)

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """(rows, heads, new tokens, size) of both -> all that is there; as DynamicLayer's own."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        start = self.keys.shape[2]
        end = start + key_states.shape[2]
        if end > self.rooms[0].shape[2]:
            self._hold([F.pad(part, (0, 0, 0, end + ROOM - start)) for part in (self.keys, self.values)], end)
        for room, new in zip(self.rooms, (key_states, value_states), strict=True):
            room[:, :, start:end] = new
        self._hold(self.rooms, end)
        return self.keys, self.values

    def batch_repeat_interleave(self, repeats: int) -> None:
        if self.is_initialized:  # a layer that the model skips never is
            self._hold([room.repeat_interleave(repeats, dim=0) for room in self.rooms], self.keys.shape[2])

    def batch_select_indices(self, indices: Tensor) -> None:
        if self.is_initialized:
            self._hold([room.index_select(0, indices) for room in self.rooms], self.keys.shape[2])

    reorder_cache = batch_select_indices  # what beams ask for

    def _hold(self, rooms: Sequence[Tensor], tokens: int) -> None:
        self.rooms = rooms
        self.keys, self.values = (room[:, :, :tokens] for room in rooms)


class Sampled:
    """Stands in the place of `model.generate` for one call. temperature: of the log-probabilities; None: none are kept.
    in_stages: nothing in its settings counts from the start of an answer, and no cache of another kind is asked for."""

    def __init__(self, model: Any, temperature: float | None, in_stages: bool) -> None:
        self.model, self.temperature, self._generate = model, temperature, model.generate
        counted = any(getattr(model.generation_config, name, None) for name in COUNTED)
        self.in_stages = in_stages and not counted and attends_to_everything(model)

    def __call__(self, input_ids: Tensor, attention_mask: Tensor, generation_config: GenerationConfig) -> Tensor:
        """(rows, prompt) -> (rows, prompt + longest answer), as generate's own."""
        rows, start = input_ids.shape
        tokens, going, done = input_ids, torch.arange(rows, device=input_ids.device), 0
        limit, ends = generation_config.max_new_tokens, generation_config.eos_token_id or []
        found = input_ids.new_full((rows, limit), generation_config.pad_token_id)
        self.logprobs = torch.zeros(rows, limit, device=input_ids.device)
        cache = None
        if self.in_stages and start > 1:
            tokens, attention_mask, beginning = beginning_apart(input_ids, attention_mask)
            cache = _read(self.model, tokens, attention_mask, beginning)
        while len(going) and done < limit:
            watching, settings = LogitsProcessorList(), copy.deepcopy(generation_config)
            if self.temperature is not None:
                watching.append(Watching(self.temperature))
            settings.max_new_tokens = min(STAGE if self.in_stages else limit, limit - done)
            settings.return_dict_in_generate = True
            settings.use_cache = True if self.in_stages else settings.use_cache  # some models' own settings say no
            said = self._generate(
                input_ids=tokens, attention_mask=attention_mask, generation_config=settings, past_key_values=cache,
                logits_processor=watching,
            )  # fmt: skip
            drawn, cache = said.sequences[:, tokens.shape[1] :], said.past_key_values
            here = slice(done, done + drawn.shape[1])
            found[going, here] = drawn
            for kept in watching:
                self.logprobs[going, here] = kept.of(drawn)
            done = here.stop
            left = (~torch.isin(drawn, torch.as_tensor(ends, device=drawn.device)).any(dim=1)).nonzero().flatten()
            attention_mask = torch.cat([attention_mask, torch.ones_like(drawn)], dim=1)[left]
            tokens, going = said.sequences[left], going[left]
            if done < limit and 0 < len(left) < len(drawn):
                cache.batch_select_indices(left)
        return torch.cat([input_ids, found[:, :done]], dim=1)

    def of(self, completions: Sequence[Sequence[int]]) -> list[list[float]]:
        """logprobs[completion][token] for the token ids that came out."""
        return [row[: len(ids)] for row, ids in zip(self.logprobs.tolist(), completions, strict=True)]


@contextmanager
def sampled_logprobs(model: Any, temperature: float | None, in_stages: bool = True) -> Iterator[Sampled]:
    """While this lasts, `model.generate` also collects the log-probabilities of what it draws."""
    before = vars(model).get("generate")
    model.generate = sampled = Sampled(model, temperature, in_stages)
    try:
        with _merged(model):
            yield sampled
    finally:
        del model.generate  # the class's own again, or what somebody had put there
        if before is not None:
            model.generate = before


def decoder_of(model: Any) -> Any:
    """The model without its head, with its LoRA."""
    return (model.get_base_model() if hasattr(model, "get_base_model") else model).base_model


def attends_to_everything(model: Any) -> bool:
    """Whether every layer attends to all that came before, and positions can be given: what a prompt leaves in the
    cache is then all that its answers need."""
    layers = DynamicCache(config=model.config).layers
    given = "position_ids" in signature(decoder_of(model).forward).parameters
    return given and bool(layers) and all(type(layer) is DynamicLayer for layer in layers)


def beginning_apart(ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, int]:
    """(ids, mask, tokens of the beginning) with what all rows begin with in front, and the padding of each behind it.

    ids, mask: [N, M], padded on the left, as they are where rows have no beginning in common.
    """
    padding, columns = (mask == 0).sum(dim=1, keepdim=True), torch.arange(ids.shape[1], device=ids.device)
    most = ids.shape[1] - int(padding.max()) - 2  # one is left to be read by itself, and the last to be written from
    texts = ids.gather(1, padding + columns[: max(most, 0)])
    beginning = int((texts == texts[0]).all(dim=0).cumprod(dim=0).sum())
    if beginning < BEGINNING:
        return ids, mask, 0
    moved = torch.where(columns < beginning + padding, columns - beginning, columns)
    moved = torch.where(columns < beginning, padding + columns, moved)
    return ids.gather(1, moved), mask.gather(1, moved), beginning


def _read(model: Any, ids: Tensor, mask: Tensor, beginning: int) -> DynamicCache:
    """The cache of all but the last token of each row, where rows that are the same were read once, and the beginning
    of all of them before."""
    rows, of_row = torch.cat([ids, mask], dim=1).unique(dim=0, return_inverse=True)
    ids, mask = (part[:, :-1] for part in rows.chunk(2, dim=1))
    cache = DynamicCache(config=model.config)
    cache.layers = [RoomyLayer() for _ in cache.layers]
    positions = (mask.cumsum(dim=1) - 1).clamp(min=0)

    def read(some: int, start: int, end: int) -> None:
        decoder_of(model)(
            input_ids=ids[:some, start:end], attention_mask=mask[:some, :end], position_ids=positions[:some, start:end],
            past_key_values=cache, use_cache=True,
        )  # fmt: skip

    if beginning:
        read(1, 0, beginning)
        cache.batch_repeat_interleave(len(ids))
    read(len(ids), beginning, ids.shape[1])
    cache.batch_select_indices(of_row)
    return cache


@contextmanager
def _merged(model: Any) -> Iterator[None]:
    """While this lasts, a LoRA is part of its layers' weights, where that is all it does; they come back bit for bit.

    PEFT takes layers with merged_adapters as they are.
    """
    layers = [module for module in model.modules() if isinstance(module, LoraLayer)]
    held = Counter(id(weight) for module in model.modules() for weight in module.parameters(recurse=False))
    exact = all(_is_a_sum(layer) and held[id(layer.get_base_layer().weight)] == 1 for layer in layers)
    kept = [(layer, layer.get_base_layer().weight, layer.get_base_layer().weight.data) for layer in layers if exact]
    try:
        for layer, weight, data in kept:
            (name,) = layer.active_adapters
            with torch.no_grad():
                weight.data = data + layer.get_delta_weight(name)
            layer.merged_adapters.append(name)
        yield
    finally:
        for layer, weight, data in kept:
            weight.data = data
            layer.merged_adapters.clear()


def _is_a_sum(layer: LoraLayer) -> bool:
    """Whether a layer with its LoRA is a product with one weight and its delta, in float32. DoRA's is not, nor one with
    a bias, of two adapters, or of experts."""
    base, names = layer.get_base_layer(), layer.active_adapters
    if not isinstance(base, (torch.nn.Linear, Conv1D)) or len(names) != 1 or names[0] not in layer.lora_A:
        return False
    more = layer.disable_adapters or layer.merged or names[0] in layer.lora_variant or layer.lora_bias.get(names[0])
    return not more and {base.weight.dtype, layer.lora_A[names[0]].weight.dtype} == {torch.float32}


def gap(trained: Tensor, sampled: Tensor, mask: Tensor) -> float:
    """Mean |difference| in nats over the tokens of the mask; all three are (batch, tokens)."""
    return float((trained.detach() - sampled).abs()[mask.bool()].mean())
