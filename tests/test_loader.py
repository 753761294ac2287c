"""Who loads the policy: Unsloth, or transformers and PEFT without it. The second in one process against the contract of
the house and against the first, and cut by FSDP2 in two processes (gloo) against itself in one."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
import torch
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from conftest import ROOT, SMALL, run_script
from safetensors.torch import load_file

from llm_grpo import runs
from llm_grpo.config.loading import load_config
from llm_grpo.errors import UserError
from llm_grpo.loaders import choose_loader
from llm_grpo.loaders import transformers as plain
from llm_grpo.planning.skipping import skip_choice
from llm_grpo.rollouts import choose_engine

BY_TRANSFORMERS = "model.loader=transformers"
FSDP, DEEPSPEED = {"ACCELERATE_USE_FSDP": "true"}, {"ACCELERATE_USE_DEEPSPEED": "true"}


def demo(*overrides: str):
    return load_config(ROOT / "configs" / "demo.yaml", list(overrides), environment={})


CHOICES = [
    ({}, [], "unsloth", "every process holds the whole model"),
    ({"ACCELERATE_USE_FSDP": "false"}, [], "unsloth", "accelerate says no to what it does not do"),
    (FSDP, [], "transformers", "shard the model with FSDP"),
    (DEEPSPEED, [], "transformers", "shard the model with DeepSpeed"),
    ({}, [BY_TRANSFORMERS], "transformers", "model.loader asks for it"),
]


@pytest.mark.parametrize(("environment", "overrides", "loader", "said"), CHOICES, ids=[row[3] for row in CHOICES])
def test_the_choice_has_a_reason(monkeypatch, environment: dict, overrides: list[str], loader: str, said: str) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    found, reason = choose_loader(demo(*overrides))
    assert found == loader and (said in reason or loader == "unsloth"), reason


REFUSED = [
    (FSDP, ["model.loader=unsloth"], "unsloth loads a whole model", "its own FSDP2 has not been tried here"),
    (FSDP, [], "auto finds none here: .*FSDP shards it: rollouts.engine=server", "a token would gather all of a base"),
    (FSDP, ["rollouts.engine=transformers"], "whole in every process", "an explicit wish is refused as well"),
    ({}, [BY_TRANSFORMERS, "rollouts.engine=unsloth"], "a policy that Unsloth loads", "its vLLM is part of its policy"),
]


@pytest.mark.parametrize(("environment", "overrides", "said", "why"), REFUSED, ids=[row[3] for row in REFUSED])
def test_what_cannot_be_is_refused(monkeypatch, environment: dict, overrides: list[str], said: str, why: str) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    config = demo(*overrides)
    with pytest.raises(UserError, match=said):
        choose_loader(config)
        choose_engine(config.rollouts.engine, training=config)


def test_deepspeed_moves_the_weights_with_every_backward_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """accelerate 1.15 calls its engine's `step` in `backward`; a micro-step in parts has several."""
    monkeypatch.setenv(*DEEPSPEED.popitem())
    assert "every backward pass" in skip_choice(demo())[1]
    with pytest.raises(UserError, match="every backward pass"):
        skip_choice(demo("rollouts.skip=true"))


HEADS = [
    ({}, "as most models have it"),
    ({"softcap": 3.0, "scale": 0.5, "temperature": 0.7}, "Gemma's soft cap, a scale, a temperature"),
    ({"bias": True}, "a bias"),
    ({"rows": 0}, "nothing to score"),
]


@pytest.mark.parametrize(("how", "why"), HEADS, ids=[row[1] for row in HEADS])
def test_the_head_is_plain_torch_in_float64(monkeypatch: pytest.MonkeyPatch, how: dict, why: str) -> None:
    """Values and every gradient, in parts of three rows."""
    monkeypatch.setattr(plain, "LOGITS_AT_ONCE", 3 * 50)
    draw, rows = torch.Generator().manual_seed(0), how.get("rows", 7)
    hidden, weight, bias = (torch.randn(shape, generator=draw, dtype=torch.float64, requires_grad=True)
                            for shape in ((rows, 16), (50, 16), (50,)))  # fmt: skip
    targets, of = torch.randint(50, (rows,), generator=draw), torch.randn(2, rows, generator=draw, dtype=torch.float64)
    bias = bias if how.get("bias") else None
    scale, softcap, temperature = how.get("scale", 1.0), how.get("softcap"), how.get("temperature", 1.0)
    logits = hidden @ weight.T * scale if bias is None else (hidden @ weight.T + bias) * scale
    logits = softcap * torch.tanh(logits / softcap) if softcap else logits
    probabilities = (logits / temperature).softmax(-1)
    wanted = [probabilities.log()[range(rows), targets], -(probabilities * probabilities.log()).sum(-1)]
    asked = ("log_probs", "entropy", "is_top1")
    found = plain.fused_head(hidden, weight, bias, targets, temperature, 32, softcap, scale, asked)
    assert [None if value is None else value.shape for value in found] == [(rows,), (rows,), None, None, (rows,)]
    assert found[4].tolist() == (logits.argmax(-1) == targets).tolist()
    learns = [value for value in (hidden, weight, bias) if value is not None]
    for mine, theirs in zip(found[:2], wanted, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-12)
    mine, theirs = (torch.autograd.grad((of[0] * logps + of[1] * entropy).sum(), learns)
                    for logps, entropy in (found[:2], wanted))  # fmt: skip
    torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-12)


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess]:
    """(a folder with what one process made of given completions, how tests/rehearsal/plain_loader.py ended)."""
    folder = tmp_path_factory.mktemp("given")
    how = ["-q", "--no-header", "-p", "no:cacheprovider", "-p", "no:xdist"]
    return folder, run_script("-m", "pytest", *how, "tests/rehearsal/plain_loader.py", WITHOUT_UNSLOTH=str(folder))


def test_the_update_without_unsloth(given: tuple[Path, subprocess.CompletedProcess]) -> None:
    done = given[1]
    assert done.returncode == 0, done.stdout[-10_000:] + done.stderr[-2000:]
    assert " passed" in done.stdout and "skipped" not in done.stdout, done.stdout


def test_the_demo_is_the_same_run(demo_run: tuple[Path, str], tmp_path: Path) -> None:
    """From YAML to the merged model; the loaders draw the same LoRA, so the same completions and losses follow."""
    words = ("src/train.py", "--config", "configs/demo.yaml", f"run.output_dir={tmp_path}", *SMALL, BY_TRANSFORMERS)
    done = run_script(*words)
    assert done.returncode == 0 and "The merged model answers" in done.stdout, done.stdout + done.stderr
    mine, theirs = runs.Run(tmp_path / "demo"), runs.Run(demo_run[0])
    for row, other in zip(mine.steps(), theirs.steps(), strict=True):
        for name in ("loss", "grad_norm", "reward", "accuracy"):
            assert row[name] == pytest.approx(other[name], rel=1e-4, abs=1e-6), (row["step"], name)


def _said(value: object) -> str:
    """As accelerate puts it into the environment."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def test_a_policy_in_pieces_is_the_same_run(given: tuple[Path, subprocess.CompletedProcess]) -> None:
    """Two processes with half of the batch each, in two micro-batches, under the shipped accelerate file, and rows that
    teach nothing left out; the adapter is gathered, saved as any other, and put back into the pieces."""
    file, folder = yaml.safe_load((ROOT / "configs" / "accelerate" / "fsdp2.yaml").read_text()), given[0]
    environment = {name.upper(): _said(value) for name, value in file["fsdp_config"].items()}
    how = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", 2)
    done = run_script(*how, "tests/rehearsal/sharded.py", folder, **FSDP, **environment)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    cut, whole = (json.loads((folder / f"{processes}.json").read_text()) for processes in (2, 1))
    assert cut["cut"] == cut["of"] > 0 and cut["local_share"] == pytest.approx(0.5, abs=0.02) and whole["cut"] == 0
    assert cut["skip"] and whole["skip"]
    for row, other in zip(cut["steps"], whole["steps"], strict=True):
        assert row == pytest.approx(other, rel=1e-5, abs=1e-7)
    mine, theirs = (load_file(folder / name / "adapter_model.safetensors") for name in ("2", "1"))
    assert mine.keys() == theirs.keys() and any(value.any() for name, value in theirs.items() if "lora_B" in name)
    for name, value in theirs.items():
        torch.testing.assert_close(mine[name], value, rtol=0, atol=1e-6)


def test_the_launchers_files_are_accelerates() -> None:
    """Every key is one that `accelerate launch` reads; it stops at others."""
    files = sorted((ROOT / "configs" / "accelerate").glob("*.yaml"))
    assert [load_config_from_file(str(file)).distributed_type.value for file in files] == ["FSDP", "DEEPSPEED"]
