"""rollouts.engine=server over a real vLLM server: the engines' contract, refusals at the door, runs, a server that dies.

The tests stand in the order of one server's life; the last one kills it.
"""

from __future__ import annotations

import importlib.util
import inspect
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import test_rollouts
from browser import free_port, wait_for
from conftest import ROOT, SMALL, TINY, run_script
from test_processes import torchrun

from llm_grpo import runs
from llm_grpo.config.loading import load_config
from llm_grpo.config.schema import Config
from llm_grpo.diagnosis.drift import METRIC
from llm_grpo.errors import UserError
from llm_grpo.files import read_jsonl
from llm_grpo.rollouts import Sampling, choose_engine, refused
from llm_grpo.rollouts.server import COMPLETIONS, AdapterOnServer, Server, ServerEngine, check_server

pytestmark = pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason=test_rollouts.MISSING_VLLM)
KEY = "a-key-of-the-test"
DEMO = ROOT / "configs" / "demo.yaml"


@dataclass
class Started:
    """A `src/serve.py --rollouts` that runs, and what it said."""

    process: subprocess.Popen[str]
    url: str
    said: str

    def models(self) -> list[str]:
        return [card["id"] for card in Server(self.url, 60).ask("/v1/models")["data"]]

    def family(self) -> list[Any]:
        import psutil

        return psutil.Process(self.process.pid).children(recursive=True)

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(60)


def start(folder: Path) -> Started:
    port = free_port()
    words = ["--rollouts", "--config", str(DEMO), f"model.name={TINY}", f"run.output_dir={folder}"]
    process = subprocess.Popen(
        [sys.executable, "src/serve.py", "--port", str(port), *words, "--", "--max-num-seqs", "64"],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env={**os.environ, "VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_API_KEY": KEY},
    )  # fmt: skip
    said = ""
    for line in process.stdout:
        said += line
        if "src/train.py" in line:
            return Started(process, f"http://127.0.0.1:{port}", said)
    raise AssertionError(said)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Started]:
    os.environ["VLLM_API_KEY"] = KEY
    started = start(tmp_path_factory.mktemp("served"))
    yield started
    started.stop()
    del os.environ["VLLM_API_KEY"]


def config_for(server: Started | str, *overrides: str) -> Config:
    url = server if isinstance(server, str) else server.url
    return load_config(DEMO, ["rollouts.engine=server", f"rollouts.url={url}", *overrides], environment={})


# --- the contract of the engines --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server_engine(server: Started, tokenizer, tmp_path_factory: pytest.TempPathFactory) -> ServerEngine:
    place = tmp_path_factory.mktemp("adapters")
    adapter = AdapterOnServer(test_rollouts.adapted_model(), Server(server.url, 60), place, "contract")
    return ServerEngine(adapter, tokenizer, 256)


@pytest.fixture
def engine(server_engine: ServerEngine) -> ServerEngine:
    return server_engine


def of_the_contract(test: Any) -> bool:
    return inspect.isfunction(test) and test.__name__[:5] == "test_" and "engine" in inspect.signature(test).parameters


globals().update({name: test for name, test in vars(test_rollouts).items() if of_the_contract(test)})


# --- at the door ------------------------------------------------------------------------------------------------


def test_it_says_how_to_train_and_no_key(server: Started) -> None:
    assert f"rollouts.engine=server rollouts.url={server.url}" in server.said
    assert not any(KEY in word for process in server.family() for word in process.cmdline())
    assert KEY not in server.said


def test_a_server_of_the_config_is_let_in_and_left_as_it_was(server: Started, tmp_path: Path) -> None:
    before = server.models()
    check_server(config_for(server, f"run.output_dir={tmp_path}"))
    check_server(config_for(f"{server.url}/v1/", f"rollouts.shared_dir={tmp_path}/adapters"))
    assert server.models() == before and list(tmp_path.iterdir()) == [tmp_path / "adapters"]
    assert not list((tmp_path / "adapters").iterdir())


OTHERS = [
    (["model.name={base}"], r"serves .*tiny_qwen2 with a window of 256 tokens; model.name is .*other", "another base"),
    (["model.max_seq_length=512"], "a window of 256 tokens; .* model.max_seq_length 512", "a window that is too small"),
    (["lora.r=128"], "LoRA rank 128 is greater than max_lora_rank 64", "a rank that is too small"),
]  # fmt: skip


@pytest.mark.parametrize(("overrides", "said", "why"), OTHERS, ids=[row[2] for row in OTHERS])
def test_another_server_is_refused(server: Started, tmp_path: Path, overrides: list[str], said: str, why: str) -> None:
    (base := tmp_path / "other").mkdir()
    with pytest.raises(UserError, match=said) as told:
        check_server(config_for(server, *(word.format(base=base) for word in overrides)))
    assert server.url in str(told.value)


def test_another_key_is_refused_and_not_shown(server: Started, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_API_KEY", "another-key")
    with pytest.raises(UserError, match=f"{server.url} asks for another key: set VLLM_API_KEY") as told:
        check_server(config_for(server))
    assert "another-key" not in str(told.value) and KEY not in str(told.value)


def test_where_nobody_answers_the_run_ends_before_it_begins(tmp_path: Path) -> None:
    done = run_script("src/train.py", "--config", DEMO, f"run.output_dir={tmp_path}", "rollouts.engine=server",
                      url := f"rollouts.url=http://127.0.0.1:{free_port()}")  # fmt: skip
    assert done.returncode == 2 and f"{url[13:]} does not answer (Connection refused)" in done.stdout.replace("\n", " ")
    assert not (tmp_path / "demo").exists()


def test_a_server_that_never_answers_is_left_in_time() -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as mute:
        url = f"http://127.0.0.1:{mute.getsockname()[1]}"
        with pytest.raises(UserError, match=rf"{url} has not answered within 0.2 s \(rollouts.timeout_s\)"):
            Server(url, 0.2).ask(COMPLETIONS, {"prompt": [1]})


NEEDS = [
    (["lora=null"], "a LoRA", "there is no adapter to send"),
    (["rollouts.url=null"], "rollouts.url", "nobody to ask"),
    (["rollouts.standby=true"], "rollouts.standby=false", "Unsloth's vLLM lends its cache, a server does not"),
]


@pytest.mark.parametrize(("overrides", "said", "why"), NEEDS, ids=[row[2] for row in NEEDS])
def test_what_a_server_needs_of_the_config(overrides: list[str], said: str, why: str) -> None:
    with pytest.raises(UserError, match=f"rollouts.engine: server needs {said}"):
        choose_engine("server", training=config_for("http://one:8000", *overrides))


def test_a_4_bit_policy_may_ask_a_server_and_auto_never_does() -> None:
    config = config_for("http://one:8000", "model.load_in_4bit=true")
    assert not refused("server", config) and choose_engine("auto", training=config)[0] != "server"
    with pytest.raises(UserError, match="rollouts.url: rollouts.engine is vllm"):
        config_for("http://one:8000", "rollouts.engine=vllm")
    with pytest.raises(UserError, match="rollouts.url"):
        config_for("http://me:secret@one:8000")


# --- adapters ---------------------------------------------------------------------------------------------------


def test_one_adapter_is_there_at_a_time_under_a_name_of_its_own(server_engine, server: Started, tmp_path: Path) -> None:
    model = server_engine.adapter.model
    two = [AdapterOnServer(model, Server(server.url, 60), tmp_path, "run") for _ in range(2)]
    names = set()
    for adapter in (*two, *two):
        adapter.push()
        names.add(adapter.name)
        (folder,) = adapter._folder.iterdir()
        assert folder.name == str(adapter.pushed) and adapter.name in server.models()
    assert len(names) == 4 and len(names & set(server.models())) == 2
    del adapter, two
    assert not names & set(server.models()) and not list(tmp_path.iterdir()), "who goes takes them along"


def test_a_server_that_was_started_again_is_noticed(server_engine, server: Started, tmp_path: Path) -> None:
    engine = ServerEngine(
        AdapterOnServer(server_engine.adapter.model, Server(server.url, 60), tmp_path, "run"),
        server_engine.tokenizer,
        256,
    )
    engine.generate(test_rollouts.PROMPTS, Sampling(max_tokens=2))
    engine.adapter.server.unload(engine.adapter.name)  # as one that starts knows none
    with pytest.raises(UserError, match=r"404: .*does not exist.*--resume"):
        engine.adapter.server.ask(COMPLETIONS, {"model": engine.adapter.name, "prompt": [1]})
    with pytest.raises(UserError, match=f"{server.url} .*404: .*cannot be found.*--resume"):
        engine.generate(test_rollouts.PROMPTS, Sampling(max_tokens=2))


# --- runs -------------------------------------------------------------------------------------------------------


def words(server: Started, folder: Path, *more: str) -> list[str]:
    given = ["--config", str(DEMO), f"run.output_dir={folder}", "rollouts.engine=server", f"rollouts.url={server.url}"]
    return ["src/train.py", *given, *SMALL, *more]


@pytest.fixture(scope="module")
def first(server: Started, tmp_path_factory: pytest.TempPathFactory) -> runs.Run:
    folder = tmp_path_factory.mktemp("first")
    done = run_script(*words(server, folder))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "server: rollouts.engine asks for it" in done.stdout and "disagree" not in done.stdout
    return runs.Run(folder / "demo")


def test_a_run_through_a_server_trains_logs_and_merges(first: runs.Run, server: Started) -> None:
    rows = list(read_jsonl(first.metrics))
    assert [row["step"] for row in rows] == [1, 2, 3, 4] and (first.merged / "model.safetensors").is_file()
    for row in rows:
        assert 0 < row[METRIC] < 1e-5 and row["sampling/sampling_logp_difference/max"] < 1e-3
        assert row["sampling/importance_sampling_ratio/mean"] == pytest.approx(1, abs=1e-3), "TRL's correction is on"
        assert 0 < row["seconds/generation/sync"] < row["seconds/generation"]
    assert not any(KEY in path.read_text(errors="replace") for path in first.folder.glob("*") if path.is_file())
    assert not any(name.startswith("demo-") for name in server.models())


def test_two_trainers_of_one_server_are_one_run(first: runs.Run, server: Started, tmp_path: Path) -> None:
    """Each asks for its half of the batch, the first sends the adapter for both: the answers and losses of one."""
    done = torchrun(*words(server, tmp_path, "grpo.per_device_train_batch_size=8", "grpo.max_steps=2"))
    assert done.returncode == 0, done.stdout + done.stderr
    both = runs.Run(tmp_path / "demo")
    for step, (mine, theirs) in enumerate(zip(read_jsonl(first.metrics), read_jsonl(both.metrics), strict=False)):
        said = [
            sorted((row["id"], row["completion"]) for row in read_jsonl(run.completion_files()[step]))
            for run in (first, both)
        ]
        assert said[0] == said[1] and len(said[0]) == 16
        assert theirs["loss"] == pytest.approx(mine["loss"], abs=1e-4) and theirs[METRIC] < 1e-5
    assert not any(name.startswith("demo-") for name in server.models())


def test_a_server_that_dies_in_a_second_run_and_another_that_goes_on(
    first: runs.Run, server: Started, tmp_path: Path
) -> None:
    run = runs.Run(tmp_path / "demo")
    more = ("grpo.max_steps=8", "grpo.save_steps=5")
    own = {**os.environ, "PYTHONUNBUFFERED": "1"}
    training = subprocess.Popen([sys.executable, *words(server, tmp_path, *more)], cwd=ROOT, stdout=subprocess.PIPE,
                                stderr=subprocess.STDOUT, text=True, env=own)  # fmt: skip
    wait_for(lambda: len(list(read_jsonl(run.metrics))) >= 2 or training.poll() is not None, 240)
    for process in server.family():
        process.send_signal(signal.SIGKILL)
    said = training.communicate(timeout=240)[0]
    assert training.returncode == 2 and f"The vLLM server at {server.url} " in said, said
    assert "--resume" in said and "Traceback" not in said
    assert server.process.wait(60) == 2, "src/serve.py says that its server ended"

    done, checkpoint = len(list(read_jsonl(run.metrics))), run.last_checkpoint(hashes=True)
    assert checkpoint is not None and 2 <= checkpoint.step == done < 8
    same = [[list(read_jsonl(r.completion_files()[step])) for r in (first, run)] for step in range(2)]
    assert all(one == two for one, two in same), "the second run on a server asks and gets what the first did"

    again = start(tmp_path)
    try:
        resumed = run_script(*words(again, tmp_path, *more), "--resume")
    finally:
        again.stop()
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    rows = list(read_jsonl(run.metrics))
    assert [row["step"] for row in rows] == list(range(1, 9)) and all(row[METRIC] < 1e-5 for row in rows)
