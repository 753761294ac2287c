"""A split as the model is given it: prompts, worked examples, what does not fit, weights and labels."""

from __future__ import annotations

import pytest
from conftest import ROOT

from llm_grpo.command import load_env_file
from llm_grpo.config import load_config
from llm_grpo.errors import UserError
from llm_grpo.problems import prepare
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
    part = prepared(tokenizer, "test", f"model.max_seq_length={window + 56}", "grpo.max_completion_length=56")
    assert len(part.problems) == sum(length <= window for length in lengths)
    assert len(part.problems) + len(part.too_long) == 30 and all(tokens > window for _, tokens in part.too_long)
    with pytest.raises(UserError, match="None of the 30 prompts fits"):
        prepared(tokenizer, "test", "model.max_seq_length=60", "grpo.max_completion_length=56")


def test_worked_examples_come_from_train_and_are_not_trained_on(tokenizer) -> None:
    shots = prepared(tokenizer, "test", "prompt.examples=2", "model.max_seq_length=512").problems[0].messages
    assert [m["role"] for m in shots] == ["system", "user", "assistant", "user", "assistant", "user"]
    assert "<answer>" in shots[2]["content"]
    trained = prepared(tokenizer, "train", "prompt.examples=2", "model.max_seq_length=512")
    assert shots[1]["content"] not in {problem.example.prompt[-1]["content"] for problem in trained.problems}
    assert trained.problems[0].messages[1:5] == shots[1:5]


def test_the_env_file_is_read_and_does_not_override(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".env").write_text("LLM_GRPO_TEST_A=from file\nLLM_GRPO_TEST_B=from file\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LLM_GRPO_TEST_A", "from environment")
    monkeypatch.setenv("LLM_GRPO_TEST_B", "x")
    monkeypatch.delenv("LLM_GRPO_TEST_B")
    load_env_file()
    import os

    assert (os.environ["LLM_GRPO_TEST_A"], os.environ["LLM_GRPO_TEST_B"]) == ("from environment", "from file")
