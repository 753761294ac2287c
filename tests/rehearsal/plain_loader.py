"""What tests/test_loader.py runs in a process of its own, where Unsloth is not imported: the policy by transformers and
PEFT, under the contract of the house, and a few steps of it."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import sharded
import torch
from test_training import trained
from test_verification import ACCUMULATED, LEVELS, build, one_thread, tiny  # noqa: F401  (fixtures)

from llm_grpo import runs
from llm_grpo.policy import load_weights, save_weights
from llm_grpo.verification import formulas, verify_update

BY_TRANSFORMERS = "model.loader=transformers"


@pytest.fixture(autouse=True)
def without_unsloth() -> Iterator[None]:
    yield
    assert not {"unsloth", "unsloth_zoo"} & set(sys.modules)


@pytest.mark.parametrize("loss_type", formulas.LOSS_TYPES)
@pytest.mark.parametrize(("level", "beta"), [("token", 0.1), ("sequence", 0.0)])
def test_the_update_is_the_formula(tiny: Path, loss_type: str, level: str, beta: float) -> None:  # noqa: F811
    words = (f"grpo.loss_type={loss_type}", f"grpo.beta={beta}", *LEVELS[level], *ACCUMULATED)
    found = verify_update(build(tiny, BY_TRANSFORMERS, *words), off_policy=True)
    assert found.ok and 0.2 < found.clipped < 0.8, found
    assert found.trainer == "trl.trainer.grpo_trainer.GRPOTrainer.compute_loss" and found.dtype == "float32"


def test_four_bits(tiny: Path) -> None:  # noqa: F811
    found = verify_update(build(tiny, BY_TRANSFORMERS, "model.load_in_4bit=true", "grpo.beta=0.1"), off_policy=True)
    assert found.ok and found["reference_logps"].absolute < 1e-5, found


WAYS = [
    (["model.load_in_4bit=true"], "a LoRA in float32 over NF4"),
    (["lora=null", "grpo.learning_rate=1.0e-5"], "all weights, and no adapter"),
    (["sft={steps: 2, batch_size: 4}", "grpo.beta=0.1"], "SFT's head too, and the starting weights beside the LoRA"),
]


@pytest.mark.parametrize(("overrides", "why"), WAYS, ids=[row[1] for row in WAYS])
def test_a_few_steps_are_recorded_and_put_back(tmp_path: Path, overrides: list[str], why: str) -> None:
    policy, run, config = trained(tmp_path, BY_TRANSFORMERS, *overrides)
    learns = {name: value for name, value in policy.model.named_parameters() if value.requires_grad}
    assert {value.dtype for value in learns.values()} == {torch.float32} and policy.choices["model.loader"]
    assert all("lora" in name for name in learns) == (config.lora is not None)
    assert [row["step"] for row in runs.read_jsonl(run.metrics)] == [1, 2]
    save_weights(policy, tmp_path / "saved")
    with torch.no_grad():
        for value in learns.values():
            value.add_(1.0)
    load_weights(policy, tmp_path / "saved")  # raises where the policy does not hold them then


def test_completions_that_are_given(monkeypatch: pytest.MonkeyPatch) -> None:
    """What two processes are compared with (tests/test_loader.py)."""
    for where, name in ((sharded.policies, "choose_engine"), (sharded.RecordingTrainer, "_generate_single_turn"),
                        (sharded.RecordingTrainer, "_save_rng_state")):  # fmt: skip
        monkeypatch.setattr(where, name, getattr(where, name))  # put back after
    sharded.main(Path(os.environ["WITHOUT_UNSLOTH"]))
