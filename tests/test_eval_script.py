"""python src/eval.py: a model, a file of completions, two evaluations; and what is said of bad input."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from conftest import ROOT, run_script
from rich.console import Console

from llm_grpo import command
from llm_grpo.config.loading import load_config
from llm_grpo.tasks import build_task


@pytest.fixture(scope="module")
def examples():
    config = load_config(ROOT / "configs" / "demo.yaml", environment={})
    return build_task(config.task.name, config.task.args).load("test").examples[:7]


def completions(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def in_format(answer: str) -> str:
    return f"<reasoning>\nBecause.\n</reasoning>\n<answer>\n{answer}\n</answer>"


def test_a_run_is_evaluated_and_nothing_is_overwritten(demo_run) -> None:
    run, _ = demo_run
    words = ["src/eval.py", "--run", run, "--limit", "8", "--samples", "2"]
    for number in (1, 2):
        done = run_script(*words)
        assert done.returncode == 0, done.stderr
        report = json.loads((run / "eval" / f"test-{number}.json").read_text())
        assert (
            report["n"] == 8
            and report["sampled"]["k"] == 2
            and set(report["sampled"]["strict"]["pass_at_k"]) == {"1", "2"}
        )
        assert "avg@2" in done.stdout and "strict accuracy" in done.stdout


def test_overrides_count_with_a_run_too(demo_run) -> None:
    done = run_script("src/eval.py", "--run", demo_run[0], "task.nonsense=3")
    assert done.returncode == 2 and "task.nonsense: unknown key" in done.stderr


def test_the_reward_columns_and_answers_are_those_of_training(demo_run) -> None:
    """The evaluation after training is repeated by eval.py to the letter."""
    run, _ = demo_run
    output = run.parent / "again.json"
    done = run_script("src/eval.py", "--config", run / "config.yaml", "--run", run, "--limit", "24", "--output", output)
    assert done.returncode == 0, done.stderr
    after, again = (json.loads(path.read_text()) for path in (run / "eval" / "after.json", output))
    assert [item["completion"] for item in again["items"]] == [item["completion"] for item in after["items"]]
    assert again["rewards"] == pytest.approx(after["rewards"])
    refused = run_script("src/eval.py", "--run", run, "--limit", "1", "--output", output)
    assert refused.returncode == 2 and "exists already" in refused.stderr


def test_completions_made_elsewhere(tmp_path: Path, examples) -> None:
    texts = [in_format(examples[0].answer), examples[1].answer, in_format("-1"), "no idea"]
    rows = [{"id": e.id, "completion": text} for e, text in zip(examples, texts, strict=False)]
    file, output = completions(tmp_path / "c.jsonl", rows), tmp_path / "scores.json"
    with file.open("a") as more:
        more.write(json.dumps({"id": examples[6].id, "completion": "beyond the limit: not asked for"}) + "\n")
    words = ["--config", "configs/demo.yaml", "--limit", "6", "--output", output]
    done = run_script("src/eval.py", "--completions", file, *words)
    assert done.returncode == 0, done.stderr
    report = json.loads(output.read_text())
    counted = [report[name] * 6 for name in ("strict_accuracy", "lenient_accuracy", "format_rate")]
    assert report["n"] == 6 and counted == pytest.approx([1, 2, 2]), "what was not answered is wrong"
    assert "2 problems without a completion count as wrong" in report["what"]
    assert report["mean_tokens"] is None, "a text alone does not tell its tokens"


def test_two_evaluations_are_compared(demo_run, tmp_path: Path) -> None:
    run, _ = demo_run
    before, after = run / "eval" / "before.json", run / "eval" / "after.json"
    done = run_script("src/eval.py", "--compare", before, after)
    assert done.returncode == 0 and "McNemar p" in done.stdout and "gained:" in done.stdout and "lost:" in done.stdout
    shorter = json.loads(after.read_text())
    shorter["items"].pop()
    (tmp_path / "shorter.json").write_text(json.dumps(shorter))
    refused = run_script("src/eval.py", "--compare", before, tmp_path / "shorter.json")
    assert refused.returncode == 2 and "not of the same items" in refused.stderr


WRONG = [
    (['{"id": "x", "completion": "1"}'], "1 ids are not in the test split, the first is 'x'"),
    (['{"id": "word_problems/test/0"}'], 'c.jsonl:1: needs JSON with "id" and "completion"'),
    (["{"], "c.jsonl:1: not JSON"),
    (['{"id": "word_problems/test/0", "completion": 3}'], "c.jsonl:1: id and completion must be texts"),
    (
        ['{"id": "word_problems/test/0", "completion": "a"}'] * 2,
        "c.jsonl:2: id and completion must be texts, and each id",
    ),
    ([], "holds no completions"),
]


@pytest.mark.parametrize(("lines", "said"), WRONG, ids=[row[1][:25] for row in WRONG])
def test_a_broken_file_of_completions(tmp_path: Path, lines: list[str], said: str) -> None:
    (tmp_path / "c.jsonl").write_text("\n".join(lines) + "\n")
    done = run_script("src/eval.py", "--config", "configs/demo.yaml", "--completions", tmp_path / "c.jsonl")
    assert done.returncode == 2 and said in done.stderr and "Traceback" not in done.stderr


ARGUMENTS = [
    ([], "Which task?"),
    (["--config", "configs/demo.yaml", "--limit", "0"], "must be at least 1"),
    (["--config", "configs/demo.yaml", "--samples", "0"], "must be at least 1"),
    (["--run", "outputs/nowhere"], "no run here"),
    (["--config", "configs/demo.yaml", "--adapter", "examples"], "holds no adapter"),
    (["--config", "configs/demo.yaml", "--run", "a", "--model", "b"], "not allowed with"),
    (["--compare", "README.md", "README.md"], "not an evaluation"),
    (["--compare", "a.json", "b.json", "--run", "outputs/x"], "--compare takes two files"),
    (["--config", "configs/demo.yaml", "--completions", "c.jsonl", "--samples", "2"], "no --samples"),
    (["--config", "configs/demo.yaml", "--output", "/proc/x/y.json"], "cannot be written"),
    (["--config", "configs/demo.yaml", "--completions", "nowhere.jsonl"], "there is no file"),
    (["--config", "configs/demo.yaml", "--model", "./nowhere"], "nowhere"),
]


@pytest.mark.parametrize(("words", "said"), ARGUMENTS, ids=[row[1] for row in ARGUMENTS])
def test_bad_arguments(words: list[str], said: str) -> None:
    done = run_script("src/eval.py", *words)
    assert done.returncode == 2 and said in done.stderr and "Traceback" not in done.stderr, done.stderr


def test_a_log_is_told_now_and_then_how_far_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is no terminal and so no bar; not after the last, which a table follows."""
    monkeypatch.setattr(command, "SILENCE_S", -1)
    seconds = iter(range(0, 100, 10))
    monkeypatch.setattr(command.time, "monotonic", lambda: next(seconds))
    file = io.StringIO()
    with command.progress(Console(file=file), "evaluating", 3) as on_done:
        for _ in range(3):
            on_done(1)
    assert file.getvalue().splitlines() == ["evaluating 1/3  0:00:20 left", "evaluating 2/3  0:00:10 left"]
