"""A small base model of a system's architecture, warm-started so that GRPO has something true to learn.

A System says what its config and architecture are and what people of various habits write; `make_base` trains a
tokenizer and a model from scratch on the train split of the config's task, whose prompts are rendered by the very code
that training uses. The base is imperfect on purpose: RL finds out what earns most among what a model already does.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    GenerationConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from examples.make_tiny_model import CHAT_TEMPLATE, END, PAD, SPLIT_PATTERN, START, Piece, batches, train
from llm_grpo.config.loading import load_config
from llm_grpo.config.schema import Config
from llm_grpo.problems import prepare
from llm_grpo.prompts import ensure_template, render
from llm_grpo.records import Example, Problem
from llm_grpo.tasks import build_task

ROOT = Path(__file__).resolve().parent.parent
Write = Callable[[random.Random, Example], str]
FOR_TOKENIZER = 4000  # training problems that the vocabulary is made of


@dataclass(frozen=True)
class Stage:
    """One stage of the warm start: what somebody writes to an example, for so many updates of 24 examples each.

    write: (rng, example) -> the completion; its docstring says in the result what habits were put in.
    """

    write: Write
    updates: int
    peak: float = 2e-3


@dataclass(frozen=True)
class System:
    """A shipped config and the small base it is tried on. overrides hold for the base's data and for training alike."""

    config: str
    architecture: str  # qwen2, llama (chat template of our own) or gpt2 (none, so that the plain one is used)
    stages: tuple[Stage, ...]
    overrides: tuple[str, ...] = ()
    vocabulary: int = 640
    shape: dict[str, int] = field(default_factory=dict)  # layers, hidden, heads where the defaults are not right
    data: Callable[[Path], tuple[str, ...]] | None = None  # writes the data into a folder -> the overrides that name it


def make_base(system: System, folder: Path, seed: int = 0) -> dict[str, Any]:
    """Train tokenizer and model, save them in `folder` in bfloat16, and say how: the facts for the result."""
    start = time.time()
    random.seed(seed)
    torch.manual_seed(seed)
    config = load_config(ROOT / system.config, system.overrides, environment={})
    task = build_task(config.task.name, config.task.args)
    examples = task.load("train").examples
    tokenizer = make_tokenizer(system, config, examples)
    problems = prepare(task, "train", config, tokenizer).problems
    model = make_model(system, tokenizer, config.model.max_seq_length)
    for number, stage in enumerate(system.stages, start=1):
        rows = written(stage.write, problems, tokenizer, seed + number)
        source = batches(tokenizer, rows, 24)
        train(model, f"stage {number}", [source], updates=stage.updates, peak=stage.peak)
    save(model, tokenizer, folder)
    return {
        "architecture": system.architecture,
        "parameters": model.num_parameters(),
        "vocabulary": len(tokenizer),
        "seed": seed,
        "train_problems": len(problems),
        "stages": [{"habits": (s.write.__doc__ or "").strip(), "updates": s.updates} for s in system.stages],
        "seconds": round(time.time() - start),
    }


def make_tokenizer(system: System, config: Config, examples: Sequence[Example]) -> PreTrainedTokenizerFast:
    """Byte-level BPE with Qwen's split pattern (digits one by one), over prompts and the completions of every stage.

    gpt2 has one special token and no chat template, as the real one.
    """
    tokenizer = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(SPLIT_PATTERN), behavior="isolated")
    bytes_ = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, bytes_])
    tokenizer.decoder = decoders.ByteLevel()
    plain = system.architecture == "gpt2"
    special = [AddedToken(token, special=True, normalized=False) for token in ([PAD] if plain else [PAD, START, END])]
    trainer = trainers.BpeTrainer(
        vocab_size=system.vocabulary,
        special_tokens=special,
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(texts(system, config, examples[:FOR_TOKENIZER]), trainer)
    made = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=PAD if plain else END,
        pad_token=PAD,
        chat_template=None if plain else CHAT_TEMPLATE,
        model_max_length=config.model.max_seq_length,
    )
    ensure_template(made, config.prompt.template)
    return made


def texts(system: System, config: Config, examples: Sequence[Example]) -> Iterator[str]:
    rng = random.Random(0)
    yield "system\nuser\nassistant\ntool\n" * 10 + (config.prompt.system or "")
    for example in examples:
        yield from (message["content"] for message in example.prompt)
        yield from (stage.write(rng, example) for stage in system.stages)


def make_model(system: System, tokenizer: PreTrainedTokenizerFast, window: int) -> torch.nn.Module:
    """Random weights. initializer_range is wide because so small a model starts to learn much later with 0.02."""
    layers, hidden, heads = ({"layers": 3, "hidden": 128, "heads": 4} | system.shape).values()
    ends = {"bos_token_id": None, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    common = {"vocab_size": len(tokenizer), "initializer_range": 0.06, "tie_word_embeddings": True, **ends}
    if system.architecture == "gpt2":
        return GPT2LMHeadModel(
            GPT2Config(n_embd=hidden, n_layer=layers, n_head=heads, n_positions=window,
                       resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, **common)
        )  # fmt: skip
    kind, model = {"qwen2": (Qwen2Config, Qwen2ForCausalLM), "llama": (LlamaConfig, LlamaForCausalLM)}[
        system.architecture
    ]
    return model(
        kind(hidden_size=hidden, intermediate_size=4 * hidden, num_hidden_layers=layers, num_attention_heads=heads,
             num_key_value_heads=heads // 2, max_position_embeddings=window,
             rope_parameters={"rope_type": "default", "rope_theta": 100.0}, **common)
    )  # fmt: skip


def written(
    write: Write, problems: Sequence[Problem], tokenizer: PreTrainedTokenizerFast, seed: int
) -> Iterator[list[Piece]]:
    """Problems in random order, over and over: the rendered prompt, and what is written to it, which is learned."""
    rng = random.Random(seed)
    while True:
        for problem in rng.sample(problems, len(problems)):
            prompt = render(problem.messages, tokenizer)
            yield [(prompt, False), (write(rng, problem.example) + tokenizer.eos_token, True)]


def save(model: Any, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """What a template of ours filled in is not saved: it is for the run to find out that there is none."""
    model.generation_config = GenerationConfig(eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)
    model.to(torch.bfloat16).save_pretrained(folder)
    if model.config.model_type == "gpt2":
        tokenizer.chat_template = None
    tokenizer.save_pretrained(folder)
