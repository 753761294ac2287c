"""A split as the model is given it: prompts, worked examples, what does not fit, weights and labels."""

from __future__ import annotations

import dataclasses
import json

import pytest
from conftest import ROOT

from llm_grpo.command import load_env_file
from llm_grpo.config.loading import load_config
from llm_grpo.errors import UserError
from llm_grpo.problems import prepare, worked_examples
from llm_grpo.tasks import build_task


def prepared(tokenizer, split: str, *overrides: str, limit: int | None = 30):
    config = load_config(ROOT / "configs" / "demo.yaml", overrides, environment={})
    return prepare(build_task(config.task.name, config.task.args), split, config, tokenizer, limit)


def test_the_system_prompt_is_the_tasks_or_the_configs(tokenizer) -> None:
    task = build_task("word_problems", {})
    assert prepared(tokenizer, "test").problems[0].messages[0] == {"role": "system", "content": task.system}
    assert prepared(tokenizer, "test", "prompt.system=Be brief.").problems[0].messages[0]["content"] == "Be brief."
    assert prepared(tokenizer, "test", "prompt.system=''").problems[0].messages[0]["role"] == "user"


def test_what_does_not_fit_is_named_and_left_out(tokenizer) -> None:
    whole = prepared(tokenizer, "test", "model.max_seq_length=256", "grpo.max_completion_length=56")
    assert not whole.too_long and len(whole.problems) == 30
    lengths = sorted(
        len(tokenizer.apply_chat_template(list(p.messages), add_generation_prompt=True)["input_ids"])
        for p in whole.problems
    )
    window = lengths[20]
    short = (f"model.max_seq_length={window + 56}", "grpo.max_completion_length=56")
    with pytest.raises(
        UserError, match=r"(?s)test: \d+ of 30 prompts leave no room .*: .+ \(\d+ tokens\).*too_long=leave_out"
    ):
        prepared(tokenizer, "test", *short)
    part = prepared(tokenizer, "test", *short, "prompt.too_long=leave_out")
    assert len(part.problems) == sum(length <= window for length in lengths)
    assert len(part.problems) + len(part.too_long) == 30 and all(tokens > window for _, tokens in part.too_long)
    with pytest.raises(UserError, match="None of the 30 prompts fits"):
        prepared(tokenizer, "test", "model.max_seq_length=60", "grpo.max_completion_length=56")


def test_the_answers_of_an_evaluation_have_to_fit_too(tokenizer) -> None:
    """evaluation.max_tokens may be more than is trained with; the engine would refuse in the middle of a run."""
    assert prepared(tokenizer, "train", "evaluation.max_tokens=250").problems, "training answers are shorter"
    with pytest.raises(UserError, match="for an answer of 250 tokens|None of the 30 prompts fits"):
        prepared(tokenizer, "test", "evaluation.max_tokens=250")
    with pytest.raises(UserError, match=r"evaluation\.max_tokens: 256 is not below"):
        prepared(tokenizer, "test", "evaluation.max_tokens=256")


ROOMY = ("model.max_seq_length=2048", "grpo.max_completion_length=56")


@pytest.mark.parametrize("count", [0, 1, 3])
def test_worked_examples_come_from_train_and_are_not_trained_on(tokenizer, count: int) -> None:
    config = load_config(ROOT / "configs" / "demo.yaml", [f"prompt.examples={count}"], environment={})
    task = build_task(config.task.name, config.task.args)
    shots = worked_examples(config)
    assert [m["role"] for m in shots] == ["user", "assistant"] * count
    by_question = {e.prompt[-1]["content"]: e for e in task.load("train").examples}
    for asked, answered in zip(shots[::2], shots[1::2], strict=True):
        gold = by_question[asked["content"]]
        assert task.judge(answered["content"], gold.answer).strict and gold.meta["steps"][0] in answered["content"]
    for split in ("train", "validation", "test"):
        data = prepared(tokenizer, split, f"prompt.examples={count}", *ROOMY, limit=None)
        assert {tuple(map(str, p.messages[1:-1])) for p in data.problems} == {tuple(map(str, shots))}
        assert not {m["content"] for m in shots[::2]} & {p.messages[-1]["content"] for p in data.problems}
    assert len(prepared(tokenizer, "train", f"prompt.examples={count}", *ROOMY, limit=None).problems) == 4000 - count


def test_worked_examples_do_not_hang_on_limits_windows_or_the_system_prompt(tokenizer) -> None:
    seen = set()
    for more in ([], ["evaluation.limit=1"], ["model.max_seq_length=4096"], ["prompt.system=Be brief."]):
        config = load_config(ROOT / "configs" / "demo.yaml", ["prompt.examples=2", *more], environment={})
        seen.add(tuple(map(str, worked_examples(config))))
        problem = prepared(tokenizer, "test", "prompt.examples=2", *ROOMY, *more, limit=3).problems[0]
        seen.add(tuple(map(str, problem.messages[1:-1])))
    assert len(seen) == 1


LONG, TWICE = "word " * 300, "What is 2 + 3?"
ROWS = [
    {"question": "What is 1 + 1? " + LONG, "answer": "Far too long.\n#### 2"},
    {"question": "What is 4 + 4?", "answer": "It is </reasoning> #### or \\boxed{7}.\n#### 8"},
    {"question": "no gold", "answer": "nothing"},
    {"question": TWICE, "answer": "2 and 3 are 5.\n#### 5"},
    {"question": "What is  2 + 3?", "answer": "The same question once more.\n#### 5"},
    *({"question": f"What is {n} + {n}? {'really ' * 9}", "answer": f"{n} twice.\n#### {2 * n}"} for n in range(9)),
]
FORMATS = [
    ("xml", "<reasoning>\n2 and 3 are 5.\n</reasoning>\n<answer>\n5\n</answer>"),
    ("hash", "2 and 3 are 5.\n#### 5"),
    ("boxed", "2 and 3 are 5.\n\\boxed{5}"),
    ("plain", "8"),  # the second row: without reasoning there is nothing wrong with it
]


def of_rows(tmp_path, rows, answer_format: str, count: int):
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    args = {"path": str(file), "test_path": str(file), "answer_format": answer_format, "gold_format": "hash"}
    args |= {"validation_share": 0.0, "max_bad_share": 0.9, "test_path": None, "test_share": 0.0}
    overrides = [f"prompt.examples={count}", f"task={json.dumps({'name': 'jsonl', 'args': args})}"]
    return load_config(ROOT / "configs" / "demo.yaml", [*overrides, *ROOMY], environment={})


@pytest.mark.parametrize(("answer_format", "worked"), FORMATS)
def test_worked_examples_follow_the_answer_format_and_are_sound_rows(
    tmp_path, tokenizer, answer_format: str, worked: str
) -> None:
    config = of_rows(tmp_path, ROWS, answer_format, 1)
    asked, answered = worked_examples(config)
    assert answered["content"] == worked
    assert asked["content"] == ("What is 4 + 4?" if answer_format == "plain" else TWICE)
    task = build_task(config.task.name, config.task.args)
    trained = [p.messages[-1]["content"] for p in prepare(task, "train", config, tokenizer).problems]
    assert asked["content"] not in trained
    if answer_format != "plain":
        assert "What is  2 + 3?" not in trained, "asked twice, shown once: it is not trained on either"


def test_what_cannot_be_shown_is_an_error(tmp_path) -> None:
    with pytest.raises(UserError, match="90 wanted, the train split of jsonl has 11 to show"):
        worked_examples(of_rows(tmp_path, ROWS, "hash", 90))
    config = of_rows(tmp_path, [{"question": f"{n}?", "answer": f"{n}"} for n in range(4)], "xml", 1)
    bare = {**config.task.args, "gold_format": "plain"}
    config = load_config(
        ROOT / "configs" / "demo.yaml",
        ["prompt.examples=1", f"task={json.dumps({'name': 'jsonl', 'args': bare})}"],
        environment={},
    )
    with pytest.raises(UserError, match="no column 'solution'"):
        worked_examples(config)
    own_judge = dataclasses.replace(build_task("word_problems", {}), judge=lambda text, gold: None)
    with pytest.raises(UserError, match="a form of their own"):
        worked_examples(config, own_judge)


@pytest.mark.skipif(not (ROOT.parent / "shared/data/gsm8k").is_dir(), reason="GSM8K is not at hand")
def test_the_example_of_gsm8k_is_short_and_free_of_calculator_calls() -> None:
    args = {"path": str(ROOT.parent / "shared/data/gsm8k")}
    config = load_config(ROOT / "configs" / "grpo.yaml", ["prompt.examples=1"], environment={})
    asked, answered = worked_examples(config, build_task("gsm8k", args))
    assert "<<" not in answered["content"] and len(asked["content"]) + len(answered["content"]) < 700
    assert answered["content"].count("<answer>") == 1


def test_the_env_file_is_read_and_does_not_override(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".env").write_text("LLM_GRPO_TEST_A=from file\nLLM_GRPO_TEST_B=from file\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LLM_GRPO_TEST_A", "from environment")
    monkeypatch.setenv("LLM_GRPO_TEST_B", "x")
    monkeypatch.delenv("LLM_GRPO_TEST_B")
    load_env_file()
    import os

    assert (os.environ["LLM_GRPO_TEST_A"], os.environ["LLM_GRPO_TEST_B"]) == ("from environment", "from file")
