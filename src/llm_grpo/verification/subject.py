"""The trainer under verification: its settings, its batch, and what its own code makes of them.

All that reaches into TRL is here. Two layouts of log-probabilities exist: TRL's [N, C], and that of Unsloth's rewritten
trainer, [N, M + C], where M is the longest left padding and a row's completion starts at M minus its own padding.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from llm_grpo.errors import UserError
from llm_grpo.verification import formulas
from llm_grpo.verification.formulas import LOSS_TYPES, Settings

# Of GRPOConfig: what changes the loss and has no reference here, with the value that switches it off.
OFF = {
    "delta": None,
    "top_entropy_quantile": 1.0,
    "off_policy_mask_threshold": None,
    "entropy_coef": 0.0,
    "use_adaptive_entropy": False,
}


def settings_of(trainer: Any) -> Settings:
    """Read from the arguments, not from what the trainer made of them. Raises UserError for what is not covered."""
    args = trainer.args
    faults = [
        f"{name}={getattr(args, name)!r} (only {off!r})" for name, off in OFF.items() if getattr(args, name, off) != off
    ]
    if args.loss_type not in LOSS_TYPES:
        faults.append(f"loss_type='{args.loss_type}' (only {', '.join(LOSS_TYPES)})")
    if trainer.accelerator.num_processes > 1:
        faults.append(f"{trainer.accelerator.num_processes} processes (only 1)")
    if getattr(trainer, "aux_loss_enabled", False):
        faults.append("a router's auxiliary loss (only router_aux_loss_coef=0)")
    if not hasattr(trainer.accelerator.unwrap_model(trainer.model), "peft_config"):
        faults.append("a model without LoRA")
    if faults:
        raise UserError(f"No float64 reference for {'; '.join(faults)}.")
    rewards = len(trainer.reward_funcs)
    return Settings(
        loss_type=args.loss_type,
        level=args.importance_sampling_level,
        beta=args.beta,
        weigh_kl=args.use_bias_correction_kl,
        epsilon_low=args.epsilon,
        epsilon_high=args.epsilon if args.epsilon_high is None else args.epsilon_high,
        scale_rewards={True: "group", False: "none"}.get(args.scale_rewards, args.scale_rewards),
        aggregation=args.multi_objective_aggregation,
        weights=tuple(args.reward_weights or [1.0] * rewards),
        group=args.num_generations,
        temperature=args.temperature,
        max_completion_length=args.max_completion_length,
        micro_batches=args.steps_per_generation,
        accumulation=args.gradient_accumulation_steps,
    )


@contextmanager
def undisturbed(trainer: Any) -> Iterator[None]:
    """Dropout off, gradients cleared before and after, counters and metrics as they were."""
    model, before = trainer.model, trainer.model.training
    dropouts = {module: module.p for module in model.modules() if isinstance(module, nn.Dropout)}
    counters = ("_step", "_metrics", "_current_train_step_time", "_spending")
    kept = {name: getattr(trainer, name) for name in counters if hasattr(trainer, name)}
    vars(trainer).update(copy.deepcopy(kept))  # the callbacks hold on to the metrics themselves
    try:
        for module in dropouts:
            module.p = 0.0
        model.zero_grad(set_to_none=True)
        yield
    finally:
        for module, share in dropouts.items():
            module.p = share
        for name, value in kept.items():
            setattr(trainer, name, value)
        model.zero_grad(set_to_none=True)
        model.train(before)


def generate(trainer: Any) -> dict[str, Any]:
    """The first generation batch of the trainer's own data: generated, rewarded, with advantages."""
    trainer.model.train()
    return trainer._generate_and_score_completions(next(iter(trainer.get_train_dataloader())))


def newest_rewards(trainer: Any, batch: dict[str, Any]) -> Tensor:
    """[N, K]; TRL's logs are deques that end with its newest generation batch."""
    count = len(batch["completion_ids"])
    columns = [list(trainer._logs["rewards"][name])[-count:] for name in trainer.reward_func_names]
    if any(len(column) != count for column in columns):
        raise UserError(f"The trainer's log has no rewards for these {count} completions. Pass `rewards`.")
    return torch.tensor(columns, dtype=torch.float64).T


@torch.no_grad()
def logps(trainer: Any, batch: dict[str, Any]) -> Tensor:
    """The trainer's log-probabilities of the batch, in its own layout."""
    trainer.model.train()
    ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1)
    mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1)
    rows = trainer.args.per_device_train_batch_size
    longest = batch["completion_ids"].shape[1]
    return trainer._get_per_token_logps_and_entropies(trainer.model, ids, mask, longest, batch_size=rows)[0].clone()


def update(trainer: Any, batch: dict[str, Any], settings: Settings) -> tuple[Tensor, dict[str, Tensor]]:
    """(loss, gradients) after `training_step` on every micro-batch: what the optimizer would be given."""
    rows, count = len(batch["completion_ids"]), settings.micro_batches
    split_values = zip(*[split(value, rows, count) for value in batch.values()], strict=True)
    kept = {name: getattr(trainer, name) for name in ("_buffered_inputs", "num_iterations")}
    trainer.current_gradient_accumulation_steps = settings.accumulation  # the training loop sets it before each update
    # As in the second of two iterations over a generation batch: TRL hands out what it has and generates nothing.
    trainer._buffered_inputs = [dict(zip(batch, values, strict=True)) for values in split_values]
    trainer.num_iterations, trainer._step = 2, count
    try:
        total = sum(trainer.training_step(trainer.model, {}, None) for _ in range(count))
    finally:
        for name, value in kept.items():
            setattr(trainer, name, value)
    scaler = trainer.accelerator.scaler
    scale = scaler.get_scale() if scaler is not None else 1.0
    named = trainer.accelerator.unwrap_model(trainer.model).named_parameters()
    return total, {name: parameter.grad / scale for name, parameter in named if parameter.requires_grad}


def split(value: Any, rows: int, parts: int) -> list[Any]:
    """A row of the batch goes to one micro-batch; what is no row (num_items_in_batch) goes to all."""
    by_row = isinstance(value, Tensor) and value.ndim > 0 and len(value) == rows
    return list(value.chunk(parts)) if by_row else [value] * parts


def put_off_policy(batch: dict[str, Any], logps: Tensor, settings: Settings, seed: int) -> None:
    """Old log-probabilities as if the batch came from another policy, so that clipping acts.

    Half of the ratios are put well inside the clipping range and half well outside, none near its ends, where the
    last digit of a log-probability would decide. Under GSPO a sequence's tokens all move alike. The sampling engine's
    log-probabilities move along, so that the correction for the engine stays what it was.
    """
    ends = torch.tensor([1 - settings.epsilon_low, 1 + settings.epsilon_high]).log()
    wanted = torch.cat([ends / 2, ends * 2])
    rows, longest = batch["completion_ids"].shape
    shape = (rows, longest if settings.level == "token" else 1)
    drawn = torch.randint(len(wanted), shape, generator=torch.Generator().manual_seed(seed))
    old = shifted(logps, -wanted[drawn].expand(rows, longest), batch)
    if "sampling_per_token_logps" in batch and "old_per_token_logps" in batch:
        moved = aligned(old, batch) - aligned(batch["old_per_token_logps"], batch)
        batch["sampling_per_token_logps"] = shifted(batch["sampling_per_token_logps"], moved, batch)
    batch["old_per_token_logps"] = old


def completion_columns(width: int, batch: dict[str, Any]) -> Tensor:
    """[N, C] column of each completion token in log-probabilities [N, width] of either layout."""
    prompt_mask, longest = batch["prompt_mask"], batch["completion_ids"].shape[1]
    spare = width - longest
    start = spare - (prompt_mask == 0).sum(dim=1, keepdim=True) if spare else torch.zeros_like(prompt_mask[:, :1])
    return start + torch.arange(longest, device=prompt_mask.device)


def aligned(values: Tensor, batch: dict[str, Any]) -> Tensor:
    """Log-probabilities of either layout as float64 [N, C]."""
    return values.double().gather(1, completion_columns(values.shape[1], batch).to(values.device))


def shifted(values: Tensor, by: Tensor, batch: dict[str, Any]) -> Tensor:
    """Log-probabilities of either layout, moved by [N, C]."""
    columns = completion_columns(values.shape[1], batch).to(values.device)
    return values.scatter_add(1, columns, by.to(values))


def learnt_from(trainer: Any, batch: dict[str, Any]) -> Tensor:
    """[N] rows that are not left out of the update because all rewards of their group are equal (rollouts.skip)."""
    everyone = torch.ones(len(batch["completion_ids"]), dtype=torch.bool, device=batch["completion_ids"].device)
    return batch["informative"] if getattr(trainer, "skip", False) else everyone


def old_logps(batch: dict[str, Any], device: torch.device) -> Tensor | None:
    old = batch.get("old_per_token_logps")
    return None if old is None else aligned(old, batch).to(device)


def correction(trainer: Any, batch: dict[str, Any], device: torch.device) -> Tensor | None:
    """The importance weights of the sampling engine, where the trainer applies them."""
    if not (trainer.use_vllm and trainer.args.vllm_importance_sampling_correction):
        return None
    gap = aligned(batch["old_per_token_logps"], batch) - aligned(batch["sampling_per_token_logps"], batch)
    args = trainer.args
    low, high = args.vllm_importance_sampling_clip_min, args.vllm_importance_sampling_clip_max
    return formulas.correction(gap, batch["completion_mask"], args.vllm_importance_sampling_mode, low, high).to(device)


def working_dtype(trainer: Any) -> str:
    """What the trainer computes in: autocast's dtype, or that of the base model's weights."""
    found = {parameter.dtype for parameter in trainer.model.parameters()}
    found |= {
        parameter.quant_state.dtype for parameter in trainer.model.parameters() if hasattr(parameter, "quant_state")
    }
    for dtype, asked in ((torch.bfloat16, trainer.args.bf16), (torch.float16, trainer.args.fp16)):
        if asked or dtype in found:
            return str(dtype).removeprefix("torch.")
    return "float32"


def computed_by(trainer: Any) -> str:
    """The module and name of the function that the loss came from: it tells TRL's from Unsloth's. Ours calls it."""
    makers = [kind for kind in type(trainer).__mro__ if "compute_loss" in vars(kind)]
    function = next(kind.compute_loss for kind in makers if not kind.__module__.startswith("llm_grpo."))
    return f"{function.__module__}.{function.__qualname__}"
