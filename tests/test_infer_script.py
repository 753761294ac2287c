"""python src/infer.py: a run, an adapter, a merged model; one prompt and a file; and what is said of bad input."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import TINY, run_script

import infer
from llm_grpo.errors import UserError
from llm_grpo.records import Completion
from llm_grpo.rollouts.asking import AnswerFile

QUESTION = "Tom has 5 pens and buys 7 more. How many pens is that?"


def test_a_run_its_adapter_and_its_merged_model_answer_alike(demo_run) -> None:
    run, _ = demo_run
    answers = []
    for which in (["--run", run], ["--adapter", run / "adapter_best"], ["--model", run / "merged"]):
        done = run_script("src/infer.py", *which, "--prompt", QUESTION, "--temperature", "0", "--max_tokens", "48")
        assert done.returncode == 0 and "tokens/s" in done.stdout, done.stderr
        assert QUESTION in done.stdout
        answers.append(done.stdout.split("╭", 1)[1].split("╰")[0])
    assert answers[0] == answers[1], "a run is its base with the adapter that was evaluated"
    assert answers[1] == answers[2], "a run's merged model is asked as the run was, system prompt and all"


def test_a_file_of_prompts_is_answered_into_a_file(demo_run, tmp_path: Path) -> None:
    output = tmp_path / "answers.jsonl"
    words = [
        "--prompts",
        "examples/sample_prompts.jsonl",
        "--output",
        output,
        "--n",
        "2",
        "--seed",
        "3",
        "--max_tokens",
        "24",
    ]
    done = run_script("src/infer.py", "--run", demo_run[0], *words)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert len(rows) == 10 and all(len(row["completions"]) == 2 for row in rows)
    first = output.read_text()
    refused = run_script("src/infer.py", "--run", demo_run[0], *words)
    assert refused.returncode == 2 and "exists already" in refused.stderr and output.read_text() == first
    output.unlink()
    run_script("src/infer.py", "--run", demo_run[0], *words)
    assert output.read_text() == first, "the same seed repeats"


def test_a_base_model_answers_too() -> None:
    done = run_script("src/infer.py", "--model", TINY, "--prompt", "2+2?", "--max_tokens", "4")
    assert done.returncode == 0 and "cut at the token limit" in done.stdout, done.stderr


WRONG = [
    (["--prompt", "x"], "Which model?"),
    (["--model", "m"], "one of the arguments --prompt --prompts --chat is required"),
    (["--model", "m", "--prompt", " "], "--prompt is empty"),
    (["--model", "m", "--prompts", "nowhere.jsonl"], "there is no file"),
    (["--model", "m", "--prompt", "x", "--temperature", "-1"], "temperature -1.0 at least 0"),
    (["--model", "m", "--prompt", "x", "--n", "2", "--temperature", "0"], "all answers would be the same"),
    (["--run", "outputs", "--prompt", "x"], "no run here"),
    (["--model", "examples/tiny_qwen2", "--prompt", "x", "--engine", "unsloth"], "invalid choice"),
    (["--model", "m", "--chat", "--n", "2"], "one answer at a time"),
    (["--model", "m", "--prompt", "x", "--resume"], "--resume goes on with the file that --output names"),
    (["--model", "m", "--prompt", "x", "--max_tokens", "0"], "give at least 1"),
    (["--model", "examples/tiny_qwen2", "--prompt", "x " * 400], "over the window of 256"),
    (["--model", "examples/tiny_qwen2", "--prompt", "x", "--max_tokens", "256"], "lower max_tokens"),
]


@pytest.mark.parametrize(("words", "said"), WRONG, ids=[row[1] for row in WRONG])
def test_bad_arguments(words: list[str], said: str) -> None:
    done = run_script("src/infer.py", *words)
    assert done.returncode == 2 and said in done.stderr and "Traceback" not in done.stderr, done.stderr


@pytest.mark.parametrize(
    ("line", "said"), [("{", "p.jsonl:2: not JSON"), ('{"text": 1}', 'p.jsonl:2: needs a text under "prompt"')]
)
def test_a_broken_line_is_named(tmp_path: Path, line: str, said: str) -> None:
    (tmp_path / "p.jsonl").write_text('{"prompt": "a"}\n' + line + "\n")
    done = run_script("src/infer.py", "--model", TINY, "--prompts", tmp_path / "p.jsonl")
    assert done.returncode == 2 and said in done.stderr


def test_standard_input(tmp_path: Path) -> None:
    how = ["src/infer.py", "--model", TINY, "--temperature", "0", "--max_tokens", "8"]
    rows = '{"prompt": "2+3?"}\n\n{"prompt": "4+4?"}\n'
    several = run_script(*how, "--prompts", "-", "--output", tmp_path / "o.jsonl", stdin=rows)
    assert several.returncode == 0, several.stderr
    told = [json.loads(line)["prompt"] for line in (tmp_path / "o.jsonl").read_text().splitlines()]
    assert told == ["2+3?", "4+4?"]
    one = run_script(*how, "--prompt", "-", stdin="How many\nare 2+3?")
    assert one.returncode == 0 and "How many" in one.stdout
    broken = run_script(*how, "--prompts", "-", stdin="{}\n")
    assert broken.returncode == 2 and "standard input:1" in broken.stderr


def test_a_dialogue_remembers_until_it_is_told_to_forget() -> None:
    how = ["--model", TINY, "--chat", "--temperature", "0", "--max_tokens", "12"]
    done = run_script("src/infer.py", *how, stdin="2+3?\n4+4?\n/new\n4+4?\n" + "x " * 300 + "\n2+3?\n")
    assert done.returncode == 0, done.stderr
    panels = [panel.split("╰")[0] for panel in done.stdout.split("╭")[1:]]
    first, second, anew, again = panels
    assert second != anew, "the second question is asked after the first one"
    assert "over the window" in done.stdout and "/new" in done.stdout, "too long a line costs no dialogue"
    assert "2+3?" in again


def test_a_broken_run_keeps_what_it_had_and_goes_on(tmp_path: Path) -> None:
    prompts, output = tmp_path / "p.jsonl", tmp_path / "o.jsonl"
    rows = [json.dumps({"prompt": f"{i}+1?"}) + "\n" for i in range(70)]
    words = ["--model", TINY, "--prompts", prompts, "--output", output, "--max_tokens", "4", "--temperature", "0"]
    prompts.write_text("".join(rows))
    assert run_script("src/infer.py", *words).returncode == 0
    whole = output.read_text()
    cut = whole[: whole.index("\n", len(whole) // 2) + 30]
    output.write_bytes(cut.encode() + b"\xc3")  # a kill in the middle of a line, and of a character
    kept = cut.rpartition("\n")[0]
    done = run_script("src/infer.py", *words, "--resume")
    assert done.returncode == 0 and output.read_text() == whole and whole.startswith(kept), done.stderr
    assert run_script("src/infer.py", *words).returncode == 2, "without --resume nothing is written over"
    prompts.write_text("".join(reversed(rows)))
    other = run_script("src/infer.py", *words, "--resume")
    assert other.returncode == 2 and "o.jsonl:1 answers" in other.stderr and output.read_text() == whole


def test_a_file_is_answered_by_one_model_in_one_way(tmp_path: Path) -> None:
    output, prompts = tmp_path / "answers.jsonl", ["2+3?", "4+5?"]
    args = infer.arguments().parse_args(["--prompts", "-", "--model", "one", "--n", "2", "--output", str(output)])
    file = AnswerFile(output, infer.how(args))
    file.append(prompts[0], [Completion("5", 1)])
    assert file.there_already(prompts) == 1
    for other in (["--model", "two", "--n", "2"], ["--model", "one"], ["--run", "one", "--n", "2"]):
        asks = infer.how(infer.arguments().parse_args(["--prompts", "-", *other]))
        with pytest.raises(UserError, match=f"{output}:1 was answered with .*Take another --output"):
            AnswerFile(output, asks).there_already(prompts)
