"""Is the trainer's update the GRPO update? One generation batch, compared with a float64 reference written by hand.

    verification = verify_update(trainer)
    print(verification)
    assert verification.ok

What is compared: log-probabilities, advantages, the loss, and the gradient of every LoRA weight as `training_step`
leaves it for the optimizer. It runs where the trainer runs. docs/correctness.md says what has been proven, and when.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor

from llm_grpo.errors import UserError
from llm_grpo.verification import formulas, subject
from llm_grpo.verification.exact_model import TRAINED, ExactModel
from llm_grpo.verification.report import TOLERANCES, Quantity, Verification, compared, compared_gradients


def verify_update(
    trainer: Any,
    batch: dict[str, Any] | None = None,
    rewards: Tensor | None = None,
    off_policy: bool = False,
    seed: int = 0,
    device: str | torch.device | None = None,
) -> Verification:
    """Compare one update of a TRL GRPOTrainer (stock, or rewritten by Unsloth) with the float64 reference.

    batch: what `_generate_and_score_completions` returned; None: the trainer generates one (and records it, where
    it records). rewards: [completions, reward functions] of that batch, NaN where not judged; None: the trainer's
    newest log. off_policy: replace the old log-probabilities by ones that make clipping act, drawn with `seed`.
    device: where the reference is computed; None: where the model is. It takes 8 bytes per parameter.
    Weights, optimizer and counters are left as they were; gradients are cleared. Raises UserError where the
    settings have no reference here, or where all advantages are zero, so that the comparison would say nothing.
    """
    settings = subject.settings_of(trainer)
    device = torch.device(device or trainer.accelerator.device)
    with subject.undisturbed(trainer):
        batch = dict(subject.generate(trainer) if batch is None else batch)
        rewards = subject.newest_rewards(trainer, batch) if rewards is None else rewards
        logps = subject.logps(trainer, batch)
        if off_policy:
            subject.put_off_policy(batch, logps, settings, seed)
        loss, gradients = subject.update(trainer, batch, settings)
    mine = Reference(trainer, batch, rewards, settings, device)
    if mine.norm == 0 or bool((mine.advantages.abs() < 1e-6).all()):
        raise UserError(
            "Every advantage is zero, or no token counts: there is nothing to compare. Let the rewards vary."
        )
    dtype = subject.working_dtype(trainer)
    return Verification(
        trainer=subject.computed_by(trainer),
        versions={name: version(name) for name in ("trl", "unsloth", "transformers", "peft", "torch")},
        dtype=dtype,
        settings=settings,
        completions=len(mine.logps),
        tokens=int(mine.sampled.mask.sum()),
        clipped=mine.clipped(),
        gradient_norm=mine.norm,
        quantities=tuple(comparisons(mine, batch, logps, loss, gradients, TOLERANCES[dtype])),
    )


def comparisons(
    mine: Reference,
    batch: dict[str, Any],
    logps: Tensor,
    loss: Tensor,
    gradients: dict[str, Tensor],
    bounds: dict[str, float],
) -> Iterator[Quantity]:
    """The reference against what the trainer's own code made of the batch."""
    mask, theirs, rough = mine.sampled.mask.bool(), batch["advantages"].to(mine.advantages), mine.rough
    yield compared("logps", mine.logps[mask], subject.aligned(logps, batch).to(mask.device)[mask], bounds["logps"])
    if mine.sampled.reference is not None:
        reference = subject.aligned(batch["ref_per_token_logps"], batch).to(mask.device)
        yield compared("reference_logps", mine.sampled.reference[mask], reference[mask], bounds["reference_logps"])
    yield compared("advantages", mine.advantages[~rough], theirs[~rough], bounds["advantages"])
    if rough.any():
        bound = 16 * float(mine.sensitivity.max())
        yield compared("advantages_rough", mine.advantages[rough], theirs[rough], bound)
    yield compared("loss", mine.loss, loss, bounds["loss"])
    yield compared_gradients(mine.gradients, gradients, bounds["gradient"])


class Reference:
    """The float64 side: log-probabilities, loss, and the gradient of every LoRA matrix."""

    def __init__(
        self, trainer: Any, batch: dict[str, Any], rewards: Tensor, settings: formulas.Settings, device: torch.device
    ) -> None:
        self.settings, self.batch, self.device = settings, batch, device
        self.model = ExactModel(trainer.accelerator.unwrap_model(trainer.model), device)
        reference = None
        with torch.no_grad():
            self.logps = self._all_logps()
            if settings.beta:
                self.model.use_adapter(self.model.reference_adapter())
                reference = self._all_logps()
                self.model.use_adapter(TRAINED)
        rewards = rewards.to(device).double()
        self.advantages = formulas.advantages(rewards, settings)
        self.sensitivity = formulas.sensitivity(rewards, settings)
        # Equal rewards: the trainer's advantages are rounding noise. What it makes of them is compared all the same,
        # unless it leaves them out: then they have to be the exact zeros.
        self.rough = 4 * self.sensitivity > TOLERANCES["float32"]["advantages"]
        noisy = self.rough & subject.learnt_from(trainer, batch).to(device)
        self.sampled = formulas.Sampled(
            mask=batch["completion_mask"].to(device).double(),
            advantages=torch.where(noisy, batch["advantages"].to(self.advantages), self.advantages),
            old=subject.old_logps(batch, device),
            reference=reference,
            correction=subject.correction(trainer, batch, device),
        )
        self.loss, self.gradients = self._update()
        self.norm = float(sum(g.square().sum() for g in self.gradients.values()) ** 0.5)

    def clipped(self) -> float:
        """Share of the counted tokens whose ratio is out of bounds."""
        ratio = formulas.log_ratio(self.logps, self.sampled, self.settings.level).exp() * torch.ones_like(self.logps)
        out = (ratio < 1 - self.settings.epsilon_low) | (ratio > 1 + self.settings.epsilon_high)
        return float(out[self.sampled.mask.bool()].double().mean())

    def _update(self) -> tuple[Tensor, dict[str, Tensor]]:
        leaf = self.logps.clone().requires_grad_(True)
        loss = formulas.loss(leaf, self.sampled, self.settings)
        (upstream,) = torch.autograd.grad(loss, leaf)
        for row, slope in enumerate(upstream):  # row by row, so that only one sequence's graph is in memory
            logps = self._logps(row)
            if logps is not None:
                (logps * slope[: len(logps)]).sum().backward()
        return loss.detach(), self.model.gradients()

    def _all_logps(self) -> Tensor:
        found = torch.zeros(self.batch["completion_ids"].shape, dtype=torch.float64, device=self.device)
        for row in range(len(found)):
            logps = self._logps(row)
            if logps is not None:
                found[row, : len(logps)] = logps
        return found

    def _logps(self, row: int) -> Tensor | None:
        """Of one sequence without its padding; None where nothing of it counts (truncated, masked out)."""
        prompt = self.batch["prompt_ids"][row][self.batch["prompt_mask"][row].bool()]
        completion = self.batch["completion_ids"][row][self.batch["completion_mask"][row].bool()]
        if not len(completion):
            return None
        return self.model.logps(torch.cat([prompt, completion]), len(prompt), self.settings.temperature)
