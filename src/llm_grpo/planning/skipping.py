"""Whether rows that teach nothing can be left out of an update, read off the config: `rollouts.skip`.

They can where nothing but its own advantage gives a row a gradient. training/skipping.py does it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

from llm_grpo.config.schema import Config
from llm_grpo.errors import UserError
from llm_grpo.loaders import sharded_by

# Those of TRL 1.15: each is linear in the size of an advantage, and its normaliser is known.
LOSS_TYPES = ("grpo", "dr_grpo", "dapo", "bnpo", "cispo", "sapo", "vespo", "luspo")

# Under `grpo:`: what else reads a row, the value that switches it off, and why it stands against skipping.
OFF: dict[str, tuple[Any, str]] = {
    "beta": (0.0, "every row has the KL's gradient"),
    "entropy_coef": (0.0, "every row has the entropy's gradient"),
    "use_adaptive_entropy": (False, "the entropy is measured over every row"),
    "top_entropy_quantile": (1.0, "the quantile is of the tokens of every row"),
    "router_aux_loss_coef": (0.0, "every row has the router's gradient"),
    "pad_to_multiple_of": (None, "rows are cut to their own longest"),
}
UNSLOTH = ("UNSLOTH_GRPO_ZERO_VARIANCE_EXCLUDE", "UNSLOTH_GRPO_LOSS_AGGREGATION")  # another normaliser than loss_type's


def skip_choice(config: Config) -> tuple[bool, str]:
    """(whether they are left out, why). Raises UserError where `rollouts.skip` is true and the update would change."""
    wish, faults = config.rollouts.skip, list(_faults(config.grpo))
    if wish is False:
        return False, "off: the config says so"
    if wish is True and faults:
        raise UserError(f"rollouts.skip is true, but the update would change: {'; '.join(faults)}. Set it to auto.")
    if faults:
        return False, f"off: {'; '.join(faults)}"
    return True, "on: answers of groups that all earn the same have no gradient and are left out of the update"


def faults_of_parts(grpo: dict[str, Any]) -> list[str]:
    """Why an update would change where all its rows go through in smaller parts; [] where it would not. A KL term is
    added up token by token as the loss is, and nothing is cut."""
    return list(_faults({name: value for name, value in grpo.items() if name not in ("beta", "pad_to_multiple_of")}))


def _faults(grpo: dict[str, Any]) -> Iterator[str]:
    if grpo["loss_type"] not in LOSS_TYPES:
        yield f"grpo.loss_type={grpo['loss_type']} is not known here"
    for name, (off, why) in OFF.items():
        if grpo.get(name, off) != off:
            yield f"grpo.{name}={grpo[name]}: {why}"
    if sharded_by() == "DeepSpeed":
        yield "DeepSpeed moves the weights with every backward pass of a micro-step"
    for name in UNSLOTH:
        if os.environ.get(name, "0") not in ("", "0"):
            yield f"{name} is set: it has another normaliser"
