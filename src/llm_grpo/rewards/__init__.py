"""One table of rewards, and how a name in YAML becomes a function.

A reward is TRL's: f(prompts, completions, **columns) -> list[float | None], where None means "cannot be judged".
Ours are written for one completion (correctness.py, format.py, style.py: one file per family) and lifted to that shape
by `lift`; the first line of their docstring says the range and, behind a colon, what is paid.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from llm_grpo.errors import UserError, check_arguments, did_you_mean
from llm_grpo.records import RewardFunction
from llm_grpo.rewards.correctness import correctness, int_reward
from llm_grpo.rewards.files import load_function
from llm_grpo.rewards.format import soft_format, strict_format, xmlcount
from llm_grpo.rewards.guarding import RewardError, check_scores, guard, timed
from llm_grpo.rewards.labels import lead_qualification
from llm_grpo.rewards.learned import RewardModel
from llm_grpo.rewards.lifting import lift
from llm_grpo.rewards.style import conciseness, cot_clarity, repetition

if TYPE_CHECKING:
    from llm_grpo.runs import Run

__all__ = ["LEARNED", "REWARDS", "RewardError", "build_reward", "check_scores", "guard", "lift"]

_OURS = {
    "xmlcount": xmlcount, "soft_format": soft_format, "strict_format": strict_format, "int": int_reward,
    "correctness": correctness, "conciseness": conciseness, "repetition": repetition, "cot_clarity": cot_clarity,
    "lead_qualification": lead_qualification,
}  # fmt: skip
REWARDS: dict[str, RewardFunction] = {
    name: lift(score, name) for name, score in ((f"{noun}_reward_func", score) for noun, score in _OURS.items())
}

# These need a model: the class takes the arguments, an instance is the function, its first call loads what is large.
LEARNED: dict[str, Callable[..., RewardFunction]] = {"reward_model": RewardModel}


def build_reward(
    name: str, args: Mapping[str, Any] | None = None, *, run: Run | None = None, **limits: Any
) -> RewardFunction:
    """The reward of that name (in a table, or path/to/file.py:function), its arguments bound and its scores checked.

    Its `__name__`, by which TRL logs it, is the name in the table or the function's own. limits: the other keys of
    RewardSpec; with workers the reward is a Pool, which writes into `run` what went wrong. Raises UserError.
    """
    from llm_grpo.config.schema import RewardSpec
    from llm_grpo.rewards.pool import Pool, check_limits

    spec = RewardSpec(name=name, args=dict(args or {}), **limits)
    workers = check_limits(spec, can_have_workers=name not in LEARNED)
    return (
        Pool(spec, workers, alone=spec.per_completion or name in REWARDS, run=run)
        if workers
        else timed(build_here(name, spec.args))
    )


def build_here(name: str, args: Mapping[str, Any]) -> RewardFunction:
    """The same in the process that asks."""
    if name in LEARNED:
        check_arguments(LEARNED[name], args, where=f"rewards: {name}")
        return guard(LEARNED[name](**args), name)
    if name in REWARDS:
        function = REWARDS[name]
    elif ".py" in name:
        function = load_function(name)
    else:
        own = " A function of your own is written path/to/file.py:function."
        raise UserError(f"rewards: there is no reward '{name}'.{did_you_mean(name, [*REWARDS, *LEARNED])}{own}")
    check_arguments(function, args, where=f"rewards: {name}")
    if name in REWARDS:  # arguments that do not go together are refused before training starts
        function(prompts=[""], completions=[""], answer=["42"], **args)
    return guard(function, getattr(function, "__name__", name), args)
