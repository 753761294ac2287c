"""Generation by a vLLM server with cards of its own (`src/serve.py --rollouts`), sent the LoRA before it answers.

Only the adapter goes over: written to a folder that both sides see, loaded under a name that nothing had before; the
one before is unloaded. The server's base is never touched, whatever its precision. TRL's side: training/from_server.py.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from llm_grpo.config.schema import Config
from llm_grpo.errors import UserError
from llm_grpo.processes import from_first
from llm_grpo.records import Completion, Message
from llm_grpo.rollouts import Sampling, stop_tokens, token_ids
from llm_grpo.rollouts.adapter_sync import adapter_bytes, adapter_weights, first_seed, memory_folder, write_adapter
from llm_grpo.rollouts.reading import Reader
from llm_grpo.rollouts.vllm import rank_of

AT_ONCE = 256  # requests, each for the answers to a prompt; vLLM batches what its cards hold
CONNECT_S, CONTROL_S = 10.0, 60.0  # a connection; anything but an answer of the model
COMPLETIONS, LOAD, UNLOAD = "/v1/completions", "/v1/load_lora_adapter", "/v1/unload_lora_adapter"
SEES = (
    "; it has to see that folder, as rollouts.shared_dir can make sure, and to be started with "
    "VLLM_ALLOW_RUNTIME_LORA_UPDATING=1"
)
NO_WEIGHTS = "doesn't contain tensors"  # what vLLM 0.31 says of an adapter that has settings and nothing else
START = "src/serve.py --rollouts starts one for a config; a run that has begun goes on with --resume"
Made = TypeVar("Made")


class Server:
    """vLLM's OpenAI server at a URL. Every wait is bounded, and every fault is a UserError that names the URL."""

    def __init__(self, url: str, timeout_s: float) -> None:
        import requests
        from requests.adapters import HTTPAdapter, Retry

        self.url, self.timeout_s = url.rstrip("/").removesuffix("/v1"), timeout_s
        self.session = requests.Session()
        self.session.trust_env = False  # a .netrc would replace the key, and no proxy stands before a cluster's machine
        # vLLM closes a connection that idles for 5 s, as in an update; one that it closes just now is no dead server.
        self.session.headers["Connection"] = "close"
        if key := os.environ.get("VLLM_API_KEY"):
            self.session.headers["Authorization"] = f"Bearer {key}"
        for scheme in ("http://", "https://"):
            again = Retry(connect=3, read=0, backoff_factor=0.5)
            self.session.mount(scheme, HTTPAdapter(max_retries=again, pool_maxsize=AT_ONCE))

    def ask(self, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """What the server says to a POST of `body`, or a GET: of JSON the value, else the text."""
        import requests

        method, wait_s = "POST" if body else "GET", self.timeout_s if path == COMPLETIONS else CONTROL_S
        try:
            answer = self.session.request(method, self.url + path, json=body, timeout=(CONNECT_S, wait_s))
            said = answer.json() if "json" in answer.headers.get("Content-Type", "") else answer.text
        except requests.Timeout:
            knob = " (rollouts.timeout_s)" if path == COMPLETIONS else ""
            raise self.fault(f"has not answered within {wait_s:g} s{knob}") from None
        except requests.RequestException as error:
            causes = re.findall(r"[A-Z][a-z]+ [\w ]+", str(error))  # the first one stands last
            raise self.fault(f"does not answer ({causes[-1] if causes else type(error).__name__})") from None
        if answer.status_code == 401:
            raise self.fault("asks for another key: set VLLM_API_KEY to the server's")
        if answer.status_code != 200:
            told = said.get("error", said) if isinstance(said, dict) else said
            told = told.get("message", told) if isinstance(told, dict) else told
            hint = SEES if (path, answer.status_code) == (LOAD, 404) else ""
            raise self.fault(f"refuses {path} ({answer.status_code}: {told}){hint}")
        return said

    def fault(self, what: str) -> UserError:
        return UserError(f"The vLLM server at {self.url} {what}. {START}.")

    def wait(self, seconds: float) -> None:
        """Until it is up, so long at most."""
        deadline = time.monotonic() + seconds
        while True:
            try:
                return self.ask("/health")
            except UserError:
                if time.monotonic() >= deadline:
                    raise
            time.sleep(2)

    def load(self, name: str, folder: Path) -> None:
        """Answer with the adapter in a folder when asked for that name."""
        self.ask(LOAD, {"lora_name": name, "lora_path": str(folder)})

    def unload(self, name: str) -> None:
        """Forget an adapter. A server that does not know it has been started again."""
        self.ask(UNLOAD, {"lora_name": name})


def server_of(config: Config) -> Server:
    return Server(config.rollouts.url, config.rollouts.timeout_s)


def check_server(config: Config) -> None:
    """Before anything is loaded: the server is up, has the config's base and window, and takes an adapter of its rank.

    Raises UserError with what is served. One that is still starting is waited for where grpo.vllm_server_timeout says
    for how many seconds (TRL's own name).
    """
    server = server_of(config)
    server.wait(config.grpo.get("vllm_server_timeout", 0.0))
    told = server.ask("/v1/models")
    bases = [card for card in told.get("data", ()) if not card.get("parent")] if isinstance(told, dict) else []
    if not bases or "max_model_len" not in bases[0]:
        raise server.fault("is none: something else answers there")
    names, window, model = (bases[0]["id"], bases[0].get("root")), bases[0]["max_model_len"], config.model
    if not _is_one_of(model.name, names) or window < model.max_seq_length:
        served = f"serves {names[1] or names[0]} with a window of {window} tokens"
        raise server.fault(f"{served}; model.name is {model.name}, model.max_seq_length {model.max_seq_length}")
    _check_adapters(server, config)


def _check_adapters(server: Server, config: Config) -> None:
    """Of its rank a server tells only an adapter that is larger. This one has settings, which vLLM reads first, and no
    weights; that it lacks them is the right answer."""
    with tempfile.TemporaryDirectory(prefix=f"{config.run.name}-", dir=shared_folder(config)) as place:
        settings, folder = {"r": config.lora.r, "lora_alpha": 1, "target_modules": []}, Path(place)
        folder.chmod(0o755)  # the server may run as another user
        (folder / "adapter_config.json").write_text(json.dumps(settings), encoding="utf-8")
        try:
            server.load(folder.name, folder)
        except UserError as error:
            if NO_WEIGHTS not in str(error):
                raise


def _is_one_of(model: str, names: Sequence[str | None]) -> bool:
    """Under a name that it has, or as the same folder. One that has another path there can be served by the config's
    name: `vllm serve PLACE --served-model-name NAME`."""
    folders = [Path(name) for name in names if name and Path(name).is_dir()] if Path(model).is_dir() else []
    return model in names or any(folder.samefile(model) for folder in folders)


def shared_folder(config: Config, size: int = 0) -> Path:
    """Where adapters of so many bytes lie for the server: rollouts.shared_dir, else in memory where its address is this
    machine, else beside the runs, which machines that share a file system see."""
    local = urlsplit(config.rollouts.url).hostname in ("localhost", "127.0.0.1", "::1")
    memory = memory_folder(size) if local else None
    place = Path(config.rollouts.shared_dir or memory or config.run.output_dir).absolute()
    place.mkdir(parents=True, exist_ok=True)
    return place


class AdapterOnServer:
    """The LoRA of a PEFT model on a server: `push()` makes what the model holds now what is answered with.

    A name is of the run, this process and the push: one that is loaded is refused, and vLLM's prefix cache would answer
    from the weights it had. Several processes push together: the first does, and all have the name.
    """

    def __init__(self, model: Any, server: Server, place: Path, run: str) -> None:
        self.model, self.server, self.place, self.run = model, server, place, run
        self.name, self.pushed = "", 0
        self._folder: Path | None = None
        self._loaded: list[str] = []

    def push(self) -> None:
        weights = adapter_weights(self.model)
        self.name = from_first(lambda: self._published(weights))

    def _published(self, weights: Mapping[str, Any]) -> str:
        if self._folder is None:
            self._folder = Path(tempfile.mkdtemp(prefix=f"{self.run}-", dir=self.place))
            self._folder.chmod(0o755)
            weakref.finalize(self, _forget, self.server, self._loaded, self._folder)
        self.pushed += 1
        name, folder = f"{self._folder.name}-{self.pushed}", self._folder / str(self.pushed)
        write_adapter(weights, self.model.peft_config["default"], folder)
        self.server.load(name, folder)
        self._loaded.append(name)
        if len(self._loaded) > 1:
            self.server.unload(self._loaded.pop(0))
            shutil.rmtree(self._folder / str(self.pushed - 1), ignore_errors=True)
        return name


def _forget(server: Server, loaded: list[str], folder: Path) -> None:
    """At the end of a process: vLLM's engine would not survive a question for an adapter whose folder is gone."""
    with suppress(UserError):
        for name in loaded:
            server.unload(name)
    shutil.rmtree(folder, ignore_errors=True)


class ServerEngine:
    """An Engine that answers with the LoRA its policy holds at a call. Several processes call it together, each with
    prompts of its own, or none."""

    name = "server"

    def __init__(self, adapter: AdapterOnServer, tokenizer: Any, window: int, thinking: str = "answer") -> None:
        self.adapter, self.tokenizer, self.window, self.reader = adapter, tokenizer, window, Reader(tokenizer, thinking)

    @property
    def stops(self) -> set[int]:
        return stop_tokens(self.adapter.model.generation_config.eos_token_id, self.tokenizer)

    def generate(
        self, prompts: Sequence[Sequence[Message]], sampling: Sampling, on_done: Callable[[int], None] | None = None
    ) -> list[list[Completion]]:
        """completions_by_prompt. Each prompt is a request with a seed of its own; vLLM counts on from it for the n."""
        self.adapter.push()  # first, by all processes; a prompt that does not fit is a fault of one
        ids = token_ids(prompts, self.tokenizer, sampling, self.window)
        first, stops = first_seed(None if sampling.seed is None else (sampling.seed,)), self.stops
        # All is said, or the base's generation_config would say it: a penalty, a top_k.
        settings = {
            "model": self.adapter.name, "n": sampling.n, "max_tokens": sampling.max_tokens, "return_token_ids": True,
            "temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": 0, "min_p": 0.0,
            "repetition_penalty": 1.0, "stop_token_ids": sorted(stops),
        }  # fmt: skip

        def answers(index: int) -> list[Completion]:
            body = settings | {"prompt": ids[index], "seed": first + index * sampling.n}
            choices = self.adapter.server.ask(COMPLETIONS, body)["choices"]
            return [self.reader.completion(choice["token_ids"], stops) for choice in choices]

        return at_once(answers, len(ids), on_done)


def at_once(ask: Callable[[int], Made], count: int, on_done: Callable[[int], None] | None = None) -> list[Made]:
    """[ask(0), ask(1) ...], each in a thread. After one that fails no further one is begun."""
    pool = ThreadPoolExecutor(max(1, min(AT_ONCE, count)))
    try:
        asked = [pool.submit(ask, index) for index in range(count)]
        for one in as_completed(asked):
            one.result()
            if on_done:
                on_done(1)
        return [one.result() for one in asked]
    finally:
        pool.shutdown(cancel_futures=True)


def policy_engine(model: Any, tokenizer: Any, config: Config) -> ServerEngine:
    """An engine that answers with the LoRA a PEFT model holds at each call. Raises UserError."""
    rank_of(vars(model.peft_config["default"]))
    place = shared_folder(config, adapter_bytes(model))
    adapter = AdapterOnServer(model, server_of(config), place, config.run.name)
    return ServerEngine(adapter, tokenizer, config.model.max_seq_length, config.prompt.thinking)
