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
    tokenizer.chat_template = {"rag": "{{ messages }}", "tool_use": "{{ messages }}"}
    with pytest.raises(UserError, match=r"several chat templates \(rag, tool_use\) and none is the default"):
        ensure_template(tokenizer)


SILENT = "{% for m in messages if m.role in ('user', 'assistant') %}<{{ m.role }}>{{ m.content }}{% endfor %}"
REFUSES = "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}" + SILENT


@pytest.mark.parametrize("template", [SILENT, REFUSES], ids=["early Phi-3 leaves it out", "Gemma refuses it"])
def test_where_there_is_no_system_role_its_words_stand_before_the_first_question(tokenizer, template: str) -> None:
    tokenizer.chat_template = template
    assert "no system role, so the system prompt stands before the first user message" in ensure_template(tokenizer)
    assert render(with_system([USER], "S", SHOT), tokenizer) == (
        "<user>S\n\nWhat is 1+1?<assistant><answer>\n2\n</answer><user>What is 2+2?"
    )
    assert render([USER], tokenizer) == "<user>What is 2+2?", "without a system prompt nothing is changed"
    kept = tokenizer.chat_template
    assert "no system role" not in ensure_template(tokenizer) and tokenizer.chat_template == kept, "done once"


PROGRAMS = [
    ("{% for m in messages %}{% for p in m.content %}{{ p.text }}{% endfor %}{% endfor %}", "in parts", "SmolVLM"),
    ("{{ messages[0].content + 1 }}", "TypeError", "Python's own errors too"),
    ("{{ messages[0].parts[0].text }}", "UndefinedError", "a name that is not there"),
    ("{{ 1 // 0 }}", "ZeroDivisionError", "arithmetic"),
    ("{% for m in messages %}", "TemplateSyntaxError", "never closed"),
]


@pytest.mark.parametrize(("template", "said", "why"), PROGRAMS, ids=[row[2] for row in PROGRAMS])
def test_a_template_that_cannot_ask_is_one_clear_line(tokenizer, template: str, said: str, why: str) -> None:
    tokenizer.chat_template = template
    with pytest.raises(UserError, match=rf"{said}.*prompt\.template") as error:
        ensure_template(tokenizer)
    assert "\n" not in str(error.value), why


ARGS = [
    ({"style": "short"}, "[short][2]", "a text"),
    ({"style": "a\n'\"%} {{ x }} é 😀"}, "[a\n'\"%} {{ x }} é 😀][2]", "any text, none of it a template"),
    ({"style": None, "depth": 3}, "[None][3]", "nothing, and a number"),
    ({"style": {"a": [True, 1.5]}}, "[{'a': [True, 1.5]}][2]", "what JSON can say"),
    ({}, "[][2]", "without any the template's own"),
]


@pytest.mark.parametrize(("args", "begins", "why"), ARGS, ids=[row[2] for row in ARGS])
def test_what_a_template_reads_besides_is_written_into_it(tokenizer, args: dict, begins: str, why: str) -> None:
    own = "[{{ style }}][{{ depth | default(2) }}]{% for m in messages %}{{ m.role }}:{{ m.content }}{% endfor %}"
    tokenizer.chat_template = own
    for _ in range(2):  # a saved tokenizer has it already
        ensure_template(tokenizer, None, args)
        assert render([SYSTEM, USER], tokenizer) == f"{begins}system:Suser:What is 2+2?", why
    assert tokenizer.chat_template.count("prompt.template_args") == bool(args)
    given = tokenizer.apply_chat_template([USER], tokenize=False, style="mine")
    assert given.startswith("[mine]"), "who renders may say otherwise"
    ensure_template(tokenizer)
    assert render([USER], tokenizer).startswith(begins), "without a config the tokenizer speaks for itself"
    ensure_template(tokenizer, None, {})
    assert tokenizer.chat_template == own, "and a config that asks for nothing takes it out"


def test_what_a_template_does_not_read_is_refused(tokenizer) -> None:
    for name in ("enable_thinkin", "messages"):
        tokenizer.chat_template = "{{ enable_thinking }}{% for m in messages %}{{ m.content }}{% endfor %}"
        with pytest.raises(UserError, match=f"prompt.template_args: the chat template reads no '{name}'"):
            ensure_template(tokenizer, None, {name: False})


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
