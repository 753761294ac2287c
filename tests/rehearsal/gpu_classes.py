"""What tests/test_gpu_classes.py runs in a process of its own: a step of GRPO through Unsloth's own GPU classes.

Its kernels run in Triton's interpreter, but for RMSNorm and RoPE, which would take minutes: they are the formula here.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import gpu_device  # a plugin of pytest's, so that it comes before conftest.py imports Unsloth
import pytest
import torch
import unsloth.kernels.rms_layernorm
import unsloth.models.llama as llama
from unsloth.models.rl import PatchFastRL

from llm_grpo.loaders import unsloth as loading


class OnTheCPU(loading.unsloth.FastLanguageModel):
    @staticmethod
    def from_pretrained(*args: Any, **options: Any) -> tuple[Any, Any]:
        return loader.from_pretrained(*args, **{**options, "device_map": {"": "cpu"}})


def rms_norm(layer: Any, x: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
    epsilon, wide = getattr(layer, "variance_epsilon", None) or layer.eps, x.float()
    return layer.weight * (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + epsilon)).to(x.dtype)


def rope(q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, at: Any = None) -> tuple:
    cos, sin, tokens = cos.squeeze(), sin.squeeze(), q.shape[2]
    rows = torch.arange(tokens)[None] if at is None else at.reshape(-1).long().view(-1, tokens)
    cos, sin = (table[rows][:, None].to(q.dtype) for table in (cos, sin))
    return tuple(x * cos + torch.cat((-x.chunk(2, -1)[1], x.chunk(2, -1)[0]), -1) * sin for x in (q, k))


loader = loading.unsloth.FastLanguageModel
loading.unsloth.FastLanguageModel = OnTheCPU
os.environ["UNSLOTH_ALLOW_CPU"] = "0"  # which would spare TRL the rewriting
PatchFastRL()
os.environ["UNSLOTH_ALLOW_CPU"] = "1"
llama.DEVICE_COUNT = gpu_device.OneCard(1)
llama.fast_rms_layernorm = unsloth.kernels.rms_layernorm.fast_rms_layernorm = rms_norm
llama.fast_rope_embedding = rope

from conftest import ROOT  # noqa: E402, I001  (what imports TRL comes after the rewriting)
from test_sft import test_the_first_loss_is_that_of_the_base_on_the_answers  # noqa: E402, F401
from test_training import lora_b, trained  # noqa: E402
from test_verification import build, tiny  # noqa: E402, F401

from llm_grpo import runs  # noqa: E402
from llm_grpo.diagnosis import drift  # noqa: E402
from llm_grpo.verification import verify_update  # noqa: E402


def test_the_update_is_the_formula(tiny: Path) -> None:  # noqa: F811
    found = verify_update(build(tiny), off_policy=True)
    assert found.ok, found
    assert found.trainer.startswith("UnslothGRPOTrainer.")


def test_a_step_of_the_demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    file = tmp_path / "mine.py"  # the demo's rewards pay all such short answers alike
    file.write_text("def lengths(completions, **_):\n    return [len(c[0]['content']) % 5 / 5 for c in completions]\n")
    short = ("grpo.max_steps=1", "grpo.warmup_steps=0", "grpo.max_completion_length=8")
    learned, run, _ = trained(tmp_path, *short, f"rewards=[{{name: '{file}:lengths'}}]")
    attention = learned.model.get_base_model().model.layers[0].self_attn
    assert attention.apply_qkv.__module__ == "unsloth.models.llama", "Unsloth's own classes were at work"
    assert learned.model._unsloth_seq_packing_grad_ok and learned.model._unsloth_seq_packing_nograd_ok, "it packed"
    assert lora_b(learned).abs().max() > 0
    (row,) = runs.read_jsonl(run.metrics)
    assert row[drift.METRIC] < 1e-3 and 0 < row["entropy"] < 7, row
