"""serving/page.py: an answer taken apart, streamed, shown in a real browser; and the same page as a Space."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import Browser, find_chromium, free_port, wait_for
from conftest import ROOT, TINY

from llm_grpo.config.loading import load_config
from llm_grpo.errors import UserError
from llm_grpo.problems import system_prompt
from llm_grpo.serving.page import Source, apart, build_page, conversation, from_transformers, open_page, shown

XML = "<reasoning>\n3+4=7\n</reasoning>\n<answer>\n7\n</answer>"
APART = [
    (XML, ("3+4=7", "7"), "the form that is asked for"),
    ("<reasoning>a</reasoning><answer>7</answer>\n", ("a", "7"), "without line breaks"),
    ("<reasoning>\n3+", ("3+", ""), "still thinking"),
    ("<reaso", ("", ""), "no half tag flickers at the start"),
    ("<reasoning>\n3</reas", ("3", ""), "nor at the end of the reasoning"),
    ("<reasoning>\n3</reasoning>\n<ans", ("3", ""), "nor before the answer"),
    ("<reasoning>\n3</reasoning>\n<answer>7</an", ("3", "7"), "nor behind it"),
    ("<reasoning>3</reasoning> so 7", ("3", "so 7"), "an answer without tags is shown"),
    ("<reasoning>3</reasoning><answer>7</answer> or 8", ("3", "<answer>7</answer> or 8"), "nothing is hidden"),
    (
        "It is 7. <reasoning>late</reasoning>",
        ("", "It is 7. <reasoning>late</reasoning>"),
        "another form is left alone",
    ),
    ("3+4=7\n#### 7", ("3+4=7", "#### 7"), "GSM8K's own form"),
    ("# Title\n#### Part\nand more", ("", "# Title\n#### Part\nand more"), "a heading is no answer"),
    ("<respond> Need </respond>", ("", "<respond> Need </respond>"), "a task with a form of its own"),
    ("", ("", ""), "nothing yet"),
]


@pytest.mark.parametrize(("text", "parts", "why"), APART, ids=[row[2] for row in APART])
def test_reasoning_and_answer_apart(text: str, parts: tuple[str, str], why: str) -> None:
    assert apart(text) == parts, why


@pytest.mark.parametrize("text", [XML, "3+4=7\n#### 7", "7", "<respond> Need </respond>"])
def test_what_is_shown_is_remembered_as_it_was_written(text: str) -> None:
    question = {"role": "user", "content": [{"type": "text", "text": "3+4?"}], "metadata": None}
    assert conversation([question, *shown(text, whole=True)]) == [
        {"role": "user", "content": "3+4?"},
        {"role": "assistant", "content": text},
    ]


def test_the_thought_is_pending_until_the_answer_begins() -> None:
    status = [shown(XML[:n], whole=False)[0].get("metadata", {}).get("status") for n in (20, len(XML))]
    assert status == ["pending", None]


def test_a_model_in_this_process_streams_what_it_generates() -> None:
    from llm_grpo.rollouts import Sampling
    from llm_grpo.rollouts.transformers import load_engine

    messages = [{"role": "user", "content": "Tom has 5 pens and buys 7 more. How many pens is that?"}]
    source = from_transformers(str(TINY))
    whole = load_engine(str(TINY), None, None).generate([messages], Sampling(30))[0][0].text
    pieces = list(source.stream(str(TINY), messages, 0.0, 1.0, 30))
    assert "".join(pieces) == whole and len([piece for piece in pieces if piece]) > 3
    assert list(source.stream(str(TINY), messages, 0.0, 1.0, None)), (
        "the window ends before 1024 tokens, and that is fine"
    )
    with pytest.raises(UserError, match="window of 256"):
        list(source.stream(str(TINY), [{"role": "user", "content": "pens " * 300}], 0.0, 1.0, 30))


# --- in a browser -----------------------------------------------------------------------------------------------

SYSTEM = system_prompt(load_config(ROOT / "configs" / "demo.yaml", environment={}))
QUESTION = "Tom has 3 pens and buys 7 more. How many pens is that?"


@pytest.fixture(scope="module")
def page() -> Iterator[tuple[str, Source]]:
    """(URL, who answers) of a page over the tiny model in this process."""
    pytest.importorskip("gradio", reason="gradio is not installed (requirements-test.txt)")
    source, port = from_transformers(str(TINY)), free_port()
    page = build_page(source, [{"role": "system", "content": SYSTEM}], title="Pens")
    open_page(page, "127.0.0.1", port, key=None)
    yield f"http://127.0.0.1:{port}", source
    page.close()


@pytest.mark.skipif(find_chromium() is None, reason="no chromium on the path")
def test_a_person_asks_and_sees_reasoning_and_answer_apart(page: tuple[str, Source], tmp_path: Path) -> None:
    url, source = page
    messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": QUESTION}]
    reasoning, answer = apart("".join(source.stream(str(TINY), messages, 0.0, 0.95, None)))
    assert reasoning and answer, "the tiny model keeps the form here"
    with Browser(url) as tab:
        wait_for(lambda: tab.run("!!document.querySelector('textarea')"))
        tab.run("document.querySelector('textarea').focus()")
        tab.type(QUESTION)
        thought = wait_for(lambda: tab.run("document.querySelector('.thought-group')?.innerText"))
        wait_for(lambda: tab.run("document.querySelector('.bot')?.innerText || ''").strip().endswith(answer))
        assert re.split(r"\s+", thought.strip())[0] == "Reasoning" and "<answer>" not in tab.text()
        wait_for(lambda: reasoning in tab.run("document.querySelector('.thought-group').innerText"))
        tab.picture(tmp_path / "page.png")
        assert tab.run("document.querySelector('h1').innerText") == "Pens"


def test_what_is_too_long_is_said_on_the_page(page: tuple[str, Source]) -> None:
    from gradio_client import Client
    from gradio_client.exceptions import AppError

    client = Client(page[0], verbose=False)
    settings = (str(TINY), SYSTEM, 0, 0.95, 40, False)
    assert client.predict(QUESTION, *settings, api_name="/chat")[-1]["role"] == "assistant"
    with pytest.raises(AppError, match="window of 256"):
        client.predict("pens " * 300, *settings, api_name="/chat")


def test_the_key_is_the_password_where_others_reach_the_page(page: tuple[str, Source]) -> None:
    from gradio_client import Client

    guarded, port = build_page(page[1]), free_port()
    open_page(guarded, "0.0.0.0", port, key="a key")
    url = f"http://127.0.0.1:{port}"
    try:
        assert Client(url, auth=("me", "a key"), verbose=False).view_api(return_format="dict")
        for wrong in (None, ("me", "key")):
            with pytest.raises(ValueError, match=r"(?i)auth|login|credentials"):
                Client(url, auth=wrong, verbose=False)
    finally:
        guarded.close()


# --- the Space --------------------------------------------------------------------------------------------------


def test_the_space_runs_with_the_package_beside_it(tmp_path: Path) -> None:
    pytest.importorskip("gradio", reason="gradio is not installed (requirements-test.txt)")
    shutil.copytree(ROOT / "examples" / "space", tmp_path / "space")
    shutil.copytree(ROOT / "src" / "llm_grpo", tmp_path / "space" / "llm_grpo")
    code = (
        "import app, llm_grpo, sys\n"
        "assert llm_grpo.__file__.startswith(sys.argv[1]), llm_grpo.__file__\n"
        "unneeded = [m for m in ('trl', 'vllm', 'openai', 'unsloth') if m in sys.modules]\n"
        "turns = list(app.page.fn('Tom has 5 pens and buys 7 more. How many?', [], '', 'Answer.', 0, 1, 30, False))\n"
        "print(turns[-1], unneeded)"
    )
    environment = {**os.environ, "MODEL_NAME": str(TINY), "GRADIO_ANALYTICS_ENABLED": "False"}
    words = [sys.executable, "-c", code, str(tmp_path)]
    done = subprocess.run(words, cwd=tmp_path / "space", capture_output=True, text=True, env=environment)
    said = done.stdout.strip()
    assert done.returncode == 0 and "'role': 'assistant'" in said and said.endswith("[]"), said + done.stderr


def test_the_space_names_the_versions_that_are_tested() -> None:
    text = (ROOT / "examples" / "space" / "README.md").read_text()
    pinned = next(
        line for line in (ROOT / "requirements-test.txt").read_text().splitlines() if line.startswith("gradio")
    )
    assert f"sdk_version: {pinned.partition('==')[2]}" in text and "app_file: app.py" in text
    for line in (ROOT / "examples" / "space" / "requirements.txt").read_text().splitlines():
        assert line.startswith("#") or line in (ROOT / "requirements.txt").read_text().splitlines(), line
