"""What to merge or push, and where to: every name resolved, and refused before the long work if it would be useless.

Light, so that a mistake is answered at once: what needs export/ (torch) asks for it when it is needed.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from llm_grpo import runs
from llm_grpo.config.loading import load_config
from llm_grpo.config.schema import Config
from llm_grpo.errors import UserError


@dataclass(frozen=True)
class Job:
    """What to merge and where to: all names resolved. config and run: None for an adapter without a run."""

    adapter: Path
    base: str | None
    revision: str | None
    output: Path
    method: str
    repo: str | None
    run: runs.Run | None = None
    config: Config | None = None


def resolve(args: argparse.Namespace) -> Job:
    """Fill in from the run what the command line does not say. Raises UserError where neither does."""
    if args.proof_limit < 1:
        raise UserError(f"--proof-limit is {args.proof_limit}; it has to be at least 1 (or give --skip-proof).")
    if args.run is None:
        if args.adapter is None or args.output is None:
            raise UserError("Give --run outputs/NAME, or both --adapter DIR and --output DIR.")
        if args.overrides:
            raise UserError(f"{args.overrides[0]}: only a --run has a config to change.")
        return Job(args.adapter, args.base, None, args.output, args.method or "merged_16bit", _repository(args.push))
    run = runs.find(args.run)
    config = load_config(run.config_file, args.overrides, environment={})
    base, revision = config.model.merge_source(args.base)
    output, method = args.output or run.merged, args.method or config.merge.method
    repo = _repository(args.push, config.merge.push_to)
    return Job(args.adapter or run.chosen_weights(), base, revision, output, method, repo, run, config)


def _repository(asked: str | None, of_config: str | None = None) -> str | None:
    """Where to push; None where nobody asked for it. A config alone never publishes anything."""
    if asked == "" and not of_config:
        raise UserError("--push: say where to, as USER/REPO, or set merge.push_to in the run's config.")
    return None if asked is None else asked or of_config


def check(job: Job, args: argparse.Namespace, say: Callable[[str], None]) -> None:
    """Whatever would make the long work useless. Raises UserError."""
    if job.method == "lora":
        _check_adapter_alone(job)
    elif job.repo and job.run is None and not args.skip_proof:
        raise UserError("An adapter without a run has no task to prove it on: give --run, or --skip-proof.")
    if job.method == "gguf":
        from llm_grpo.export.gguf import find_converter

        find_converter(job.output)
    if job.repo:
        from llm_grpo.export.push import check_rights

        check_rights(job.repo, args.private, say)


def _check_adapter_alone(job: Job) -> None:
    """One that names its base by a folder of this machine is of no use to others, and tells them the folder."""
    if not job.repo:
        raise UserError(
            f"--method lora pushes the adapter as it is; without --push there is nothing to do: {job.adapter}"
        )
    if runs.is_whole_model(job.adapter):
        raise UserError(
            f"--method lora: {job.adapter} is a whole model (lora: null). Push it with merged_16bit or gguf."
        )
    from llm_grpo.export.adapter import read_adapter

    base = read_adapter(job.adapter).base
    if Path(base).is_absolute() or Path(base).is_dir():
        raise UserError(
            f"--method lora: {job.adapter}/adapter_config.json names its base as {base}, a folder of this machine. Put "
            "the Hub name that others can load under base_model_name_or_path there, or push with --method merged_16bit."
        )
