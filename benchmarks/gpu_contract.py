"""Is an engine right on this machine? Run by benchmarks/gpu_check.py, one process for each engine and precision.

    python benchmarks/gpu_contract.py unsloth 4bit FOLDER      (prints one line of JSON)

On the shipped small model with an adapter that changes what it says:
- greedy answers against those of transformers over the same policy; where they part, how near the two tokens were;
- the log-probabilities of the engine's own samples against the trainer's;
- a changed adapter changes the next answers;
- the trainer's update against the float64 reference (docs/correctness.md), for the trainer that runs here: on
  a GPU the one that Unsloth rewrote, with its sequence packing as UNSLOTH_GRPO_SEQ_PACKING says. Every second group
  teaches nothing, so that rows are left out and whole micro-steps are without any.
"""

from __future__ import annotations

import json
import math
import os
import sys
import traceback
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "src"))

import llm_grpo.loaders.unsloth  # noqa: E402, F401, I001  (first)
from llm_grpo import policy as policies  # noqa: E402
import torch  # noqa: E402
from rich.console import Console  # noqa: E402

from llm_grpo import runs  # noqa: E402
from llm_grpo.config.loading import load_config  # noqa: E402
from llm_grpo.problems import build_rewards, prepare  # noqa: E402
from llm_grpo.rollouts import Engine, Sampling, token_ids  # noqa: E402
from llm_grpo.rollouts.transformers import TransformersEngine  # noqa: E402
from llm_grpo.tasks import build_task  # noqa: E402
from llm_grpo.training.trainer import build_trainer  # noqa: E402
from llm_grpo.verification import subject, verify_update  # noqa: E402
from llm_grpo.training.watching import watch  # noqa: E402

GREEDY = Sampling(max_tokens=40)
# The spacing of numbers, as a share of the power of two below them. Two tokens whose logits are a few steps apart may
# change places: bfloat16 knows nothing between 16 and 16.125. float32 is held to a thousand of its own steps.
SPACING = {"float32": 2**-13, "bfloat16": 2**-7, "float16": 2**-10}
STEPS = 4  # at most, between the two tokens where two answers part
GAPS = {"float32": 1e-3, "bfloat16": 0.05, "float16": 0.02}  # mean nats a token between engine and trainer, at most
PACKING = "UNSLOTH_GRPO_SEQ_PACKING"


def build(engine: str, precision: str, folder: Path) -> tuple[Any, Any, Any]:
    """(policy, trainer, problems) of the demo config on that engine, with a LoRA that is no longer zero."""
    overrides = [f"rollouts.engine={engine}", f"model.load_in_4bit={str(precision == '4bit').lower()}",
                 f"run.output_dir={folder}", "grpo.max_steps=2", "grpo.per_device_train_batch_size=4",
                 "grpo.gradient_accumulation_steps=8",
                 "rewards=[{name: 'benchmarks/gpu_contract.py:every_second', workers: 0}]",
                 "grpo.vllm_importance_sampling_mode=token_truncate", "evaluation.every_steps=0",
                 "grpo.save_strategy=no", "model.gpu_memory_utilization=0.2"]  # fmt: skip
    config = load_config(ROOT / "configs" / "demo.yaml", overrides, environment={})
    run, policy = runs.create(config, overwrite=True), policies.load_policy(config)
    change(policy.model)
    task, rewards = build_task(config.task.name, config.task.args), build_rewards(config.rewards)
    data = prepare(task, "train", config, policy.tokenizer, 64)
    watched = watch(config, run, Console(quiet=True), dict, lambda folder: None)
    return policy, build_trainer(config, policy, task, data.problems, rewards, run, watched), data.problems


def every_second(completions: list[Any], **_: Any) -> list[float]:
    """Of two groups of eight, the answers of one earn the same."""
    told = [zlib.crc32(completion[0]["content"].encode()) / 2**32 for completion in completions]
    return [score if row // 8 % 2 else 1.0 for row, score in enumerate(told)]


def change(model: Any) -> None:
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.01)


def greedy_agreement(policy: Any, prompts: list[Any], dtype: str) -> dict[str, Any]:
    """Share of prompts with the text transformers gives; of the others, how many steps of rounding were between the two
    tokens where they part."""
    reference = TransformersEngine(policy.model, policy.tokenizer)
    mine, theirs = (texts(engine, prompts) for engine in (policy.engine, reference))
    ids = token_ids(prompts, policy.tokenizer, GREEDY, None)
    pairs = [parting(policy, row, a, b) for row, a, b in zip(ids, mine, theirs, strict=True) if a != b]
    steps = [abs(a - b) / step(max(abs(a), abs(b)), dtype) for a, b in pairs]
    return {"equal": 1 - len(pairs) / len(prompts), "steps_of_rounding_where_they_part": max(steps, default=0.0)}


def step(value: float, dtype: str) -> float:
    """The distance from a number to the next that the dtype knows."""
    return SPACING[dtype] * 2.0 ** math.floor(math.log2(value)) if value else SPACING[dtype]


def texts(engine: Engine, prompts: list[Any]) -> list[str]:
    return [group[0].text for group in engine.generate(prompts, GREEDY)]


@torch.no_grad()
def parting(policy: Any, prompt: list[int], a: str, b: str) -> tuple[float, float]:
    """The policy's logits of the two tokens where two answers part."""
    left, right = (policy.tokenizer(t, add_special_tokens=False)["input_ids"] + [policy.tokenizer.eos_token_id]
                   for t in (a, b))  # fmt: skip
    at = next(i for i, (x, y) in enumerate(zip(left, right, strict=False)) if x != y)
    policy.model.eval()
    logits = policy.model(torch.tensor([prompt + left[:at]], device=policy.model.device)).logits[0, -1].float()
    return float(logits[left[at]]), float(logits[right[at]])


def samples(trainer: Any) -> dict[str, Any]:
    """The gap between engine and trainer on the engine's own samples, in nats."""
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1
    batch = trainer._generate_and_score_completions(next(iter(trainer.get_train_dataloader())))
    sampled, mask = batch.get("sampling_per_token_logps"), batch["completion_mask"].bool()
    if sampled is None:
        return {}
    mine = subject.aligned(subject.logps(trainer, batch), batch)  # Unsloth's scorer gives the prompt's columns as well
    gap = (mine - subject.aligned(sampled, batch).to(mine.device)).abs()[mask.to(mine.device)]
    return {"logprob_gap_mean": float(gap.mean()), "logprob_gap_max": float(gap.max()), "tokens": int(mask.sum())}


def update(trainer: Any) -> dict[str, Any]:
    found = verify_update(trainer)
    return {"trainer": found.trainer, "dtype": found.dtype, "ok": found.ok,
            "quantities": {q.name: getattr(q, q.judged) for q in found.quantities}}  # fmt: skip


def tried(part: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    try:
        return part()
    except Exception as error:  # one comparison that cannot be made must not cost the others
        traceback.print_exc()
        return {"failed": f"{type(error).__name__}: {str(error)[:300]}"}


def main(engine: str, precision: str, folder: str) -> None:
    policy, trainer, problems = build(engine, precision, Path(folder))
    prompts = [problem.messages for problem in problems[:32]]
    dtype = policy.choices["dtype"].partition(":")[0]
    result = {"dtype": dtype, "packing": os.environ.get(PACKING, "default")}
    result["greedy"] = tried(lambda: greedy_agreement(policy, prompts, dtype))
    result["samples"] = tried(lambda: samples(trainer))
    result["update"] = tried(lambda: update(trainer))
    result["adapter"] = tried(lambda: adapter(policy, prompts))
    near = result["greedy"].get("steps_of_rounding_where_they_part", math.inf) <= STEPS
    close = result["samples"].get("logprob_gap_mean", math.inf) <= GAPS[dtype]
    changed = result["adapter"].get("a_change_changes_answers", False)
    result["passed"] = bool(near and close and changed and result["update"].get("ok"))
    print("\n" + json.dumps(result))


def adapter(policy: Any, prompts: list[Any]) -> dict[str, Any]:
    before = texts(policy.engine, prompts)
    for parameter in (p for n, p in policy.model.named_parameters() if "lora_B" in n):
        parameter.data.mul_(-10)
    return {"a_change_changes_answers": texts(policy.engine, prompts) != before}


if __name__ == "__main__":
    main(*sys.argv[1:])
