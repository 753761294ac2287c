"""GRPOConfig and GRPOTrainer put together. TRL computes; what is ours times, records and keeps the best adapter."""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from llm_grpo import policy as _unsloth_first  # noqa: F401  (unsloth has to be imported before trl)

import torch  # isort: skip
from datasets import Dataset  # isort: skip
from transformers.trainer_callback import PrinterCallback  # isort: skip

from llm_grpo import checkpoints
from llm_grpo.config.schema import Config
from llm_grpo.device import has_gpu, peak_memory_gb
from llm_grpo.diagnosis import drift
from llm_grpo.environment import made_with
from llm_grpo.planning.skipping import skip_choice
from llm_grpo.policy import Policy, count_positions_from_mask
from llm_grpo.records import Completion, Example, Problem, Reward, Task, columns_of
from llm_grpo.rollouts.crash import crash_told
from llm_grpo.rollouts.sampled import gap, sampled_logprobs
from llm_grpo.runs import Run
from llm_grpo.training import fitting
from llm_grpo.training.arguments import grpo_arguments, told_by_trl
from llm_grpo.training.loggers import dispensable
from llm_grpo.training.recording import Recorder, reading, unparsed
from llm_grpo.training.resuming import ResumingTrainer
from llm_grpo.training.skipping import ROWS_AT_ONCE_ON_A_CPU, differing, parts_of, split
from llm_grpo.training.spending import Spending
from llm_grpo.training.watching import Watch
from llm_grpo.verification.subject import aligned

SURPRISE = "-log p of what was drawn"
SCORED = ("prompt_ids", "prompt_mask", "completion_ids", "completion_mask")
ROWS_SCORED = 8  # enough to tell a gap of 0.02 nats; all of a generation batch would cost a forward pass of the update


class RecordingTrainer(ResumingTrainer):
    """TRL's trainer, unchanged in what it computes: it also times its phases, reads completions as every engine does
    and hands them over, keeps the log-probabilities of what transformers sampled (TRL uses them with
    off_policy_mask_threshold), and with `skip` leaves out of the update what has no gradient (training/skipping.py).

    Its dataset holds the number of a problem and nothing else: what is asked and what rewards read comes from the
    problem itself. Arrow takes one type a column (3 beside 2.5 would be texts, or the end of the run), and Unsloth
    hands every text column that the chat template names to the template.

    The overridden names are TRL's own seams; tests/test_training.py holds them for the pinned version.
    """

    def __init__(
        self,
        *args: Any,
        problems: Sequence[Problem],
        read: Callable[[Sequence[Sequence[int]]], list[Completion]],
        record: Callable[..., dict[str, float]],
        skip: bool,
        **kwargs: Any,
    ) -> None:
        self.problems, self._read, self._record, self.skip = problems, read, record, skip
        self._spending = Spending()
        self._prepare_seconds = 0.0
        self._parts: list[dict[str, Any]] = []  # of the micro-step in hand
        self._parts_before: list[dict[str, Any]] = []  # of the micro-steps of this update that are done
        self.rehearse, self.say = False, print
        rows = Dataset.from_dict({"problem": list(range(len(problems)))})
        with told_by_trl():
            super().__init__(*args, **kwargs, train_dataset=rows)
        self.rows_that_fit = self.args.per_device_train_batch_size  # in an update; halved where memory is short

    @contextmanager
    def _timed(self, phase: str) -> Any:
        start = time.perf_counter()
        yield
        self._spending.took(phase, time.perf_counter() - start)

    def _generate(self, *args: Any, **kwargs: Any) -> Any:
        with self._timed("generation"), crash_told(), unparsed(self._tokenizer):
            prompt_ids, ids, mask, _, *rest = super()._generate(*args, **kwargs)
        self._completions = self._read(ids)
        said = [[{"role": "assistant", "content": completion.answer}] for completion in self._completions]
        return prompt_ids, ids, mask, said, *rest

    def _generate_single_turn(self, *args: Any, **kwargs: Any) -> tuple[list[list[int]], list[list[float]]]:
        if self.use_vllm:
            return super()._generate_single_turn(*args, **kwargs)
        with sampled_logprobs(self.model, self.temperature) as sampled:
            completions, _ = super()._generate_single_turn(*args, **kwargs)
        return completions, sampled.of(completions)

    @property
    def _rows_at_once(self) -> int:
        return self.rows_that_fit if has_gpu() else min(self.rows_that_fit, ROWS_AT_ONCE_ON_A_CPU)

    def _prepare_inputs(self, generation_batch: Any) -> dict[str, Any]:
        again = bool(self._parts)  # out of memory: the same rows once more, and those of the update that went before
        if not again:
            inputs = super()._prepare_inputs(generation_batch)
            self._parts = self._handed_over() if self.skip and self.model.training else [inputs]
        before = self._small(self._parts_before) if again else []
        self._parts = self._small(self._parts)
        return self._parts[-1] | {"before": before, "earlier": self._parts[:-1]}

    def _small(self, parts: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """No part with more rows than fit. Without memory running out they are as they were, whatever the device."""
        return [small for part in parts for small in split(part, self.rows_that_fit, self.args.loss_type)]

    def _handed_over(self) -> list[dict[str, Any]]:
        """The parts of this micro-step, out of those micro-batches that are in its update and its generation batch."""
        steps = self.args.steps_per_generation
        together = math.gcd(steps, self.args.gradient_accumulation_steps)
        first, place = divmod(self._step % steps, together)
        window = self._buffered_inputs[first * together : (first + 1) * together]
        pad = self.processing_class.pad_token_id
        return parts_of(window, place, self.args.loss_type, self._rows_at_once, pad, self.accelerator.gather)

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> torch.Tensor:
        """The loss of the last part; the earlier ones went backward already, each with its own memory given back."""
        before, earlier = inputs.pop("before", []), inputs.pop("earlier", [])
        losses = []
        for part in [*before, *earlier]:
            with self.accelerator.no_sync(model):
                losses.append(self._loss_of(part, model, *args, **kwargs))
                self.accelerator.backward(losses[-1])
            losses[-1] = losses[-1].detach()
        return self._loss_of(inputs, model, *args, **kwargs) + sum(losses[len(before) :])

    def _loss_of(self, part: dict[str, Any], model: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        """What a part adds to the loss of its micro-batch."""
        part = dict(part)
        return part.pop("share", 1.0) * self._measured(part, model, *args, **kwargs)

    def _measured(self, part: dict[str, Any], model: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        """What TRL measures while it computes a loss (entropy, clip ratios) is of the rows that are updated: the names
        say so, and a blank row is not measured."""
        if not (self.skip and self.model.training):
            return super().compute_loss(model, part, *args, **kwargs)
        metrics, self._metrics["train"] = self._metrics["train"], defaultdict(list)
        try:
            loss = super().compute_loss(model, part, *args, **kwargs)
        finally:
            metrics, self._metrics["train"] = self._metrics["train"], metrics
        for name, values in metrics.items() if part["completion_mask"].any() else ():
            self._metrics["train"][name if name == drift.METRIC else f"updated_rows/{name}"] += values
        return loss

    def _examples(self, inputs: list[dict[str, Any]]) -> list[Example]:
        return [self.problems[row["problem"]].example for row in inputs]

    def _calculate_rewards(self, inputs: list[dict[str, Any]], *args: Any, **kwargs: Any) -> Any:
        columns = columns_of(self._examples(inputs))
        rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
        with self._timed("rewards"):
            self._newest_rewards = super()._calculate_rewards(rows, *args, **kwargs)
        return self._newest_rewards

    def _informative(self, rows: int) -> torch.Tensor:
        """[rows] of this process: whether the rewards of the row's group differ."""
        rewards, aggregation = self._newest_rewards, self.args.multi_objective_aggregation
        groups = differing(rewards, self.reward_weights.to(rewards.device), self.num_generations, aggregation)
        return groups.repeat_interleave(self.num_generations)[rows * self.accelerator.process_index :][:rows]

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        start = time.perf_counter()
        asked = [{**row, "prompt": list(self.problems[row["problem"]].messages)} for row in inputs]
        output = super()._generate_and_score_completions(asked)
        extra = self._agreement(output)
        seconds = time.perf_counter() - start
        self._prepare_seconds += seconds
        output["informative"] = self._informative(len(inputs))
        tokens = output["completion_mask"].sum(dim=1)
        self._spending.generated(tokens, output["informative"], self.num_generations, seconds)
        told = output["informative"].tolist()
        extra |= self._record(self.state.global_step + 1, self._examples(inputs), self._completions, self._logs, told)
        for name, value in extra.items():
            self._metrics["train"][name].append(value)
        return output

    @torch.no_grad()
    def _agreement(self, batch: dict[str, Any]) -> dict[str, float]:
        """The gap between who generated and who learns, where TRL does not log it, and the entropy of what was drawn.

        Unsloth's trainer scores inside its loss and hands nothing out, so a few rows are scored once more, by the
        scorer that both trainers have.
        """
        sampled, mask = batch.get("sampling_per_token_logps"), batch["completion_mask"].bool()
        if sampled is None or not mask.any():
            return {}
        found = {SURPRISE: float(-sampled[mask].nanmean())}
        rows = mask.any(dim=1).nonzero().flatten()[:ROWS_SCORED]
        if not (self.use_vllm and self.vllm_importance_sampling_correction):
            few = {name: batch[name][rows] for name in SCORED}
            found[drift.METRIC] = gap(self._scored(few), sampled[rows], mask[rows])
        return found

    def _scored(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """The trainer's log-probabilities of the completions, (rows, tokens)."""
        ids, mask = (
            torch.cat([batch[f"prompt_{what}"], batch[f"completion_{what}"]], dim=1) for what in ("ids", "mask")
        )
        longest, size = batch["completion_ids"].shape[1], self.args.per_device_train_batch_size
        found = self._get_per_token_logps_and_entropies(self.model, ids, mask, longest, batch_size=size)[0]
        return aligned(found, batch)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        metrics = self._metrics["train"]
        if metrics["step_time"]:
            metrics["memory_peak_gb"].append(peak_memory_gb())
            for name, value in self._spending.metrics(metrics["step_time"]).items():
                metrics[name].append(value)
            self._spending = Spending()
        surprise = metrics.pop(SURPRISE, [])  # its mean is the entropy, which TRL computes exactly, Unsloth not at all
        if surprise and "entropy" not in metrics:
            metrics["entropy"] = surprise
        super().log(logs, start_time)

    @property
    def spent(self) -> dict[str, Any]:
        """What has been counted since the last log, as a checkpoint keeps it."""
        return dict(vars(self._spending))

    @spent.setter
    def spent(self, counts: dict[str, Any]) -> None:
        vars(self._spending).update(counts)

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        if self.rehearse:
            self.rehearse = False
            fitting.rehearse(self, *args[:1])
        start, self._prepare_seconds, self._parts = time.perf_counter(), 0.0, []
        step, loss = partial(super().training_step, *args, **kwargs), None
        while loss is None:
            loss = fitting.tried(self, step)
        self._parts_before = [] if self.accelerator.sync_gradients else self._parts_before + self._parts
        self._spending.updated(self._parts, time.perf_counter() - start - self._prepare_seconds)
        return loss


def build_trainer(
    config: Config,
    policy: Policy,
    task: Task,
    problems: Sequence[Problem],
    rewards: Sequence[Reward],
    run: Run,
    watch: Watch,
) -> RecordingTrainer:
    """TRL's trainer over our policy, data and rewards, with completions recorded in the run's folder."""
    adds_up = config.grpo["multi_objective_aggregation"] == "sum_then_normalize"  # else weights come after the scale
    trainer = RecordingTrainer(
        model=policy.model,
        processing_class=policy.tokenizer,
        reward_funcs=[reward.function for reward in rewards],
        args=grpo_arguments(config, run, [reward.weight for reward in rewards], policy.engine.name),
        callbacks=watch.callbacks(),
        problems=problems,
        read=reading(policy),
        record=Recorder(task, run, {reward.label: reward.weight for reward in rewards if adds_up}),
        skip=skip_choice(config)[0],
        policy=policy,
        facts={
            "config": config.as_dict(),
            "data": checkpoints.fingerprint(task.load),
            "base": checkpoints.mark_of_base(config.model.name, config.model.revision),
            "made_with": made_with(policy.engine.name),
        },
    )
    if not has_gpu():
        # TRL casts the LoRA of a 4-bit model to bfloat16, where a step of 5e-6 moves 2 % of the weights and leaves the
        # rest as they were; on a GPU Unsloth takes that cast out (docs/correctness.md).
        for parameter in policy.model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()
    if trainer.ref_model is not None:  # made by TRL where all weights are trained and beta is above 0
        count_positions_from_mask(trainer.accelerator.unwrap_model(trainer.ref_model))
    if policy.engine.name == "vllm":
        from llm_grpo.rollouts.adapter_sync import generate_with_vllm

        generate_with_vllm(trainer, policy.engine.adapter, config.run.seed)
    trainer.remove_callback(PrinterCallback)  # the bar is ours
    watch.validation.metrics = trainer._metrics["train"]
    trainer.watch = watch
    trainer.rehearse, trainer.say = config.run.rehearse, watch.say
    handler = trainer.callback_handler
    handler.callbacks = dispensable(handler.callbacks, config, watch.stop.console)
    return trainer
