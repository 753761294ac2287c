"""System S5 through the scripts: configs/one_shot.yaml, its environment variables, a worked example everywhere, samples."""

from __future__ import annotations

import json
import re
from io import StringIO
from pathlib import Path

import pytest
import yaml
from conftest import ROOT, run_script
from rich.console import Console

from llm_grpo import runs
from llm_grpo.config.loading import load_config
from llm_grpo.problems import build_rewards, worked_examples
from llm_grpo.report.tables import SHOWN, sample_text
from llm_grpo.training.watching import SampleEvery

WORDS = ["--config", "configs/one_shot.yaml"]
TINY_RUN = [
    "task={name: word_problems, args: {train_size: 400, validation_size: 40, test_size: 40}}",
    "model.max_seq_length=256",
    "rollouts.engine=transformers",
    "logging={report_to: [], sample_every: 1}",
    "grpo={max_steps: 2, per_device_train_batch_size: 16, num_generations: 8, max_completion_length: 56}",
    "evaluation={limit: 8, validation_limit: 8, every_steps: 0}",
]


def test_the_variables_of_the_environment_are_shown_as_its() -> None:
    done = run_script("src/train.py", *WORDS, "--dry-run", MODEL_NAME="a/b", OUTPUT_DIR="elsewhere", RUN_NAME="mine")
    assert done.returncode == 0, done.stderr
    shown = {line.split()[1]: line for line in done.stdout.splitlines() if len(line.split()) > 3}
    for key, value, name in (
        ("run.name", "mine", "RUN_NAME"),
        ("run.output_dir", "elsewhere", "OUTPUT_DIR"),
        ("model.name", "a/b", "MODEL_NAME"),
    ):
        assert value in shown[key] and f"environment {name}" in shown[key]


def test_without_variables_the_file_decides() -> None:
    config = load_config("configs/one_shot.yaml", environment={})
    assert (config.model.name, config.run.name) == ("Qwen/Qwen2.5-1.5B-Instruct", "default-GRPO-gsm8k")
    assert (config.run.output_dir, config.prompt.examples, config.logging.sample_every) == ("outputs", 1, 10)


@pytest.fixture(scope="module")
def one_shot(tmp_path_factory: pytest.TempPathFactory) -> tuple[runs.Run, str]:
    outputs = tmp_path_factory.mktemp("outputs")
    variables = {"MODEL_NAME": "examples/tiny_qwen2", "OUTPUT_DIR": str(outputs), "RUN_NAME": "mine"}
    done = run_script("src/train.py", *WORDS, *TINY_RUN, **variables)
    assert done.returncode == 0, done.stdout + done.stderr
    return runs.find(outputs / "mine"), done.stdout


def test_training_leaves_a_run_that_says_where_its_values_came_from(one_shot) -> None:
    run, printed = one_shot
    told = run.config_file.read_text()
    for line in ("model.name: environment MODEL_NAME", "run.name: environment RUN_NAME", "prompt.examples: file"):
        assert line in told
    assert run.summary.is_file() and (run.merged / "model.safetensors").is_file()
    row = next(runs.read_jsonl(run.completions / "step_000002.jsonl.gz"))
    for label, text in (
        ("question", row["question"]),
        ("gold", row["answer"]),
        ("extracted", row["extracted"] or "nothing"),
    ):
        assert f"{label}  {text}" in printed, "logging.sample_every"


def test_the_example_is_shown_and_not_trained_on(one_shot) -> None:
    run, _ = one_shot
    asked, answered = worked_examples(run.config())
    assert "<reasoning>" in answered["content"]
    questions = [row["question"] for file in run.completion_files() for row in runs.read_jsonl(file)]
    assert questions and asked["content"] not in questions


def test_evaluation_proof_and_card_show_the_same_example(one_shot, tmp_path: Path) -> None:
    run, _ = one_shot
    again = tmp_path / "again.json"
    done = run_script("src/eval.py", "--run", run.folder, "--limit", "8", "--output", again)
    assert done.returncode == 0, done.stderr
    after = json.loads(run.after.read_text())["items"]
    assert [item["completion"] for item in json.loads(again.read_text())["items"]] == [i["completion"] for i in after]
    asked, output = ["--prompt", after[0]["question"], "--temperature", "0", "--max_tokens", "56"], tmp_path / "a.jsonl"
    done = run_script("src/infer.py", "--run", run.folder, *asked, "--output", output)
    assert done.returncode == 0, done.stderr
    assert json.loads(output.read_text())["completions"][0]["text"] == after[0]["completion"]
    done = run_script("src/merge.py", "--run", run.folder, "--overwrite", "--proof-limit", "4")
    assert done.returncode == 0, done.stdout + done.stderr
    proof = json.loads((run.merged / "proof.json").read_text())
    assert proof["passed"] and proof["same_prompts"]
    assert repr(worked_examples(run.config())[0]) in (run.merged / "README.md").read_text()


ROW = {"id": "x/1", "question": "How many?", "answer": "12", "completion": "<answer>\n12\n</answer>", "extracted": "12",
       "strict": False, "lenient": True, "rewards": {"correctness_reward_func": 2.0, "other": None}}  # fmt: skip


@pytest.mark.parametrize("terminal", [True, False], ids=["terminal", "pipe"])
def test_a_sample_is_plain_text_whatever_was_written(tmp_path: Path, terminal: bool) -> None:
    hostile = "[red]bold[/red] \x1b[31mred\x07 \r" + "long " * 1000 + "\n#### 12"
    run = runs.Run(tmp_path)
    run.completions.mkdir()
    runs.append_jsonl(run.completions / "step_000004.jsonl", [{**ROW, "completion": hostile}, ROW])
    screen = StringIO()
    console = Console(file=screen, force_terminal=terminal, width=80)
    for step in range(1, 9):
        state = type("State", (), {"global_step": step})()
        SampleEvery(run, 6, console).on_step_end(None, state, None)
    said = screen.getvalue()
    assert said.count("question") == 1 and said.startswith("step 6, x/1"), "the newest answers, also of an earlier step"
    assert "[red]bold[/red] \\x1b[31mred\\x07 \\r" in said and "\x1b[31m" not in said
    assert "characters ...]" in said and "#### 12" in said and len(said) < SHOWN + 400
    assert "extracted  12  (right, but not in the format)" in said and "correctness_reward_func 2, other -" in said


def test_lines_of_a_response_stay_under_its_label() -> None:
    said = sample_text({**ROW, "extracted": None, "lenient": False}, 1).plain.split("\n")
    assert said[3:6] == ["   response  <answer>", "             12", "             </answer>"]
    assert "extracted  nothing  (wrong)" in said[6]


@pytest.mark.parametrize("page", ["one_shot.md", "grpo_gsm8k.md"])
def test_the_yaml_of_the_docs_is_accepted(page: str, tmp_path: Path) -> None:
    blocks = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs" / page).read_text(), re.DOTALL)
    assert blocks
    for block in blocks:
        given = yaml.safe_load(block)
        minimal = {"model": {"name": "m"}, "task": {"name": "gsm8k"}, "rewards": [{"name": "correctness_reward_func"}]}
        (tmp_path / "c.yaml").write_text(yaml.safe_dump(minimal | given))
        assert build_rewards(load_config(tmp_path / "c.yaml", environment={}).rewards)
