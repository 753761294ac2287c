"""What tests/test_loader.py runs under torchrun: updates of stock TRL on given completions, of a policy that transformers
loaded; whole in one process, or cut by FSDP2.

accelerate 1.15 gives FSDP2 to GPUs alone, so its state is told here; the rest is its own, TRL's, PEFT's and torch's.
"""

from __future__ import annotations

import json
import os
import random
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent.parent
sys.path.insert(0, str(ROOT / "src"))

import torch  # noqa: E402
from accelerate.state import AcceleratorState, DistributedType, PartialState  # noqa: E402
from rich.console import Console  # noqa: E402
from torch.distributed.tensor import DTensor  # noqa: E402

from llm_grpo import checkpoints, processes, runs  # noqa: E402
from llm_grpo import policy as policies  # noqa: E402
from llm_grpo.config.loading import load_config  # noqa: E402
from llm_grpo.problems import prepare  # noqa: E402
from llm_grpo.records import Reward  # noqa: E402
from llm_grpo.tasks import build_task  # noqa: E402
from llm_grpo.training.arguments import check_arguments  # noqa: E402
from llm_grpo.training.finite import FiniteUpdates  # noqa: E402
from llm_grpo.training.trainer import RecordingTrainer, build_trainer  # noqa: E402
from llm_grpo.training.watching import watch  # noqa: E402

RANK, PROCESSES = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
GROUP, COMPLETIONS = 8, 32
made, saved = AcceleratorState.__init__, RecordingTrainer._save_rng_state


def told(self: AcceleratorState, *args: Any, fsdp_plugin: Any = None, **options: Any) -> None:
    made(self, *args, fsdp_plugin=fsdp_plugin, **options)
    if fsdp_plugin is not None:
        self.distributed_type = PartialState._shared_state["distributed_type"] = DistributedType.FSDP
        self.fsdp_plugin = fsdp_plugin


def given(trainer: RecordingTrainer, prompts: list[Any], *_: Any, **__: Any) -> tuple[list[list[int]], list[Any]]:
    """Completions by step and place in the batch of all processes; those of every other group earn the same."""
    places = [RANK * len(prompts) + index for index in range(len(prompts))]
    draws = [random.Random(trainer.state.global_step * COMPLETIONS + place) for place in places]
    ids = [[draw.randrange(20, 500) for _ in range(draw.randint(2, 12))] for draw in draws]
    return ids, [[0.0] * len(row) for row in ids]


def earned(completion_ids: list[list[int]], **_: Any) -> list[float]:
    groups = [(RANK * len(completion_ids) + index) // GROUP for index in range(len(completion_ids))]
    return [len(ids) / 10 if group % 2 else 1.0 for ids, group in zip(completion_ids, groups, strict=True)]


def saved_late(self: RecordingTrainer, output_dir: str) -> None:
    """All come here where a model is in pieces; what the second wrote would stand."""
    time.sleep(RANK)
    saved(self, output_dir)


def main(folder: Path, *overrides: str) -> None:
    words = [f"run.output_dir={folder / f'of-{PROCESSES}'}", "model.loader=transformers", "grpo.max_steps=3",
             f"grpo.per_device_train_batch_size={COMPLETIONS // PROCESSES**2}",
             f"grpo.gradient_accumulation_steps={PROCESSES}", "grpo.max_completion_length=12",
             "grpo.save_steps=2", "evaluation.every_steps=0", "task.args.train_size=200",
             "rewards=[{name: correctness_reward_func}]",  # as many as are given below: a run's page reads them
             *overrides]  # fmt: skip
    config = load_config(ROOT / "configs" / "demo.yaml", words, environment={})
    processes.meet(120)
    run = processes.from_first(lambda: runs.create(config))
    check_arguments(config, run, [1.0])
    policies.choose_engine = lambda *_, **__: ("transformers", "it reads what was given, and generates nothing")
    RecordingTrainer._generate_single_turn = given
    RecordingTrainer._save_rng_state = saved_late
    policy = policies.load_policy(config)
    assert "unsloth" not in sys.modules, "it is for those who want the model as it is"
    task = build_task(config.task.name, config.task.args)
    problems = prepare(task, "train", config, policy.tokenizer, 64).problems
    watched = watch(config, run, Console(quiet=True), dict, lambda _: None)
    trainer = build_trainer(config, policy, task, problems, [Reward("earned", earned, 1.0)], run, watched)
    trainer.rows_that_fit = 3  # so that a micro-step has several backward passes
    trainer.train()
    policies.save_weights(policy, folder / str(PROCESSES))
    cut = [value for value in policy.model.parameters() if isinstance(value, DTensor)]
    (guard,) = (each for each in trainer.callback_handler.callbacks if isinstance(each, FiniteUpdates))
    assert bool(cut) == any(isinstance(value, DTensor) for value in guard.learned), "it looks at what is trained"
    for value in policy.model.parameters():
        if value.requires_grad:
            (value.to_local() if isinstance(value, DTensor) else value).data.zero_()
    policies.load_weights(policy, folder / str(PROCESSES))  # raises where it does not hold them then
    checkpoint = run.last_checkpoint(hashes=True)
    kept = torch.load(checkpoint.folder / checkpoints.progress_file(RANK), weights_only=True)
    own = kept["random"]["torch"].equal(trainer._kept["random"]["torch"]) and kept["global_step"] == 3
    assert checkpoint.step == 3 and own, "each process finds its own place in a checkpoint that all have written"
    steps = [{name: row[name] for name in ("loss", "grad_norm", "informative_share")} for row in run.steps()]
    found = {"steps": steps, "cut": len(cut), "of": len(list(policy.model.parameters())), "skip": trainer.skip,
             "local_share": sum(value.to_local().numel() for value in cut) / max(1, sum(v.numel() for v in cut))}  # fmt: skip
    if RANK == 0:
        (folder / f"{PROCESSES}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    if os.environ.get("ACCELERATE_USE_FSDP"):
        AcceleratorState.__init__ = told
    main(Path(sys.argv[1]), *sys.argv[2:])
    processes.part()
