"""benchmarks/gpu_check.py: what a CPU can run of it, and the sums it does on what the parts measured."""

from __future__ import annotations

import importlib.util
import json
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from conftest import TINY, run_script

from benchmarks import gpu_check


@pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vllm is not installed")
@pytest.mark.skipif(torch.cuda.is_available(), reason="on a GPU it is run by hand, and takes longer")
def test_the_parts_run_on_a_cpu_and_those_that_need_a_gpu_say_so(tmp_path: Path) -> None:
    how = ["--shape", "tiny", "--steps", "3", "--no-result", "--outputs", tmp_path]
    done = run_script("benchmarks/gpu_check.py", *how, "--only", "contract-unsloth-4bit", "contract-vllm-16bit")
    assert done.returncode == 0, done.stdout + done.stderr
    contract, skipped, _ = (json.loads(line) for line in done.stdout.splitlines() if line.startswith("  {"))
    assert skipped == {"skipped": "needs an NVIDIA GPU"}
    assert contract["passed"] and contract["greedy"]["equal"] == 1.0, contract


def test_a_part_that_fails_costs_no_other_and_says_why(tmp_path: Path) -> None:
    args = Namespace(outputs=tmp_path, gpu=None, timeout_s=60)

    def part(name: str) -> dict:
        return {"said": gpu_check.run(["python", "-c", "import sys; sys.exit('no such knob')"], args, name)}

    found = gpu_check.measure("train-vllm-16bit", part, args)
    assert "no such knob" in found["failed"]


def test_ratios_only_where_both_were_measured() -> None:
    results = {"train-vllm-16bit": {"seconds_per_step": 2.0}, "bare-trl-16bit": {"seconds_per_step": 4.0},
               "train-unsloth-4bit": {"seconds_per_step": 1.0}, "bare-unsloth-4bit": {"failed": "x"}}  # fmt: skip
    assert gpu_check.ratios(results) == {"vllm engine over TRL colocate, 16bit": 0.5}


def test_every_id_of_the_random_model_has_a_text(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    AutoTokenizer.from_pretrained(TINY).save_pretrained(tmp_path)
    gpu_check.fill_vocabulary(tmp_path / "tokenizer.json", 1000)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer.decode([999]) == "<999>" and len(tokenizer) == 1000
    assert (
        tokenizer("How many pens?")["input_ids"] == AutoTokenizer.from_pretrained(TINY)("How many pens?")["input_ids"]
    )
