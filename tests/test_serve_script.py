"""python src/serve.py with the real openai and gradio clients: one start of vLLM's server, then a restart.

The tests stand in the order of one server's life; the restart is last.
"""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
from browser import free_port, wait_for
from conftest import ROOT, TINY

from llm_grpo import runs
from llm_grpo.config.loading import load_config
from llm_grpo.config.yaml_text import write_yaml
from llm_grpo.problems import system_prompt
from llm_grpo.prompts import render
from llm_grpo.rollouts.loading import load_tokenizer
from llm_grpo.serving.page import shown

needs = pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vllm is not installed (make test does)")
has_gradio = importlib.util.find_spec("gradio") is not None
pytestmark = needs
KEY = "a-key-of-the-test"
QUESTIONS = [f"Tom has {n} pens and buys {n + 4} more. How many pens is that?" for n in range(3, 9)]


@dataclass
class Started:
    """A src/serve.py that runs: its process, its port, the page's port, what it said until it was ready."""

    process: subprocess.Popen[str]
    port: int
    page_port: int
    said: str

    def client(self, key: str = "none"):
        import openai

        return openai.OpenAI(base_url=f"http://127.0.0.1:{self.port}/v1", api_key=key, max_retries=0)

    def family(self) -> list:
        import psutil

        return psutil.Process(self.process.pid).children(recursive=True)


def start(run: Path, port: int, **environment: str) -> Started:
    page_port = free_port()
    page = ["--gradio", "--gradio_port", str(page_port)] if has_gradio else []
    words = [sys.executable, "src/serve.py", "--run", str(run), "--port", str(port), *page]
    own = {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "NO_PROXY": "127.0.0.1", **environment}
    process = subprocess.Popen(
        words, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env={**os.environ, **own}
    )
    said = ""
    for line in process.stdout:
        said += line
        if line.startswith("Chat page" if page else "curl"):
            return Started(process, port, page_port, said)
    raise AssertionError(said)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with a LoRA of random weights, so that base and adapter write different texts."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = tmp_path_factory.mktemp("outputs") / "pens"
    folder.mkdir()
    template = folder / "mine.jinja"
    template.write_text("{% if briefly %}Briefly.\n{% endif %}" + (TINY / "chat_template.jinja").read_text())
    prompt = [f"prompt.template={template}", "prompt.template_args={briefly: true}"]
    given = ["run.name=pens", f"model.name={TINY}", *prompt]
    config = load_config(ROOT / "configs" / "demo.yaml", given, environment={})
    (folder / "config.yaml").write_text(write_yaml(config.as_dict(), "a test"))
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32)
    lora = LoraConfig(r=5, lora_alpha=10, target_modules="all-linear", init_lora_weights=False)
    get_peft_model(base, lora).save_pretrained(str(folder / "adapter"))
    AutoTokenizer.from_pretrained(TINY).save_pretrained(str(folder / "adapter"))
    return folder


@pytest.fixture(scope="module")
def server(run: Path) -> Iterator[Started]:
    started = start(run, free_port())
    yield started
    started.process.kill()  # the restart has killed it already
    started.process.wait()


def messages(question: str) -> list[dict[str, str]]:
    return [{"role": "system", "content": "Answer."}, {"role": "user", "content": question}]


def ask(client, question: str, model: str = "pens", **options) -> str:
    options = {"temperature": 0, "max_tokens": 40, **options}
    return (
        client.chat.completions.create(model=model, messages=messages(question), **options).choices[0].message.content
    )


def test_it_says_what_it_serves_and_how_to_ask(server: Started, run: Path) -> None:
    assert "serving pens and tiny_qwen2" in server.said and "float32" in server.said
    assert json.dumps(system_prompt(load_config(run / "config.yaml", environment={})))[1:-1] in server.said
    curl = next(line for line in server.said.splitlines() if line.startswith("curl"))
    done = subprocess.run(["bash", "-c", curl], capture_output=True, text=True, timeout=60)
    assert json.loads(done.stdout)["model"] == "pens", done


def test_the_answers_are_those_of_transformers_and_peft(server: Started, run: Path) -> None:
    from llm_grpo.rollouts import Sampling
    from llm_grpo.rollouts.transformers import load_engine

    served = {}
    for name, adapter in (("pens", run / "adapter"), ("tiny_qwen2", None)):
        engine = load_engine(str(TINY), adapter, runs.find(run).config().prompt)
        expected = engine.generate([messages(question) for question in QUESTIONS], Sampling(40))
        served[name] = [ask(server.client(), question, name) for question in QUESTIONS]
        assert served[name] == [group[0].text for group in expected]
    assert all(mine != base for mine, base in zip(served["pens"], served["tiny_qwen2"], strict=True))


def test_the_server_makes_the_prompt_of_the_training(server: Started, run: Path) -> None:
    """Its default is `prompt.template_args` of the config; a request may say otherwise."""
    import httpx

    tokenizer, _ = load_tokenizer(str(TINY), run / "adapter", runs.find(run).config().prompt)
    body = {"model": "pens", "messages": messages(QUESTIONS[0])}
    for more, begins in (({}, True), ({"chat_template_kwargs": {"briefly": False}}, False)):
        found = httpx.post(f"http://127.0.0.1:{server.port}/tokenize", json={**body, **more}, timeout=60).json()[
            "tokens"
        ]
        text = render(messages(QUESTIONS[0]), tokenizer)
        assert text.startswith("Briefly.\n") and tokenizer.decode(found) == (text if begins else text[9:])


def test_a_stream_is_the_same_text_in_pieces(server: Started) -> None:
    options = {"model": "pens", "messages": messages(QUESTIONS[0]), "temperature": 0, "max_tokens": 40}
    with server.client().chat.completions.create(stream=True, **options) as chunks:
        pieces = [chunk.choices[0].delta.content or "" for chunk in chunks]
    assert len(pieces) > 5 and "".join(pieces) == ask(server.client(), QUESTIONS[0])


def test_a_client_that_says_nothing_of_sampling_draws_as_infer_does(server: Started) -> None:
    drawn = {ask(server.client(), QUESTIONS[0], temperature=None, seed=seed) for seed in range(8)}
    assert len(drawn) > 1


def test_what_cannot_be_answered_is_refused(server: Started) -> None:
    import openai

    with pytest.raises(openai.NotFoundError, match="`nobody` does not exist"):
        ask(server.client(), "?", model="nobody")
    assert [card.id for card in server.client().models.list()] == ["tiny_qwen2", "pens"]
    with pytest.raises(openai.BadRequestError, match="256"):
        ask(server.client(), "pens " * 400)


def test_32_clients_at_once(server: Started) -> None:
    """Half of them ask the base: in one batch with the others it is the base that answers (rollouts/cpu_lora.py)."""
    both = [(question, name) for question in QUESTIONS for name in ("pens", "tiny_qwen2")]
    alone = {asked: ask(server.client(), *asked) for asked in both}
    assert all(alone[question, "pens"] != alone[question, "tiny_qwen2"] for question in QUESTIONS)
    asked = [both[n % len(both)] for n in range(32)]
    with ThreadPoolExecutor(32) as clients:
        answers = list(clients.map(lambda words: ask(server.client(), *words), asked))
    assert answers == [alone[words] for words in asked]


def test_only_this_machine_is_let_in(server: Started) -> None:
    import psutil

    ports = (server.port, server.page_port)
    processes = [psutil.Process(server.process.pid), *server.family()]
    found = [
        c.laddr for p in processes for c in p.net_connections("tcp") if c.status == "LISTEN" and c.laddr.port in ports
    ]
    assert {address.ip for address in found} == {"127.0.0.1"}


@pytest.mark.skipif(not has_gradio, reason="gradio is not installed (requirements-test.txt)")
def test_the_page_answers_through_its_api(server: Started) -> None:
    from gradio_client import Client

    client = Client(f"http://127.0.0.1:{server.page_port}", verbose=False)
    answered = client.predict(QUESTIONS[0], "tiny_qwen2", "Answer.", 0, 0.95, 40, False, api_name="/chat")
    expected = shown(ask(server.client(), QUESTIONS[0], "tiny_qwen2"), whole=True)
    assert [message["content"] for message in answered] == [message["content"] for message in expected]


def test_pages_of_other_origins_are_not_let_in(server: Started) -> None:
    request = urllib.request.Request(
        f"http://127.0.0.1:{server.port}/v1/models", headers={"Origin": "http://else.where"}
    )
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=60) as answer:
        assert answer.status == 200 and answer.headers["Access-Control-Allow-Origin"] is None


def post(url: str, key: str | None) -> int:
    body = json.dumps({"model": "pens", "messages": messages("?"), "max_tokens": 2}).encode()
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
    if key:
        request.add_header("Authorization", f"Bearer {key}")
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=60) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code


def test_killed_and_started_again_with_a_key(server: Started, run: Path) -> None:
    import openai

    family = server.family()
    before = ask(server.client(), QUESTIONS[0])
    os.kill(server.process.pid, signal.SIGKILL)
    wait_for(lambda: not any(p.is_running() and p.status() != "zombie" for p in family))
    again = start(run, server.port, VLLM_API_KEY=KEY)
    try:
        assert ask(again.client(KEY), QUESTIONS[0]) == before
        for wrong in ("none", KEY[:-1]):
            with pytest.raises(openai.AuthenticationError):
                ask(again.client(wrong), QUESTIONS[0])
        url = f"http://127.0.0.1:{server.port}"
        assert [post(url + path, None) for path in ("/invocations", "/v1/chat/completions", "/tokenize")] == [401] * 3
        assert post(url + "/invocations", KEY) == 200
        assert KEY not in again.said + (run / f"serve-{server.port}.log").read_text()
        family = again.family()
        assert not any(KEY in word for process in family for word in process.cmdline())
    finally:
        again.process.send_signal(signal.SIGINT)
        code = again.process.wait(60)
    assert code == 130 and not any(p.is_running() and p.status() != "zombie" for p in family)
