"""GSM8K, the grade-school problems of openai/gsm8k: from the Hub, or from a folder of the original .jsonl files."""

from __future__ import annotations

import functools
import os
import re
from pathlib import Path

from llm_grpo.answers.judging import JUDGES
from llm_grpo.errors import NotAtHandError, UserError
from llm_grpo.prompts import SYSTEM_PROMPTS
from llm_grpo.records import Example, Split, Task
from llm_grpo.tasks.hub import HubSplit, read_hub
from llm_grpo.tasks.readers import read_jsonl
from llm_grpo.tasks.rows import BadRowError, check_split, collect, question_hash, text_of
from llm_grpo.tasks.table import last_hash_answer

DATA_VARIABLE = "LLM_GRPO_DATA"
HUB_NAME = "openai/gsm8k"
PUBLISHED_TRAIN_ROWS = 7473
CALLS = re.compile(r"<<[^<>]*>>")  # `48/2 = <<48/2=24>>24`: for a calculator that nobody has here
WAY_OUT = f"Set task.args.path to a folder with train.jsonl and test.jsonl, or {DATA_VARIABLE} to what holds gsm8k/."


def gsm8k(*, path: str | None = None, validation_size: int = 256, max_bad_share: float = 0.01) -> Task:
    """The task; data are read when a split is first asked for.

    path: a folder with the original train.jsonl and test.jsonl; without it $LLM_GRPO_DATA/gsm8k, then the Hub.
    validation_size: so many training problems are held back, always the same ones, drawn by hash from the whole file.
    max_bad_share: more unusable rows than this share of a file stop the run.
    """

    @functools.cache
    def read(split: str) -> Split:
        held = os.environ.get(DATA_VARIABLE)
        folder = Path(path) if path else Path(held) / "gsm8k" if held else None
        if folder is None:
            rows = read_hub(HubSplit(HUB_NAME, "main", None, None, split), WAY_OUT)
        elif (file := folder / f"{split}.jsonl").is_file():
            rows = read_jsonl(file)
        else:
            raise NotAtHandError(f"gsm8k: {file} is not there. {WAY_OUT}")
        return collect(rows, lambda line, row: _example(f"gsm8k/{split}/{line}", row), max_bad_share)

    def load(split: str) -> Split:
        check_split("gsm8k", split)
        if split == "test":
            return read("test")
        whole = read("train")
        held_back = _held_back(whole.examples, validation_size)
        wanted = tuple(e for e in whole.examples if (e.id in held_back) == (split == "validation"))
        return Split(wanted, whole.bad_rows if split == "train" else ())

    size = None if path else PUBLISHED_TRAIN_ROWS - validation_size
    return Task("gsm8k", SYSTEM_PROMPTS["xml"], load, JUDGES["xml"], published_train_size=size)


def _example(identity: str, row: dict[str, object]) -> Example:
    question, solution = text_of(row, "question"), text_of(row, "answer")
    answer = (last_hash_answer(solution) or "").replace(",", "").replace("$", "").strip()
    if not answer:
        raise BadRowError("no answer behind '####'")
    return Example(identity, ({"role": "user", "content": question},), answer, {"solution": CALLS.sub("", solution)})


def _held_back(examples: tuple[Example, ...], size: int) -> frozenset[str]:
    """The ids of the validation part. By hash, because neighbours in the file may be alike."""
    if not 0 <= size < len(examples):
        raise UserError(f"task.args.validation_size is {size}; give 0 to {len(examples) - 1}, so that some rows train.")
    ordered = sorted(examples, key=lambda e: (question_hash(e.prompt[-1]["content"]), e.id))
    return frozenset(e.id for e in ordered[:size])
