"""What a verification says: the error of each quantity, the bound it is held to, and on which code it was measured."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from llm_grpo.verification.formulas import Settings

# Bounds on what is compared, by the dtype that the trainer computes in: about twice or more what was measured on small
# models (docs/correctness.md). In 16 bits a log-probability keeps two to three digits, whoever computes it.
TOLERANCES: dict[str, dict[str, float]] = {
    "float32": {"logps": 3e-5, "reference_logps": 3e-5, "advantages": 1e-5, "loss": 1e-5, "gradient": 1e-4},
    "float16": {"logps": 5e-2, "reference_logps": 5e-2, "advantages": 1e-5, "loss": 5e-3, "gradient": 1e-1},
    "bfloat16": {"logps": 2e-1, "reference_logps": 2e-1, "advantages": 1e-5, "loss": 2e-2, "gradient": 2e-1},
}


@dataclass(frozen=True)
class Quantity:
    """The largest error of one quantity. `judged` says which of the two the tolerance is about."""

    name: str
    absolute: float
    relative: float  # to the largest value; of the gradient: the norm of the difference to that of the same matrix
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
    settings: Settings
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


def compared(name: str, ours: Tensor, theirs: Tensor, tolerance: float) -> Quantity:
    """Largest difference between two tensors of one shape."""
    gap = largest(ours - theirs.to(ours))
    return Quantity(name, gap, gap / max(largest(ours), 1e-12), tolerance)


def compared_gradients(ours: dict[str, Tensor], theirs: dict[str, Tensor], tolerance: float) -> Quantity:
    """Matrix by matrix, by the norm of the difference: in 16 bits single entries are off by rounding alone, more so the
    larger the matrix. One that is a million times smaller than the largest is measured against that millionth."""
    assert ours.keys() == theirs.keys(), sorted(ours.keys() ^ theirs.keys())
    gaps = [ours[name] - theirs[name].to(ours[name]) for name in ours]
    norms = torch.tensor([float(gradient.norm()) for gradient in ours.values()])
    shares = torch.tensor([float(gap.norm()) for gap in gaps]) / norms.clamp(min=1e-6 * norms.max())
    worst = int(shares.argmax())  # NaN is the largest of all
    absolute = max(largest(gap) for gap in gaps)
    return Quantity("gradient", absolute, float(shares[worst]), tolerance, "relative", list(ours)[worst])


def largest(values: Tensor) -> float:
    return float(values.abs().max()) if values.numel() else 0.0
