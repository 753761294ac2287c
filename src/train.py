"""Train a model with GRPO: config -> task -> rewards -> policy -> GRPO -> adapter, evaluated before and after.

python src/train.py --config configs/demo.yaml
python src/train.py --config configs/grpo.yaml grpo.max_steps=500 --dry-run
python src/train.py --config outputs/demo/config.yaml --resume
"""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from rich.panel import Panel

from llm_grpo import command, processes, runs
from llm_grpo.config.loading import load_config
from llm_grpo.config.schema import Config
from llm_grpo.errors import NotAtHandError, UserError
from llm_grpo.files import read_json, write_json
from llm_grpo.report import notices
from llm_grpo.runs import Run

console = command.console()


def main(argv: list[str] | None = None) -> int:
    args = arguments().parse_intermixed_args(argv)
    config = load_config(args.config, args.overrides)
    if args.dry_run:
        return dry_run(config)
    if args.resume:
        runs.check_place(Path(args.config), config)
    code = train(config, overwrite=args.overwrite, resume=args.resume)
    return code if processes.is_first() else 0


def arguments() -> argparse.ArgumentParser:
    parser = command.parser(__doc__)
    parser.add_argument("--config", required=True, metavar="YAML", help="for example configs/demo.yaml")
    parser.add_argument("--dry-run", action="store_true", help="what the config will do; needs no GPU, loads no model")
    parser.add_argument("--resume", action="store_true", help="go on from the run's last checkpoint")
    parser.add_argument("--overwrite", action="store_true", help="replace a run of the same name")
    command.add_overrides(parser)
    return parser


def dry_run(config: Config) -> int:
    """The effective config with the origin of each value, and the batch explained. Loads data, no model."""
    from llm_grpo.planning.plan import check_window, explain
    from llm_grpo.planning.starting import starting
    from llm_grpo.problems import build_rewards, check_data
    from llm_grpo.report.tables import plan_table, settings_table
    from llm_grpo.rollouts import choose_engine, refused
    from llm_grpo.tasks import build_task

    check_window(config.model)
    config, _ = starting(config)
    if refused(config.rollouts.engine, config):  # on every machine
        choose_engine(config.rollouts.engine, training=config)
    build_rewards(config.rewards)
    task = build_task(config.task.name, config.task.args)
    console.print(settings_table(config))
    try:
        examples = len(task.load("train").examples)
        check_data(config, task)
    except NotAtHandError as error:
        examples = task.published_train_size
        known = f"counted by their published size ({examples:,})" if examples else "so shares of them are not known"
        console.print(f"The data are not at hand, {known}: {error}", style="yellow", markup=False)
    console.print(plan_table(explain(config, examples)))
    return 0


def train(config: Config, *, overwrite: bool, resume: bool) -> int:
    """The whole job; what is finished is on disk before the next thing starts."""
    if resume and overwrite:
        raise UserError("--resume goes on with a run, --overwrite replaces it. Give one of them.")
    from llm_grpo.checkpoints import fingerprint
    from llm_grpo.environment import made_with, resumed, write_environment
    from llm_grpo.evaluation.scoring import evaluator
    from llm_grpo.planning.plan import check_window
    from llm_grpo.planning.preflight import logging_choice, missing_for_training, standby_choice, unsloth_first
    from llm_grpo.planning.skipping import skip_choice
    from llm_grpo.planning.starting import starting
    from llm_grpo.problems import build_rewards, check_data, prepare
    from llm_grpo.tasks import build_task

    processes.meet(config.grpo.get("ddp_timeout", 1800))
    choices = standby_choice(config)
    if (count := processes.count()) > 1:
        choices["processes"] = f"{count}, each with a batch as the config says; the first writes"
    unsloth_first(config)
    rewards = build_rewards(config.rewards, runs.of(config))
    rewards = [replace(reward, function=processes.together(reward.function)) for reward in rewards]
    task = build_task(config.task.name, config.task.args)
    if missing := dict.fromkeys(chain(*processes.of_all(missing_for_training(config)))):
        console.print(notices.cannot_run(missing), markup=False)
        return 2
    check_window(config.model)
    config, start = starting(config, resumed=resume)
    choices |= {"rollouts.skip": skip_choice(config)[1]}
    task.load("train")  # a fault in the data is told before anything slow starts
    check_data(config, task)
    if resume:
        run, checkpoint = processes.from_first(lambda: runs.reopen(config, fingerprint(task.load)))
    else:
        run, checkpoint = processes.from_first(lambda: runs.create(config, overwrite=overwrite)), None
    choices |= logging_choice(config, run.folder)
    console.print(f"Run {run.folder}: loading {config.model.name} ...")
    with command.library_output_in(run.log):
        from llm_grpo.loaders import bring_loader

        bring_loader(config)
        from llm_grpo.device import hardware
        from llm_grpo.policy import load_policy, load_weights, save_weights
        from llm_grpo.report.curves import draw
        from llm_grpo.report.page import write_report
        from llm_grpo.rollouts.shared import shared
        from llm_grpo.training.arguments import changed_in_silence, check_arguments, wanted_arguments
        from llm_grpo.training.optimising import optimise
        from llm_grpo.training.sft import learn_solutions
        from llm_grpo.training.trainer import build_trainer
        from llm_grpo.training.watching import watch

        check_arguments(config, run, [reward.weight for reward in rewards])
        policy = load_policy(config)
        if start:
            load_weights(policy, start)
    choices |= policy.choices
    if checkpoint:
        choices["--resume"] = resumed(checkpoint, made_with(policy.engine.name))
    write_environment(run.environment, choices, hardware())
    notices.say_choices(console, choices)

    limits = {"train": None, "validation": config.evaluation.validation_limit, "test": config.evaluation.limit}
    data = {split: prepare(task, split, config, policy.tokenizer, limit) for split, limit in limits.items()}
    notices.say_left_out(console, data.values())
    evaluate = evaluator(config, task, shared(policy.engine), rewards, partial(command.progress, console))

    def measure(file: Path, what: str) -> None:
        """What an earlier session of the run has measured stands."""
        if not processes.from_first(lambda: bool(read_json(file))):
            try:
                report = evaluate(data["test"].problems, f"evaluating {what}")
            except KeyboardInterrupt:  # which has its own word, last
                console.print(f"\n{notices.again(run)}", highlight=False, markup=False, soft_wrap=True)
                raise
            write_json(file, report)
            notices.say_prospects(console, report)

    if config.sft:
        measure(run.before, "before training")
        stop = learn_solutions(config, policy, task, data["train"].problems, run, console)
        if stop.number is not None:
            console.print(f"Stopped. {notices.again(run)}", highlight=False, markup=False, soft_wrap=True)
            return stop.exit_code
        measure(run.after_sft, "after SFT")
    watched = watch(
        config, run, console, lambda: evaluate(data["validation"].problems), lambda folder: save_weights(policy, folder)
    )
    with command.library_output_in(run.log):
        wanted = wanted_arguments(config, run, [reward.weight for reward in rewards], policy.engine.name)
        trainer = build_trainer(config, policy, task, data["train"].problems, rewards, run, watched)
    notices.say_choices(console, changed_in_silence(wanted, trainer.args) | trainer.choices)

    measure(run.before, "before training")
    if checkpoint and not checkpoint.of_grpo:
        processes.from_first(lambda: runs.forget_after(run, None))  # steps of GRPO no checkpoint has are done again
    processes.from_first(lambda: runs.forget_replaced(run))
    try:
        trained = optimise(trainer, watched, run, checkpoint if checkpoint and checkpoint.of_grpo else None)
    finally:  # whatever happened: the picture of what was learned
        if processes.is_first():
            draw(run)
            write_report(run)
        if run.last.is_dir():
            console.print(f"What was learned is in {run.last}.", highlight=False, soft_wrap=True)
    try:
        if trained.finished and not watched.stop.asked():
            return conclude(config, policy, data["test"].problems, run, evaluate, trained) or trained.code
        said = "Stopped."
    except KeyboardInterrupt:
        said = "Training is done, its evaluation is not."
    console.print(f"{said} {notices.again(run)}", highlight=False, markup=False, soft_wrap=True)
    return watched.stop.exit_code


def conclude(config: Config, policy: Any, problems: Any, run: Run, evaluate: Callable[..., Any], trained: Any) -> int:
    """Evaluate the weights that were best on validation, sum up, merge, and answer a prompt with the merged model.

    Returns the exit code: 1 where the merge could not be done.
    """
    from llm_grpo.policy import load_weights
    from llm_grpo.report.page import write_report
    from llm_grpo.report.summary import say_result, summarise

    chosen, step = processes.from_first(lambda: (run.chosen_weights(), run.chosen_step()))
    load_weights(policy, chosen)
    before = read_json(run.before)
    after = {**evaluate(problems, "evaluating after training"), "adapter": str(chosen), "step": step}
    if not processes.is_first():
        return 0
    write_json(run.after, after)
    summary = summarise(config, run, before, after, trained)
    write_json(run.summary, summary)
    say_result(console, run, summary, before, after)
    write_report(run)
    merged = merge_and_answer(config, run, chosen, problems[0])
    console.print(notices.where(run))
    console.print(notices.try_next(run), soft_wrap=True, highlight=False, markup=False)
    return 0 if merged else 1


def merge_and_answer(config: Config, run: Run, learned: Path, problem: Any) -> bool:
    """16-bit weights beside what was learned; False where a merge cannot be done, which costs nothing finished."""
    from llm_grpo.device import has_gpu
    from llm_grpo.export import merge
    from llm_grpo.rollouts import Sampling
    from llm_grpo.rollouts.transformers import load_engine

    base, revision = config.model.merge_source()
    try:
        merge(learned, run.merged, base, revision=revision, overwrite=True)
    except UserError as error:
        words = f"{command.python()} src/merge.py --run {shlex.quote(str(run.folder))}"
        again = f"The {run.learns} is whole. Try again with: {words}"
        console.print(f"Not merged: {error}\n{again}", markup=False, soft_wrap=True)
        return False
    if has_gpu():
        return True  # the policy and its vLLM engine are still in there; a second model would not fit beside them
    with command.library_output_in(run.log):
        engine = load_engine(str(run.merged), None, None)
        answer = engine.generate([problem.messages], Sampling(config.answer_tokens("train")))[0][0].text
    said = f"{problem.example.question}\n\n{answer.strip()}\n\n(right: {problem.example.answer})"
    console.print(Panel(said, title="The merged model answers", title_align="left"), markup=False)
    return True


if __name__ == "__main__":
    command.run(main)
