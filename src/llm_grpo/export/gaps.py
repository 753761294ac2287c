"""How far one model is from another on the same tokens: log-probabilities, KL, and the token each would write.

Two models are never in memory together. Of the first one's distributions the most probable tokens are kept, not the
whole vocabulary: 1.5 MB per 1000 positions, where the logits of a vocabulary of 150,000 would take 600 MB.
"""

from __future__ import annotations

import copy
import gc
import importlib.util
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from os.path import commonprefix
from pathlib import Path
from typing import Any

import torch

from llm_grpo.config.schema import Config
from llm_grpo.device import has_gpu
from llm_grpo.errors import first_line
from llm_grpo.rollouts.sampled import attends_to_everything
from llm_grpo.rollouts.transformers import TransformersEngine, load_engine

OnDone = Callable[[int], None]  # called with how many answers are done since
TOP = 128  # tokens kept of a distribution; the rest counts as one more token


@dataclass(frozen=True)
class Answered:
    """One prompt and the answer that both models are shown, as token ids."""

    prompt: list[int]
    answer: list[int]


@dataclass(frozen=True)
class Reading:
    """What a model said at each of the n tokens of one answer. top: (n, TOP) token ids, the most probable first."""

    logprob: torch.Tensor  # (n,) of the token that stands there
    top: torch.Tensor
    top_logprob: torch.Tensor


def read(model: Any, pairs: Sequence[Answered], on_done: OnDone = lambda count: None) -> list[Reading]:
    readings = []
    for answered, logprobs in zip(pairs, distributions(model, pairs), strict=True):
        top_logprob, top = logprobs.topk(min(TOP, logprobs.shape[1]))
        readings.append(Reading(_of_answer(logprobs, answered).cpu(), top.cpu(), top_logprob.cpu()))
        on_done(1)
    return readings


def gaps(
    readings: Sequence[Reading], model: Any, pairs: Sequence[Answered], on_done: OnDone = lambda count: None
) -> dict[str, float | int]:
    """The distance of `model` from the one that was read, over every token of every answer (natural logarithms).

    kl is KL(read || model), with everything outside the TOP tokens as one: at most the exact value, and equal to it
    where the vocabulary has no more than TOP tokens.
    """
    gap, kl, same = [], [], []
    for reading, answered, logprobs in zip(readings, pairs, distributions(model, pairs), strict=True):
        top = reading.top.to(logprobs.device)
        gap.append((_of_answer(logprobs, answered).cpu() - reading.logprob).abs())
        kl.append(_kl(reading.top_logprob.double(), logprobs.gather(1, top).cpu().double(), logprobs.shape[1]))
        same.append((logprobs.argmax(1) == top[:, 0]).cpu())
        on_done(1)
    gap_of_all, kl_of_all, same_of_all = torch.cat(gap), torch.cat(kl), torch.cat(same)
    return {
        "tokens": len(gap_of_all),
        "mean_logprob_gap": gap_of_all.mean().item(),
        "max_logprob_gap": gap_of_all.max().item(),
        "kl": kl_of_all.mean().item(),
        "token_agreement": same_of_all.double().mean().item(),
    }


def distributions(model: Any, pairs: Sequence[Answered]) -> Iterator[torch.Tensor]:
    """For each pair the log-probabilities (n, vocabulary) of its n answer tokens, in float32, on the model's device.

    One after the other: the logits of one answer over a large vocabulary are 100 MB and more, and nothing is padded.
    What all prompts begin with (a system prompt, worked examples) is read once, where a cache can hold it.
    """
    beginning = commonprefix([pair.prompt[:-1] for pair in pairs]) if attends_to_everything(model) else []
    with torch.no_grad():
        past = model(input_ids=_row(beginning, model), use_cache=True).past_key_values if beginning else None
    for pair in pairs:
        tokens = _row(pair.prompt[len(beginning) :] + pair.answer, model)
        with torch.no_grad():
            said = model(input_ids=tokens, past_key_values=copy.deepcopy(past), use_cache=past is not None)
        logits = said.logits[0, -1 - len(pair.answer) : -1]  # what stands at t foretells t + 1
        yield logits.float().log_softmax(-1)


def _row(ids: list[int], model: Any) -> torch.Tensor:
    return torch.tensor([ids], device=model.device)


def _of_answer(logprobs: torch.Tensor, answered: Answered) -> torch.Tensor:
    ids = torch.tensor(answered.answer, device=logprobs.device)
    return logprobs.gather(1, ids[:, None])[:, 0]


def _kl(p: torch.Tensor, q: torch.Tensor, vocabulary: int) -> torch.Tensor:
    """(n, TOP) log-probabilities of the same tokens under both models -> (n,) KL(p || q), the rest as one token."""
    total = (p.exp() * (p - q)).sum(1)
    if p.shape[1] < vocabulary:
        rest_p, rest_q = (1 - p.exp().sum(1)).clamp(min=1e-12), (1 - q.exp().sum(1)).clamp(min=1e-12)
        total += rest_p * (rest_p / rest_q).log()
    return total.clamp(min=0)  # float32 leaves a few 1e-8 below it


@contextmanager
def opened(config: Config, model: str, adapter: Path | None = None, **options: Any) -> Iterator[TransformersEngine]:
    """A model with the prompts of a run, for as long as the block lasts: it is out of memory before the next one."""
    model_options = {"trust_remote_code": config.model.trust_remote_code, "batch_size": config.evaluation.batch_size}
    engine = load_engine(model, adapter, config.prompt, **model_options, **options)
    try:
        yield engine
    finally:
        del engine.model  # whoever still has the engine
        gc.collect()
        if has_gpu():
            torch.cuda.empty_cache()


def gap_to_four_bit(
    config: Config, adapter: Path, readings: Sequence[Reading], pairs: Sequence[Answered], on_done: OnDone
) -> dict[str, Any]:
    """How far the adapter on the 4-bit base, where it learned, is from the adapter on the 16-bit base.

    This gap is the price of training in 4-bit, not a fault of the merge; no threshold is laid on it. The base is
    quantized here as QLoRA does it (NF4, double quantization) unless its files are quantized already; Unsloth's own
    copies leave some layers in 16-bit.
    """
    if importlib.util.find_spec("bitsandbytes") is None:
        return {"measured": False, "why": "bitsandbytes is not installed on this machine"}
    how = {"revision": config.model.revision, "load_in_4bit": True}
    try:
        with opened(config, config.model.name, adapter, **how) as engine:
            if not getattr(engine.model, "is_loaded_in_4bit", False):
                return {"measured": False, "why": "transformers loaded the base in 16-bit on this machine"}
            return {"measured": True, **gaps(readings, engine.model, pairs, on_done)}
    except (ImportError, OSError, RuntimeError, ValueError) as error:
        return {"measured": False, "why": f"the 4-bit base cannot be run on this machine ({first_line(error)})"}
