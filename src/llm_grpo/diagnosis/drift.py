"""How far who generates is from who learns: the gap between the log-probabilities that both give to sampled tokens.

With vLLM the numbers are TRL's (`sampling/sampling_logp_difference`), with transformers those of rollouts/sampled.py.
"""

from __future__ import annotations

from math import inf

METRIC = "sampling/sampling_logp_difference/mean"  # TRL's name for it: nats per token
SMALL = 0.02  # 16-bit arithmetic in two engines stays below this
GROWN = 5.0  # times the gap of the first steps
CAUSES = (
    "the engine does not hold the trainer's base (another precision or quantisation, another revision), the adapter is "
    "not synced, grpo.top_p or top_k below their neutral values (the engine then renormalises), or lora.dropout above 0"
)


class Drift:
    """Reads the gap of each logged step and says once, with the likely causes, when it is too large or has grown."""

    def __init__(self, first_steps: int = 5) -> None:
        self.first_steps, self.seen, self.warned = first_steps, [], False

    def __call__(self, value: float | None) -> str | None:
        """What to tell the user after this step; None where there is nothing new. NaN, which TRL logs as None where all
        of a step is NaN, is told like a large gap."""
        value = inf if value is None or value != value else value
        self.seen.append(value)
        usual = sorted(self.seen[: self.first_steps])[len(self.seen[: self.first_steps]) // 2]
        grown = len(self.seen) > self.first_steps and value > GROWN * usual
        if self.warned or value <= SMALL or not (grown or value > GROWN * SMALL):
            return None
        self.warned = True
        was = f", after {usual:.3g} in the first steps" if grown else ""
        return (
            f"The engine and the trainer disagree on sampled tokens by {value:.3g} nats on average{was}. "
            f"Likely causes: {CAUSES}."
        )
