"""CRM lead qualification (system S2): which of four criteria a lead meets, as one `<respond> LABELS </respond>`.

The five messages of its data: system (instruction), user (input), assistant (output: the query the agent made), tool
(query_results), user (asked to answer). Data come from a CSV with those columns and `answers`, or from a seed.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from itertools import cycle, islice
from pathlib import Path
from random import Random
from typing import Any

from llm_grpo.answers.labels import (
    CLOSE,
    LABEL_SETS,
    LABELS,
    OPEN,
    LabelSet,
    judge_labels,
    label_metrics,
    parse_labels,
    write_labels,
)  # fmt: skip
from llm_grpo.errors import NotAtHandError, UserError, not_there
from llm_grpo.records import Example, Message, Split, Task
from llm_grpo.tasks.readers import read_csv
from llm_grpo.tasks.rows import (
    SPLITS,
    BadRowError,
    check_shares,
    check_sizes,
    check_split,
    collect,
    drawn,
    drawn_to,
    text_of,
)
from llm_grpo.tasks.sales_calls import make_call

COLUMNS = ("instruction", "input", "output", "query_results", "answers")
MOST_PER_SPLIT = 50_000
INSTRUCTION = (
    "Which criteria does the lead meet at the end of the call? Authority: the contact decides alone. Budget: money is "
    "approved. Timeline: the start has a date. Need: there is a problem to solve. Act once: <respond> LABELS "
    "</respond>, LABELS being None or those that are met, in this order, with commas between them."
)
ANSWER_NOW = "Answer now with one action and nothing else."


def lead_qualification(
    *,
    path: str | None = None,
    seed: int = 0,
    train_size: int = 4000,
    validation_size: int = 320,
    test_size: int = 480,
    prior: Mapping[str, float] | None = None,
    validation_share: float = 0.1,
    test_share: float = 0.1,
    max_bad_share: float = 0.01,
) -> Task:
    """The task from a CSV (`path`), or from a generator of sales calls. Raises UserError on arguments that cannot be.

    path: a CSV with the columns instruction, input, output, query_results, answers.
    validation_share, test_share: drawn from it by a hash of query_results, so that a call stays in one split.
    max_bad_share: more unusable rows than this share of the file stop the run.
    seed, sizes: of the generated calls; no call of one split is ever made for another, whatever the seed.
    prior: {label set: weight}, for example {None: 5, "Budget, Need": 1}; null: the 16 sets take turns.
    """
    if path:
        load = functools.partial(_from_csv, Path(path), validation_share, test_share, max_bad_share)
    else:
        sizes = dict(zip(SPLITS, (train_size, validation_size, test_size), strict=True))
        check_sizes(sizes, MOST_PER_SPLIT)
        load = functools.partial(_from_seed, seed, sizes, _weights(prior))
    return Task("lead_qualification", INSTRUCTION, functools.cache(load), judge_labels, metrics=label_metrics)


def conversation(row: Mapping[str, str]) -> tuple[Message, ...]:
    """The five messages of a row. The gold (`answers`) is in none of them."""
    said = zip(("system", "user", "assistant", "tool"), COLUMNS, strict=False)
    messages = [{"role": role, "content": row[column]} for role, column in said]
    return (*messages, {"role": "user", "content": ANSWER_NOW})


# --- a CSV of one's own ------------------------------------------------------------------------------------------


def _from_csv(path: Path, validation_share: float, test_share: float, max_bad_share: float, split: str) -> Split:
    check_split("lead_qualification", split)
    if not path.is_file():
        raise NotAtHandError(f"task.args.path: {not_there(path)}")
    shares = {"test": test_share, "validation": validation_share}
    check_shares(shares)
    whole = collect(read_csv(path), functools.partial(_example, path.stem), max_bad_share)
    return drawn(whole, split, shares, path, f"Give it more rows or task.args.{split}_share.")


def _example(stem: str, line: int, row: Mapping[str, Any]) -> Example:
    """A row as an example. Raises BadRowError: no such column, no label set, or the model is shown it."""
    texts = {column: text_of(row, column).strip() for column in COLUMNS}
    gold = _gold(texts.pop("answers"))
    for column in ("input", "output", "query_results"):
        if OPEN in texts[column]:
            raise BadRowError(f"'{column}' holds a {OPEN} action, which would show the model the answer")
    return _asked(f"{stem}/{line}", texts, write_labels(gold))


def _asked(identity: str, row: Mapping[str, str], answer: str) -> Example:
    """The last message is the same for all; a person is shown the call."""
    return Example(identity, conversation(row), answer, shown=row["query_results"])


def _gold(text: str) -> LabelSet:
    """The label set of a gold, bare or as an action; the order does not matter here. Raises BadRowError."""
    bare = text[len(OPEN) : -len(CLOSE)] if text.startswith(OPEN) and text.endswith(CLOSE) else text
    names = sorted((name.strip() for name in bare.split(",")), key=lambda name: (*LABELS, name).index(name))
    found = parse_labels(",".join(names))
    if found is None:
        raise BadRowError(f"'answers' is {text[:60]!r}, not None or some of {', '.join(LABELS)}, each once")
    return found


# --- generated calls ---------------------------------------------------------------------------------------------


def _from_seed(seed: int, sizes: Mapping[str, int], weights: Mapping[LabelSet, float] | None, split: str) -> Split:
    check_split("lead_qualification", split)
    calls = generated(split, seed, weights)
    rows = enumerate(islice(calls, sizes[split]))
    return Split(tuple(_asked(f"lead_qualification/{split}/{n}", row, row["answers"]) for n, row in rows))


def generated(split: str, seed: int, weights: Mapping[LabelSet, float] | None = None) -> Iterator[dict[str, str]]:
    """An endless stream of different rows of one split, with the columns of the CSV."""
    rng, seen = Random(f"lead_qualification/{split}/{seed}"), set[str]()
    turns = cycle(LABEL_SETS)
    while True:
        labels = rng.choices(list(weights), list(weights.values()))[0] if weights else next(turns)
        call = make_call(rng, labels)
        while drawn_to(call["transcript"], {"test": 0.1, "validation": 0.1}) != split or call["transcript"] in seen:
            call = make_call(rng, labels)
        seen.add(call["transcript"])
        company, person = call["company"], call["person"]
        yield {
            "instruction": INSTRUCTION,
            "input": f"Is {company} a qualified lead after the call with {person}?",
            "output": f"<execute> SELECT transcript FROM calls WHERE company = '{company}' </execute>",
            "query_results": call["transcript"],
            "answers": write_labels(labels),
        }


def _weights(prior: Mapping[str, float] | None) -> dict[LabelSet, float] | None:
    """{label set: weight} of a prior by name. Raises UserError."""
    if prior is None:
        return None
    weights: dict[LabelSet, float] = {}
    for name, weight in prior.items():
        labels = parse_labels(str(name))
        number = isinstance(weight, int | float) and not isinstance(weight, bool)
        if labels is None or not number or not 0 <= weight < float("inf"):
            raise UserError(
                f"task.args.prior: {name!r}: {weight!r} given. Names are None or some of {', '.join(LABELS)} in this "
                "order, weights are numbers from 0."
            )
        weights[labels] = weight
    if not sum(weights.values()) > 0:
        raise UserError("task.args.prior: all weights are 0; give some label set a weight above 0, or null.")
    return weights
