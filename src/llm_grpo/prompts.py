"""What stands before the answer: system prompts, worked examples, and the text a model really reads.

Layer 0: no torch, no transformers; a tokenizer is handed in. Every model gets its prompt through a chat template; one
that has none (distilgpt2 and other base models) is given PLAIN_TEMPLATE, and the choice is said in a sentence. The
template in the tokenizer is the one owner of the prompt: what the config says of it is written into it at load.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from llm_grpo.answers.formats import TAGS
from llm_grpo.answers.labels import CLOSE as RESPONDED
from llm_grpo.answers.labels import OPEN as RESPOND
from llm_grpo.answers.thinking import CLOSE, OPEN
from llm_grpo.config.schema import PromptSection
from llm_grpo.errors import UserError, did_you_mean
from llm_grpo.records import Example, Message
from llm_grpo.text_files import open_text, read_text

# The default system prompt of each answer format; the names are those of answers.JUDGES.
SYSTEM_PROMPTS = {
    "xml": "Think the problem through first, then give only the final answer. Write your reply in exactly this form:\n"
    "<reasoning>\n...\n</reasoning>\n<answer>\n...\n</answer>",
    "hash": "Think the problem through step by step. Close with a line of its own that holds four hash signs and the "
    "final answer, like this:\n#### 42",
    "boxed": "Think the problem through step by step. Close with the final answer in a box, like this:\n\\boxed{42}",
    "plain": "Reply with the final answer alone, without any explanation.",
}

# Speaker and text in turn. The line break after "Assistant:" leaves no blank before the first token of the answer (a
# trailing blank would make a BPE model split its first word in an unfamiliar way). BOS is part of the template, as in
# those that models bring with them: whoever tokenizes the rendered text must not add special tokens again.
PLAIN_TEMPLATE = (
    "{{ bos_token or '' }}"
    "{% for message in messages %}"
    "{{ message['role'] | capitalize }}:\n{{ message['content'] | trim }}"
    "{{ (eos_token or '') if message['role'] == 'assistant' }}\n\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}Assistant:\n{% endif %}"
)
TEMPLATES = {"plain": PLAIN_TEMPLATE}
# Put before a template that has no place for a system prompt (early Phi-3 leaves it out, Gemma refuses it).
SYSTEM_WITH_FIRST = (
    "{% if messages | length > 1 and messages[0]['role'] == 'system' %}"
    "{% set messages = [{'role': messages[1]['role'], 'content': messages[0]['content'] + '\\n\\n' + "
    "messages[1]['content']}] + messages[2:] %}{% endif %}\n"
)
ARGS_MARK = "{# prompt.template_args #}"  # begins the line of the template that sets them
MARKS = (*TAGS, RESPOND, RESPONDED, OPEN, CLOSE, "####", "\\boxed")  # what answers and thoughts are found by


def with_system(example_prompt: Iterable[Message], system: str | None, shots: Iterable[Message] = ()) -> list[Message]:
    """The whole conversation: the system prompt (none where empty), worked examples, then the example's own messages.

    shots: questions and the answers the model should have written, as messages, in turn.
    A system message that the example brings itself (a CSV with instructions, say) is kept and wins over `system`.
    """
    own = list(example_prompt)
    messages = [own.pop(0)] if own and own[0]["role"] == "system" else []
    if not messages and system:
        messages = [{"role": "system", "content": system}]
    return [*messages, *shots, *own]


def prepare_tokenizer(tokenizer: Any, prompt: PromptSection | None) -> dict[str, str]:
    """Look at a tokenizer once, at load, and make it ready for a run: (choice: reason), as a person should know them.

    Whatever the prompt depends on is in its chat template afterwards, so that all who render by themselves (TRL, vLLM's
    server, the merged folder in somebody else's hands) make the same prompt. prompt: of the config; None where there
    is none, and the tokenizer speaks for itself. Raises UserError.
    """
    asked = (prompt.template, prompt.template_args) if prompt else ()
    choices = {"prompt.template": ensure_template(tokenizer, *asked)}
    if tags := special_tags(tokenizer):
        choices["special tokens"] = (
            f"{', '.join(tags)}: special in this tokenizer, and kept here when an answer is read. Other readers cut "
            'them out: ask vLLM with "skip_special_tokens": false, or make them ordinary tokens of the tokenizer.'
        )
    if begun := begun_thought(tokenizer):
        choices["prompt.thinking"] = f"every prompt ends in {begun.strip()}, so every text that is read begins with it"
    return choices


def ensure_template(tokenizer: Any, template: str | None = None, args: Mapping[str, Any] | None = None) -> str:
    """Give the tokenizer a chat template where it has none or `prompt.template` asks for one; says which is used.

    template: a name in TEMPLATES, or the path of a Jinja file. args: what it reads besides the messages, written into
    it; None leaves those that are in it. The template is tried once, so that a fault in it is told here and not in the
    middle of a run; where it has no place for a system prompt, it is given one. Raises UserError.
    """
    if template:
        tokenizer.chat_template = TEMPLATES.get(template) or _template_file(template)
        said = f"Chat template: '{template}', as prompt.template asks"
    elif isinstance(tokenizer.chat_template, dict) and "default" not in tokenizer.chat_template:
        raise UserError(
            f"The tokenizer has several chat templates ({', '.join(tokenizer.chat_template)}) and none is the default. "
            "Write one of them to a file and name it in prompt.template."
        )
    elif tokenizer.chat_template:
        said = "Chat template: the tokenizer's own"
    else:
        tokenizer.chat_template = PLAIN_TEMPLATE
        said = "Chat template: the built-in 'plain', because the tokenizer brings none"
    if args or (args is not None and ARGS_MARK in tokenizer.get_chat_template()):
        said += _write_args(tokenizer, args)
    render([{"role": "user", "content": "?"}], tokenizer)
    if not _shows(tokenizer, "user"):
        raise UserError(
            "The chat template leaves out what the user says: it reads contents in parts (as those of vision models "
            "do), or knows no user. Set prompt.template to 'plain' or to a template of your own."
        )
    if not _shows(tokenizer, "system", "user"):
        tokenizer.chat_template = SYSTEM_WITH_FIRST + tokenizer.get_chat_template()
        said += "; it has no system role, so the system prompt stands before the first user message"
    return f"{said}." if knows_tools(tokenizer) else f"{said}; it has no tool role, so a tool's words are the user's."


def _write_args(tokenizer: Any, args: Mapping[str, Any]) -> str:
    """Put `prompt.template_args` at the head of the template, in place of those of an earlier load; who renders may
    still say otherwise. Returns what is said of them."""
    lines = tokenizer.get_chat_template().splitlines(keepends=True)
    own = "".join(line for line in lines if not line.startswith(ARGS_MARK))
    words = set(re.findall(r"[A-Za-z_]\w*", own)) - {"messages", "tools", "documents", "add_generation_prompt"}
    for name in args:
        if name not in words:
            raise UserError(f"prompt.template_args: the chat template reads no '{name}'.{_near(name, words)}")
    # repr is Jinja for everything that JSON can say. The line break after a block is not rendered.
    sets = "".join(f"{{% set {name} = {name} | default({value!r}) %}}" for name, value in args.items())
    tokenizer.chat_template = (f"{ARGS_MARK}{sets}\n" if args else "") + own
    return f" with {', '.join(f'{name}={value!r}' for name, value in args.items())}" if args else ""


def _near(name: str, words: Iterable[str]) -> str:
    near = did_you_mean(name, words)
    return near if "Did you mean" in near else ""


def _shows(tokenizer: Any, *roles: str) -> bool:
    """Whether the template takes a conversation of these roles and shows the words of each: some refuse a role, others
    leave it out."""
    said = [{"role": role, "content": f"what {role} {place} says"} for place, role in enumerate(roles)]
    try:
        text = render(said, tokenizer)
    except UserError:
        return False
    return all(message["content"] in text for message in said)


def knows_tools(tokenizer: Any) -> bool:
    """Whether the chat template shows what a `tool` message says."""
    return _shows(tokenizer, "user", "assistant", "tool", "user")


def begun_thought(tokenizer: Any) -> str:
    """The opening of a think block that the template itself writes at the end of a prompt (DeepSeek-R1, Qwen3-Thinking)
    with the blanks behind it: the model goes on inside. Empty where it does not."""
    prompt = render([{"role": "user", "content": "?"}], tokenizer)
    head = prompt.rstrip()
    return OPEN + prompt[len(head) :] if head.endswith(OPEN) else ""


def special_tags(tokenizer: Any) -> list[str]:
    """The tags of the answer formats that this tokenizer holds as special tokens: who decodes without these, as is
    usual, takes them out of every answer."""
    held = tokenizer.added_tokens_decoder.values()
    return [token.content for token in held if token.special and token.content in MARKS]


def with_known_roles(messages: Sequence[Message], tokenizer: Any) -> list[Message]:
    """The same conversation, where the template knows no `tool` role with the tool's words at the head of what the user
    says next: two user messages in a row would be refused by the same templates. Everybody is handed this one."""
    if knows_tools(tokenizer) or all(message["role"] != "tool" for message in messages):
        return list(messages)
    told: list[Message] = []
    for message in messages:
        tool, role = message["role"] == "tool", message["role"]
        content = f"Result of the query:\n{message['content']}" if tool else message["content"]
        if told and told[-1]["role"] == "user" and (tool or role == "user"):
            told[-1] = {"role": "user", "content": f"{told[-1]['content']}\n\n{content}"}
        else:
            told.append({"role": "user" if tool else role, "content": content})
    return told


def _template_file(template: str) -> str:
    path = Path(template)
    if not path.is_file():
        near = did_you_mean(template, TEMPLATES)
        raise UserError(f"prompt.template: '{template}' is neither a built-in template nor a file.{near}")
    return read_text(open_text(path))


def render(messages: Sequence[Message], tokenizer: Any) -> str:
    """The prompt as text, up to where the model goes on. Special tokens are in it already. Raises UserError."""
    try:
        return tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True)
    except Exception as error:  # a template is somebody's program: it may raise anything, and all of it is one news
        roles = ", ".join(dict.fromkeys(message["role"] for message in messages))
        said = " ".join(f"{type(error).__name__}: {error}".split())
        raise UserError(
            f"The chat template cannot render a conversation of {roles} ({said}). "
            "Set prompt.template to 'plain' or to a template of your own."
        ) from error


def split_by_length(
    examples_with_prompts: Sequence[tuple[Example, Sequence[Message]]], tokenizer: Any, limit: int
) -> tuple[list[tuple[Example, Sequence[Message]]], list[tuple[str, int]]]:
    """Those whose prompt has at most `limit` tokens, and (id, tokens) of the others.

    limit: tokens left for the prompt, that is max_seq_length - max_completion_tokens. Raises UserError if none fits.
    """
    texts = [render(prompt, tokenizer) for _, prompt in examples_with_prompts]
    over = {i: tokens for i, tokens in _lengths(texts, tokenizer, limit) if tokens > limit}
    kept = [pair for i, pair in enumerate(examples_with_prompts) if i not in over]
    too_long = [(examples_with_prompts[i][0].id, tokens) for i, tokens in over.items()]
    if too_long and not kept:
        shortest = min(tokens for _, tokens in too_long)
        raise UserError(
            f"None of the {len(too_long)} prompts fits: the shortest has {shortest} tokens, and the window leaves "
            f"{limit}. Raise model.max_seq_length, or lower grpo.max_completion_length."
        )
    return kept, too_long


def _lengths(texts: Sequence[str], tokenizer: Any, limit: int, batch: int = 1000) -> Iterator[tuple[int, int]]:
    """(index, tokens) of the texts that may have more than `limit` tokens.

    Of 85,000 prompts most need not be tokenized to know that: a token stands for at least one character of ASCII, which
    no normalisation changes (one more is for the blank that SentencePiece puts in front).
    """
    unsure = [i for i, text in enumerate(texts) if len(text) >= limit or not text.isascii()]
    for start in range(0, len(unsure), batch):
        part = unsure[start : start + batch]
        ids = tokenizer([texts[i] for i in part], add_special_tokens=False)["input_ids"]
        yield from zip(part, map(len, ids), strict=True)
