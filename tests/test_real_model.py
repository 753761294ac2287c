"""A slice of the path on a pretrained model, SmolLM2-135M-Instruct, where it is at hand: `make test-real` fetches it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from conftest import ROOT, run_script
from transformers import AutoTokenizer

from llm_grpo import runs
from llm_grpo.answers.calculation import value_of
from llm_grpo.config.loading import load_config
from llm_grpo.diagnosis.drift import METRIC
from llm_grpo.files import read_jsonl
from llm_grpo.problems import prepare
from llm_grpo.tasks import build_task

MODEL = ROOT / "models" / "SmolLM2-135M-Instruct"
pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(not (MODEL / "config.json").is_file(), reason="no models/SmolLM2-135M-Instruct: make test-real"),
]
SLICE = ("sft={steps: 8, batch_size: 4, learning_rate: 2.0e-4}", "grpo.max_steps=2", "grpo.save_steps=2",
         "grpo.per_device_train_batch_size=16", "grpo.max_completion_length=24", "evaluation.limit=8",
         "evaluation.validation_limit=4", "evaluation.every_steps=0", "evaluation.samples=1")  # fmt: skip


def train(folder: Path, *words: str) -> runs.Run:
    done = run_script("src/train.py", "--config", "configs/smollm2.yaml", f"run.output_dir={folder}", *SLICE, *words)
    assert done.returncode == 0, done.stdout + done.stderr
    return runs.find(folder / "smollm2")


@pytest.mark.parametrize("four_bit", [False, True], ids=["float32", "4-bit"])
def test_from_yaml_over_sft_and_grpo_to_a_merged_model(tmp_path: Path, four_bit: bool) -> None:
    """The merge is into the base as it is, whatever was trained on; the adapter answers in the form."""
    run = train(tmp_path, f"model.load_in_4bit={str(four_bit).lower()}")
    rows, solved = list(read_jsonl(run.metrics)), list(read_jsonl(run.sft_metrics))
    assert [row["step"] for row in rows] == [1, 2] and [row["step"] for row in solved] == [*range(1, 9)]
    assert all(row[METRIC] < (1e-3 if four_bit else 1e-4) for row in rows), rows
    assert all((row["grad_norm"] > 0) == (row["informative_share"] > 0) for row in rows), "two groups may teach nothing"
    assert 0.2 < solved[0]["loss"] < 2, "what a pretrained model thinks of a worked solution"
    assert (run.merged / "config.json").is_file()
    asked = "Tom has 3 apples and buys 4 more. How many apples does he have?"
    said = run_script("src/infer.py", "--run", run.folder, "--temperature", "0", "--prompt", asked,
                      "--output", tmp_path / "said.jsonl")  # fmt: skip
    assert said.returncode == 0, said.stdout + said.stderr
    (row,) = read_jsonl(tmp_path / "said.jsonl")
    assert value_of(row["completions"][0]["text"]) is not None, f"a calculation: {row}"


def test_every_prompt_leaves_room_for_its_answer() -> None:
    config = load_config(ROOT / "configs" / "smollm2.yaml", environment={})
    task, tokenizer = build_task(config.task.name, config.task.args), AutoTokenizer.from_pretrained(MODEL)
    found = [len(prepare(task, part, config, tokenizer).problems) for part in ("train", "validation", "test")]
    assert found == [502, 174, 320], "three of the 505 are the worked examples"


def test_vllm_answers_as_transformers_does(tmp_path: Path) -> None:
    pytest.importorskip("vllm")
    found = []
    for engine in ("transformers", "vllm"):
        words = ["--config", "configs/smollm2.yaml", "--limit", "12", "--engine", engine]
        done = run_script("src/eval.py", *words, "--model", MODEL, "--output", tmp_path / f"{engine}.json")
        assert done.returncode == 0, done.stdout + done.stderr
        found.append([item["completion"] for item in json.loads((tmp_path / f"{engine}.json").read_text())["items"]])
    assert sum(a == b for a, b in zip(*found, strict=True)) >= 11, "in float32 they part at ties alone"


def test_a_common_beginning_read_once_is_the_same_loss() -> None:
    """Eight rows behind 200 tokens: log-probabilities and the gradient of a layer, in the pretrained model."""
    from transformers import AutoModelForCausalLM

    from llm_grpo.training.sharing import Folded

    model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32)
    torch.manual_seed(0)
    ids = torch.cat([torch.randint(20, 40_000, (1, 200)).expand(8, -1), torch.randint(20, 40_000, (8, 40))], dim=1)
    found = []
    for apart in (False, True):
        inputs = Folded.of(ids, torch.ones_like(ids), 24, apart).inputs(model)
        model.zero_grad()
        loss = model(**inputs).loss
        loss.backward()
        found.append((float(loss), model.model.layers[3].self_attn.k_proj.weight.grad.clone()))
    (loss, gradient), (loss_once, gradient_once) = found
    assert loss_once == pytest.approx(loss, rel=1e-5)
    assert float((gradient - gradient_once).norm() / gradient.norm()) < 1e-4
