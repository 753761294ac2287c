"""What a model reads: the order of messages, a template for models without one, prompts that do not fit."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from llm_grpo.answers.judging import JUDGES
from llm_grpo.errors import UserError
from llm_grpo.prompts import PLAIN_TEMPLATE, SYSTEM_PROMPTS, ensure_template, render, split_by_length, with_system
from llm_grpo.records import Example, Message

USER: Message = {"role": "user", "content": "What is 2+2?"}
SHOT: list[Message] = [
    {"role": "user", "content": "What is 1+1?"},
    {"role": "assistant", "content": "<answer>\n2\n</answer>"},
]
OWN_SYSTEM = {"role": "system", "content": "own"}
SYSTEM = {"role": "system", "content": "S"}


@pytest.fixture
def tokenizer():
    """A real tokenizer of one token per byte, without a chat template, as GPT-2's."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {piece: number for number, piece in enumerate(["<|endoftext|>", *alphabet])}
    made = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<|endoftext|>", eos_token="<|endoftext|>")


CONVERSATIONS = [
    ("S", [], [USER], [SYSTEM, USER], "system first"),
    ("", [], [USER], [USER], "an empty system prompt is none"),
    (None, [], [USER], [USER], "nor is a missing one"),
    ("S", SHOT, [USER], [SYSTEM, *SHOT, USER], "examples between system and question"),
    ("", SHOT + SHOT, [USER], [*SHOT, *SHOT, USER], "examples without a system prompt"),
    ("S", SHOT, [OWN_SYSTEM, USER], [OWN_SYSTEM, *SHOT, USER], "the row's own system prompt wins"),
    ("S", [], [USER, *SHOT], [SYSTEM, USER, *SHOT], "a dialogue keeps its order"),
]


@pytest.mark.parametrize(("system", "shots", "prompt", "expected", "why"), CONVERSATIONS)
def test_with_system(system: str, shots: list, prompt: list, expected: list, why: str) -> None:
    before = list(prompt)
    assert with_system(tuple(prompt), system, shots) == expected, why
    assert prompt == before, "the example is not changed"


def test_every_answer_format_has_a_system_prompt() -> None:
    assert SYSTEM_PROMPTS.keys() == JUDGES.keys()


def test_plain_template(tokenizer) -> None:
    assert "plain" in ensure_template(tokenizer) and tokenizer.chat_template == PLAIN_TEMPLATE
    text = render(with_system([USER], "S", SHOT), tokenizer)
    assert text == (
        "<|endoftext|>System:\nS\n\n"
        "User:\nWhat is 1+1?\n\n"
        "Assistant:\n<answer>\n2\n</answer><|endoftext|>\n\n"
        "User:\nWhat is 2+2?\n\n"
        "Assistant:\n"
    )
    whole = tokenizer.apply_chat_template([USER, SHOT[1]], tokenize=False)
    assert whole.startswith(render([USER], tokenizer)), "a prompt is the beginning of the dialogue that it opens"


def test_plain_template_without_special_tokens(tokenizer) -> None:
    tokenizer.bos_token = tokenizer.eos_token = None
    ensure_template(tokenizer)
    assert render([USER], tokenizer) == "User:\nWhat is 2+2?\n\nAssistant:\n"


def test_which_template_is_used(tokenizer, tmp_path: Path) -> None:
    own = "{% for m in messages %}[{{ m.content }}]{% endfor %}"
    tokenizer.chat_template = own
    assert "own" in ensure_template(tokenizer) and tokenizer.chat_template == own
    assert "'plain'" in ensure_template(tokenizer, "plain") and tokenizer.chat_template == PLAIN_TEMPLATE
    (tmp_path / "mine.jinja").write_text(own)
    assert "mine.jinja" in ensure_template(tokenizer, str(tmp_path / "mine.jinja"))
    assert render([USER], tokenizer) == "[What is 2+2?]"


def test_templates_that_cannot_be_used(tokenizer, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"'plian' is neither .*Did you mean 'plain'"):
        ensure_template(tokenizer, "plian")
    (tmp_path / "broken.jinja").write_text("{% for m in messages %}")
    with pytest.raises(UserError, match="cannot render"):
        ensure_template(tokenizer, str(tmp_path / "broken.jinja"))
    (tmp_path / "no_system.jinja").write_text(
        "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    )
    ensure_template(tokenizer, str(tmp_path / "no_system.jinja"))
    with pytest.raises(UserError, match=r"system, user: no system role.*prompt\.system"):
        render([SYSTEM, USER], tokenizer)


def test_prompts_that_do_not_fit_are_named(tokenizer) -> None:
    ensure_template(tokenizer)
    pairs = [(Example(f"e{n}", (), "1"), [{"role": "user", "content": "x" * n}]) for n in (1, 5, 6, 50)]
    frame = len("User:\n" + "\n\n" + "Assistant:\n") + 1  # one byte per token, and the first token
    kept, too_long = split_by_length(pairs, tokenizer, frame + 5)
    assert [example.id for example, _ in kept] == ["e1", "e5"], "a prompt of exactly the limit fits"
    assert too_long == [("e6", frame + 6), ("e50", frame + 50)]
    assert split_by_length([], tokenizer, 1) == ([], [])
    with pytest.raises(UserError, match=rf"None of the 4 prompts fits: the shortest has {frame + 1} tokens.*leaves 3"):
        split_by_length(pairs, tokenizer, 3)


def test_prompts_are_light() -> None:
    code = "import sys, llm_grpo.prompts; print([m for m in ('torch', 'transformers', 'jinja2') if m in sys.modules])"
    source = str(Path(__file__).parents[1] / "src")
    done = subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": source}, capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr
