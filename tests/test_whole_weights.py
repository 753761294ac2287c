"""`lora: null`: all weights of a small Llama are trained, through every script, from its own JSONL with pair ids."""

from __future__ import annotations

import json
import os
from pathlib import Path
from unittest import mock

import pytest
import torch
from conftest import ROOT
from llama import make_llama
from rich.console import Console
from safetensors.torch import load_file

import eval as eval_script
import infer
import merge
import train
from llm_grpo import runs
from llm_grpo.config.loading import load_config
from llm_grpo.errors import UserError
from llm_grpo.export.card import Subject, card
from llm_grpo.policy import load_policy, load_weights, save_weights
from llm_grpo.problems import build_rewards, prepare
from llm_grpo.rollouts import choose_engine
from llm_grpo.tasks import build_task
from llm_grpo.tasks.word_problems import word_problems
from llm_grpo.training.optimising import optimise
from llm_grpo.training.trainer import build_trainer
from llm_grpo.training.watching import watch

QA = ROOT / "configs" / "qa_llama1b.yaml"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with qa.jsonl, llama/, and a reward of which a random model earns some: letters."""
    folder = tmp_path_factory.mktemp("qa")
    examples = word_problems(train_size=300).load("train").examples
    rows = [
        {
            "question": example.prompt[-1]["content"],
            "answer": "\n".join([*example.meta["steps"], f"#### {example.answer}"]),
            "generated_at": "2026-11-21T10:00:00Z",
            "pair_id": f"p{number}",
        }
        for number, example in enumerate(examples)
    ]
    rows.append({**rows[7], "question": "Asked under the same id?"})
    (folder / "qa.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "letters.py").write_text(
        "def letters(prompts, completions, **columns):\n"
        "    return [float(sum(c.isalpha() for c in completion[0]['content'])) for completion in completions]\n"
    )
    make_llama(folder / "llama", [row["question"] + row["answer"] for row in rows])
    return folder


def overrides(world: Path, outputs: Path, *more: str) -> list[str]:
    return [
        f"model.name={world / 'llama'}", f"task.args.path={world / 'qa.jsonl'}", f"run.output_dir={outputs}",
        "lora=null", "task.args.validation_share=0.1", "task.args.test_share=0.1",
        f"rewards.1={{name: '{world / 'letters.py'}:letters', weight: 0.01}}",
        "grpo.max_steps=2", "grpo.save_steps=1", "grpo.warmup_steps=0", "grpo.learning_rate=1e-3", "grpo.lr_scheduler_type=constant",
        "grpo.max_completion_length=16", "grpo.per_device_train_batch_size=16", "grpo.gradient_accumulation_steps=1",
        "evaluation={limit: 8, validation_limit: 8, every_steps: 1}", "logging.report_to=[]", *more,
    ]  # fmt: skip


def train_main(words: list[str]) -> int:
    """src/train.py in this process, whose environment then is what it was: the script tells loggers their folder by it."""
    with mock.patch.dict(os.environ):
        return train.main(words)


@pytest.fixture(scope="module")
def run(world: Path, tmp_path_factory: pytest.TempPathFactory) -> runs.Run:
    outputs = tmp_path_factory.mktemp("outputs")
    assert train_main(["--config", str(QA), *overrides(world, outputs)]) == 0
    return runs.find(outputs / "qa-llama-1b")


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def test_all_weights_move_and_lie_where_the_run_says(run: runs.Run, world: Path) -> None:
    assert run.learns == "model" and run.chosen_weights() == run.best == run.folder / "model_best"
    assert not run.adapter.exists() and not run.adapter_best.exists()
    base, learned = weights(world / "llama"), weights(run.last)
    assert learned.keys() == base.keys()
    still = [name for name in base if torch.equal(base[name], learned[name])]
    assert not still, "embeddings, norms and projections are trained alike"
    summary = json.loads(run.summary.read_text())
    assert summary["evaluated"].startswith("model_best, step ") and summary["steps"] == 2


def test_the_merged_model_is_the_learned_one_in_16_bit(run: runs.Run) -> None:
    learned, merged = weights(run.chosen_weights()), weights(run.merged)
    assert {tensor.dtype for tensor in merged.values()} == {torch.float16}
    assert all(torch.equal(learned[name].half(), merged[name]) for name in learned)


def test_merge_proves_and_describes_it(run: runs.Run, capfd: pytest.CaptureFixture[str]) -> None:
    assert merge.main(["--run", str(run.folder), "--overwrite", "--proof-limit", "8"]) == 0
    assert "is a whole model, there was nothing to merge" in capfd.readouterr().out
    proof = json.loads((run.merged / "proof.json").read_text())
    assert proof["passed"] and proof["merged"]["kl"] < proof["adapter_effect"]["kl"], "nearer than where it started"
    text = (run.merged / "README.md").read_text()
    assert "All weights were trained" in text and "## Is the merged model the trained model?" in text
    assert "LoRA" not in text.partition("## Config")[0] and "- lora" not in text
    with pytest.raises(UserError, match="--method lora: .* is a whole model"):
        merge.main(["--run", str(run.folder), "--method", "lora", "--push", "a/b"])


def test_infer_and_eval_open_the_run(run: runs.Run, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    words = ["--prompt", "How many?", "--max_tokens", "4", "--temperature", "0", "--log", str(tmp_path / "log")]
    answers = []
    for number, which in enumerate((["--run", run.folder], ["--adapter", run.best], ["--model", run.best])):
        output = tmp_path / f"{number}.jsonl"
        assert infer.main([*map(str, which), *words, "--system", "", "--output", str(output)]) == 0
        answers.append(json.loads(output.read_text())["completions"])
    assert answers[0] == answers[1] == answers[2]
    assert str(run.best) in capfd.readouterr().out
    report = tmp_path / "report.json"
    assert eval_script.main(["--run", str(run.folder), "--limit", "8", "--output", str(report)]) == 0
    again, after = json.loads(report.read_text()), json.loads(run.after.read_text())
    assert [i["completion"] for i in again["items"]] == [i["completion"] for i in after["items"]]


def test_a_resume_goes_on_from_all_weights(run: runs.Run) -> None:
    before = weights(run.last)
    assert train_main(["--config", str(run.config_file), "--resume", "grpo.max_steps=3"]) == 0
    assert [row["step"] for row in runs.read_jsonl(run.metrics)] == [1, 2, 3]
    moved = max((weights(run.last)[name] - before[name]).abs().max().item() for name in before)
    assert 0 < moved < 0.02, "one more step from the last checkpoint, not three from the start"


def test_weights_come_back_and_a_kl_term_works(world: Path, tmp_path: Path) -> None:
    config = load_config(QA, overrides(world, tmp_path, "grpo.beta=0.1", "evaluation.every_steps=0"), environment={})
    made, policy, rewards = runs.create(config), load_policy(config), build_rewards(config.rewards)
    task = build_task(config.task.name, config.task.args)
    data = prepare(task, "train", config, policy.tokenizer, 32)
    watched = watch(config, made, Console(quiet=True), dict, lambda folder: save_weights(policy, folder))
    optimise(build_trainer(config, policy, task, data.problems, rewards, made, watched), watched, made, None)
    assert [row["kl"] >= 0 for row in runs.read_jsonl(made.metrics)] == [True, True]
    save_weights(policy, made.last)
    kept = {name: value.clone() for name, value in policy.model.state_dict().items()}
    with torch.no_grad():
        for parameter in policy.model.parameters():
            parameter.zero_()
    load_weights(policy, made.last)
    assert all(torch.equal(value, kept[name]) for name, value in policy.model.state_dict().items())


def test_what_cannot_go_together_is_refused() -> None:
    with pytest.raises(UserError, match="lora: null trains all weights; 4-bit"):
        load_config(QA, ["lora=null", "model.load_in_4bit=true"], environment={})
    with pytest.raises(UserError, match="a LoRA"):
        choose_engine("unsloth", training=load_config(QA, ["lora=null"], environment={}))
    with pytest.raises(UserError, match="vllm needs a LoRA"):
        train.dry_run(load_config(QA, ["lora=null", "rollouts.engine=vllm"], environment={}))
    assert choose_engine("auto", training=load_config(QA, ["lora=null"], environment={}))[0] == "transformers"


def test_the_card_of_an_adapter_does_not_change(demo_run) -> None:
    demo = runs.find(demo_run[0])
    text = card(
        Subject(demo.merged, demo.chosen_weights(), str(ROOT / "examples" / "tiny_qwen2"), demo.merged, run=demo)
    )
    assert "The LoRA adapter is merged into its base" in text and "- lora" in text
