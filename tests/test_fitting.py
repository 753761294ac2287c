"""An update that does not fit: halved into the same update, refused where that is none, and rehearsed without a trace."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from test_skipping import SIXTEEN, no_noise, recording
from test_verification import build, one_thread, tiny  # noqa: F401
from transformers import TrainerCallback

from llm_grpo.errors import UserError
from llm_grpo.training.resuming import progress_of
from llm_grpo.training.trainer import RecordingTrainer

FOUR_OF_FOUR = ["grpo.per_device_train_batch_size=4", "grpo.gradient_accumulation_steps=4"]
HALVED = [  # overrides, whether rows that teach nothing are left out, where memory ends, and why it is tried
    (["grpo.loss_type=dapo"], True, "forward", "a normaliser that is known before"),
    (["grpo.loss_type=bnpo"], True, "backward", "the tokens of the part, and a gradient that is there already"),
    (["grpo.loss_type=bnpo"], False, "forward", "the tokens of the micro-batch"),
    (["grpo.loss_type=grpo", "grpo.beta=0.1"], False, "backward", "a KL term, which no advantage scales"),
]


class Gradients(TrainerCallback):
    """What the optimiser is given at the end of each update."""

    def __init__(self) -> None:
        self.found: list[torch.Tensor] = []

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        self.found.append(torch.cat([p.grad.flatten().clone() for p in model.parameters() if p.requires_grad]))


def card_of(trainer: RecordingTrainer, rows: int, where: str, skipped: int = 0) -> None:
    """A card whose memory ends above so many rows at once, in the forward or at the end of the backward pass."""
    calls, backward, forward = iter(range(10**6)), trainer.accelerator.backward, trainer._loss_of

    def full(count: int) -> bool:
        return count > rows and next(calls) >= skipped

    def loss_of(part: dict, *args: Any, **kwargs: Any) -> torch.Tensor:
        trainer.now = len(part["advantages"])
        if where == "forward" and full(trainer.now):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return forward(part, *args, **kwargs)

    def backwards(loss: torch.Tensor, **kwargs: Any) -> None:
        backward(loss, **kwargs)  # the gradients are there already, and must not count twice
        if where == "backward" and full(trainer.now):
            raise RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory")

    trainer._loss_of, trainer.accelerator.backward = loss_of, backwards


def updates(
    folder: Path, *overrides: str, skip: bool = True, rehearse: bool = False, card: tuple | None = None
) -> tuple[RecordingTrainer, list[torch.Tensor], list[float], list[str]]:
    """(trainer, gradients, losses, lines said) of two updates."""
    words = ["grpo.max_steps=2", "grpo.learning_rate=1e-3", "lora.dropout=0.0", *overrides]
    trainer = build(folder, *words, rewards=(no_noise,), kind=partial(recording, skip=skip))
    said: list[str] = []
    trainer.say, trainer.rehearse = said.append, rehearse
    held = trainer._metrics["train"]  # as the validation has it, for what it measures to be logged
    trainer.add_callback(gradients := Gradients())
    losses, log = [], trainer.log
    trainer.log = lambda logs, *rest: losses.append(logs.get("loss")) or log(logs, *rest)
    if card:
        card_of(trainer, *card)
    trainer.train()
    assert trainer._metrics["train"] is held
    return trainer, gradients.found, losses[:2], said


def close(mine: torch.Tensor, other: torch.Tensor) -> bool:
    return bool((mine - other).abs().max() < 1e-5 * other.abs().max() > 0)


@pytest.mark.parametrize(("overrides", "skip", "where", "why"), HALVED, ids=[row[3] for row in HALVED])
def test_half_the_rows_are_the_same_update(tiny: Path, overrides: list, skip: bool, where: str, why: str) -> None:  # noqa: F811
    _, whole, losses, _ = updates(tiny, *SIXTEEN, *overrides, skip=skip)
    trainer, halved, losses_halved, said = updates(tiny, *SIXTEEN, *overrides, skip=skip, card=(3, where))
    assert progress_of(trainer)["counters"]["rows_that_fit"] == trainer.rows_that_fit <= 3, "kept for a resume"
    assert "from here on" in said[-1] and said[0].startswith("step 1: ")
    assert close(halved[0], whole[0]) and losses_halved[0] == pytest.approx(losses[0], abs=1e-5), why
    assert len(halved) == 2, "the run goes on"


def test_the_micro_steps_before_it_are_not_lost_with_their_gradient(tiny: Path) -> None:  # noqa: F811
    """Memory runs out in the third of four: what the first two had added is cleared, and done again."""
    _, whole, losses, _ = updates(tiny, *FOUR_OF_FOUR)
    _, halved, losses_halved, said = updates(tiny, *FOUR_OF_FOUR, card=(1, "backward", 2))
    assert said, "it ran out of memory"
    assert close(halved[0], whole[0]) and losses_halved[0] == pytest.approx(losses[0], abs=1e-5)


REFUSED = [
    ((0, "forward"), [], "1 rows at once ran out", "one row is no longer halved"),
    ((3, "forward"), ["grpo.top_entropy_quantile=0.5"], "the quantile is of the tokens of every row", "another update"),
]


@pytest.mark.parametrize(("card", "overrides", "says", "why"), REFUSED, ids=[row[3] for row in REFUSED])
def test_what_is_not_halved(tiny: Path, card: tuple, overrides: list[str], says: str, why: str) -> None:  # noqa: F811
    with pytest.raises(UserError, match=says):
        updates(tiny, *SIXTEEN, *overrides, skip=not overrides, card=card)


def test_memory_that_ends_in_the_generation_is_no_matter_of_the_update(tiny: Path) -> None:  # noqa: F811
    trainer = build(tiny, *SIXTEEN, rewards=(no_noise,), kind=recording)

    def generate(*_: Any) -> Any:
        raise torch.OutOfMemoryError("in generate")

    trainer._generate_single_turn = generate
    with pytest.raises(UserError, match="Generation ran out of memory"):
        trainer.train()


REHEARSED = [["lora.dropout=0.3", "grpo.weight_decay=0.1"], ["grpo.beta=0.1"], FOUR_OF_FOUR]


@pytest.mark.parametrize("overrides", REHEARSED, ids=" ".join)
def test_a_rehearsal_leaves_no_trace(tiny: Path, overrides: list[str]) -> None:  # noqa: F811
    words, skip = [*SIXTEEN, *overrides], "grpo.beta=0.1" not in overrides
    plain, gradients, losses, _ = updates(tiny, *words, skip=skip)
    rehearsed, gradients_after, losses_after, said = updates(tiny, *words, skip=skip, rehearse=True)
    assert losses_after == losses and all(map(torch.equal, gradients_after, gradients))
    pairs = zip(plain.model.parameters(), rehearsed.model.parameters(), strict=True)
    assert all(torch.equal(mine, theirs) for mine, theirs in pairs), "the weights"
    states = zip(plain.optimizer.state.values(), rehearsed.optimizer.state.values(), strict=True)
    assert all(torch.equal(a[name], b[name]) for a, b in states for name in a), "the optimiser"
    (line,) = said
    assert line.startswith("rehearsed: ") and "+ 10 tokens" in line


def test_a_rehearsal_finds_how_many_rows_fit(tiny: Path) -> None:  # noqa: F811
    trainer, gradients, _, said = updates(tiny, *SIXTEEN, rehearse=True, card=(4, "backward"))
    assert trainer.rows_that_fit == 4 and [line.split(":")[0] for line in said] == ["step 1", "step 1", "rehearsed"]
    assert close(gradients[0], updates(tiny, *SIXTEEN)[1][0])
