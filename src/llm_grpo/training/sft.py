"""SFT before GRPO: the same weights learn the task's worked solutions, by TRL's SFTTrainer.

The loss is on the answer alone, behind the prompt that GRPO and every evaluation render. What was learned lies in
adapter_sft/ (or model_sft/) at the end; sft/ has a line a step and checkpoints that a resume goes on from.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from datasets import Dataset
from rich.console import Console
from transformers import TrainerCallback
from transformers.trainer_callback import PrinterCallback
from trl import SFTConfig, SFTTrainer
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from llm_grpo import checkpoints, processes, runs
from llm_grpo.answers.thinking import CLOSE
from llm_grpo.config.schema import Config
from llm_grpo.environment import made_with
from llm_grpo.errors import UserError
from llm_grpo.loaders import sharded_by
from llm_grpo.policy import Policy, learn_in_float32, load_weights, save_weights
from llm_grpo.problems import worked, worked_right
from llm_grpo.prompts import begun_thought, render
from llm_grpo.records import Problem, Task
from llm_grpo.rollouts import stop_tokens
from llm_grpo.runs import Run
from llm_grpo.training import sharing
from llm_grpo.training.arguments import device_arguments, filled_by_trl, told_by_trl
from llm_grpo.training.finite import FiniteUpdates
from llm_grpo.training.stopping import GentleStop
from llm_grpo.training.watching import MetricsFile, ProgressBar

AS_IN_GRPO = ("optim", "adam_beta1", "adam_beta2", "weight_decay", "gradient_checkpointing", "save_steps",
              "logging_nan_inf_filter")  # fmt: skip


class Solutions(SFTTrainer):
    """TRL's, with what all prompts begin with read once for a batch, where that costs less (training/sharing.py)."""

    shares, broken = True, False  # rollouts.skip; its weights are no numbers (training/finite.py)

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        with self.accelerator.autocast():
            folded = self._folded(inputs)
        if folded is None:
            return super().compute_loss(model, inputs, *args, **kwargs)
        tokens = self._total_train_tokens + int(inputs["attention_mask"].sum())
        loss = super().compute_loss(model, folded, *args, **kwargs)
        self._total_train_tokens = tokens  # a mask of who sees whom is no count of them
        self._metrics["train"]["num_tokens"] = [tokens]
        return loss

    def _folded(self, inputs: dict[str, Any]) -> dict[str, Any] | None:
        if not self.shares or sharing.why_not(self.model) or not sharing.keeps_a_past(self.model):
            return None
        learned, there = inputs["labels"] != -100, inputs["attention_mask"].bool()
        asked = [ids[row] for ids, row in zip(inputs["input_ids"], there & ~learned, strict=True)]
        answers = [ids[row] for ids, row in zip(inputs["input_ids"], learned, strict=True)]
        folded = sharing.Folded(asked, answers, tuple(there.shape), max(map(len, answers)), apart=True)
        return folded.inputs(self.model) if folded.pays(self.model.config.hidden_size) else None


class Seal(TrainerCallback):
    """A checkpoint counts once its manifest is written, after all else (checkpoints.py)."""

    def __init__(self, facts: dict[str, Any], stop: GentleStop) -> None:
        self.facts, self.stop = facts, stop

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.stop.kept()  # from here on transformers' own checkpoint is that of the new weights

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        processes.of_all(None)  # each has written its random state
        self.seal(args, state)

    def seal(self, args: Any, state: Any) -> None:
        if processes.is_first():
            folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            checkpoints.seal(folder, state.global_step, state.max_steps, self.facts)


def learn_solutions(
    config: Config, policy: Policy, task: Task, problems: Sequence[Problem], run: Run, console: Console
) -> GentleStop:
    """The SFT of a config, from where an earlier session left it; the policy holds the result. Raises UserError.

    Returns the stop, whose number tells whether one was asked for: then there is a checkpoint and no result yet.
    """
    stop, done = GentleStop(console), checkpoints.newest(run.sft, hashes=True)
    if done and done.step >= done.planned:
        load_weights(policy, done.folder)
        save_weights(policy, run.warm)  # a kill may have come between checkpoint and this
        return stop
    bar = ProgressBar(console, "SFT", ("loss",))
    processes.from_first(lambda: runs.cut_after(run.sft_metrics, done.step if done else 0))
    rows, too_long, wrong = _rows(policy, task, problems, config.answer_tokens("train"))
    if not rows:
        raise UserError(
            "sft: no worked solution is right and fits grpo.max_completion_length. Raise it, or set sft=null."
        )
    if too_long or wrong:
        said = f"{too_long} are longer than grpo.max_completion_length, {wrong} not right by the task's own judge"
        console.print(f"SFT: {len(rows)} of {len(problems)} worked solutions; {said}", style="yellow")
    seal = Seal(checkpoints.facts(config, task.load, made_with(policy.engine.name)), stop)
    with told_by_trl():
        trainer = Solutions(
            model=policy.model,
            processing_class=policy.tokenizer,
            args=_arguments(config, run),
            train_dataset=Dataset.from_list(rows),
            # its own takes a pad token for the tokenizer; here what is padded is known by its place
            data_collator=DataCollatorForLanguageModeling(policy.tokenizer.pad_token_id or 0),
            callbacks=[stop, bar, MetricsFile(run.sft_metrics), seal],
        )
    learn_in_float32(policy)
    trainer.shares, trainer.say = config.rollouts.skip is not False, partial(console.print, style="yellow")
    trainer.add_callback(FiniteUpdates(trainer, "sft"))
    trainer.remove_callback(PrinterCallback)
    if processes.count() > 1:  # it asks all processes, and one may have to save alone
        trainer.store_flos = lambda: None

    def keep() -> None:
        """The end of the last step, where an end that was forced left it in memory alone."""
        # of a model in pieces all would have to save
        step = 0 if sharded_by() or trainer.broken else trainer.state.global_step
        if processes.is_first() and step and not (run.sft / f"checkpoint-{step}" / checkpoints.MANIFEST).exists():
            trainer._save_checkpoint(trainer.model, None)
            seal.seal(trainer.args, trainer.state)

    try:
        with stop.listening(keep):
            trainer.train(resume_from_checkpoint=str(done.folder) if done else None)
    except KeyboardInterrupt:
        pass
    finally:
        bar.bar.stop()
        keep()
    if stop.number is None:
        save_weights(policy, run.warm)
    return stop


def _arguments(config: Config, run: Run) -> SFTConfig:
    sft = config.sft
    stated = dict(
        **device_arguments(),
        **{name: config.grpo[name] for name in AS_IN_GRPO},
        output_dir=str(run.sft),
        seed=config.run.seed,
        max_steps=sft.steps,
        learning_rate=sft.learning_rate,
        warmup_steps=sft.warmup_steps,
        per_device_train_batch_size=sft.batch_size,
        lr_scheduler_type="linear",
        max_length=None,  # the rows are whole and fit the window
        dataset_kwargs={"skip_prepare_dataset": True},
        save_total_limit=2,
        logging_steps=1,
        report_to="none",
        disable_tqdm=True,
    )
    return SFTConfig(**filled_by_trl(SFTConfig, stated))


def _rows(
    policy: Policy, task: Task, problems: Sequence[Problem], most: int
) -> tuple[list[dict[str, list[int]]], int, int]:
    """(token ids of prompt and worked answer, with labels that are -100 over the prompt; how many are left out because
    they are longer than `most` tokens, as no answer may be; how many because the task's judge does not call them right)
    """
    tokenizer = policy.tokenizer
    before = f"\n{CLOSE}\n\n" if begun_thought(tokenizer) else ""  # a prompt that ends in <think>: nothing is thought
    end, rows = _end(policy), []
    right = [problem for problem in problems if worked_right(problem.example, task)]
    for problem in right:
        answer = [*_ids(tokenizer, before + worked(problem.example, task)), end]
        prompt = _ids(tokenizer, render(problem.messages, tokenizer))
        if len(answer) <= most:
            rows.append({"input_ids": prompt + answer, "labels": [-100] * len(prompt) + answer})
    return rows, len(right) - len(rows), len(problems) - len(right)


def _ids(tokenizer: Any, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def _end(policy: Policy) -> int:
    """The token by which the chat template ends an answer, where generation stops at it; else the tokenizer's own."""
    stops = stop_tokens(policy.model.generation_config.eos_token_id, policy.tokenizer)
    said = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "42"}]
    behind = policy.tokenizer.apply_chat_template(said, tokenize=False).rpartition("42")[2]
    return next((token for token in _ids(policy.tokenizer, behind) if token in stops), policy.tokenizer.eos_token_id)
