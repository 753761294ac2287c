"""Rewards of your own, in the shape TRL and the notebooks have them. Nothing to import, nothing to register.

Name one in YAML by file and function (the path as seen from where you start the script); `args` are keyword arguments:

    rewards:
      - {name: correctness_reward_func}
      - {name: "examples/custom_reward.py:shows_its_steps", weight: 0.5}
      - {name: "examples/custom_reward.py:close_to_gold", args: {tolerance: 0.1}, per_completion: true, workers: 2}

They run in processes of their own: one that hangs or crashes is ended, and the run goes on (README.md).

Try it before you train:

    python src/reward_funcs.py score --rewards examples/custom_reward.py:shows_its_steps --input cases.jsonl \
        --output scores.jsonl
"""

from __future__ import annotations

from llm_grpo.answers.formats import extract_xml_answer
from llm_grpo.answers.numerals import parse_number


def shows_its_steps(prompts, completions, answer, **kwargs) -> list[float]:
    """Half a point for a calculation in the reasoning, but only beside a right answer (else it is paid for nothing)."""
    texts = [completion[0]["content"] for completion in completions]
    right = [extract_xml_answer(text) == gold for text, gold in zip(texts, answer, strict=True)]
    return [0.5 if ok and "=" in text else 0.0 for text, ok in zip(texts, right, strict=True)]


def close_to_gold(completions, answer, *, tolerance: float = 0.05, **kwargs) -> list[float | None]:
    """One point within `tolerance` (relative) of the gold; None ("cannot be judged") where the gold is no number."""
    texts = [completion[0]["content"] for completion in completions]
    return [_closeness(text, gold, tolerance) for text, gold in zip(texts, answer, strict=True)]


def _closeness(text: str, gold: str, tolerance: float) -> float | None:
    given, wanted = parse_number(extract_xml_answer(text) or ""), parse_number(gold)
    if wanted is None:
        return None
    return float(given is not None and abs(given - wanted) <= tolerance * abs(wanted))
