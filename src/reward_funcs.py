"""The published reward functions under their own names, and the reward lab.

    from reward_funcs import correctness_reward_func            # no torch; published=True for the published numbers

    python src/reward_funcs.py list
    python src/reward_funcs.py score --rewards correctness_reward_func,int_reward_func --input cases.jsonl \
        --output scores.jsonl
    python src/reward_funcs.py attack --config configs/demo.yaml

Exit codes: 0 all is well, 1 an attack succeeded, 2 something that was given is wrong.
"""

from __future__ import annotations

import argparse
import inspect
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm_grpo.answers.judging import extract_hash_answer, extract_xml_answer
from llm_grpo.errors import UserError
from llm_grpo.records import Example, Reward, RewardFunction
from llm_grpo.rewards import LEARNED, REWARDS, build_reward

if TYPE_CHECKING:
    from rich.console import Console

    from llm_grpo.config.schema import Config
    from llm_grpo.rewards.attack import Verdict

__all__ = [
    "conciseness_reward_func",
    "correctness_reward_func",
    "cot_clarity_reward_func",
    "extract_hash_answer",
    "extract_xml_answer",
    "int_reward_func",
    "lead_qualification_reward_func",
    "repetition_reward_func",
    "soft_format_reward_func",
    "strict_format_reward_func",
    "xmlcount_reward_func",
]

xmlcount_reward_func = REWARDS["xmlcount_reward_func"]
soft_format_reward_func = REWARDS["soft_format_reward_func"]
strict_format_reward_func = REWARDS["strict_format_reward_func"]
int_reward_func = REWARDS["int_reward_func"]
correctness_reward_func = REWARDS["correctness_reward_func"]
conciseness_reward_func = REWARDS["conciseness_reward_func"]
repetition_reward_func = REWARDS["repetition_reward_func"]
cot_clarity_reward_func = REWARDS["cot_clarity_reward_func"]
lead_qualification_reward_func = REWARDS["lead_qualification_reward_func"]


def main(argv: Sequence[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    try:
        return args.verb(args)
    except (UserError, OSError) as error:
        print(f"reward_funcs: {error}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="reward_funcs.py", description="The reward lab: list, score a file, attack.")
    verbs = parser.add_subparsers(required=True, metavar="list | score | attack")
    listing = verbs.add_parser("list", help="the rewards by name, with their range and what they pay")
    listing.set_defaults(verb=list_rewards)
    score = verbs.add_parser("score", help="score a JSONL file of completions")
    score.add_argument("--rewards", default=",".join(REWARDS), help="names, or path/to/file.py:function; default: all")
    score.add_argument("--input", type=Path, required=True, help='lines of {"completion": ..., "answer": ...}')
    score.add_argument("--output", type=Path, required=True, help="the same lines with a field 'scores'")
    score.add_argument("--published", action="store_true", help="the published semantics, for those that have them")
    score.add_argument("--set", action="append", default=[], metavar="NAME.ARG=VALUE", help="an argument of one reward")
    score.set_defaults(verb=score_rewards)
    attack = verbs.add_parser("attack", help="can the rewards of a config be cheated? Exit code 1 if so")
    attack.add_argument("--config", required=True)
    margin = "points by which a degenerate completion may beat the honest wrong one; default: a tenth of what getting "
    margin += "it right adds (less is shaping, more is a lesson)"
    attack.add_argument("--margin", type=float, help=margin)
    attack.add_argument("overrides", nargs="*", metavar="section.key=value", help="over the config")
    attack.set_defaults(verb=attack_rewards)
    return parser


def list_rewards(args: argparse.Namespace) -> int:
    table = _table("reward", "range", "paid for", "arguments")
    for name, function in {**REWARDS, **LEARNED}.items():
        table.add_row(name, *_described(function), ", ".join(_arguments(function)))
    _console().print(table)
    return 0


def _described(function: RewardFunction) -> tuple[str, str]:
    """The range, and in one line what is paid: from the docstring's first line, `range: what`."""
    says, _, what = (inspect.getdoc(function) or "").partition("\n")[0].partition(": ")
    return says, what


def _arguments(function: RewardFunction) -> list[str]:
    parameters = inspect.signature(function).parameters.values()
    settings = [p for p in parameters if p.kind is p.KEYWORD_ONLY]
    return [p.name if p.default is p.empty else f"{p.name}={p.default}" for p in settings]


def score_rewards(args: argparse.Namespace) -> int:
    from llm_grpo.rewards.scoring import score_file

    names = [name.strip() for name in args.rewards.split(",") if name.strip()]
    if len(set(names)) != len(names) or not names:
        raise UserError(f"--rewards: give each name once, apart by commas; given: {args.rewards!r}.")
    settings = _settings(args.set, names)
    for name in names:
        if args.published and name in REWARDS and "published" in inspect.signature(REWARDS[name]).parameters:
            settings[name].setdefault("published", True)
    strict = {name: {"max_failed": 0.0} if ".py" in name else {} for name in names}  # here the first failure is news
    rewards = {name: build_reward(name, settings[name], **strict[name]) for name in names}
    tally = score_file(rewards, args.input.expanduser(), args.output.expanduser())
    table = _table("reward", "scored", "null", "mean")
    for name, count in tally.scored.items():
        table.add_row(name, f"{count}", f"{tally.lines - count}", f"{tally.total[name] / count:.4f}" if count else "-")
    _console().print(table, f"{tally.lines} lines, {tally.without_answer} of them without an answer, in {args.output}")
    return 0


def _settings(texts: Sequence[str], names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """NAME.ARG=VALUE, with the value read as YAML reads it."""
    from llm_grpo.config.yaml_text import parse_value

    settings: dict[str, dict[str, Any]] = {name: {} for name in names}
    for text in texts:
        place, equals, value = text.partition("=")
        name, _, argument = place.rpartition(".")
        if name not in settings or not equals:
            raise UserError(f"--set {text}: write NAME.ARG=VALUE, NAME one of {', '.join(names)}.")
        settings[name][argument] = parse_value(value, f"--set {place}")
    return settings


def attack_rewards(args: argparse.Namespace) -> int:
    from llm_grpo.config.loading import load_config
    from llm_grpo.problems import build_rewards
    from llm_grpo.rewards.attack import attack, unsteady

    if args.margin is not None and not 0 <= args.margin < float("inf"):
        raise UserError(f"--margin: points from 0 up, not {args.margin}.")
    config = load_config(args.config, overrides=args.overrides)
    rewards = build_rewards(config.rewards)
    answer_format, example = _answer_format(config), _example_of(config)
    verdicts, margin = attack(rewards, answer_format, args.margin, **example)
    _show_attack(verdicts, rewards, margin)
    failed = _show_troubles(verdicts, rewards)
    chancy = unsteady(rewards, answer_format, **example)
    for sentence in chancy:
        _console().print(f"{sentence}.", markup=False)
    return 1 if failed or chancy or any(verdict.fault for verdict in verdicts) else 0


def _example_of(config: Config) -> dict[str, Example]:
    """The first training example as the model is asked it, for rewards that may read more than the answer."""
    from dataclasses import replace

    from llm_grpo.problems import system_prompt, worked_examples
    from llm_grpo.prompts import with_system
    from llm_grpo.tasks import build_task

    if all(reward.name in {**REWARDS, **LEARNED} for reward in config.rewards):
        return {}  # ours read no column but the answer, and a learned one is better asked what the cases answer
    task = build_task(config.task.name, config.task.args)
    try:
        example = task.load("train").examples[0]
        messages = with_system(example.prompt, system_prompt(config, task), worked_examples(config, task))
    except UserError as error:
        _console().print(f"The columns of the data are not handed over, only the answer: {error}", markup=False)
        return {}
    return {"example": replace(example, prompt=tuple(messages))}


def _answer_format(config: Config) -> str:
    """How the config's task wants its answers: the name of its judge."""
    from llm_grpo.answers.judging import format_of
    from llm_grpo.rewards.attack import FORMATS
    from llm_grpo.tasks import build_task

    judge = build_task(config.task.name, config.task.args).judge
    return format_of(judge) or next((name for name, known in FORMATS.items() if known is judge), "xml")


def _show_attack(verdicts: Sequence[Verdict], rewards: Sequence[Reward], margin: float) -> None:
    from llm_grpo.rewards.attack import backwards

    heads = [f"{reward.label.removesuffix('_reward_func')} x{reward.weight:g}" for reward in rewards]
    table = _table("completion", "total", *heads, "")
    for verdict in verdicts:
        scores = ["-" if score is None else f"{score:.3g}" for score in verdict.scores.values()]
        style = "red" if verdict.fault else {"right": "green", "wrong": "yellow"}.get(verdict.case.kind)
        table.add_row(verdict.case.name, f"{verdict.total:.3f}", *scores, verdict.fault or "ok", style=style)
    faults = sum(bool(verdict.fault) for verdict in verdicts)
    console = _console()
    console.print(table)
    for reward in backwards(verdicts, rewards):
        console.print(
            f"{reward.label} x{reward.weight:g} pays a wrong answer more than a right one: is the sign right?"
        )
    console.print(f"margin over the honest wrong one: {margin:g} points")
    console.print(f"{faults} of {len(verdicts)} cases are not paid as they should" if faults else "no attack succeeds")


def _show_troubles(verdicts: Sequence[Verdict], rewards: Sequence[Reward]) -> bool:
    """Name what hung, died, raised or printed while it was attacked; True where a case got no score."""
    troubles = [(r.label, trouble) for r in rewards for trouble in getattr(r.function, "troubles", ())]
    for label, trouble in troubles:
        case = "" if trouble.row is None else f" (case '{verdicts[trouble.row].case.name}')"
        style = "red" if trouble.kind == "failed" else None
        _console().print(f"{label} {trouble.said}{case}", markup=False, style=style)
    return any(trouble.kind == "failed" for _, trouble in troubles)


def _console() -> Console:
    from rich.console import Console

    return Console() if sys.stdout.isatty() else Console(width=140)


def _table(*headings: str) -> Any:
    from rich import box
    from rich.table import Table

    return Table(*headings, box=box.SIMPLE)


if __name__ == "__main__":
    sys.exit(main())
