"""One table of rewards. A reward is TRL's: f(prompts, completions, **columns) -> list[float | None]."""

from __future__ import annotations

from llm_grpo.records import RewardFunction
from llm_grpo.rewards.correctness import correctness, int_reward
from llm_grpo.rewards.format import soft_format, strict_format, xmlcount
from llm_grpo.rewards.lifting import lift

xmlcount_reward_func = lift(xmlcount, "xmlcount_reward_func")
soft_format_reward_func = lift(soft_format, "soft_format_reward_func")
strict_format_reward_func = lift(strict_format, "strict_format_reward_func")
int_reward_func = lift(int_reward, "int_reward_func")
correctness_reward_func = lift(correctness, "correctness_reward_func")

REWARDS: dict[str, RewardFunction] = {
    "xmlcount_reward_func": xmlcount_reward_func,
    "soft_format_reward_func": soft_format_reward_func,
    "strict_format_reward_func": strict_format_reward_func,
    "int_reward_func": int_reward_func,
    "correctness_reward_func": correctness_reward_func,
}
