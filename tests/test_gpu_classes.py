"""Unsloth's own GPU classes, its generated trainer and its sequence packing, without a GPU: Triton's interpreter runs the
kernels, CUDA's names mean the CPU (tests/rehearsal/gpu_device.py). No proof of a CUDA kernel, nor of speed.

It fakes a card for the whole process, so it stands in tests/rehearsal/gpu_classes.py and runs in one of its own.
"""

from __future__ import annotations

import importlib.util

import pytest
import torch
from conftest import ROOT, run_script


@pytest.mark.skipif(torch.cuda.is_available(), reason="on a GPU the other tests run over them")
@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
def test_our_trainer_over_unsloths_gpu_classes() -> None:
    how = ["-q", "--no-header", "-p", "no:cacheprovider", "-p", "no:xdist", "-p", "gpu_device"]
    environment = {"UNSLOTH_ALLOW_CPU": "1", "TRITON_INTERPRET": "1", "TORCHDYNAMO_DISABLE": "1",
                   "UNSLOTH_GRPO_SEQ_PACKING": "1", "PYTHONPATH": str(ROOT / "tests" / "rehearsal")}  # fmt: skip
    done = run_script("-m", "pytest", *how, "tests/rehearsal/gpu_classes.py", timeout_s=400, **environment)
    assert done.returncode == 0, done.stdout[-10_000:] + done.stderr[-2000:]
    assert " passed" in done.stdout and "skipped" not in done.stdout, done.stdout
