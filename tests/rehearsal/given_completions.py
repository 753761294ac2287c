"""A training whose completions are given, the same ones however many processes share them: torchrun this file.

given_completions.py OUTPUTS ROWS [section.key=value ...]      ROWS: of each process in a step
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent.parent
sys.path.insert(0, str(ROOT / "src"))

from llm_grpo import processes, runs  # noqa: E402

ALL_ROWS, LONGEST, STEPS = 32, 24, 3
TAUGHT_NOTHING = 1  # the step whose second half has one and the same completion


def digits(prompts: list, completions: list, **_: Any) -> list[float]:
    return [float(sum(map(str.isdigit, completion[0]["content"]))) for completion in completions]


def main(outputs: str, rows: str, *overrides: str) -> None:
    from llm_grpo.config.loading import load_config

    words = [f"run.output_dir={outputs}", f"grpo.per_device_train_batch_size={rows}", f"grpo.max_steps={STEPS}",
             f"grpo.max_completion_length={LONGEST}", "grpo.learning_rate=1e-3", "evaluation.every_steps=0", *overrides]  # fmt: skip
    config = load_config(ROOT / "configs" / "demo.yaml", words, environment={})
    processes.meet(120)
    run = processes.from_first(lambda: runs.create(config))

    from llm_grpo.loaders import bring_loader

    bring_loader(config)
    from llm_grpo.policy import load_policy, save_weights

    import torch  # isort: skip
    from rich.console import Console  # isort: skip
    from llm_grpo.problems import prepare  # isort: skip
    from llm_grpo.records import Reward  # isort: skip
    from llm_grpo.tasks import build_task  # isort: skip
    from llm_grpo.training.optimising import optimise  # isort: skip
    from llm_grpo.training.trainer import RecordingTrainer, build_trainer  # isort: skip
    from llm_grpo.training.watching import watch  # isort: skip

    def given(self: RecordingTrainer, prompt_ids: list, *_: Any, **__: Any) -> tuple[list, list]:
        step = self.state.global_step
        if processes.rank() == 1 and os.environ.get("SIGNAL_IN_STEP") == f"{step + 1}":
            os.kill(os.getpid(), signal.SIGTERM)
        draw = torch.Generator().manual_seed(step)
        ids = torch.randint(20, 120, (ALL_ROWS, LONGEST), generator=draw)
        lengths = torch.randint(4, LONGEST, (ALL_ROWS,), generator=draw)
        if step == TAUGHT_NOTHING:
            ids[ALL_ROWS // 2 :], lengths[ALL_ROWS // 2 :] = ids[-1].clone(), lengths[-1].clone()
        mine = slice(processes.rank() * len(prompt_ids), (processes.rank() + 1) * len(prompt_ids))
        completions = [row[:length].tolist() for row, length in zip(ids[mine], lengths[mine], strict=True)]
        return completions, [[-3.0] * len(row) for row in completions]

    RecordingTrainer._generate_single_turn = given
    policy, task = load_policy(config), build_task(config.task.name, config.task.args)
    problems = prepare(task, "train", config, policy.tokenizer, 64).problems
    watched = watch(config, run, Console(quiet=True), dict, lambda folder: save_weights(policy, folder))
    rewards = [Reward("digits", processes.together(digits), 1.0)]
    optimise(build_trainer(config, policy, task, problems, rewards, run, watched), watched, run, None)


if __name__ == "__main__":
    main(*sys.argv[1:])
    processes.part()
