"""What stands before the answer: system prompts, worked examples, and the text a model really reads.

Layer 0: no torch, no transformers; a tokenizer is handed in. Every model gets its prompt through a chat template; one
that has none (distilgpt2 and other base models) is given PLAIN_TEMPLATE, and the choice is said in a sentence.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

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


def ensure_template(tokenizer: Any, template: str | None = None) -> str:
    """Give the tokenizer a chat template where it has none or `prompt.template` asks for one; says which is used.

    template: a name in TEMPLATES, or the path of a Jinja file. The template is tried once, so that a fault in it is
    told here and not in the middle of a run. Raises UserError.
    """
    if template:
        tokenizer.chat_template = TEMPLATES.get(template) or _template_file(template)
        said = f"Chat template: '{template}', as prompt.template asks."
    elif tokenizer.chat_template:
        said = "Chat template: the tokenizer's own."
    else:
        tokenizer.chat_template = PLAIN_TEMPLATE
        said = "Chat template: the built-in 'plain', because the tokenizer brings none."
    render([{"role": "user", "content": "?"}], tokenizer)
    return said if knows_tools(tokenizer) else f"{said[:-1]}; it has no tool role, so a tool's words are the user's."


def knows_tools(tokenizer: Any) -> bool:
    """Whether the chat template shows what a `tool` message says: some refuse the role, others leave it out."""
    from jinja2 import TemplateError

    said = [("user", "a"), ("assistant", "b"), ("tool", "the tool's words"), ("user", "c")]
    try:
        text = tokenizer.apply_chat_template([{"role": r, "content": c} for r, c in said], tokenize=False)
    except TemplateError:
        return False
    return "the tool's words" in text


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
    """The prompt as text, up to the point where the model goes on. Special tokens are in it already."""
    from jinja2 import TemplateError

    try:
        return tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True)
    except TemplateError as error:
        roles = ", ".join(dict.fromkeys(message["role"] for message in messages))
        raise UserError(
            f"The chat template cannot render a conversation of {roles}: {error}. "
            "Set prompt.template to 'plain' or to a template of your own, or prompt.system to ''."
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
