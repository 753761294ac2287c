"""Answer a prompt, a file, standard input or a dialogue with a trained model: the fast-generate demo.

python src/infer.py --run outputs/demo --prompt "Mia has 6 boxes with 7 pens in each. How many?"
python src/infer.py --run outputs/demo --prompts examples/sample_prompts.jsonl --output answers.jsonl
python src/infer.py --run outputs/demo --chat
cat prompts.jsonl | python src/infer.py --model outputs/demo/merged --prompts - --system ""
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

from rich.panel import Panel

from llm_grpo import command
from llm_grpo.errors import UserError
from llm_grpo.records import Completion, Message
from llm_grpo.text_files import open_json_lines, read_text

if TYPE_CHECKING:
    from llm_grpo.rollouts import Engine, Sampling

console = command.console()
USUAL_MAX_TOKENS = 1024  # where --max_tokens is not given and the window has room
AT_A_TIME = {"vllm": 256, "transformers": 64}  # prompts that are answered before their answers are written


def main(argv: list[str] | None = None) -> int:
    from llm_grpo.problems import system_prompt, worked_examples
    from llm_grpo.rollouts import Sampling
    from llm_grpo.rollouts.loading import config_of, open_engine

    args = arguments().parse_args(argv)
    check(args)
    prompts = [] if args.chat else read_prompts(args)
    sampling = Sampling(args.max_tokens or USUAL_MAX_TOKENS, args.temperature, args.top_p, args.n, args.seed)
    asks = how(args)
    answered = there_already(Path(args.output), prompts, asks, args.resume) if args.output else 0
    config = config_of(args)
    system = args.system if args.system is not None or config is None else system_prompt(config)
    shots = worked_examples(config) if config else ()
    with command.library_output_in(Path(args.log)):
        engine, what = open_engine(args, config)
    console.print(f"{what}\n", style="dim", highlight=False, markup=False)
    if args.chat:
        return chat(engine, sampling, system, shots, capped=args.max_tokens is None)
    asked = [conversation([{"role": "user", "content": prompt}], system, shots) for prompt in prompts]
    if args.max_tokens is None:
        sampling = within_window(engine, asked, sampling)
        if sampling.max_tokens < USUAL_MAX_TOKENS:
            said = f"Answers have at most {sampling.max_tokens} tokens: the window is {engine.window}."
            console.print(said, style="dim", highlight=False)
    start, tokens = time.perf_counter(), 0
    with command.progress(console, "answering", len(prompts) - answered) as on_done:
        for index, group in answers(engine, asked, sampling, answered, on_done):
            tokens += sum(completion.tokens for completion in group)
            append(Path(args.output), prompts[index], asks, group) if args.output else show(prompts[index], group)
    seconds = time.perf_counter() - start
    if args.output:
        console.print(f"{len(prompts)} answered prompts in {args.output}", highlight=False)
    console.print(f"{tokens} tokens in {seconds:.1f} s: {tokens / seconds:.0f} tokens/s", style="dim", highlight=False)
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
    parser.add_argument(
        "--max_tokens", type=int, help=f"default {USUAL_MAX_TOKENS}, or what the longest prompt leaves of the window"
    )
    parser.add_argument("--n", type=int, default=1, help="answers per prompt (default %(default)s)")
    parser.add_argument("--seed", type=int, help="the same seed repeats the answers")
    parser.add_argument("--output", metavar="FILE", help="write JSONL, line by line, instead of showing the answers")
    parser.add_argument("--resume", action="store_true", help="go on with an --output that is not complete")
    parser.add_argument(
        "--log", default="outputs/libraries.log", help="where the libraries' own output goes (%(default)s)"
    )
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


def read_prompts(args: argparse.Namespace) -> list[str]:
    """The prompts asked for. Raises UserError naming the file and line of a broken one."""
    if args.prompt is not None:
        prompt = sys.stdin.read() if args.prompt == "-" else args.prompt
        if not prompt.strip():
            raise UserError("--prompt is empty.")
        return [prompt]
    path, name = Path(args.prompts), "standard input" if args.prompts == "-" else args.prompts
    if args.prompts != "-" and not path.is_file():
        raise UserError(f"--prompts: there is no file {path}.")
    text = sys.stdin.read().removeprefix("\ufeff") if args.prompts == "-" else read_text(open_json_lines(path))
    prompts = [_prompt(line, f"{name}:{i}") for i, line in enumerate(text.split("\n"), start=1) if line.strip()]
    if not prompts:
        raise UserError(f"{name} holds no prompts.")
    return prompts


def _prompt(line: str, where: str) -> str:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise UserError(f"{where}: not JSON ({error.msg}).") from None
    if not isinstance(row, dict) or not isinstance(row.get("prompt"), str) or not row["prompt"].strip():
        raise UserError(f'{where}: needs a text under "prompt".')
    if any("\ud800" <= character <= "\udfff" for character in row["prompt"]):
        raise UserError(f"{where}: holds half of a character (\\ud800 to \\udfff), which no tokenizer reads.")
    return row["prompt"]


def how(args: argparse.Namespace) -> dict[str, object]:
    """What the answers depend on, as it was asked for: it stands in every line, so that a file is of one kind."""
    names = ("run", "adapter", "base", "model", "dtype", "system", "temperature", "top_p", "max_tokens", "n", "seed")
    return {name: getattr(args, name) for name in names if getattr(args, name) is not None}


def there_already(path: Path, prompts: Sequence[str], asks: dict[str, object], resume: bool) -> int:
    """How many of the prompts, from the first on, the file has answers to; a line that a kill cut off is taken away.

    Raises UserError where the file answers other prompts, or was asked of another model or otherwise.
    """
    if not (resume and path.is_file()):
        return 0
    whole = [line for line in path.read_text(encoding="utf-8").split("\n")[:-1] if line.strip()]
    there = [_prompt(line, f"{path}:{number}") for number, line in enumerate(whole, start=1)]
    for number, (old, new) in enumerate(zip(there, prompts, strict=False), start=1):
        if old != new:
            raise UserError(f"--resume: {path}:{number} answers {old[:60]!r}, but prompt {number} is {new[:60]!r}.")
    for number, line in enumerate(whole, start=1):
        before = json.loads(line).get("asked", asks)
        if other := [name for name in before.keys() | asks.keys() if before.get(name) != asks.get(name)]:
            was, now = ({name: row.get(name) for name in sorted(other)} for row in (before, asks))
            raise UserError(f"--resume: {path}:{number} was answered with {was}, not {now}. Take another --output.")
    if len(there) > len(prompts):
        raise UserError(f"--resume: {path} has {len(there)} answers, and there are only {len(prompts)} prompts.")
    with path.open("r+b") as file:  # what is whole is not written again: a kill now would cost it
        file.truncate(path.read_bytes().rfind(b"\n") + 1)
    return len(there)


def conversation(turns: Sequence[Message], system: str | None, shots: Sequence[Message]) -> list[Message]:
    """What the model is asked, as it was asked in training: system prompt and worked examples first."""
    from llm_grpo.prompts import with_system

    return with_system(turns, system, shots)


def within_window(engine: Engine, asked: Sequence[Sequence[Message]], sampling: Sampling) -> Sampling:
    """As many tokens as the longest prompt leaves of the window, up to those asked for."""
    from llm_grpo.rollouts import token_ids

    if engine.window is None:
        return sampling
    one = replace(sampling, max_tokens=1)  # a prompt that leaves no room at all is an error that names it
    longest = max(map(len, token_ids(asked, engine.tokenizer, one, engine.window)))
    return replace(sampling, max_tokens=min(engine.window - longest, sampling.max_tokens))


def answers(
    engine: Engine, asked: Sequence[Sequence[Message]], sampling: Sampling, start: int, on_done: object
) -> Iterator[tuple[int, list[Completion]]]:
    """(index, answers) of each prompt from `start` on, some prompts at a time, so that little is lost in a crash."""
    size = AT_A_TIME[engine.name]
    for first in range(start, len(asked), size):
        seed = None if sampling.seed is None else sampling.seed + first
        groups = engine.generate(asked[first : first + size], replace(sampling, seed=seed), on_done)
        yield from enumerate(groups, start=first)


def append(path: Path, prompt: str, asks: dict[str, object], group: Sequence[Completion]) -> None:
    from llm_grpo.runs import append_jsonl

    append_jsonl(path, [{"prompt": prompt, "completions": [asdict(completion) for completion in group], "asked": asks}])


def show(prompt: str, group: Sequence[Completion]) -> None:
    from rich.text import Text

    for completion in group:
        cut = "\n[cut at the token limit]" if completion.truncated else ""
        said = Text.assemble((completion.thought, "dim"), completion.answer.strip(), cut)
        console.print(Panel(said, title=Text(prompt), title_align="left"))


def chat(engine: Engine, sampling: Sampling, system: str | None, shots: Sequence[Message], *, capped: bool) -> int:
    """A dialogue on the terminal, or a line at a time from a pipe. /new forgets what was said."""
    console.print("An empty line ends, /new begins anew.", style="dim")
    turns: list[Message] = []
    while line := _line():
        if line == "/new":
            turns = []
            continue
        asked = [conversation([*turns, {"role": "user", "content": line}], system, shots)]
        try:
            drawn = within_window(engine, asked, sampling) if capped else sampling
            completion = engine.generate(asked, drawn)[0][0]
        except UserError as error:  # the dialogue has outgrown the window: it can begin anew
            console.print(f"{error} Or begin anew with /new.", style="red", markup=False)
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
    command.quiet_libraries()
    command.run(main)
