"""Is the trainer's update the GRPO update? One generation batch, compared with a float64 reference written by hand.

    verification = verify_update(trainer)
    print(verification)
    assert verification.ok

What is compared: log-probabilities, advantages, the loss, and the gradient of every LoRA weight as `training_step`
leaves it for the optimizer. It runs where the trainer runs. docs/correctness.md says what has been proven, and when.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor

from llm_grpo.errors import UserError
from llm_grpo.verification import formulas, subject
from llm_grpo.verification.exact_model import TRAINED, ExactModel

# Bounds on what is compared, by the dtype that the trainer computes in. Those of float32 are about ten times what was
# measured (docs/correctness.md); in 16 bits a log-probability keeps two to three digits, whoever computes it.
TOLERANCES: dict[str, dict[str, float]] = {
    "float32": {"logps": 1e-5, "reference_logps": 1e-5, "advantages": 1e-5, "loss": 1e-5, "gradient": 1e-3},
    "float16": {"logps": 5e-2, "reference_logps": 5e-2, "advantages": 1e-5, "loss": 5e-3, "gradient": 5e-2},
    "bfloat16": {"logps": 2e-1, "reference_logps": 2e-1, "advantages": 1e-5, "loss": 2e-2, "gradient": 1e-1},
}


@dataclass(frozen=True)
class Quantity:
    """The largest error of one quantity. `judged` says which of the two the tolerance is about."""

    name: str
    absolute: float
    relative: float  # to the largest value; of the gradient: to the largest of the same matrix
    tolerance: float
    judged: str = "absolute"
    worst: str = ""  # the LoRA matrix with the largest error

    @property
    def ok(self) -> bool:
        return (self.absolute if self.judged == "absolute" else self.relative) <= self.tolerance  # NaN is not


@dataclass(frozen=True)
class Verification:
    """What was compared, on which code, and how far apart the two are."""

    trainer: str  # the function that computed the loss, with its module
    versions: dict[str, str]
    dtype: str
    settings: formulas.Settings
    completions: int
    tokens: int  # that the loss counts
    clipped: float  # share of them whose ratio is outside the clipping range
    gradient_norm: float  # of the reference
    quantities: tuple[Quantity, ...]

    @property
    def ok(self) -> bool:
        return all(quantity.ok for quantity in self.quantities)

    def __getitem__(self, name: str) -> Quantity:
        return next(quantity for quantity in self.quantities if quantity.name == name)

    def __str__(self) -> str:
        s = self.settings
        lines = [
            f"{self.trainer} in {self.dtype} ({', '.join(f'{k} {v}' for k, v in self.versions.items())})",
            f"{s.loss_type}, {s.level} level, beta {s.beta}, {s.aggregation}, scale {s.scale_rewards}; "
            f"{self.completions} completions, {self.tokens} tokens, {self.clipped:.0%} clipped, "
            f"gradient norm {self.gradient_norm:.3g}",
        ]
        for q in self.quantities:
            errors = f"absolute {q.absolute:.1e} relative {q.relative:.1e}"
            judged = f"{q.judged} at most {q.tolerance:.0e}"
            lines.append(f"  {'ok ' if q.ok else 'NOT'} {q.name:16} {errors} ({judged}) {q.worst}".rstrip())
        return "\n".join(lines)


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
    if mine.norm == 0:
        raise UserError("The reference gradient is zero (equal rewards in every group?): there is nothing to compare.")
    mask = mine.sampled.mask.bool()
    ours = {"logps": mine.logps[mask], "advantages": mine.sampled.advantages, "loss": mine.loss}
    theirs = {"logps": subject.aligned(logps, batch).to(device)[mask], "advantages": batch["advantages"], "loss": loss}
    if mine.sampled.reference is not None:
        ours["reference_logps"] = mine.sampled.reference[mask]
        theirs["reference_logps"] = subject.aligned(batch["ref_per_token_logps"], batch).to(device)[mask]
    dtype = subject.working_dtype(trainer)
    bounds = TOLERANCES[dtype]
    return Verification(
        trainer=subject.computed_by(trainer),
        versions={name: version(name) for name in ("trl", "unsloth", "transformers", "peft", "torch")},
        dtype=dtype,
        settings=settings,
        completions=len(mask),
        tokens=int(mask.sum()),
        clipped=mine.clipped(),
        gradient_norm=mine.norm,
        quantities=(
            *[compared(name, ours[name], theirs[name], bounds[name]) for name in ours],
            compared_gradients(mine.gradients, gradients, bounds["gradient"]),
        ),
    )


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
        self.sampled = formulas.Sampled(
            mask=batch["completion_mask"].to(device).double(),
            advantages=formulas.advantages(rewards.to(device).double(), settings),
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


def compared(name: str, ours: Tensor, theirs: Tensor, tolerance: float) -> Quantity:
    """Largest difference between two tensors of one shape."""
    gap = float((ours - theirs.to(ours)).abs().max())
    return Quantity(name, gap, gap / max(float(ours.abs().max()), 1e-12), tolerance)


def compared_gradients(ours: dict[str, Tensor], theirs: dict[str, Tensor], tolerance: float) -> Quantity:
    """Matrix by matrix; one that is a million times smaller than the largest is measured against that millionth."""
    assert ours.keys() == theirs.keys(), sorted(ours.keys() ^ theirs.keys())
    largest = max(float(gradient.abs().max()) for gradient in ours.values())
    gaps = {name: float((ours[name] - theirs[name].to(ours[name])).abs().max()) for name in ours}
    shares = {name: gaps[name] / max(float(ours[name].abs().max()), 1e-6 * largest) for name in ours}
    worst = max(shares, key=lambda name: shares[name])
    return Quantity("gradient", max(gaps.values()), shares[worst], tolerance, "relative", worst)
