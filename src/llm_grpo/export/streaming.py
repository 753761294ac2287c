"""Merge a LoRA adapter into its base, tensor by tensor: no GPU, no model class, little memory for a model of any size.

PEFT needs the whole model in memory, Unsloth refuses 4-bit bases on a CPU, and neither leaves a whole folder or none
when it is killed. Here the files are written beside the place they are meant for, and take it when they are complete.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from llm_grpo.errors import UserError
from llm_grpo.export.adapter import read_adapter
from llm_grpo.export.plan import choose_dtype, make_plan
from llm_grpo.export.source import INDEX, OTHER_FILES, TOKENIZER_FILES, Base, open_base
from llm_grpo.export.tensors import write_file
from llm_grpo.files import disk_told, restore, swap_in, write_json

SPARE_BYTES = 2**26  # for tokenizer and configs


@dataclass(frozen=True)
class MergeReport:
    """What was merged. dtype: that of the weights, with the reason; untied: the output layer got weights of its own."""

    output_dir: Path
    base: str
    dtype: str
    dtype_reason: str
    tensors: int
    merged_tensors: int
    bytes_written: int
    untied: bool
    seconds: float


def merge(
    adapter_dir: Path,
    output_dir: Path,
    base: str | None = None,
    dtype: str = "auto",
    on_progress: Callable[[int, int], None] | None = None,
    *,
    revision: str | None = None,
    overwrite: bool = False,
) -> MergeReport:
    """Write base + adapter as a model that `AutoModelForCausalLM.from_pretrained(output_dir)` opens.

    base: a folder or a Hub name (with its `revision`); None takes what the adapter was trained on. A 4-bit name of
    Unsloth's becomes the name of the 16-bit original. A whole model (`lora: null`) as `adapter_dir` is its own base,
    and only its type changes. dtype: auto, float16, bfloat16 or float32; see `choose_dtype`.
    on_progress(bytes done, bytes in all) is called after each piece. Sums are made in float32 and rounded once.
    Raises UserError, before anything is written, for whatever cannot be merged rightly.
    """
    started = time.monotonic()
    adapter = read_adapter(Path(adapter_dir))
    named = base and not adapter.is_whole
    opened = open_base(base, revision) if named else open_base(adapter.base, adapter.revision)
    chosen, reason, convert = choose_dtype(opened, dtype)
    plan, untied = make_plan(opened, adapter, convert)
    _refuse_to_destroy(Path(output_dir), opened.folder, adapter.folder)
    planned = [tensor for tensors in plan.values() for tensor in tensors]
    total = sum(tensor.size for tensor in planned)
    with whole_folder(Path(output_dir), total + SPARE_BYTES, overwrite) as draft:
        done = 0
        for file, tensors in plan.items():
            for piece in write_file(draft / file, tensors, opened.shards[file][1]):
                done += piece
                if on_progress:
                    on_progress(done, total)
        if len(plan) > 1:
            where = {tensor.name: file for file, tensors in plan.items() for tensor in tensors}
            write_json(draft / INDEX, {"metadata": {"total_size": total}, "weight_map": where})
        _write_rest(draft, opened, adapter.folder, chosen, untied)
    replacing = not adapter.is_whole  # a whole model lies in that folder and is not changed by anything
    changed = sum(t.delta is not None or (replacing and t.source.file.parent == adapter.folder) for t in planned)
    seconds = time.monotonic() - started
    return MergeReport(Path(output_dir), opened.name, chosen, reason, len(planned), changed, total, untied, seconds)


@contextmanager
def whole_folder(target: Path, size: int, overwrite: bool) -> Iterator[Path]:
    """A draft folder that takes the target's place when the block ends well, and is removed when it does not.

    A kill at any moment leaves at `target` what was there before, or the whole new folder; what it leaves beside it is
    removed, or put back, by the next run.
    """
    restore(target)
    if target.exists() and not overwrite:
        raise UserError(f"{target} is there already. Give --overwrite to replace it, or another --output.")
    draft = target.with_name(f"{target.name}.partial")
    shutil.rmtree(draft, ignore_errors=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(target.parent).free
    if free < size:
        raise UserError(f"{target.parent} has {free / 1e9:.1f} GB free, the merged model needs {size / 1e9:.1f} GB.")
    draft.mkdir()
    try:
        with disk_told(target.parent):
            yield draft
            swap_in(draft, target)
    finally:
        restore(target)
        shutil.rmtree(draft, ignore_errors=True)


def _refuse_to_destroy(target: Path, *sources: Path) -> None:
    """--overwrite must not take away what is read, nor a folder that is no model (a whole run, say)."""
    inside = [source for source in sources if source.resolve().is_relative_to(target.resolve())]
    if inside:
        raise UserError(f"--output {target} would replace {inside[0]}, which is read for the merge. Choose another.")
    if target.exists() and not (target / "config.json").is_file():
        raise UserError(f"{target} is there and is no model of ours. Choose another --output.")


def _write_rest(folder: Path, base: Base, adapter: Path, dtype: str, untied: bool) -> None:
    """The tokenizer as training saved it (with its chat template), else the base's; the base's other small files."""
    _copy(OTHER_FILES, base.folder, folder)
    _copy(TOKENIZER_FILES, adapter if (adapter / "tokenizer_config.json").is_file() else base.folder, folder)
    config = dict(base.config)
    config["torch_dtype" if "torch_dtype" in config else "dtype"] = dtype
    if untied:
        config["tie_word_embeddings"] = False
    write_json(folder / "config.json", config)


def _copy(patterns: Sequence[str], source: Path, target: Path) -> None:
    for file in sorted({file for pattern in patterns for file in source.glob(pattern)}):
        copy = shutil.copytree if file.is_dir() else shutil.copyfile
        copy(file, target / file.name)
