"""The real Unsloth and the real TRL for a few steps, in 16-bit/32-bit and in 4-bit, and what is recorded of them."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import seams
import torch
from conftest import ROOT
from rich.console import Console

from llm_grpo import runs
from llm_grpo.config.loading import load_config
from llm_grpo.errors import UserError
from llm_grpo.evaluation.scoring import evaluate, without_items
from llm_grpo.policy import load_policy, load_weights, save_weights
from llm_grpo.problems import build_rewards, prepare
from llm_grpo.rewards.guarding import RewardError
from llm_grpo.tasks import build_task
from llm_grpo.training.arguments import changed_in_silence, check_arguments, grpo_arguments, wanted_arguments
from llm_grpo.training.optimising import optimise
from llm_grpo.training.trainer import build_trainer
from llm_grpo.training.watching import watch

STEPS = [
    "grpo.max_steps=2",
    "grpo.per_device_train_batch_size=16",
    "evaluation.every_steps=0",
    "grpo.learning_rate=1e-3",
]


def trained(tmp_path: Path, *overrides: str):
    """(policy, run, config) after a few steps of the demo config."""
    config = load_config(
        ROOT / "configs" / "demo.yaml", [f"run.output_dir={tmp_path}", *STEPS, *overrides], environment={}
    )
    run = runs.create(config)
    policy = load_policy(config)
    task, rewards = build_task(config.task.name, config.task.args), build_rewards(config.rewards)
    data = prepare(task, "train", config, policy.tokenizer, 64)
    check = prepare(task, "validation", config, policy.tokenizer, 8)
    watched = watch(
        config, run, Console(quiet=True),
        lambda: without_items(evaluate(policy.engine, task, check.problems, rewards, 32)),
        lambda folder: save_weights(policy, folder),
    )  # fmt: skip
    trainer = build_trainer(config, policy, task, data.problems, rewards, run, watched)
    optimise(trainer, watched, run, None)
    return policy, run, config


def lora_b(policy) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for n, p in policy.model.named_parameters() if "lora_B" in n])


@pytest.fixture(autouse=True)
def from_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


@pytest.mark.parametrize("four_bit", [False, True], ids=["32-bit", "4-bit"])
def test_a_few_steps_train_and_everything_is_recorded(tmp_path: Path, four_bit: bool) -> None:
    own = 'rewards=[{name: correctness_reward_func}, {name: "examples/custom_reward.py:shows_its_steps"}]'
    policy, run, config = trained(tmp_path, f"model.load_in_4bit={str(four_bit).lower()}", own)
    kinds = {type(module).__name__ for module in policy.model.modules()}
    assert ("Linear4bit" in kinds) == four_bit
    assert lora_b(policy).abs().max() > 0, "B starts at zero; it has to move"
    kinds = {parameter.dtype for parameter in policy.model.parameters() if parameter.requires_grad}
    assert kinds == {torch.float32}, "in bfloat16 most steps would be rounded away"
    metrics = list(runs.read_jsonl(run.metrics))
    assert [row["step"] for row in metrics] == [1, 2]
    wanted = ("reward", "loss", "grad_norm", "learning_rate", "accuracy", "format_rate", "truncated_share", "tokens_per_second",
              "seconds/reward/correctness_reward_func", "seconds/reward/shows_its_steps",  # here, and in a worker
              "frac_reward_zero_std", "informative_share", "tokens_updated", "padding_share", "wasted_share",
              "completions/mean_length", "seconds/generation", "seconds/rewards", "seconds/update",
              "step_time", "memory_peak_gb", "sampling/sampling_logp_difference/mean")  # fmt: skip
    for row in metrics:
        assert all(math.isfinite(row[name]) for name in wanted), row
        assert row["sampling/sampling_logp_difference/mean"] < 1e-4, "the policy generates from itself"
    rows = list(runs.read_jsonl(run.completions / "step_000001.jsonl.gz"))
    assert len(rows) == 16
    for start in (0, 8):
        group = rows[start : start + 8]
        assert len({row["id"] for row in group}) == 1, "eight answers to one problem"
        assert abs(sum(row["advantage"] for row in group)) < 1e-3
    by_hand = build_rewards(config.rewards)
    for row in rows:
        completions = [[{"role": "assistant", "content": row["completion"]}]]
        for reward in by_hand:
            value = reward.function(prompts=[[]], completions=completions, answer=[row["answer"]], id=[row["id"]])[0]
            assert row["rewards"][reward.label] == pytest.approx(value), "one number everywhere"
    weights = {reward.label: reward.weight for reward in by_hand}
    mean = sum(weights[k] * v for row in rows for k, v in row["rewards"].items()) / len(rows)
    assert metrics[0]["reward"] == pytest.approx(mean, abs=1e-5)
    assert metrics[0]["accuracy"] == sum(row["strict"] for row in rows) / len(rows)


def test_a_saved_adapter_comes_back(tmp_path: Path) -> None:
    policy, run, _ = trained(tmp_path, "grpo.max_steps=1")
    kept = lora_b(policy)
    save_weights(policy, run.adapter)
    with torch.no_grad():
        for name, parameter in policy.model.named_parameters():
            if "lora_B" in name:
                parameter.zero_()
    load_weights(policy, run.adapter)
    assert torch.equal(lora_b(policy), kept)
    assert not [p.name for p in run.folder.iterdir() if p.name.startswith(".")], "no drafts are left"


def test_with_a_kl_term_only_the_adapter_is_saved(tmp_path: Path) -> None:
    policy, run, _ = trained(tmp_path, "grpo.beta=0.1")
    assert all(math.isfinite(row["kl"]) for row in runs.read_jsonl(run.metrics))
    save_weights(policy, run.adapter)
    assert not [path for path in run.adapter.iterdir() if path.is_dir()], "TRL's own 'ref' adapter is no result"
    load_weights(policy, run.adapter)


def test_validation_keeps_the_best_adapter(tmp_path: Path) -> None:
    _, run, _ = trained(tmp_path, "evaluation.every_steps=1")
    rows = list(runs.read_jsonl(run.validation))
    assert [row["step"] for row in rows] == [0, 1, 2]
    best = max(rows[1:], key=lambda row: (row["strict_accuracy"], row["step"]))
    assert json.loads((run.adapter_best / "validation.json").read_text())["step"] == best["step"]
    assert run.chosen_weights() == run.adapter_best


BAD = [
    ("raises", "return [1 / 0 for _ in completions]", "ZeroDivisionError"),
    ("too_few", "return [1.0]", "returned 1 scores for 16 completions"),
    ("text", "return ['good'] * len(completions)", "good"),
    ("nan", "return [float('nan')] * len(completions)", "nan"),
]


@pytest.mark.parametrize(("name", "body", "said"), BAD, ids=[row[0] for row in BAD])
def test_a_faulty_reward_is_named_with_its_step(tmp_path: Path, name: str, body: str, said: str) -> None:
    file = tmp_path / "mine.py"
    file.write_text(f"def {name}(prompts, completions, answer, **kwargs):\n    {body}\n")
    with pytest.raises(RewardError, match=name) as error:
        trained(tmp_path, f"rewards=[{{name: '{file}:{name}'}}]")
    assert said in str(error.value) and "step" in str(error.value)


def test_a_function_copied_from_a_notebook_trains(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        "def mine(prompts, completions, answer, **kwargs) -> list[float]:\n"
        "    responses = [completion[0]['content'] for completion in completions]\n"
        "    assert prompts[0][-1]['role'] == 'user'\n"
        "    return [2.0 if a in r else 0.0 for r, a in zip(responses, answer)]\n"
    )
    _, run, _ = trained(tmp_path, f"rewards=[{{name: '{file}:mine', weight: 0.5}}]")
    assert "rewards/mine/mean" in next(runs.read_jsonl(run.metrics))


def test_every_value_under_grpo_reaches_trl_or_the_change_is_said(tmp_path: Path) -> None:
    """Unsloth drops and rewrites arguments in silence; what the user wrote has to be what TRL holds, and the rest TRL's."""
    for path in sorted((ROOT / "configs").glob("*.yaml")):
        config = load_config(path, ["logging.report_to=[]", "grpo.optim=adamw_torch_fused"], environment={})
        given = (config, runs.Run(tmp_path), [1.0] * len(config.rewards), "transformers")
        wanted, arguments = wanted_arguments(*given), grpo_arguments(*given)
        for name, value in config.grpo.items():
            assert getattr(arguments, name) == value, f"{path.name}: grpo.{name}"
        assert changed_in_silence(wanted, arguments) == {}
        assert arguments.seed == config.run.seed
    arguments.learning_rate, arguments.auto_find_batch_size = 1.0, True  # the latter stands in no file
    assert set(changed_in_silence(wanted, arguments)) == {"grpo.learning_rate", "grpo.auto_find_batch_size"}


REFUSED = [
    ("grpo.use_liger_kernel=true", "liger", "not installed"),
    ("grpo.optim=lomo", "lomo", "not installed; said when the training started"),
    ("grpo.lr_scheduler_type=cosine_with_min_lr", "min_lr", "lacks an argument; said when the training started"),
    ("grpo.auto_find_batch_size=true", "auto_find_batch_size", "TRL's own word"),
    ("grpo.accelerator_config={x: 1}", "unexpected keyword argument 'x'", "a TypeError"),
]


@pytest.mark.parametrize(("override", "said", "why"), REFUSED, ids=[row[0] for row in REFUSED])
def test_what_trl_refuses_is_told_before_the_model_is_loaded(
    tmp_path: Path, override: str, said: str, why: str
) -> None:
    config = load_config(ROOT / "configs" / "demo.yaml", [override], environment={})
    with pytest.raises(UserError, match=f"TRL refuses these values: .*{said}"):
        check_arguments(config, runs.Run(tmp_path), [1.0] * len(config.rewards))


def test_what_only_the_trainer_refuses_is_a_line_too(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="TRL refuses these values: .*sync_ref_model"):
        trained(tmp_path, "grpo.sync_ref_model=true")


def test_a_lora_on_modules_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="q_prj.*It has: .*q_proj"):
        trained(tmp_path, "lora.target_modules=[q_prj]")


def test_the_seams_of_trl_are_called_for_what_they_are_read_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert seams.overridden() == set(seams.SEAMS), "each has its line in tests/seams.py"
    calls = seams.watched(monkeypatch)
    trained(tmp_path, "grpo.max_steps=1")
    seams.check(calls)


def test_a_dead_seam_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = seams.watched(monkeypatch)
    trained(tmp_path, "grpo.max_steps=1")
    del calls["_calculate_rewards"]
    with pytest.raises(AssertionError, match="_calculate_rewards is dead"):
        seams.check(calls)
