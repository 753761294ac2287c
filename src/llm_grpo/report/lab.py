"""What the reward lab shows: the rewards there are, a file that was scored, an attack."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence

from rich import box
from rich.table import Table
from rich.text import Text

from llm_grpo.records import Reward, RewardFunction
from llm_grpo.rewards.attack import Verdict, backwards
from llm_grpo.rewards.pool import Trouble
from llm_grpo.rewards.scoring import Tally


def rewards_table(rewards: Mapping[str, RewardFunction]) -> Table:
    """By name: the range and what is paid, from the docstring's first line, `range: what`; and the arguments."""
    table = Table("reward", "range", "paid for", "arguments", box=box.SIMPLE)
    for name, function in rewards.items():
        says, _, what = (inspect.getdoc(function) or "").partition("\n")[0].partition(": ")
        settings = [p for p in inspect.signature(function).parameters.values() if p.kind is p.KEYWORD_ONLY]
        arguments = (p.name if p.default is p.empty else f"{p.name}={p.default}" for p in settings)
        table.add_row(name, says, what, ", ".join(arguments))
    return table


def tally_table(tally: Tally) -> Table:
    table = Table("reward", "scored", "null", "mean", box=box.SIMPLE)
    for name, count in tally.scored.items():
        table.add_row(name, f"{count}", f"{tally.lines - count}", f"{tally.total[name] / count:.4f}" if count else "-")
    return table


def attack_table(verdicts: Sequence[Verdict], rewards: Sequence[Reward]) -> Table:
    heads = [f"{reward.label.removesuffix('_reward_func')} x{reward.weight:g}" for reward in rewards]
    table = Table("completion", "total", *heads, "", box=box.SIMPLE)
    for verdict in verdicts:
        scores = ["-" if score is None else f"{score:.3g}" for score in verdict.scores.values()]
        style = "red" if verdict.fault else {"right": "green", "wrong": "yellow"}.get(verdict.case.kind)
        table.add_row(verdict.case.name, f"{verdict.total:.3f}", *scores, verdict.fault or "ok", style=style)
    return table


def attack_lines(verdicts: Sequence[Verdict], rewards: Sequence[Reward], margin: float) -> Iterator[str]:
    for reward in backwards(verdicts, rewards):
        yield f"{reward.label} x{reward.weight:g} pays a wrong answer more than a right one: is the sign right?"
    yield f"margin over the honest wrong one: {margin:g} points"
    faults = sum(bool(verdict.fault) for verdict in verdicts)
    yield f"{faults} of {len(verdicts)} cases are not paid as they should" if faults else "no attack succeeds"


def trouble_text(label: str, trouble: Trouble, verdicts: Sequence[Verdict]) -> Text:
    """What hung, died, raised or printed while it was attacked, with the case."""
    case = "" if trouble.row is None else f" (case '{verdicts[trouble.row].case.name}')"
    return Text(f"{label} {trouble.said}{case}", "red" if trouble.kind == "failed" else "")
