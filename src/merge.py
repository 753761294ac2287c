"""Merge a run's adapter into its 16-bit base: a model that opens without PEFT. Needs no GPU and little memory.

    python src/merge.py --run outputs/demo
    python src/merge.py --run outputs/demo --push user/repo --private
    python src/merge.py --adapter DIR --base Qwen/Qwen2.5-3B-Instruct --output DIR

An adapter that was trained on 4-bit weights is merged into the 16-bit original: --base, else model.merge_base of the
run's config, else model.name. --push needs HF_TOKEN in the environment or in .env.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from llm_grpo import command
from llm_grpo.errors import UserError

console = Console(highlight=False, markup=False)


@dataclass(frozen=True)
class Job:
    """What to merge: all names resolved. again: the command that does the same once more."""

    adapter: Path
    base: str | None
    revision: str | None
    output: Path
    again: str


def main(argv: list[str] | None = None) -> int:
    args = arguments().parse_args(argv)
    job = resolve(args)
    from llm_grpo.export import make_repository, push

    if args.push:
        make_repository(args.push, args.private)
    if args.push and job.output.exists() and not args.overwrite:
        console.print(f"{job.output} is there already and is pushed as it is (--overwrite merges anew).")
    else:
        merge_with_bar(job, args.dtype, args.overwrite)
    if args.push:
        address = push(job.output, args.push, f"{job.again} --push {args.push}")
        console.print(f"Pushed: {address}")
    return 0


def arguments() -> argparse.ArgumentParser:
    parser = command.parser(__doc__)
    parser.add_argument("--run", type=Path, metavar="DIR", help="a run's folder, for example outputs/demo")
    parser.add_argument("--adapter", type=Path, metavar="DIR", help="an adapter (default: the run's, best before last)")
    parser.add_argument("--base", metavar="NAME", help="the 16-bit base: a folder or a Hub name")
    parser.add_argument("--output", type=Path, metavar="DIR", help="where to write (default: RUN/merged)")
    parser.add_argument("--dtype", default="auto", help="auto (16-bit, as the base), float16, bfloat16, float32")
    parser.add_argument("--overwrite", action="store_true", help="replace a merged model that is there")
    parser.add_argument("--push", metavar="USER/REPO", help="then upload it to the Hub")
    parser.add_argument("--private", action="store_true", help="make a new repository a private one")
    return parser


def resolve(args: argparse.Namespace) -> Job:
    """Fill in from the run what the command line does not say. Raises UserError where neither does."""
    if args.run is None and (args.adapter is None or args.output is None):
        raise UserError("Give --run outputs/NAME, or both --adapter DIR and --output DIR.")
    if args.run is None:
        again = f"python src/merge.py --adapter {args.adapter} --output {args.output}"
        return Job(args.adapter, args.base, None, args.output, again)
    from llm_grpo import runs

    run = runs.find(args.run)
    model = run.config().model
    base = args.base or model.merge_base or model.name
    revision = model.revision if base == model.name else None
    output = args.output or run.merged
    again = f"python src/merge.py --run {args.run}" + (f" --output {args.output}" if args.output else "")
    return Job(args.adapter or run.chosen_adapter(), base, revision, output, again)


def merge_with_bar(job: Job, dtype: str, overwrite: bool) -> None:
    from llm_grpo.export import merge

    columns = (TextColumn("merging"), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        line = bar.add_task("merging")
        report = merge(
            job.adapter,
            job.output,
            job.base,
            dtype,
            lambda done, total: bar.update(line, completed=done, total=total),
            revision=job.revision,
            overwrite=overwrite,
        )
    console.print(
        f"Merged {job.adapter} into {report.base}: {report.merged_tensors} of {report.tensors} tensors changed, "
        f"{report.bytes_written / 1e9:.3f} GB in {report.seconds:.1f} s. Weights: {report.dtype_reason}.",
    )
    if report.untied:
        console.print("Input and output embeddings, one tensor in the base, are two here: the adapter changes one.")
    console.print(f"It lies in {report.output_dir}. Open it:")
    console.print(f'  AutoModelForCausalLM.from_pretrained("{report.output_dir}")')


if __name__ == "__main__":
    command.quiet_libraries()
    command.run(main)
