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

from llm_grpo.answers.formats import extract_hash_answer, extract_xml_answer
from llm_grpo.errors import UserError
from llm_grpo.records import Example
from llm_grpo.rewards import LEARNED, REWARDS, build_reward

if TYPE_CHECKING:
    from rich.console import Console

    from llm_grpo.config.schema import Config

globals().update(REWARDS)  # each under its published name
__all__ = [*REWARDS, "extract_hash_answer", "extract_xml_answer"]


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
    from llm_grpo.report.lab import rewards_table

    _console().print(rewards_table({**REWARDS, **LEARNED}))
    return 0


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
    from llm_grpo.report.lab import tally_table  # behind the mistakes, which are told at once

    said = f"{tally.lines} lines, {tally.without_answer} of them without an answer, in {args.output}"
    _console().print(tally_table(tally), said)
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
    from llm_grpo.report import lab
    from llm_grpo.rewards.attack import attack, unsteady

    if args.margin is not None and not 0 <= args.margin < float("inf"):
        raise UserError(f"--margin: points from 0 up, not {args.margin}.")
    config, console = load_config(args.config, overrides=args.overrides), _console()
    rewards = build_rewards(config.rewards)
    answer_format, example = _answer_format(config), _example_of(config)
    verdicts, margin = attack(rewards, answer_format, args.margin, **example)
    troubles = [(r.label, trouble) for r in rewards for trouble in getattr(r.function, "troubles", ())]
    console.print(lab.attack_table(verdicts, rewards))
    for line in lab.attack_lines(verdicts, rewards, margin):
        console.print(line)
    for label, trouble in troubles:
        console.print(lab.trouble_text(label, trouble, verdicts))
    chancy = unsteady(rewards, answer_format, **example)
    for sentence in chancy:
        console.print(f"{sentence}.")
    failed = any(trouble.kind == "failed" for _, trouble in troubles)
    return 1 if failed or chancy or any(verdict.fault for verdict in verdicts) else 0


def _example_of(config: Config) -> dict[str, Example]:
    """The first training example as the model is asked it, for rewards that may read more than the answer."""
    from llm_grpo.problems import first_example

    if all(reward.name in {**REWARDS, **LEARNED} for reward in config.rewards):
        return {}  # ours read no column but the answer, and a learned one is better asked what the cases answer
    try:
        return {"example": first_example(config)}
    except UserError as error:
        _console().print(f"The columns of the data are not handed over, only the answer: {error}")
        return {}


def _answer_format(config: Config) -> str:
    """How the config's task wants its answers: the name of its judge."""
    from llm_grpo.answers.judging import format_of
    from llm_grpo.rewards.attack import FORMATS
    from llm_grpo.tasks import build_task

    judge = build_task(config.task.name, config.task.args).judge
    return format_of(judge) or next((name for name, known in FORMATS.items() if known is judge), "xml")


def _console() -> Console:
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else 140, markup=False)


if __name__ == "__main__":
    sys.exit(main())
