"""What tests/test_rewritten_trainer.py runs in a process of its own: our trainer over the one that Unsloth generates."""

from __future__ import annotations

import rewriting  # noqa: F401  (first: it patches TRL)

import shutil  # isort: skip
from dataclasses import fields
from pathlib import Path

import pytest
import seams
import torch
from conftest import ROOT, SMALL, TINY
from test_fitting import FOUR_OF_FOUR, close, updates
from test_sft import (
    _in_the_repository,  # noqa: F401
    demo,
    test_the_first_loss_is_that_of_the_base_on_the_answers,  # noqa: F401
)
from test_skipping import SIXTEEN
from test_training import trained
from test_verification import LEVELS, SETTINGS, build, one_thread, tiny  # noqa: F401  (fixtures)

import train
from llm_grpo import runs
from llm_grpo.config.loading import load_config
from llm_grpo.diagnosis import drift
from llm_grpo.errors import UserError
from llm_grpo.policy import load_policy
from llm_grpo.training import sft
from llm_grpo.training.arguments import changed_in_silence, device_arguments, grpo_arguments, wanted_arguments
from llm_grpo.verification import formulas, verify_update


@pytest.mark.parametrize("off_policy", [False, True], ids=["on-policy", "off-policy"])
@pytest.mark.parametrize(("overrides", "why"), [row[1:] for row in SETTINGS], ids=[row[0] for row in SETTINGS])
def test_settings_that_change_the_update(tiny: Path, overrides: list[str], why: str, off_policy: bool) -> None:  # noqa: F811
    found = verify_update(build(tiny, *overrides), off_policy=off_policy)
    assert found.ok, f"{why}\n{found}"
    assert found.trainer.startswith("UnslothGRPOTrainer.")


@pytest.mark.parametrize("beta", [0.0, 0.1])
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("loss_type", formulas.LOSS_TYPES)
def test_the_update_is_the_formula(tiny: Path, loss_type: str, level: str, beta: float) -> None:  # noqa: F811
    trainer = build(tiny, f"grpo.loss_type={loss_type}", f"grpo.beta={beta}", *LEVELS[level])
    found = verify_update(trainer, off_policy=True)
    assert found.ok and 0.2 < found.clipped < 0.8, found


def test_sft_holds_what_is_stated_and_else_what_trl_would(tmp_path: Path) -> None:
    """Unsloth's own would take two batches an update."""
    config = demo(tmp_path, "grpo.gradient_checkpointing=false")
    run = runs.create(config)
    held, stock = sft._arguments(config, run), sft.SFTConfig.__mro__[1]
    assert held.unsloth_num_chunks and not hasattr(stock, "unsloth_num_chunks"), "Unsloth's, and above it TRL's"
    plain = stock(output_dir="", **device_arguments())
    other = {field.name for field in fields(stock) if getattr(held, field.name) != getattr(plain, field.name)}
    stated = {"output_dir", "seed", "max_steps", "learning_rate", "per_device_train_batch_size", "max_length",
              "dataset_kwargs", "save_total_limit", "logging_steps", "disable_tqdm", *sft.AS_IN_GRPO}  # fmt: skip
    assert other <= stated | {"gradient_checkpointing_kwargs", "dataset_num_proc"}, other
    assert held.gradient_accumulation_steps == 1


def test_four_bits(tiny: Path) -> None:  # noqa: F811
    found = verify_update(build(tiny, "model.load_in_4bit=true", "grpo.beta=0.1"), off_policy=True)
    assert found.ok, found


@pytest.mark.parametrize("overrides", [[], ["grpo.beta=0.1"]], ids=["skip", "KL, all rows"])
def test_an_update_is_halved_and_rehearsed_without_a_trace(tiny: Path, overrides: list[str]) -> None:  # noqa: F811
    """Its loss takes other tensors than TRL's, and tells padding by the id."""
    words, skip = [*SIXTEEN, *overrides], not overrides
    _, whole, losses, _ = updates(tiny, *words, skip=skip)
    _, rehearsed, losses_rehearsed, said = updates(tiny, *words, skip=skip, rehearse=True)
    assert losses_rehearsed == losses and all(map(torch.equal, rehearsed, whole)) and said[0].startswith("rehearsed")
    _, halved, losses_halved, said = updates(tiny, *words, skip=skip, card=(3, "backward"))
    assert close(halved[0], whole[0]) and losses_halved[0] == pytest.approx(losses[0], abs=1e-5) and said


@pytest.mark.parametrize("overrides", [[], ["grpo.num_iterations=2"]], ids=["one pass", "old log-probabilities"])
def test_micro_steps_without_rows(tiny: Path, overrides: list[str]) -> None:  # noqa: F811
    """Its log-probabilities are as wide as the longest left padding of the batch, of which a blank row has none."""
    _, every, losses, _ = updates(tiny, *FOUR_OF_FOUR, *overrides, skip=False)
    _, skipped, losses_skipped, _ = updates(tiny, *FOUR_OF_FOUR, *overrides)
    assert close(skipped[0], every[0]) and losses_skipped[0] == pytest.approx(losses[0], abs=1e-5)
    assert close(skipped[1], every[1]), "and on"


def test_every_seam_is_called_for_what_it_is_read_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    calls = seams.watched(monkeypatch)
    trained(tmp_path)
    seams.check(calls)


def test_from_yaml_to_a_merged_model_and_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """src/train.py itself, then --resume: what a GPU run does, but for its kernels."""
    monkeypatch.chdir(ROOT)
    words = ["--config", "configs/demo.yaml", f"run.output_dir={tmp_path}", *SMALL]
    assert train.main([*words, "grpo.max_steps=2", "grpo.save_steps=1"]) == 0
    run = runs.find(tmp_path / "demo")
    assert (run.merged / "model.safetensors").is_file() and run.summary.is_file()
    assert train.main(["--config", str(run.config_file), "--resume", "grpo.max_steps=3"]) == 0
    rows = list(runs.read_jsonl(run.metrics))
    assert [row["step"] for row in rows] == [1, 2, 3]
    assert all(row[drift.METRIC] < 1e-4 and 0 < row["entropy"] < 7 for row in rows), rows
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("  grpo.")]
    assert {line.partition(":")[0].strip() for line in said} == KNOWN, "what Unsloth changed is said, and no more"


KNOWN = {"grpo.gradient_checkpointing_kwargs"}  # how torch's checkpointing re-enters; on a GPU it is Unsloth's own


def test_what_is_asked_for_is_held(tmp_path: Path) -> None:
    """Unsloth would put 0.28 for dapo, 5.0 for cispo, and no scaling of the rewards for dr_grpo."""
    for words in (["grpo.loss_type=dapo"], ["grpo.loss_type=dr_grpo"], ["grpo.loss_type=cispo"],
                  ["grpo.loss_type=dr_grpo", "grpo.scale_rewards=group"]):  # fmt: skip
        config = load_config(ROOT / "configs" / "qa_llama1b.yaml", ["logging.report_to=[]", *words], environment={})
        given = (config, runs.Run(tmp_path), [1.0] * len(config.rewards), "transformers")
        wanted, arguments = wanted_arguments(*given), grpo_arguments(*given)
        assert hasattr(arguments, "unsloth_num_chunks"), "Unsloth's own class"
        assert set(changed_in_silence(wanted, arguments)) == KNOWN, words
        arguments.vllm_importance_sampling_cap = 3.0  # no word of ours, and no field that the file names
        assert set(changed_in_silence(wanted, arguments)) == KNOWN | {"grpo.vllm_importance_sampling_cap"}


def test_unsloth_would_take_another_base() -> None:
    """Why loaders/unsloth.py says use_exact_model_name."""
    from unsloth.models.loader_utils import get_model_name

    assert get_model_name("Qwen/Qwen2.5-3B-Instruct", load_in_4bit=True).startswith("unsloth/")


def test_a_pad_token_that_ends_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its masks are `ids != pad`: the last token of every answer would be left out of the loss."""
    from transformers import AutoTokenizer

    monkeypatch.chdir(ROOT)
    base = tmp_path / "base"
    shutil.copytree(TINY, base)
    tokenizer = AutoTokenizer.from_pretrained(TINY)
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer.save_pretrained(base)
    with pytest.raises(UserError, match="ends an answer"):
        load_policy(load_config("configs/demo.yaml", [f"model.name={base}"], environment={}))
