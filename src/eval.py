"""Score a model on a split, score completions made elsewhere, or compare two evaluations item by item.

python src/eval.py --config outputs/demo/config.yaml --run outputs/demo --split test --limit 100
python src/eval.py --config configs/demo.yaml --model examples/tiny_qwen2 --samples 8
python src/eval.py --config configs/demo.yaml --completions mine.jsonl
python src/eval.py --compare outputs/demo/eval/before.json outputs/demo/eval/after.json
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from llm_grpo import command
from llm_grpo.config.loading import load_config
from llm_grpo.config.schema import Config
from llm_grpo.errors import UserError
from llm_grpo.records import Completion, Problem, Reward, Task

console = command.console()


def main(argv: list[str] | None = None) -> int:
    args = arguments().parse_intermixed_args(argv)
    if args.compare:
        if args.run or args.model or args.adapter or args.completions or args.overrides:
            raise UserError("--compare takes two files and nothing else.")
        return show_comparison(*args.compare)
    if args.completions and (args.samples > 1 or args.run or args.model or args.adapter):
        raise UserError("--completions scores what stands in the file: no --samples, no model.")
    if args.output:
        command.check_output(Path(args.output))
    config = config_for(args)
    from llm_grpo.problems import build_rewards
    from llm_grpo.runs import Run
    from llm_grpo.tasks import build_task

    rewards = build_rewards(config.rewards, Run(Path(args.run or "outputs")))
    task = build_task(config.task.name, config.task.args)
    report = (score_file if args.completions else score_model)(args, config, task, rewards)
    from llm_grpo.diagnosis.diagnoses import diagnose
    from llm_grpo.evaluation.files import new_report
    from llm_grpo.files import write_json
    from llm_grpo.report import notices
    from llm_grpo.report.confusion import draw_confusion
    from llm_grpo.report.tables import classes_table, evaluation_table

    folder = Path(args.run) / "eval" if args.run else Path("outputs/eval")
    output = Path(args.output) if args.output else new_report(folder, args.split)
    diagnoses = diagnose(report)
    write_json(output, {**report, "diagnoses": diagnoses})
    console.print(evaluation_table(report, f"{report['what']}: {report['n']} problems of the {args.split} split"))
    if classes := classes_table(report, "by class"):
        console.print(classes)
    notices.say_diagnoses(console, diagnoses)
    console.print(f"Every item: {output}")
    if draw_confusion({report["what"]: report}, picture := output.with_suffix(".png")):
        console.print(f"Confusion: {picture}")
    return 0


def arguments() -> argparse.ArgumentParser:
    parser = command.parser(__doc__)
    parser.add_argument(
        "--config", metavar="YAML", help="task, prompt and rewards, and the model if none is named (default: --run's)"
    )
    command.add_model_arguments(parser)
    completions = 'score JSONL lines {"id": ..., "completion": ...} instead of a model'
    parser.add_argument("--completions", metavar="FILE", help=completions)
    parser.add_argument("--compare", nargs=2, metavar=("A.json", "B.json"), help="the paired table of two evaluations")
    splits = ["train", "validation", "test"]
    parser.add_argument("--split", default="test", choices=splits, help="default %(default)s")
    limit = "the first N problems (default: evaluation.limit; all with --completions)"
    parser.add_argument("--limit", type=int, metavar="N", help=limit)
    samples = "besides the greedy answer: avg@K, maj@K, pass@K"
    parser.add_argument("--samples", type=int, default=1, metavar="K", help=samples)
    output = "where the JSON goes (default: the run's eval/, or outputs/eval/)"
    parser.add_argument("--output", metavar="FILE", help=output)
    command.add_overrides(parser)
    return parser


def config_for(args: argparse.Namespace) -> Config:
    from llm_grpo.rollouts.loading import config_of

    if args.limit is not None and args.limit < 1 or args.samples < 1:
        raise UserError(f"--limit ({args.limit}) and --samples ({args.samples}) must be at least 1.")
    if args.config:
        return load_config(args.config, args.overrides)
    config = config_of(args, args.overrides)
    if config is None:
        raise UserError("Which task? Give --config YAML (or --run outputs/NAME, whose config is used).")
    return config


def score_model(args: argparse.Namespace, config: Config, task: Task, rewards: list[Reward]) -> dict[str, Any]:
    """Greedy answers of the model to the split, and sampled ones where --samples asks for them."""
    from llm_grpo.evaluation.scoring import evaluate, sampling_of
    from llm_grpo.problems import prepare
    from llm_grpo.report import notices
    from llm_grpo.rollouts.loading import open_engine

    task.load(args.split)
    with command.library_output_in(Path("outputs/libraries.log")):
        engine, what = open_engine(args, config)
    data = prepare(task, args.split, config, engine.tokenizer, args.limit or config.evaluation.limit)
    notices.say_left_out(console, [data])
    samples = sampling_of(config, args.samples)
    with command.progress(console, "evaluating", len(data.problems) * (2 if samples else 1)) as on_done:
        report = evaluate(engine, task, data.problems, rewards, config.answer_tokens(), samples, on_done)
    return {"what": what, "split": args.split, **report}


def score_file(args: argparse.Namespace, config: Config, task: Task, rewards: list[Reward]) -> dict[str, Any]:
    """Completions made elsewhere, matched by id; a problem without one counts as wrong. Raises UserError."""
    from llm_grpo.answers.thinking import thought_of
    from llm_grpo.evaluation.files import read_completions
    from llm_grpo.evaluation.scoring import report_on, score

    texts = read_completions(Path(args.completions))
    examples = task.load(args.split).examples
    known = {example.id for example in examples}
    if unknown := [name for name in texts if name not in known]:
        raise UserError(
            f"{args.completions}: {len(unknown)} ids are not in the {args.split} split, the first is '{unknown[0]}'."
        )
    examples = examples[: args.limit]  # the file may answer more than is asked for
    problems = [Problem(example, example.prompt) for example in examples]
    given = [texts.get(example.id, "") for example in examples]
    completions = [Completion(text, 0, thought=thought_of(text, config.prompt.thinking)) for text in given]
    report = report_on(score(task, problems, completions, rewards), rewards, task)
    missing = sum(example.id not in texts for example in examples)
    what = f"{args.completions}{f' ({missing} problems without a completion count as wrong)' if missing else ''}"
    return {"what": what, "split": args.split, **report, "mean_tokens": None, "truncated_share": None}


def show_comparison(first: str, second: str) -> int:
    """The paired table, and the items gained and lost with their texts."""
    from llm_grpo.evaluation.comparison import compare
    from llm_grpo.evaluation.files import read_report
    from llm_grpo.report.tables import changed_items, comparison_table

    before, after = read_report(Path(first)), read_report(Path(second))
    paired = compare(before, after)
    console.print(comparison_table(before, after, paired, f"{paired['n']} problems: {first} against {second}"))
    for name in ("gained", "lost"):
        console.print(changed_items(before, after, paired[f"{name}_items"], name))
    return 0


if __name__ == "__main__":
    command.run(main)
