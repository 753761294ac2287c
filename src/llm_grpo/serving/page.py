"""A chat page that shows reasoning and answer apart (Gradio): over an HTTP server, or over a model in this process.

Also the whole of examples/space/: it imports nothing of this project but answers, prompts and the transformers engine.
"""

from __future__ import annotations

import importlib.util
import os
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llm_grpo.answers.formats import TAGS, extract_hash_answer, write_answer
from llm_grpo.answers.thinking import CLOSE, OPEN, thought_of, words_of
from llm_grpo.errors import UserError
from llm_grpo.prompts import with_system
from llm_grpo.records import Message

REASONING, THOUGHT = "Reasoning", "Thought"
USUAL_MAX_TOKENS = 1024  # of a model in this process, where the visitor names no limit


@dataclass(frozen=True)
class Source:
    """Who answers. stream: (model, messages, temperature, top_p, max_tokens or None) -> the answer, in pieces."""

    models: tuple[str, ...]
    stream: Callable[[str, list[Message], float, float, int | None], Iterator[str]]
    at_once: int = 1  # visitors that are answered at the same time


def check_gradio() -> None:
    """Raises UserError where gradio or the client is missing."""
    missing = [name for name in ("gradio", "openai") if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"--gradio needs {' and '.join(missing)}: pip install {' '.join(missing)}")


# --- who answers ------------------------------------------------------------------------------------------------


def from_server(url: str, key: str | None, begun: str = "", asks: Mapping[str, Any] | None = None) -> Source:
    """A server of OpenAI's kind at http://HOST:PORT; adapters stand before their bases. Raises UserError.

    begun: what of a think block its prompts have opened; asks: what a request says besides (`Served`)."""
    import openai

    client = openai.OpenAI(base_url=f"{url}/v1", api_key=key or "none", max_retries=0)
    try:
        cards = list(client.models.list())
    except openai.AuthenticationError as error:
        raise UserError(f"{url} asks for another key: set VLLM_API_KEY.") from error
    except openai.OpenAIError as error:
        raise UserError(f"{url}: no server of OpenAI's kind answers there ({error}).") from error

    def stream(
        model: str, messages: list[Message], temperature: float, top_p: float, max_tokens: int | None
    ) -> Iterator[str]:
        settings = {"temperature": temperature, "top_p": top_p} | ({"max_tokens": max_tokens} if max_tokens else {})
        try:
            with client.chat.completions.create(
                model=model, messages=messages, stream=True, extra_body=asks, **settings
            ) as chunks:  # type: ignore
                yield begun
                yield from (chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
        except openai.APIStatusError as error:
            raise UserError((error.body or {}).get("message", str(error))) from error
        except openai.OpenAIError as error:
            raise UserError(f"The server at {url} is gone ({error}).") from error

    names = [card.id for card in sorted(cards, key=lambda card: getattr(card, "parent", None) is None)]
    return Source(tuple(names), stream, at_once=32)


def from_transformers(name: str) -> Source:
    """A model (folder or Hub name) in this process, on a GPU where there is one. Raises UserError."""
    from llm_grpo.rollouts.transformers import load_engine

    engine = load_engine(name, None, None)

    def stream(
        model: str, messages: list[Message], temperature: float, top_p: float, max_tokens: int | None
    ) -> Iterator[str]:
        return engine.stream(messages, temperature, top_p, max_tokens or USUAL_MAX_TOKENS)

    return Source((name,), stream)


# --- the page ---------------------------------------------------------------------------------------------------


def build_page(source: Source, opening: Sequence[Message] = (), title: str = "") -> Any:
    """A gradio.ChatInterface. opening: what stands before a question, the system prompt (editable) first."""
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    import gradio

    shots = [message for message in opening if message["role"] != "system"]
    system = next((message["content"] for message in opening if message["role"] == "system"), "")

    def reply(
        question: str,
        history: list[Any],
        model: str,
        system: str,
        temperature: float,
        top_p: float,
        max_tokens: float,
        remember: bool,
    ) -> Iterator[list[dict[str, Any]]]:
        earlier = conversation(history) if remember else []
        messages = with_system([*earlier, {"role": "user", "content": question}], system, shots)
        said = ""
        try:
            for piece in source.stream(model, messages, temperature, top_p, int(max_tokens) or None):
                said += piece
                yield shown(said, whole=False)
        except UserError as error:
            raise gradio.Error(str(error), print_exception=False) from error
        yield shown(said, whole=True)

    return gradio.ChatInterface(
        reply,
        title=title,
        api_name="chat",
        # What a model writes is text, not a page; and no button sends it to the Hub.
        chatbot=gradio.Chatbot(render_markdown=False, show_label=False, height="60vh", buttons=["copy"]),
        concurrency_limit=source.at_once,
        additional_inputs=[
            gradio.Dropdown(list(source.models), value=source.models[0], label="Model"),
            gradio.Textbox(system, lines=4, label="System prompt"),
            gradio.Slider(0, 2, 0, step=0.05, label="Temperature (0: the likeliest answer)"),
            gradio.Slider(0.05, 1, 0.95, step=0.05, label="top_p"),
            gradio.Number(0, minimum=0, precision=0, label="Longest answer in tokens (0: what fits)"),
            gradio.Checkbox(False, label="Remember earlier turns (training showed it single questions)"),
        ],
        additional_inputs_accordion=gradio.Accordion("Settings", open=False),
    )


def open_page(page: Any, host: str, port: int, key: str | None) -> None:
    """Show the page and return. Where other machines reach it and there is a key, the key is the page's password."""
    from llm_grpo.serving.process import is_loopback

    def knows_key(user: str, password: str) -> bool:
        return secrets.compare_digest(password.encode(), (key or "").encode())

    guarded = {"auth": knows_key, "auth_message": "The password is the server's API key; any name will do."}
    page.launch(
        server_name=host,
        server_port=port,
        quiet=True,
        prevent_thread_lock=True,
        show_error=True,
        **(guarded if key and not is_loopback(host) else {}),
    )


# --- what is shown ----------------------------------------------------------------------------------------------


def shown(text: str, whole: bool) -> list[dict[str, Any]]:
    """The chat messages of an answer, or of as much as there is: thought and reasoning by themselves, then the rest."""
    thought = thought_of(text)
    reasoning, rest = apart(text[len(thought) :])
    messages: list[dict[str, Any]] = []
    for title, said, more in ((THOUGHT, _said(thought), reasoning or rest), (REASONING, reasoning, rest)):
        if said:
            pending = {} if whole or more else {"status": "pending"}
            messages.append({"role": "assistant", "content": said, "metadata": {"title": title, **pending}})
    if rest or not messages:
        messages.append({"role": "assistant", "content": rest})
    return messages


def _said(thought: str) -> str:
    return words_of(_without_begun(thought, CLOSE))


def apart(text: str) -> tuple[str, str]:
    """(reasoning, the rest) of an answer, whole or still being written. ("", all of it) where it has another form."""
    head, opened, inside = text.partition(TAGS[0])
    if opened and not head.strip():
        reasoning, _, rest = inside.partition(TAGS[1])
        return _without_begun(reasoning, TAGS[1]).strip(), _answer(rest)
    if any(tag.startswith(text.strip()) for tag in (TAGS[0], OPEN)):  # nothing yet, or the first tag is being written
        return "", ""
    head, mark, behind = text.partition("\n####")
    if mark and "\n" not in behind.strip() and head.strip():
        return head.strip(), f"#### {extract_hash_answer(text)}"
    return "", text.strip()


def _answer(rest: str) -> str:
    """What stands in the answer block; with anything outside it, everything as it was written."""
    head, opened, inside = rest.partition(TAGS[2])
    if not opened:
        return _without_begun(rest, TAGS[2]).strip()
    answer, _, tail = inside.partition(TAGS[3])
    return rest.strip() if head.strip() or tail.strip() else _without_begun(answer, TAGS[3]).strip()


def _without_begun(text: str, tag: str) -> str:
    """Without the beginning of a tag at its end, so that no half tag flickers while it is written."""
    begun = next((n for n in range(len(tag) - 1, 0, -1) if text.endswith(tag[:n])), 0)
    return text[: len(text) - begun]


def conversation(history: Sequence[Mapping[str, Any]]) -> list[Message]:
    """Earlier turns as the model wrote them, from what the page shows of them."""
    messages: list[Message] = []
    reasoning = ""
    for entry in history:
        text, title = _text(entry["content"]), (entry.get("metadata") or {}).get("title")
        if title == REASONING:
            reasoning = text
        if title in (REASONING, THOUGHT):  # the templates of models that think leave earlier thoughts out
            continue
        if reasoning and text.startswith("####"):
            text = f"{reasoning}\n{text}"
        elif reasoning:
            text = write_answer("xml", reasoning, text)
        messages.append({"role": entry["role"], "content": text})
        reasoning = ""
    return messages


def _text(content: Any) -> str:
    """Gradio hands a text back as it is, or as a list of parts."""
    return content if isinstance(content, str) else "".join(part.get("text", "") for part in content)
