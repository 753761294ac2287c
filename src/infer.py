"""Answer a prompt or a file of prompts with a trained model: the fast-generate demo.

python src/infer.py --run outputs/demo --prompt "Mia has 6 boxes with 7 pens in each. How many?"
python src/infer.py --run outputs/demo --prompts examples/sample_prompts.jsonl --output answers.jsonl
python src/infer.py --model outputs/demo/merged --prompt "..." --system ""
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict
from pathlib import Path

from rich.panel import Panel

from llm_grpo import command
from llm_grpo.errors import UserError
from llm_grpo.records import Completion, Message

console = command.console()


def main(argv: list[str] | None = None) -> int:
    from llm_grpo.problems import system_prompt
    from llm_grpo.rollouts import Sampling
    from llm_grpo.rollouts.loading import config_of, open_engine

    args = arguments().parse_args(argv)
    prompts = read_prompts(args)
    sampling = Sampling(args.max_tokens, args.temperature, args.top_p, args.n, args.seed)
    if args.output:
        command.check_output(Path(args.output))
    config = config_of(args)
    system = args.system if args.system is not None or config is None else system_prompt(config)
    with command.library_output_in(Path(args.log)):
        engine, what = open_engine(args, config)
    console.print(f"{what}\n", style="dim", highlight=False, markup=False)
    start = time.perf_counter()
    answers = engine.generate([conversation(prompt, system) for prompt in prompts], sampling)
    seconds = time.perf_counter() - start
    show(prompts, answers) if not args.output else save(Path(args.output), prompts, answers)
    tokens = sum(completion.tokens for group in answers for completion in group)
    console.print(f"{tokens} tokens in {seconds:.1f} s: {tokens / seconds:.0f} tokens/s", style="dim", highlight=False)
    return 0


def arguments() -> argparse.ArgumentParser:
    parser = command.parser(__doc__)
    asked = parser.add_mutually_exclusive_group(required=True)
    asked.add_argument("--prompt", metavar="TEXT")
    asked.add_argument("--prompts", metavar="FILE", help='JSONL, one {"prompt": "..."} a line')
    command.add_model_arguments(parser)
    parser.add_argument("--system", metavar="TEXT", help="the system prompt; default: the one the run was trained with")
    parser.add_argument("--temperature", type=float, default=0.8, help="0 is greedy (default %(default)s)")
    parser.add_argument("--top_p", type=float, default=0.95, help="default %(default)s")
    parser.add_argument("--max_tokens", type=int, default=1024, help="default %(default)s")
    parser.add_argument("--n", type=int, default=1, help="answers per prompt (default %(default)s)")
    parser.add_argument("--seed", type=int, help="the same seed repeats the answers")
    parser.add_argument("--output", metavar="FILE", help="write JSONL instead of showing the answers")
    parser.add_argument(
        "--log", default="outputs/libraries.log", help="where the libraries' own output goes (%(default)s)"
    )
    return parser


def read_prompts(args: argparse.Namespace) -> list[str]:
    """The prompts asked for. Raises UserError naming the file and line of a broken one."""
    if args.prompt is not None:
        if not args.prompt.strip():
            raise UserError("--prompt is empty.")
        return [args.prompt]
    path = Path(args.prompts)
    if not path.is_file():
        raise UserError(f"--prompts: there is no file {path}.")
    prompts = []
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), start=1):
        if line.strip():
            prompts.append(_prompt(line, f"{path}:{number}"))
    if not prompts:
        raise UserError(f"{path} holds no prompts.")
    return prompts


def _prompt(line: str, where: str) -> str:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise UserError(f"{where}: not JSON ({error.msg}).") from None
    if not isinstance(row, dict) or not isinstance(row.get("prompt"), str) or not row["prompt"].strip():
        raise UserError(f'{where}: needs a text under "prompt".')
    return row["prompt"]


def conversation(prompt: str, system: str | None) -> list[Message]:
    from llm_grpo.prompts import with_system

    return with_system([{"role": "user", "content": prompt}], system)


def show(prompts: list[str], answers: list[list[Completion]]) -> None:
    from rich.text import Text

    for prompt, group in zip(prompts, answers, strict=True):
        for completion in group:
            said = completion.text.strip() + ("\n[cut at the token limit]" if completion.truncated else "")
            console.print(Panel(Text(said), title=Text(prompt), title_align="left"))


def save(path: Path, prompts: list[str], answers: list[list[Completion]]) -> None:
    from llm_grpo.runs import write_text

    rows = [{"prompt": p, "completions": [asdict(c) for c in group]} for p, group in zip(prompts, answers, strict=True)]
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    console.print(f"{len(rows)} answered prompts in {path}", highlight=False)


if __name__ == "__main__":
    command.quiet_libraries()
    command.run(main)
