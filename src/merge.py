"""Merge a run's adapter into its 16-bit base, prove that the result is the adapter, write its card, and push it.

    python src/merge.py --run outputs/demo
    python src/merge.py --run outputs/demo --push user/repo --private
    python src/merge.py --run outputs/demo --push user/repo --method lora
    python src/merge.py --adapter DIR --base Qwen/Qwen2.5-3B-Instruct --output DIR

Merging needs no GPU and little memory. An adapter that was trained on 4-bit weights is merged into the 16-bit original:
--base, else model.merge_base of the run's config, else model.name. A run that trained all weights (lora: null) has
nothing to merge: its model is written in 16 bit, proved and pushed the same way. --push needs HF_TOKEN in the
environment or in .env; it is refused where the merged model is further from the adapter than merge.thresholds allow.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from llm_grpo import command
from llm_grpo.planning.merging import Job, check, resolve

METHODS = ("merged_16bit", "lora", "gguf")
console = Console(highlight=False, markup=False, soft_wrap=True)


def main(argv: list[str] | None = None) -> int:
    words = sys.argv[1:] if argv is None else argv
    args = arguments().parse_args(words)
    again = shlex.join(["python", "src/merge.py", *(word for word in words if word != "--overwrite")])
    job = resolve(args)
    check(job, args, console.print)
    if job.method == "lora":
        return publish(job, job.adapter, args, again)
    if (job.repo or job.method == "gguf") and job.output.exists() and not args.overwrite:
        console.print(f"{job.output} is there already and is taken as it is (--overwrite merges anew).")
    else:
        merge_with_bar(job, args.dtype, args.overwrite)
    failures = prove(job, args)
    if failures and not (args.skip_proof and job.repo):
        describe(job, job.output, args)
        return refuse(job, failures)
    return publish(job, convert(job) if job.method == "gguf" else job.output, args, again)


def arguments() -> argparse.ArgumentParser:
    parser = command.parser(__doc__)
    parser.add_argument("--run", type=Path, metavar="DIR", help="a run's folder, for example outputs/demo")
    parser.add_argument("--adapter", type=Path, metavar="DIR", help="an adapter (default: the run's, best before last)")
    parser.add_argument("--base", metavar="NAME", help="the 16-bit base: a folder or a Hub name")
    parser.add_argument("--output", type=Path, metavar="DIR", help="where to write (default: RUN/merged)")
    parser.add_argument("--dtype", default="auto", help="auto (16-bit, as the base), float16, bfloat16, float32")
    parser.add_argument("--overwrite", action="store_true", help="replace a merged model that is there")
    parser.add_argument(
        "--proof-limit", type=int, default=64, metavar="N", help="held-out prompts of the proof (default %(default)s)"
    )
    parser.add_argument("--skip-proof", action="store_true", help="do not compare; a push says so in the card")
    parser.add_argument(
        "--push", nargs="?", const="", metavar="USER/REPO", help="upload it to the Hub (default: merge.push_to)"
    )
    parser.add_argument("--private", action="store_true", help="make a new repository a private one")
    parser.add_argument("--method", choices=METHODS, help="what to push (default: merge.method of the run's config)")
    command.add_overrides(parser)
    return parser


def merge_with_bar(job: Job, dtype: str, overwrite: bool) -> None:
    from llm_grpo.export import merge

    columns = (TextColumn("merging"), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        line = bar.add_task("merging")

        def on_done(done: int, total: int) -> None:
            bar.update(line, completed=done, total=total)

        how = {"revision": job.revision, "overwrite": overwrite}
        report = merge(job.adapter, job.output, job.base, dtype, on_done, **how)
    changed = f"Merged {job.adapter} into {report.base}: {report.merged_tensors} of {report.tensors} tensors changed"
    done = changed if report.merged_tensors else f"{job.adapter} is a whole model, there was nothing to merge: written"
    took = f"{report.bytes_written / 1e9:.3f} GB in {report.seconds:.1f} s"
    console.print(f"{done}, {took}. Weights: {report.dtype_reason}.")
    if report.untied:
        console.print("Input and output embeddings, one tensor in the base, are two here: the adapter changes one.")
    console.print(f"It lies in {report.output_dir}. Open it:")
    console.print(f'  AutoModelForCausalLM.from_pretrained("{report.output_dir}")')


def prove(job: Job, args: argparse.Namespace) -> list[str]:
    """What is worse than merge.thresholds allow; nothing where nobody compared. A proof of these weights is reused."""
    if job.run is None:
        return []
    from llm_grpo.export import proof as proofs
    from llm_grpo.export.source import original

    known = proofs.read_proof(job.output)
    if args.skip_proof:
        console.print("The merged model was not compared with the adapter (--skip-proof).")
        return (known or {}).get("failures", [])
    if known and known["limit"] == args.proof_limit:
        found = proofs.judged(known, job.config.merge.thresholds, job.output)
    else:
        # The libraries' own output goes to a file meanwhile; what we say does not.
        with os.fdopen(os.dup(sys.stdout.fileno()), "w") as screen, command.library_output_in(job.run.log):

            def watch(step: str, total: int) -> AbstractContextManager[Callable[[int], None]]:
                print(f"Proof on held-out prompts: {step} ...", file=screen, flush=True)
                return command.progress(Console(file=screen), step, total)

            of = (job.config, job.adapter, original(job.base), job.output)
            found = proofs.prove(*of, args.proof_limit, job.revision, watch)
    for line in proofs.lines(found):
        console.print(line)
    return found["failures"]


def refuse(job: Job, failures: list[str]) -> int:
    console.print(f"The merged model is not near enough to the adapter{'; not pushed' if job.repo else ''}:")
    for failure in failures:
        console.print(f"  {failure}")
    console.print(f"Everything stays in {job.output}. docs/publishing.md says what can be the reason.")
    return 1


def convert(job: Job) -> Path:
    from llm_grpo.export import gguf

    folder = job.output.with_name(f"{job.output.name}_gguf")
    name = (job.repo or job.output.resolve().parent.name).rpartition("/")[2]
    console.print(f"GGUF: {gguf.convert(gguf.find_converter(job.output), job.output, folder / f'{name}.gguf')}")
    return folder


def describe(job: Job, folder: Path, args: argparse.Namespace) -> None:
    """The card beside the weights."""
    from llm_grpo.export.adapter import read_adapter
    from llm_grpo.export.card import Subject, write_card
    from llm_grpo.export.source import original

    base = original(job.base or read_adapter(job.adapter).base)
    merged = None if job.method == "lora" else job.output
    write_card(Subject(folder, job.adapter, base, merged, job.method, job.repo, job.run, args.skip_proof))


def publish(job: Job, folder: Path, args: argparse.Namespace, again: str) -> int:
    """The card, and the upload where it was asked for."""
    describe(job, folder, args)
    if job.repo:
        from llm_grpo.export.push import upload

        console.print(f"Uploading {folder} to {job.repo} ...")
        console.print(f"Pushed: {upload(folder, job.repo, args.private, again, console.print)}")
    return 0


if __name__ == "__main__":
    if sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "0")  # gigabytes take their time
    command.run(main)
