"""An update that does not fit the memory: found in the first minute by a rehearsal, and made to fit by halving.

What is halved is how many rows go through the model at once, never a group of answers: the same rows in more parts have
the same loss and gradient, up to the order in which floats are added (`skipping.split`).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from llm_grpo.device import peak_memory_gb
from llm_grpo.errors import UserError
from llm_grpo.planning.memory import optimizer_bytes
from llm_grpo.planning.skipping import faults_of_parts
from llm_grpo.prompts import render
from llm_grpo.rollouts.crash import is_out_of_memory
from llm_grpo.training.resuming import put_back_random, random_states
from llm_grpo.verification.subject import undisturbed

LONGEST = 32  # prompts, by their characters, whose tokens are counted


def tried(trainer: Any, step: Callable[[], Tensor]) -> Tensor | None:
    """The loss of a micro-step, or None where it has to be tried again in smaller parts.

    Memory that ran out before the rows were handed over ran out in the generation, and is not made good here.
    """
    start = time.perf_counter()
    try:
        return step()
    except (MemoryError, RuntimeError) as error:
        if not trainer._parts or not is_out_of_memory(error):
            raise
        _halve(trainer, max(len(part["advantages"]) for part in trainer._parts), error)
    _free(trainer)  # here, where the error is gone, and with it the frames that hold what the forward kept
    lost = time.perf_counter() - start
    trainer._current_train_step_time += lost
    trainer.train_seconds += lost
    return None


def rehearse(trainer: Any, model: Any) -> None:
    """The longest update there can be, before the first, for its memory alone: two micro-steps forward and backward
    (the second finds gradients there) beside room for what the optimiser will keep. Weights, optimiser, counters and
    random states are as they were; of `rows_that_fit` is kept what was found."""
    start, random = time.perf_counter(), random_states()
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad) if not trainer.optimizer.state else 0
    size = trained * optimizer_bytes(str(getattr(trainer.args.optim, "value", trainer.args.optim)))
    with undisturbed(trainer):
        model.train()
        room = torch.empty(size, dtype=torch.uint8, device=trainer.accelerator.device)
        batch = longest_batch(trainer)
        while (seconds := _seconds(trainer, model, batch)) is None:
            _free(trainer)
        del room
    put_back_random(random)
    prompt, answer, rows = batch["prompt_ids"].shape[1], batch["completion_ids"].shape[1], len(batch["advantages"])
    update = seconds * rows / min(rows, trainer._rows_at_once) * trainer.args.gradient_accumulation_steps
    hours = update * trainer.state.max_steps / 3600
    trainer.say(
        f"rehearsed: {rows} rows of {prompt} + {answer} tokens, {trainer._rows_at_once} at once, "
        f"{peak_memory_gb():.2f} GB at most, {time.perf_counter() - start:.0f} s; an update takes {update:.1f} s "
        f"at most, those of all {trainer.state.max_steps} steps {hours:.1f} h; generation comes on top"
    )


def longest_batch(trainer: Any) -> dict[str, Any]:
    """A full micro-batch of the longest prompt with answers of full length, every row with an advantage."""
    texts = sorted({render(problem.messages, trainer.processing_class) for problem in trainer.problems}, key=len)
    tokens = trainer._tokenizer(texts[-LONGEST:], add_special_tokens=False)["input_ids"]
    rows, count = trainer.args.per_device_train_batch_size, trainer.args.max_completion_length
    prompt = torch.tensor(max(tokens, key=len), device=trainer.accelerator.device)
    answer = prompt.repeat(count // len(prompt) + 1)[:count]
    batch = {"prompt_ids": prompt.expand(rows, -1), "completion_ids": answer.expand(rows, -1)}
    batch |= {name.replace("ids", "mask"): torch.ones_like(ids) for name, ids in batch.items()}
    ids, mask = (torch.cat([batch[f"prompt_{what}"], batch[f"completion_{what}"]], dim=1) for what in ("ids", "mask"))
    with torch.no_grad():  # as TRL asks for what sampled, for the policy before and for the reference
        logps = trainer._get_per_token_logps_and_entropies(trainer.model, ids, mask, count, batch_size=rows)[0]
    names = ("old_per_token_logps", "sampling_per_token_logps", "ref_per_token_logps")
    advantages = torch.ones(rows, device=ids.device)
    return batch | dict.fromkeys(names, logps) | {
        "importance_sampling_ratio": torch.ones_like(logps), "num_items_in_batch": batch["completion_mask"].sum(),
        "advantages": advantages, "informative": advantages.bool(),
    }  # fmt: skip


def _seconds(trainer: Any, model: Any, batch: dict[str, Any]) -> float | None:
    """Of a forward and a backward over as many rows as go through at once, compiled; None where they do not fit."""
    rows = min(trainer._rows_at_once if trainer.skip else trainer.rows_that_fit, len(batch["advantages"]))
    part = {name: value[:rows] if value.ndim else value for name, value in batch.items()}
    try:
        for _ in range(2):
            start = time.perf_counter()
            with trainer.compute_loss_context_manager():
                loss = trainer._loss_of(part, model)
            trainer.accelerator.backward(loss)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        _halve(trainer, rows, error)
        return None
    return time.perf_counter() - start


def _halve(trainer: Any, rows: int, error: Exception) -> None:
    """Half the rows at once from here on. Raises UserError where there is no half, or it would be another update."""
    half, faults = rows // 2, faults_of_parts(vars(trainer.args))
    if trainer.accelerator.num_processes > 1:
        faults.append("several processes train, and each would have to")
    said = f"step {trainer.state.global_step + 1}: the update of {rows} rows at once ran out of memory"
    if not half or faults:
        why = f"; they cannot be halved ({'; '.join(faults)})" if half else ""
        change = "grpo.max_completion_length, model.gpu_memory_utilization or lora.r, or set model.load_in_4bit=true"
        if half:
            change = "grpo.per_device_train_batch_size, and raise grpo.gradient_accumulation_steps"
        raise UserError(f"{said}{why}. Lower {change}. What a card holds: src/doctor.py --fit 24GB.") from error
    trainer.rows_that_fit = half
    trainer.say(f"{said}; from here on {half} at once, the same update in more parts.")


def _free(trainer: Any) -> None:
    """What a failed try has left: a part of the gradient, and memory that torch keeps for itself."""
    trainer.model.zero_grad(set_to_none=True)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
