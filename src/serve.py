"""Serve a trained model over HTTP: vLLM's OpenAI-compatible server, and a chat page.

    python src/serve.py --run outputs/demo
    python src/serve.py --run outputs/demo --gradio
    python src/serve.py --model outputs/demo/merged --port 8001 -- --dtype bfloat16 --max-model-len 128
    python src/serve.py --gradio --url http://127.0.0.1:8000 --run outputs/demo
    python src/serve.py --rollouts --config configs/grpo.yaml --host 0.0.0.0 -- --tensor-parallel-size 2

A run's adapter and its base are served side by side, each under its own name. What stands behind -- goes to vLLM as it
is. An API key comes from the environment or .env, as VLLM_API_KEY. Ctrl-C stops everything. Clients: docs/serving.md.
With --rollouts the base of a config is served to trainings with rollouts.engine=server: docs/scaling.md.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import signal
import socket
import tempfile
from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm_grpo import command
from llm_grpo.errors import UserError

if TYPE_CHECKING:
    from llm_grpo.records import Message
    from llm_grpo.serving.model import Served

console = command.console()
OURS = ("--host", "--port", "--model", "--served-model-name", "--lora-modules", "--middleware")


def main(argv: list[str] | None = None) -> int:
    args = arguments().parse_args(argv)
    check(args)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: the server goes before we do
    return page_alone(args) if args.url else serve(args)


def arguments() -> argparse.ArgumentParser:
    parser = command.parser(__doc__)
    command.add_which_model(parser)
    parser.add_argument("--host", default="127.0.0.1", help="0.0.0.0 lets other machines in (default %(default)s)")
    parser.add_argument("--port", type=int, default=8000, help="default %(default)s")
    parser.add_argument("--gradio", action="store_true", help="a chat page too, reasoning and answer apart")
    parser.add_argument("--gradio_port", type=int, default=7860, metavar="PORT", help="default %(default)s")
    parser.add_argument("--url", help="with --gradio: a server that runs already, as http://HOST:PORT")
    parser.add_argument("--rollouts", action="store_true", help="for trainings of --config with rollouts.engine=server")
    parser.add_argument("--config", metavar="YAML", help="with --rollouts; section.key=value may follow, before --")
    parser.add_argument("--log", metavar="FILE", help="vLLM's own output (default: RUN/serve-PORT.log)")
    parser.add_argument("vllm", nargs="*", metavar="-- OPTION", help="options of vLLM's server, as they are")
    return parser


def check(args: argparse.Namespace) -> None:
    """What can be said before anything slow. Raises UserError."""
    from llm_grpo.serving.process import check_address, check_vllm

    args.overrides = list(takewhile(lambda word: not word.startswith("-"), args.vllm)) if args.rollouts else []
    del args.vllm[: len(args.overrides)]
    if args.vllm and not args.vllm[0].startswith("-"):
        raise UserError(f"'{args.vllm[0]}': name the model with --run, --adapter or --model; vLLM's options follow --.")
    for word in args.vllm:
        name = word.split("=")[0].replace("_", "-")
        if name == "--api-key":
            raise UserError("A key on the command line shows in process lists: set VLLM_API_KEY, or write it to .env.")
        if name in OURS:
            raise UserError(f"{name} behind --: src/serve.py says that to vLLM itself (see --help).")
    if args.rollouts or args.config:
        check_rollouts(args)
    if args.gradio:
        from llm_grpo.serving.page import check_gradio

        check_gradio()
        check_address(args.host, args.gradio_port, "--gradio_port")
    if args.url:
        if not args.gradio or args.vllm:
            raise UserError("--url is for --gradio alone: a page for a server that runs; vLLM's options are its own.")
        return
    if not (args.run or args.adapter or args.model or args.rollouts):
        raise UserError("Which model? Give --run outputs/NAME, --adapter DIR or --model NAME.")
    check_vllm()
    check_address(args.host, args.port)


def check_rollouts(args: argparse.Namespace) -> None:
    """Whoever reaches such a server can have it read any adapter on its disks. Raises UserError."""
    from llm_grpo.serving.process import is_loopback

    if not (args.rollouts and args.config) or args.run or args.adapter or args.model or args.gradio or args.url:
        raise UserError(
            "--rollouts and --config go together, and without --run, --adapter, --model, --gradio and --url."
        )
    if not is_loopback(args.host) and not os.environ.get("VLLM_API_KEY"):
        raise UserError(
            f"--rollouts --host {args.host}: set VLLM_API_KEY here and for the training, in .env or before it."
        )


def serve(args: argparse.Namespace) -> int:
    """Start the server, say how to use it, and stay until it ends or somebody stops it."""
    from llm_grpo.config.loading import load_config
    from llm_grpo.device import has_gpu
    from llm_grpo.serving.model import for_rollouts, served, vllm_words
    from llm_grpo.serving.process import ended, environment, running, url_of, wait_until_ready

    on_gpu, url = has_gpu(), url_of(args.host, args.port)
    config = load_config(args.config, args.overrides) if args.rollouts else None
    model = for_rollouts(config, on_gpu) if config else served(args, on_gpu)
    place = config.run.output_dir if config else args.run or "outputs"
    log = Path(args.log) if args.log else Path(place) / f"serve-{args.port}.log"
    say_what_starts(model, args, log)
    with tempfile.TemporaryDirectory() as folder:
        template = Path(folder) / "chat_template.jinja"
        template.write_text(model.template, encoding="utf-8")
        words = [*vllm_words(model, template, args.host, args.port), *args.vllm]
        with running(words, environment(on_gpu, os.environ, args.rollouts), log) as process:
            with console.status("vLLM starts ..."):
                seconds = wait_until_ready(process, url, log)
            say_how_to_train(args, url, seconds) if args.rollouts else say_how_to_ask(model, url, seconds)
            if args.gradio:
                show_page(args, url, model.opening, model)
            process.wait()
            raise ended(process, log, "while it served")


def page_alone(args: argparse.Namespace) -> int:
    """The chat page, for a server that somebody else has started."""
    from llm_grpo.rollouts.loading import config_of
    from llm_grpo.serving.model import opening_of

    config = config_of(args)
    show_page(args, args.url.rstrip("/").removesuffix("/v1"), opening_of(config)).block_thread()
    return 0


def show_page(args: argparse.Namespace, url: str, opening: Sequence[Message], model: Served | None = None) -> Any:
    from llm_grpo.serving.page import build_page, from_server, open_page

    how = (model.begun, model.asks) if model else ()
    source = from_server(url, os.environ.get("VLLM_API_KEY"), *how)
    page = build_page(source, opening, title=source.models[0])
    open_page(page, args.host, args.gradio_port, os.environ.get("VLLM_API_KEY"))
    from llm_grpo.serving.process import url_of

    console.print(f"Chat page: {url_of(args.host, args.gradio_port)}")
    return page


def say_what_starts(model: Served, args: argparse.Namespace, log: Path) -> None:
    from llm_grpo.report import notices
    from llm_grpo.serving.process import is_loopback

    what = f"{model.base}{f' with {model.adapter}' if model.adapter else ''}"
    console.print(f"Starting vLLM with {what}; half a minute on a CPU, longer for a large model.")
    notices.say_choices(console, {**model.choices, "log": str(log)})
    if not is_loopback(args.host) and not os.environ.get("VLLM_API_KEY"):
        console.print(
            f"Warning: {args.host} is open to other machines, and there is no key: whoever reaches port {args.port} "
            "can use the model. Set VLLM_API_KEY, or leave --host away.",
            style="yellow",
        )


def say_how_to_train(args: argparse.Namespace, url: str, seconds: float) -> None:
    from llm_grpo.serving.process import is_loopback

    if not is_loopback(args.host):  # for trainings on other machines
        url = f"http://{socket.gethostname()}:{args.port}"
    words = ["src/train.py", "--config", args.config, *args.overrides, "rollouts.engine=server", f"rollouts.url={url}"]
    console.print(f"Ready after {seconds:.0f} s at {url}. Ctrl-C stops it. Train with:")
    console.print(f"{command.python()} {shlex.join(words)}", soft_wrap=True)


def say_how_to_ask(model: Served, url: str, seconds: float) -> None:
    """The names that are served, and a request as the model was trained to find it."""
    from llm_grpo.report.notices import QUESTION

    messages = [*model.opening, {"role": "user", "content": QUESTION}]
    body = {"model": model.names[0], "messages": messages, "temperature": 0, **model.asks}
    key = ' -H "Authorization: Bearer $VLLM_API_KEY"' if os.environ.get("VLLM_API_KEY") else ""
    quoted = json.dumps(body, ensure_ascii=False).replace("'", "'\\''")
    lines = [f"Ready after {seconds:.0f} s at {url}/v1, serving {' and '.join(model.names)}. Ctrl-C stops it. Try:"]
    lines += [f"curl {url}/v1/chat/completions{key} -H 'Content-Type: application/json' -d '{quoted}'"]
    for line in lines:
        console.print(line, soft_wrap=True)


if __name__ == "__main__":
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "INFO")  # of the server, whose log is a file
    command.run(main)
