"""Answer a prompt, a file, standard input or a dialogue with a trained model: the fast-generate demo.

python src/infer.py --run outputs/demo --prompt "Mia has 6 boxes with 7 pens in each. How many?"
python src/infer.py --run outputs/demo --prompts examples/sample_prompts.jsonl --output answers.jsonl
python src/infer.py --run outputs/demo --chat
cat prompts.jsonl | python src/infer.py --model outputs/demo/merged --prompts - --system ""
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.panel import Panel

from llm_grpo import command
from llm_grpo.errors import UserError
from llm_grpo.prompts import with_system
from llm_grpo.records import Completion, Message

if TYPE_CHECKING:
    from llm_grpo.rollouts import Engine, Sampling

console = command.console()
USUAL_MAX_TOKENS = 1024  # where --max_tokens is not given and the window has room


def main(argv: list[str] | None = None) -> int:
    from llm_grpo.problems import system_prompt, worked_examples
    from llm_grpo.rollouts import Sampling
    from llm_grpo.rollouts.asking import AnswerFile, answers, read_prompts, within_window
    from llm_grpo.rollouts.loading import config_of, open_engine

    args = arguments().parse_args(argv)
    check(args)
    prompts = [] if args.chat else [one_prompt(args.prompt)] if args.prompts is None else read_prompts(args.prompts)
    sampling = Sampling(args.max_tokens or USUAL_MAX_TOKENS, args.temperature, args.top_p, args.n, args.seed)
    output = AnswerFile(Path(args.output), how(args)) if args.output else None
    answered = output.there_already(prompts) if output and args.resume else 0
    config = config_of(args)
    system = args.system if args.system is not None or config is None else system_prompt(config)
    shots = worked_examples(config) if config else ()
    with command.library_output_in(Path(args.log)):
        engine, what = open_engine(args, config)
    console.print(f"{what}\n", style="dim")
    if args.chat:
        return chat(engine, sampling, system, shots, capped=args.max_tokens is None)
    asked = [with_system([{"role": "user", "content": prompt}], system, shots) for prompt in prompts]
    if args.max_tokens is None:
        sampling = within_window(engine, asked, sampling)
        if sampling.max_tokens < USUAL_MAX_TOKENS:
            said = f"Answers have at most {sampling.max_tokens} tokens: the window is {engine.window}."
            console.print(said, style="dim")
    start, tokens = time.perf_counter(), 0
    with command.progress(console, "answering", len(prompts) - answered) as on_done:
        for index, group in answers(engine, asked, sampling, answered, on_done):
            tokens += sum(completion.tokens for completion in group)
            output.append(prompts[index], group) if output else show(prompts[index], group)
    seconds = time.perf_counter() - start
    if output:
        console.print(f"{len(prompts)} answered prompts in {args.output}")
    console.print(f"{tokens} tokens in {seconds:.1f} s: {tokens / seconds:.0f} tokens/s", style="dim")
    return 0


def arguments() -> argparse.ArgumentParser:
    parser = command.parser(__doc__)
    asked = parser.add_mutually_exclusive_group(required=True)
    asked.add_argument("--prompt", type=str, metavar="TEXT", help="one prompt; - reads it from standard input")
    asked.add_argument("--prompts", metavar="FILE", help='JSONL, one {"prompt": "..."} a line; - is standard input')
    asked.add_argument("--chat", action="store_true", help="a dialogue: a line at a time, until an empty one")
    command.add_model_arguments(parser)
    system = "the system prompt; default: the one the run was trained with"
    parser.add_argument("--system", type=str, metavar="TEXT", help=system)
    parser.add_argument("--temperature", type=float, default=0.8, help="0 is greedy (default %(default)s)")
    parser.add_argument("--top_p", type=float, default=0.95, help="default %(default)s")
    usual = f"default {USUAL_MAX_TOKENS}, or what the longest prompt leaves of the window"
    parser.add_argument("--max_tokens", type=int, help=usual)
    parser.add_argument("--n", type=int, default=1, help="answers per prompt (default %(default)s)")
    parser.add_argument("--seed", type=int, help="the same seed repeats the answers")
    parser.add_argument("--output", metavar="FILE", help="write JSONL, line by line, instead of showing the answers")
    parser.add_argument("--resume", action="store_true", help="go on with an --output that is not complete")
    log = "where the libraries' own output goes (%(default)s)"
    parser.add_argument("--log", default="outputs/libraries.log", help=log)
    return parser


def check(args: argparse.Namespace) -> None:
    """What argparse cannot say. Raises UserError."""
    if args.max_tokens is not None and args.max_tokens < 1:
        raise UserError(f"--max_tokens {args.max_tokens}: give at least 1.")
    if args.resume and not args.output:
        raise UserError("--resume goes on with the file that --output names; name it.")
    if args.chat and (args.output or args.n > 1):
        raise UserError("--chat shows one answer at a time: leave --output and --n away.")
    if args.output and not (args.resume and Path(args.output).is_file()):
        command.check_output(Path(args.output))


def one_prompt(given: str) -> str:
    prompt = sys.stdin.read() if given == "-" else given
    if not prompt.strip():
        raise UserError("--prompt is empty.")
    return prompt


def how(args: argparse.Namespace) -> dict[str, object]:
    """What the answers depend on, as it was asked for: it stands in every line, so that a file is of one kind."""
    names = ("run", "adapter", "base", "model", "dtype", "system", "temperature", "top_p", "max_tokens", "n", "seed")
    return {name: getattr(args, name) for name in names if getattr(args, name) is not None}


def show(prompt: str, group: Sequence[Completion]) -> None:
    from rich.text import Text

    for completion in group:
        cut = "\n[cut at the token limit]" if completion.truncated else ""
        said = Text.assemble((completion.thought, "dim"), completion.answer.strip(), cut)
        console.print(Panel(said, title=Text(prompt), title_align="left"))


def chat(engine: Engine, sampling: Sampling, system: str | None, shots: Sequence[Message], *, capped: bool) -> int:
    """A dialogue on the terminal, or a line at a time from a pipe. /new forgets what was said."""
    from llm_grpo.rollouts.asking import within_window

    console.print("An empty line ends, /new begins anew.", style="dim")
    turns: list[Message] = []
    while line := _line():
        if line == "/new":
            turns = []
            continue
        asked = [with_system([*turns, {"role": "user", "content": line}], system, shots)]
        try:
            drawn = within_window(engine, asked, sampling) if capped else sampling
            completion = engine.generate(asked, drawn)[0][0]
        except UserError as error:  # the dialogue has outgrown the window: it can begin anew
            console.print(f"{error} Or begin anew with /new.", style="red")
            continue
        show(line, [completion])
        turns += [{"role": "user", "content": line}, {"role": "assistant", "content": completion.text}]
    return 0


def _line() -> str:
    try:
        return input("> " if sys.stdin.isatty() else "").strip()
    except EOFError:
        return ""


if __name__ == "__main__":
    command.run(main)
