"""GRPOConfig and GRPOTrainer put together. TRL computes; what is ours times, records and keeps the best adapter."""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from datasets import Dataset
from transformers.trainer_callback import PrinterCallback

from llm_grpo import checkpoints, processes
from llm_grpo.config.schema import Config
from llm_grpo.device import has_gpu, peak_memory_gb
from llm_grpo.diagnosis import drift
from llm_grpo.environment import made_with
from llm_grpo.planning.memory import ROWS_AT_ONCE_ON_A_CPU
from llm_grpo.planning.skipping import skip_choice
from llm_grpo.policy import Policy, count_positions_from_mask, is_rewritten, learn_in_float32
from llm_grpo.records import Completion, Example, Problem, Reward, Task, columns_of
from llm_grpo.rollouts.crash import crash_told
from llm_grpo.rollouts.sampled import sampled_logprobs
from llm_grpo.runs import Run, mean_of
from llm_grpo.training import fitting, sharing
from llm_grpo.training.agreement import SURPRISE, agreement
from llm_grpo.training.arguments import grpo_arguments, told_by_trl
from llm_grpo.training.choosing import Choosing, choosing_of
from llm_grpo.training.finite import FiniteUpdates
from llm_grpo.training.loggers import dispensable
from llm_grpo.training.recording import Recorder, reading, unparsed
from llm_grpo.training.resuming import ResumingTrainer
from llm_grpo.training.skipping import differing, parts_of, split
from llm_grpo.training.spending import Spending
from llm_grpo.training.watching import Watch


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
        choosing: Choosing | None = None,
        **kwargs: Any,
    ) -> None:
        self.problems, self._read, self._record, self.skip = problems, read, record, skip
        self.choosing = choosing
        self._spending = Spending()
        self._prepare_seconds = 0.0
        self._parts: list[dict[str, Any]] = []  # of the micro-step in hand
        self._parts_before: list[dict[str, Any]] = []  # of the micro-steps of this update that are done
        self.rehearse, self.say = False, print
        self.broken = False  # its weights are no numbers (training/finite.py)
        rows = Dataset.from_dict({"problem": list(range(len(problems)))})
        with told_by_trl():
            super().__init__(*args, **kwargs, train_dataset=rows)
        self.rows_that_fit = self.args.per_device_train_batch_size  # in an update; halved where memory is short
        why = sharing.why_not(self.model) if skip else None
        self.shares = skip and why is None
        self.choices = {"prompts": f"not shared by their answers: {why}"} if why else {}

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
        # Unsloth's own decoding on a GPU keeps its cache its own way.
        whole = is_rewritten() or bool(self.args.generation_kwargs or self.args.cache_implementation)
        with sampled_logprobs(self.model, self.temperature, in_stages=not whole) as sampled:
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

    def _get_per_token_logps_and_entropies(self, model: Any, *args: Any, **kwargs: Any) -> Any:
        if self.shares:
            with self.accelerator.autocast():
                found = sharing.score(model, self.model.config.hidden_size, *args, **kwargs)
            if found is not None:
                return found
        return super()._get_per_token_logps_and_entropies(model, *args, **kwargs)

    def _examples(self, inputs: list[dict[str, Any]]) -> list[Example]:
        return [self.problems[row["problem"]].example for row in inputs]

    def _calculate_rewards(self, inputs: list[dict[str, Any]], *args: Any, **kwargs: Any) -> Any:
        columns = columns_of(self._examples(inputs))
        rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
        with self._timed("rewards"):
            self._newest_rewards = super()._calculate_rewards(rows, *args, **kwargs)
        return self._newest_rewards

    def _differing(self) -> torch.Tensor:
        """[groups] of all processes: whether the group's rewards differ."""
        rewards, aggregation = self._newest_rewards, self.args.multi_objective_aggregation
        return differing(rewards, self.reward_weights.to(rewards.device), self.num_generations, aggregation)

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        start = time.perf_counter()
        log = self._metrics["train"]
        rows = len(inputs)
        output = self.choosing.generation_batch(rows, self._made_of, log) if self.choosing else self._made(inputs)
        self._prepare_seconds += time.perf_counter() - start
        return output

    def _made_of(self, prompts: Sequence[int]) -> tuple[dict[str, Any], list[int], list[bool]]:
        """A generation batch of these prompts, a row each, of this process; of all processes' groups: how many of its
        answers passed, and whether their rewards differ."""
        output = self._made([{"problem": prompt} for prompt in prompts])
        passed = self.accelerator.gather(output["informative"].new_tensor(self._record.passed).long())
        return output, passed.view(-1, self.num_generations).sum(dim=1).tolist(), self._differing().tolist()

    def _made(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        start = time.perf_counter()
        asked = [{**row, "prompt": list(self.problems[row["problem"]].messages)} for row in inputs]
        output = super()._generate_and_score_completions(asked)
        extra = mean_of(processes.of_all(agreement(self, output)))
        seconds = time.perf_counter() - start
        rows = torch.arange(len(inputs), device=output["advantages"].device)  # of this process; a group may span two
        group = (rows + len(inputs) * self.accelerator.process_index) // self.num_generations
        differing = self._differing()
        output |= {"informative": differing[group]} | ({"group": group} if self.shares else {})
        tokens = output["completion_mask"].sum(dim=1)
        self._spending.generated(tokens, output["informative"], self.num_generations, seconds)
        told = differing.repeat_interleave(self.num_generations).tolist()
        extra |= self._record(self.state.global_step + 1, self._examples(inputs), self._completions, self._logs, told)
        for name, value in extra.items():
            self._metrics["train"][name].append(value)
        return output

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        metrics = self._metrics["train"]
        if metrics["step_time"]:
            metrics["memory_peak_gb"].append(peak_memory_gb())
            spent = Spending.of_all(processes.of_all(vars(self._spending)))
            for name, value in spent.metrics(metrics["step_time"]).items():
                metrics[name].append(value)
            self._spending = Spending()
        surprise = metrics.pop(SURPRISE, [])  # its mean is the entropy, which TRL computes exactly, Unsloth not at all
        if surprise and "entropy" not in metrics:
            metrics["entropy"] = surprise
        super().log(logs, start_time)

    @property
    def spent(self) -> dict[str, Any]:
        """What has been counted since the last log and is known of the prompts, as a checkpoint keeps it."""
        return vars(self._spending) | {"prompts": self.choosing.state if self.choosing else None}

    @spent.setter
    def spent(self, counts: dict[str, Any]) -> None:
        if self.choosing:
            self.choosing.state = counts["prompts"]
        vars(self._spending).update({name: count for name, count in counts.items() if name != "prompts"})

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
        choosing=choosing_of(config, problems),
        policy=policy,
        facts=checkpoints.facts(config, task.load, made_with(policy.engine.name)),
    )
    learn_in_float32(policy)
    if trainer.ref_model is not None:  # made by TRL where all weights are trained and beta is above 0, of the base
        reference = trainer.accelerator.unwrap_model(trainer.ref_model)
        reference.load_state_dict(policy.model.state_dict())  # as with a LoRA: what SFT has learned
        count_positions_from_mask(reference)
    if policy.engine.name == "vllm":
        from llm_grpo.rollouts.adapter_sync import generate_with_vllm

        generate_with_vllm(trainer, policy.engine.adapter, config.run.seed)
    if policy.engine.name == "server":
        from llm_grpo.training.from_server import generate_with_server

        generate_with_server(trainer, policy.engine, config.run.seed)
    trainer.remove_callback(PrinterCallback)  # the bar is ours
    watch.validation.metrics = trainer._metrics["train"]
    trainer.watch = watch
    trainer.rehearse, trainer.say = config.run.rehearse, watch.say
    trainer.add_callback(FiniteUpdates(trainer))
    handler = trainer.callback_handler
    handler.callbacks = dispensable(handler.callbacks, config, watch.stop.console)
    return trainer
