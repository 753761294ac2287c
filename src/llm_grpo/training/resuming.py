"""A trainer that can be stopped anywhere and goes on as if it had not been: what a checkpoint holds and how it is put
back. The weights, the optimiser and the schedule are transformers' business; progress.pt is ours, one for each process.

Two things transformers 5.17 and TRL 1.15 leave out: the generation batch that is being worked through, and what has
been counted since the last log. And one they get wrong: with a KL term TRL keeps the starting weights as a second
adapter, both are saved, and what a resume then loads is not what was learned.
"""

from __future__ import annotations

import io
import random
import shutil
import threading
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy
import torch
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_callback import TrainerState
from trl import GRPOTrainer

from llm_grpo import checkpoints, processes
from llm_grpo.checkpoints import Checkpoint
from llm_grpo.files import swap_in
from llm_grpo.loaders import sharded_by
from llm_grpo.policy import Policy, write_weights
from llm_grpo.training.watching import Watch

# Plain values of the trainer that a step leaves behind and the next one reads. Whoever adds a counter adds its name.
COUNTERS = ("_step", "_current_train_step_time", "_total_loss_scalar", "_globalstep_last_logged", "entropy_coef",
            "_last_world_entropy", "train_seconds", "spent", "rows_that_fit")  # fmt: skip


class ResumingTrainer(GRPOTrainer):
    """GRPOTrainer with checkpoints that are exact and sealed. policy: whose weights they hold; facts: what a resume is
    compared with (checkpoints.check_unchanged); watch: the callbacks, set once there is a trainer.

    The overridden names are transformers' and TRL's own seams; tests/test_resume.py holds what they are relied on for.
    """

    def __init__(self, *args: Any, policy: Policy, facts: Mapping[str, Any], **kwargs: Any) -> None:
        self.policy, self.facts = policy, facts
        self.train_seconds = 0.0  # of updates, generation and rewards among them; not of validation and saving
        self.watch: Watch | None = None
        self._draft: Path | None = None  # where a checkpoint is being written
        self._writing = threading.RLock()  # a thread may come to the rescue (stopping.py)
        self._kept: dict[str, Any] | None = None  # the end of the last step, which the weights are at
        self._saved_step: int | None = None  # that of the newest checkpoint, written or gone on from
        super().__init__(*args, **kwargs)

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        start = time.perf_counter()
        loss = super().training_step(*args, **kwargs)
        self.train_seconds += time.perf_counter() - start
        return loss

    def _get_train_sampler(self, dataset: Any = None) -> Any:
        """TRL's order of prompts; that of a later epoch without having been through those before it."""
        sampler = super()._get_train_sampler(dataset)
        if getattr(sampler, "generator", None) is not None:
            sampler.set_epoch = partial(_place_in_epoch, sampler)  # accelerate calls it at the start of each
        return sampler

    def _init_training_state(self, max_steps: int, *args: Any) -> Any:
        found = super()._init_training_state(max_steps, *args)
        self.state.compute_steps(self.args, max_steps)  # logging and saving as the config has it now
        return found

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        super().log(logs, start_time)
        self.state.log_history.clear()  # metrics.jsonl has it; here it would grow with every step and every checkpoint

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """None of TRL's: the card of a run is made from what was measured (export/card.py)."""

    # A step and its end: the weights have moved; the validation that is due, a line in the log and a checkpoint follow.
    # A stop may come at any of them, so what is left to do is kept before the first.

    def _maybe_log_save_evaluate(self, tr_loss: Any, grad_norm: Any, model: Any, trial: Any, epoch: float, *rest: Any,
                                 learning_rate: float | None = None) -> None:  # fmt: skip
        validation, stop = self.watch.validation, self.watch.stop
        if self._kept is None:  # else transformers asks again, at the end of its epoch
            grad_norm = grad_norm.item() if isinstance(grad_norm, torch.Tensor) else grad_norm
            left = {"grad_norm": grad_norm, "learning_rate": learning_rate, "log": self.control.should_log}
            self._kept = self._progress(left)
            stop.kept()
        if validation.due and self.control.should_training_stop and self.state.global_step < self.state.max_steps:
            if self.control.should_save:  # the resume validates: a stop is not held up by it
                self._write_checkpoint(self._kept)
                self.control.should_save = False
            return
        if validation.due:
            validation.held(self.state, self.control)
            stop.heed(self.control)  # a wish that came meanwhile
        super()._maybe_log_save_evaluate(tr_loss, grad_norm, model, trial, epoch, *rest, learning_rate=learning_rate)
        self._kept = self._progress()

    @property
    def ended(self) -> bool:
        """Whether the end of the last step was done, too."""
        return self._kept is not None and "step_end" not in self._kept

    def _get_grad_norm(self, *args: Any, **kwargs: Any) -> Any:
        self._kept = None  # from here on the optimiser moves the weights
        return super()._get_grad_norm(*args, **kwargs)

    def _finish_step(self, left: Mapping[str, Any]) -> None:
        """What a stop left undone of the step it came after: validation, and its line in the log."""
        validation = self.watch.validation
        self.model.train()  # TRL logs apart what a model in evaluation mode says
        validation.on_step_end(self.args, self.state, self.control)
        if validation.due:
            validation.held(self.state, self.control)
        self.control.should_log, self.control.should_save = left["log"], False
        super()._maybe_log_save_evaluate(self._tr_loss, left["grad_norm"], self.model, None, self.state.epoch, None,
                                         time.time(), learning_rate=left["learning_rate"])  # fmt: skip
        self._kept = self._progress()

    def finish(self, checkpoint: Checkpoint) -> None:
        """Where the checkpoint is of the last step: what a stop left undone of it."""
        self.state = TrainerState.load_from_json(str(checkpoint.folder / TRAINER_STATE_NAME))
        self._tr_loss = torch.zeros((), device=self.args.device)
        handler = self.callback_handler
        if not checkpoint.ended:
            self.control = handler.on_train_begin(self.args, self.state, self.control)
        self._load_rng_state(str(checkpoint.folder))
        if not checkpoint.ended:
            self.control = handler.on_train_end(self.args, self.state, self.control)

    # Saving

    def _progress(self, left: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """The place in the training, with what is left of the step. Of several processes the first has that of `others`
        too, as bytes: it saves for all, also where they can be asked no more."""
        own = progress_of(self) | ({} if left is None else {"step_end": left})
        if processes.count() > 1:
            torch.save(own, file := io.BytesIO())
            own["others"] = processes.to_first(file.getvalue())[1:]
        return own

    def store_flos(self) -> None:
        """transformers asks all processes here, and the first saves alone."""
        if processes.count() == 1:
            super().store_flos()

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        self._write_checkpoint(self._progress())

    def rescue(self) -> bool:
        """Save the end of the last step, whatever was begun since; True where it is on disk then.

        Not where the weights are past it and the step is not done, nor before the first.
        """
        with self._writing:
            if self._kept is None:
                return False
            if self._saved_step != self.state.global_step:
                self.state.num_input_tokens_seen = self._kept["tokens_seen"]
                self._write_checkpoint(self._kept)
            return True

    def _write_checkpoint(self, progress: dict[str, Any]) -> None:
        """As transformers and TRL write it, where no resume looks; sealed, it gets its name, and older ones go."""
        with self._writing:
            self._kept = progress
            if processes.is_first() or sharded_by():  # a model in pieces is written by all together
                self._write(f"checkpoint-{self.state.global_step}", Path(self.args.output_dir))

    def _write(self, folder: str, run_dir: Path) -> None:
        self._draft = run_dir / ".draft"
        self._forget_draft()
        try:
            super()._save_checkpoint(self.model, None)
            self._wait_where_sharded()
            if processes.is_first():
                facts = {**self.facts, "ended": self.ended}
                checkpoints.seal(self._draft / folder, self.state.global_step, self.state.max_steps, facts)
                swap_in(self._draft / folder, run_dir / folder)
            self._saved_step = self.state.global_step
        finally:
            self._forget_draft()
            self._draft = None
        if processes.is_first():
            checkpoints.forget_old(run_dir, self.args.save_total_limit)

    def _forget_draft(self) -> None:
        if processes.is_first():
            shutil.rmtree(self._draft, ignore_errors=True)
        self._wait_where_sharded()

    def _wait_where_sharded(self) -> None:
        if sharded_by():
            processes.of_all(None)

    def _get_output_dir(self, trial: Any) -> str:
        return str(self._draft) if self._draft else super()._get_output_dir(trial)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """By all processes: what was learned is gathered where the model is sharded (transformers gathers its base)."""
        self._save(output_dir)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        write_weights(self.policy, Path(output_dir or self.args.output_dir))

    def _save_rng_state(self, output_dir: str) -> None:
        if not processes.is_first():  # where the model is sharded all come here
            return
        own = dict(self._kept)
        for number, other in enumerate(own.pop("others", ()), start=1):
            Path(output_dir, checkpoints.progress_file(number)).write_bytes(other)
        torch.save(own, Path(output_dir) / checkpoints.PROGRESS)

    # Putting back

    def _load_from_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        """Nothing: `optimise` has loaded the policy's weights and compared them."""

    def _load_rng_state(self, checkpoint: str | None) -> None:
        """transformers calls this when all else is as it was, and the first batch is at hand."""
        if checkpoint is None:
            return
        file = Path(checkpoint) / checkpoints.progress_file(processes.rank())
        progress = torch.load(file, map_location="cpu", weights_only=True)
        self._tr_loss += progress["loss"].to(self._tr_loss)
        self._buffered_inputs = self._prepare_input(progress["buffer"])
        metrics = self._metrics["train"]
        metrics.clear()
        metrics.update({name: list(values) for name, values in progress["metrics"].items()})
        for name, value in progress["counters"].items():
            setattr(self, name, value)
        if self.ref_model is not None and progress["reference"] is not None:
            self.accelerator.unwrap_model(self.ref_model).load_state_dict(progress["reference"])
        put_back_random(progress["random"])
        self._kept, self._saved_step = progress, progress["global_step"]
        if left := progress.get("step_end"):
            self._finish_step(left)


def progress_of(trainer: ResumingTrainer) -> dict[str, Any]:
    """The place in the training, as plain values and tensors, cheap enough to be taken after every step.

    The generation batch is kept where it is not used up. The reference model is where it moves (sync_ref_model).
    """
    used_up = trainer._step % (trainer.args.steps_per_generation * trainer.num_iterations) == 0
    moves = trainer.args.sync_ref_model and trainer.ref_model is not None
    return {
        "global_step": trainer.state.global_step,
        "tokens_seen": trainer.state.num_input_tokens_seen,
        "buffer": None if used_up else trainer._buffered_inputs,
        "metrics": {name: list(values) for name, values in trainer._metrics["train"].items()},
        "loss": trainer._tr_loss.clone(),
        "counters": {name: getattr(trainer, name) for name in COUNTERS if hasattr(trainer, name)},
        "reference": trainer.accelerator.unwrap_model(trainer.ref_model).state_dict() if moves else None,
        "random": random_states(),
    }


def random_states() -> dict[str, Any]:
    """The generators of python, numpy, torch and the GPU."""
    name, keys, *rest = numpy.random.get_state()
    return {
        "python": random.getstate(),
        "numpy": (str(name), keys.tolist(), *rest),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def put_back_random(states: Mapping[str, Any]) -> None:
    random.setstate(states["python"])
    numpy.random.set_state(states["numpy"])
    torch.set_rng_state(states["torch"])
    if states["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(states["cuda"][: torch.cuda.device_count()])


def _place_in_epoch(sampler: Any, epoch: int) -> None:
    """TRL's sampler draws an order an epoch, one after the other from one generator."""
    sampler.generator.manual_seed(sampler.seed)
    for _ in range(epoch):
        torch.randperm(sampler.num_samples, generator=sampler.generator)
