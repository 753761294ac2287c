"""Train a model with GRPO: config -> task -> rewards -> policy -> GRPO -> adapter, evaluated before and after.

python src/train.py --config configs/demo.yaml
python src/train.py --config configs/grpo.yaml grpo.max_steps=500 --dry-run
python src/train.py --config outputs/demo/config.yaml --resume
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.panel import Panel

from llm_grpo import command, runs
from llm_grpo.config.schema import Config, load_config
from llm_grpo.errors import UserError
from llm_grpo.runs import Run

console = command.console()
QUESTION = "Mia has 6 boxes with 7 pens in each and gives 12 to Tom. How many pens are left?"


def main(argv: list[str] | None = None) -> int:
    args = arguments().parse_intermixed_args(argv)
    config = load_config(args.config, args.overrides)
    if args.dry_run:
        return dry_run(config)
    return train(config, overwrite=args.overwrite, resume=args.resume)


def arguments() -> argparse.ArgumentParser:
    parser = command.parser(__doc__)
    parser.add_argument("--config", required=True, metavar="YAML", help="for example configs/demo.yaml")
    parser.add_argument(
        "--dry-run", action="store_true", help="show the effective config and what it will do; needs no GPU"
    )
    parser.add_argument("--resume", action="store_true", help="go on from the run's last checkpoint")
    parser.add_argument("--overwrite", action="store_true", help="replace a run of the same name")
    command.add_overrides(parser)
    return parser


def dry_run(config: Config) -> int:
    """The effective config with the origin of each value, and the batch explained. Loads data, no model."""
    from llm_grpo.planning.plan import check_window, explain
    from llm_grpo.problems import build_rewards
    from llm_grpo.report.tables import plan_table, settings_table
    from llm_grpo.rollouts import choose_engine
    from llm_grpo.tasks import build_task

    check_window(config)
    if config.lora is None:
        choose_engine(config.rollouts.engine, lora=False)  # no machine generates from such a run with unsloth or vllm
    build_rewards(config.rewards)
    task = build_task(config.task.name, config.task.args)
    console.print(settings_table(config))
    try:
        examples = len(task.load("train").examples)
    except UserError as error:
        examples = task.published_train_size
        known = f"counted by their published size ({examples:,})" if examples else "so shares of them are not known"
        console.print(f"The data are not at hand, {known}: {error}", style="yellow", markup=False)
    console.print(plan_table(explain(config, examples)))
    return 0


def train(config: Config, *, overwrite: bool, resume: bool) -> int:
    """The whole job; what is finished is on disk before the next thing starts."""
    from llm_grpo.planning.plan import check_window
    from llm_grpo.planning.preflight import logging_choice, missing_for_training, standby_choice
    from llm_grpo.problems import build_rewards, prepare
    from llm_grpo.tasks import build_task

    rewards = build_rewards(config.rewards)
    task = build_task(config.task.name, config.task.args)
    if missing := missing_for_training(config):
        return cannot_run(missing)
    check_window(config)
    task.load("train")  # a fault in the data is told before anything slow starts
    run = runs.create(config, overwrite=overwrite, resume=resume)
    if resume and run.summary.is_file() and runs.last_step(run) >= config.grpo["max_steps"] > 0:
        raise UserError(
            f"--resume: {run.folder} is finished ({runs.last_step(run)} steps). Raise grpo.max_steps to go on."
        )
    choices = logging_choice(config, run.folder) | standby_choice(config)
    console.print(f"Run {run.folder}: loading {config.model.name} ...")
    with command.library_output_in(run.log):
        from llm_grpo.policy import hardware, load_policy, save_weights
        from llm_grpo.report.curves import draw
        from llm_grpo.training.arguments import changed_in_silence
        from llm_grpo.training.trainer import build_trainer, optimise
        from llm_grpo.training.watching import watch

        policy = load_policy(config)
    choices |= policy.choices
    runs.write_environment(run, choices, hardware())
    command.say_choices(console, choices)

    limits = {"train": None, "validation": config.evaluation.validation_limit, "test": config.evaluation.limit}
    data = {split: prepare(task, split, config, policy.tokenizer, limit) for split, limit in limits.items()}
    command.say_left_out(console, data.values())
    evaluate = evaluator(config, task, policy.engine, rewards)
    if not (resume and run.before.is_file()):
        runs.write_json(run.before, evaluate(data["test"].problems, "evaluating before training"))
    runs.forget_replaced(run)

    watched = watch(
        config, run, console, lambda: evaluate(data["validation"].problems), lambda folder: save_weights(policy, folder)
    )
    with command.library_output_in(run.log):
        trainer = build_trainer(config, policy, task, data["train"].problems, rewards, run, watched)
    command.say_choices(console, changed_in_silence(config, trainer.args))
    try:
        seconds, finished = optimise(trainer, watched, run, run.last_checkpoint() if resume else None)
    finally:  # whatever happened: what was learned, and its picture
        save_weights(policy, run.last)
        draw(run)
        console.print(f"What was learned is in {run.last}.", highlight=False, soft_wrap=True)
    if not finished:
        console.print(f"Stopped. {again(run)}", highlight=False, markup=False, soft_wrap=True)
        return 130
    try:
        conclude(config, policy, data["test"].problems, run, evaluate, seconds)
    except KeyboardInterrupt:
        said = f"Training is done, its evaluation is not. {again(run)}"
        console.print(said, highlight=False, markup=False, soft_wrap=True)
        return 130
    return 0


def evaluator(config: Config, task: Any, engine: Any, rewards: list) -> Callable[..., dict[str, Any]]:
    """evaluate(problems, what): the same parser and rewards before, during and after; a bar where `what` is given."""
    from llm_grpo.evaluation.scoring import evaluate
    from llm_grpo.rollouts import Sampling

    k = config.evaluation.samples
    max_tokens = config.evaluation.max_tokens or config.grpo["max_completion_length"]
    samples = (
        Sampling(max_tokens, config.grpo["temperature"], config.grpo["top_p"], k, config.run.seed) if k > 1 else None
    )

    def run(problems: Any, what: str | None = None) -> dict[str, Any]:
        drawn = samples if what else None
        with command.progress(console, what, len(problems) * (2 if drawn else 1)) as on_done:
            return evaluate(engine, task, problems, rewards, max_tokens, drawn, on_done)

    return run


def conclude(
    config: Config, policy: Any, problems: Any, run: Run, evaluate: Callable[..., Any], seconds: float
) -> None:
    """Evaluate the weights that were best on validation, sum up, merge, and answer a prompt with the merged model."""
    from llm_grpo.diagnosis.diagnoses import diagnose
    from llm_grpo.evaluation.comparison import compare
    from llm_grpo.evaluation.scoring import without_items
    from llm_grpo.policy import load_weights
    from llm_grpo.report.confusion import draw_confusion
    from llm_grpo.report.tables import classes_table, comparison_table
    from llm_grpo.training.watching import best_validation

    chosen, last = run.chosen_weights(), runs.last_step(run)
    is_best = chosen == run.best
    step = best_validation(run)["step"] if is_best else last
    evaluated = f"{chosen.name}, step {step} ({'best on validation' if is_best else 'the last'})"
    load_weights(policy, chosen)
    before, after = json.loads(run.before.read_text(encoding="utf-8")), evaluate(problems, "evaluating after training")
    runs.write_json(run.after, {**after, "adapter": str(chosen), "step": step})
    paired, diagnoses = compare(before, after), diagnose(after, list(runs.read_jsonl(run.metrics)))
    draw_confusion({"before": before, "after": after}, run.confusion)
    facts = {"name": config.run.name, "model": config.model.name, "task": config.task.name, "seed": config.run.seed}
    facts |= {"steps": last, "train_seconds": round(seconds, 1), "evaluated": evaluated, "diagnoses": diagnoses}
    runs.write_json(
        run.summary, {**facts, "before": without_items(before), "after": without_items(after), "paired": paired}
    )
    console.print(comparison_table(before, after, paired, f"{after['n']} held-out problems, before and after training"))
    if classes := classes_table(after, "after training, by class"):
        console.print(classes)
    command.say_diagnoses(console, diagnoses)
    console.print(f"{last} steps in {seconds:.0f} s of training; evaluated after: {evaluated}", highlight=False)
    merge_and_answer(config, run, chosen, problems[0])
    console.print(Panel(where(run), title="Where everything is", title_align="left"))
    console.print(try_next(run), soft_wrap=True, highlight=False, markup=False)  # whole lines, to be copied


def merge_and_answer(config: Config, run: Run, learned: Path, problem: Any) -> None:
    """16-bit weights beside what was learned; a merge that cannot be done says so and costs nothing finished."""
    from llm_grpo.export import merge
    from llm_grpo.rollouts import Sampling
    from llm_grpo.rollouts.transformers import load_engine

    try:
        base = config.model.merge_base or config.model.name
        revision = config.model.revision if base == config.model.name else None
        merge(learned, run.merged, base, revision=revision, overwrite=True)
    except UserError as error:
        once_more = f"{command.python()} src/merge.py --run {run.folder}"
        console.print(
            f"Not merged: {error}\nThe {run.learns} is whole. Try again with: {once_more}", markup=False, soft_wrap=True
        )
        return
    if policy_holds_the_gpu():
        return  # the policy and its vLLM engine are still in there; a second model would not fit beside them
    with command.library_output_in(run.log):
        engine = load_engine(str(run.merged), None, None)
        answer = engine.generate([problem.messages], Sampling(config.grpo["max_completion_length"]))[0][0].text
    said = f"{problem.messages[-1]['content']}\n\n{answer.strip()}\n\n(right: {problem.example.answer})"
    console.print(Panel(said, title="The merged model answers", title_align="left"), markup=False)


def policy_holds_the_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def where(run: Run) -> str:
    return (
        f"{run.learns:<15}{run.chosen_weights()}\n"
        f"merged model   {run.merged}\n"
        f"numbers        {run.summary}, {run.metrics}, {run.folder / 'eval'}\n"
        f"every answer   {run.completions}\n"
        f"curves         {run.curves}"
    )


def try_next(run: Run) -> str:
    python = command.python()
    return (
        f"Try next:\n"
        f"  {python} src/infer.py --run {run.folder} --prompt '{QUESTION}'\n"
        f"  {python} src/eval.py --config {run.config_file} --run {run.folder} --split test --samples 4\n"
        f"  {python} src/train.py --config configs/grpo.yaml --dry-run"
    )


def again(run: Run) -> str:
    """The command that goes on; without a checkpoint there is nothing to go on from."""
    command_line = f"{command.python()} src/train.py --config {run.config_file}"
    if run.last_checkpoint() is None:
        return f"There is no checkpoint yet (grpo.save_steps); begin again with:\n  {command_line} --overwrite"
    return f"Go on with:\n  {command_line} --resume"


def cannot_run(missing: list[str]) -> int:
    """One screen: what is missing here, and what can be done instead."""
    lines = "\n".join(f"- {line}" for line in missing)
    said = f"This machine lacks what the config asks for:\n{lines}\n\nWhat works here:\n"
    said += "  make demo                                                    the same job on a small model, on a CPU\n"
    said += "  python src/train.py --config YAML --dry-run                  what this config would do"
    console.print(Panel(said, title="Cannot run here", title_align="left"), markup=False)
    return 2


if __name__ == "__main__":
    command.quiet_libraries()
    command.run(main)
