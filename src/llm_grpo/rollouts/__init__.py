"""Who generates: one small interface, one table of engines, and the automatic choice with its reason."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from llm_grpo.errors import UserError
from llm_grpo.records import Completion, Message


@dataclass(frozen=True)
class Sampling:
    """How to draw, with vLLM's names. temperature 0 is greedy; n completions per prompt."""

    max_tokens: int = 1024
    temperature: float = 0.0
    top_p: float = 1.0
    n: int = 1
    seed: int | None = None

    def __post_init__(self) -> None:
        if self.max_tokens < 1 or self.n < 1 or self.temperature < 0 or not 0 < self.top_p <= 1:
            raise UserError(
                f"sampling: max_tokens {self.max_tokens} and n {self.n} must be at least 1, "
                f"temperature {self.temperature} at least 0, top_p {self.top_p} above 0 and at most 1."
            )
        if self.temperature == 0 and self.n > 1:
            raise UserError(
                f"sampling: n is {self.n} at temperature 0, so all answers would be the same. Raise temperature."
            )


class Engine(Protocol):
    """generate: prompts -> completions_by_prompt, `sampling.n` each, in the order of the prompts."""

    name: str

    def generate(
        self, prompts: Sequence[Sequence[Message]], sampling: Sampling, on_done: Callable[[int], None] | None = None
    ) -> list[list[Completion]]: ...


def _missing_for_unsloth() -> list[str]:
    import torch

    missing = [] if torch.cuda.is_available() else ["an NVIDIA GPU that torch can see (none is visible)"]
    return missing + [f"the package {name}" for name in ("unsloth", "vllm") if importlib.util.find_spec(name) is None]


def _missing_for_transformers() -> list[str]:
    return []


# In the order of preference; each says what is missing for it on this machine.
ENGINES: dict[str, Callable[[], list[str]]] = {
    "unsloth": _missing_for_unsloth,
    "transformers": _missing_for_transformers,
}


def choose_engine(wanted: str) -> tuple[str, str]:
    """(engine, reason). `auto` takes the first that runs here; an explicit wish that cannot be met is a UserError."""
    if wanted != "auto":
        missing = ENGINES[wanted]()
        if missing:
            raise UserError(f"rollouts.engine: {wanted} needs {' and '.join(missing)}.")
        return wanted, "rollouts.engine asks for it"
    reasons = []
    for name, missing_for in ENGINES.items():
        missing = missing_for()
        if not missing:
            return name, "; ".join([*reasons, f"{name} can run here"])
        reasons.append(f"{name} needs {' and '.join(missing)}")
    raise AssertionError("transformers runs everywhere")
