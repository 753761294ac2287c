"""An update whose gradient is no number is left out, and weights that are none end the run before they are saved."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import TrainerCallback

from llm_grpo import checkpoints, processes
from llm_grpo.errors import UserError

IN_A_ROW = 3  # updates without a usable gradient, at which a run ends: nothing is learned any more


class FiniteUpdates(TrainerCallback):
    """Before and after the optimiser, in every process. In float16 accelerate's scaler leaves such updates out, and
    DeepSpeed steps within its backward pass, where nobody looks on."""

    def __init__(self, trainer: Any, section: str = "grpo") -> None:
        self.trainer, self.in_a_row = trainer, 0
        self.rate = f"a lower {section}.learning_rate"

    @property
    def learned(self) -> list[Tensor]:
        """Asked anew each time: FSDP2 puts others in their place."""
        return [parameter for parameter in self.trainer.model.parameters() if parameter.requires_grad]

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        gradients = [parameter.grad for parameter in self.learned if parameter.grad is not None]
        if self.trainer.accelerator.scaler is not None or are_numbers(gradients):
            self.in_a_row = 0
            return
        self.in_a_row += 1
        said = f"step {state.global_step + 1}: its gradient is no number (NaN or infinite)"
        if self.in_a_row == IN_A_ROW:
            raise _ended(
                f"S{said[1:]}, and neither were the {IN_A_ROW - 1} before: nothing is learned any more. What was "
                f"learned before is saved: a new run goes on from the last checkpoint in {args.output_dir} "
                f"(lora.from), with {self.rate}."
            )
        self.trainer.say(f"{said}; this update is left out.")
        for parameter in self.learned:
            parameter.grad = None  # an optimiser passes over what has none

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if are_numbers(self.learned):
            return
        self.trainer.broken = True  # nothing of it is written
        newest = checkpoints.newest(Path(args.output_dir), hashes=False)
        start = f"A new run goes on from {newest.folder} (lora.from)" if newest else "Start another run"
        raise _ended(
            f"Step {state.global_step + 1} made weights that are no numbers (NaN or infinite), and they are not saved. "
            f"{start}, with {self.rate} or another grpo.optim."
        )


def _ended(said: str) -> UserError:
    """Of several processes the first says it, and has the time to save."""
    return UserError(said) if processes.is_first() else processes.ToldByTheFirst(said)


def are_numbers(tensors: Iterable[Tensor]) -> bool:
    """Whether all of them are finite, in all processes."""
    own = [tensor.to_local() if hasattr(tensor, "to_local") else tensor for tensor in tensors]
    mine = not own or bool(torch.stack(torch._foreach_norm(own, dtype=torch.float32)).isfinite().all())
    return all(processes.of_all(mine))
