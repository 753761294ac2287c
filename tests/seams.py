"""TRL's seams that RecordingTrainer overrides: each is called, and what comes out is what it is read for.

The stock trainer is held by tests/test_training.py, the one that Unsloth generates by tests/test_rewritten_trainer.py.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import pytest

from llm_grpo.diagnosis import drift
from llm_grpo.training.trainer import RecordingTrainer

Call = tuple[tuple[Any, ...], Any]  # the arguments, and what was returned


def generates(args: tuple, result: Any) -> bool:
    prompts, (_, completions, *_) = args[0], result
    return len(prompts) == len(completions) and all(completions)


def samples(args: tuple, result: Any) -> bool:
    completions, logprobs = result
    return [len(ids) for ids in completions] == [len(row) for row in logprobs]


def rewards(args: tuple, result: Any) -> bool:
    return result.shape[0] == len(args[0]) and bool(result.isfinite().any())


def scores(args: tuple, result: Any) -> bool:
    shape = result["completion_ids"].shape
    read = ("completion_mask", "sampling_per_token_logps")
    return all(result[name].shape == shape for name in read) and "num_items_in_batch" in result


def hands_over(args: tuple, result: Any) -> bool:
    """A micro-batch, or a part of one: rows, and what the losses divide by."""
    return len(result["advantages"]) == len(result["completion_ids"]) > 0 and "num_items_in_batch" in result


def steps(args: tuple, result: Any) -> bool:
    return result.dim() == 0 and bool(result.isfinite())


def logs(args: tuple, result: Any) -> bool:
    wanted = ("loss", "reward", "entropy", "step_time", "tokens_per_second", "seconds/generation", "seconds/rewards",
              "seconds/update", "completion_tokens", drift.METRIC)  # fmt: skip
    return all(isinstance(args[0].get(name), float) for name in wanted) or "train_runtime" in args[0]


def logprobs(args: tuple, result: Any) -> bool:
    """Unsloth's loss asks too, and is told nothing."""
    in_vain = len(args) > 6 and args[6]  # compute_efficient
    return in_vain or result[0].shape[0] == args[1].shape[0] and result[0].shape[1] >= args[3]


SEAMS: dict[str, tuple[Callable[[tuple, Any], bool], str]] = {
    "_generate": (generates, "timed; a crash of vLLM is told"),
    "_generate_single_turn": (samples, "the log-probabilities of what transformers samples"),
    "_calculate_rewards": (rewards, "timed"),
    "_generate_and_score_completions": (scores, "recorded; the gap and the entropy are taken from it"),
    "_prepare_inputs": (hands_over, "rows that teach nothing are left out of it"),
    "compute_loss": (steps, "called for each part of a micro-step"),
    "training_step": (steps, "timed"),
    "_get_per_token_logps_and_entropies": (logprobs, "a prompt goes through the model once for all its answers"),
    "log": (logs, "tokens per second, memory, entropy are added to what TRL logs"),
}


def overridden() -> set[str]:
    """The names of TRL's that our trainer defines again."""
    trl = {name for kind in RecordingTrainer.__mro__[1:] if kind is not object for name in vars(kind)}
    return {name for name in vars(RecordingTrainer) if name in trl and not name.startswith("__")}


def watched(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[Call]]:
    """From now on: the calls of every seam, by its name."""
    calls: dict[str, list[Call]] = defaultdict(list)

    def watching(name: str, method: Callable) -> Callable:
        def call(self: Any, *args: Any, **kwargs: Any) -> Any:
            result = method(self, *args, **kwargs)
            calls[name].append((args, result))
            return result

        return call

    for name in SEAMS:
        monkeypatch.setattr(RecordingTrainer, name, watching(name, getattr(RecordingTrainer, name)))
    return calls


def check(calls: dict[str, list[Call]]) -> None:
    for name, (is_read, why) in SEAMS.items():
        assert calls[name], f"{name} is dead: nobody calls it ({why})"
        wrong = [result for args, result in calls[name] if not is_read(args, result)]
        assert not wrong, f"{name}: {why}, and it returned {str(wrong[0])[:500]}"
