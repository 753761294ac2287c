"""What becomes of rows: an Example each, or a BadRow with its file, line and reason."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import replace
from typing import Any

from llm_grpo.errors import UserError, did_you_mean
from llm_grpo.records import BadRow, Example, Split
from llm_grpo.tasks.readers import Row

SPLITS = ("train", "validation", "test")
SHOWN_BAD_ROWS = 5


class BadRowError(ValueError):
    """This row cannot be used, for the reason given."""


ToExample = Callable[[int, Mapping[str, Any]], Example]


def collect(rows: Iterable[Row], to_example: ToExample, max_bad_share: float) -> Split:
    """Examples of the rows, and the rows that could not become one; too many of these raise UserError.

    to_example(line, values) raises BadRowError with the reason. An id that is taken makes a row a bad one.
    """
    examples: dict[str, Example] = {}
    first: dict[str, int] = {}  # the line of each id; a task's ids stand in one file
    bad: list[BadRow] = []
    for file, line, values in rows:
        try:
            if isinstance(values, str):
                raise BadRowError(values)
            _check_texts(values)
            example = to_example(line, values)
            if example.id in examples:
                raise BadRowError(f"the id '{example.id}' stands in line {first[example.id]} already")
            examples[example.id], first[example.id] = example, line
        except BadRowError as reason:
            bad.append(BadRow(file, line, str(reason)))
    return check_share(Split(_of_same_columns(examples.values()), tuple(bad)), max_bad_share)


def _check_texts(values: Mapping[str, Any]) -> None:
    """Every text of a row is valid Unicode, also in a column that nobody reads: told here, not where it is written."""
    for name, value in values.items():
        nested = isinstance(value, dict | list)
        text = json.dumps(value, ensure_ascii=False, default=str) if nested else value
        try:
            name.encode()
            if isinstance(text, str) and not text.isascii():
                text.encode()
        except UnicodeEncodeError as error:
            code = ord(error.object[error.start])
            raw = 0xDC80 <= code <= 0xDCFF  # a byte that the reader could not decode
            what = f"the byte 0x{code - 0xDC00:02x}" if raw else f"half of a character, \\u{code:x}"
            raise BadRowError(f"{ascii(name)} is not valid UTF-8 ({what})") from error


def _of_same_columns(examples: Collection[Example]) -> tuple[Example, ...]:
    """With None in the columns that a row lacks, so that a reward finds each of them in every batch."""
    names = dict.fromkeys(name for example in examples for name in example.meta)
    filled = (e if len(e.meta) == len(names) else replace(e, meta=dict.fromkeys(names) | e.meta) for e in examples)
    return tuple(filled)


def check_share(split: Split, max_bad_share: float) -> Split:
    """The split itself, or UserError where nothing is left or more than this share of its rows is bad."""
    bad, total = split.bad_rows, len(split.examples) + len(split.bad_rows)
    if split.examples and len(bad) <= max_bad_share * total:
        return split
    if not bad:
        raise UserError("The data file has no rows.")
    shown = "\n  ".join(map(str, bad[:SHOWN_BAD_ROWS])) + ("\n  ..." if len(bad) > SHOWN_BAD_ROWS else "")
    raise UserError(
        f"{len(bad)} of {total} rows cannot be used (task.args.max_bad_share allows {max_bad_share:.1%}):\n  {shown}"
    )


def text_of(row: Mapping[str, Any], column: str) -> str:
    """The text in that column, which is not empty. Raises BadRowError."""
    if column not in row:
        raise BadRowError(f"no column '{column}'.{did_you_mean(column, row)}")
    value = row[column]
    if not isinstance(value, str):
        raise BadRowError(f"'{column}' is {type(value).__name__}, not text")
    if not value.strip():
        raise BadRowError(f"'{column}' is empty")
    return value


def question_hash(question: str) -> float:
    """A number in [0, 1) made of the words alone: the same on every machine, whatever the blanks or the case."""
    words = " ".join(question.split()).casefold()
    return int.from_bytes(hashlib.sha256(words.encode()).digest()[:8], "big") / 2**64


def check_split(task: str, split: str) -> None:
    if split not in SPLITS:
        raise UserError(f"There is no split '{split}'; {task} has {', '.join(SPLITS)}.")


def check_sizes(sizes: Mapping[str, Any], most: int) -> None:
    """Refuse a number of generated examples that cannot be."""
    for split, size in sizes.items():
        if isinstance(size, bool) or not isinstance(size, int) or not 1 <= size <= most:
            raise UserError(f"task.args.{split}_size is {size!r}; give a whole number from 1 to {most}.")


def check_shares(shares: Mapping[str, Any]) -> None:
    numbers = all(isinstance(share, int | float) and share >= 0 for share in shares.values())
    if not numbers or sum(shares.values()) >= 1:
        given = ", ".join(f"{name}_share={share!r}" for name, share in shares.items())
        raise UserError(f"task.args: {given} must be numbers from 0 whose sum stays below 1.")


def drawn_to(question: str, shares: Mapping[str, float]) -> str:
    """The split of a question, by its hash; test first, so that it stays the same when validation_share changes."""
    place = question_hash(question)
    for split in ("test", "validation"):
        if place < shares.get(split, 0):
            return split
        place -= shares.get(split, 0)
    return "train"


def drawn(whole: Split, split: str, shares: Mapping[str, float], place: object, way_out: str) -> Split:
    """What of one file is drawn to a split. Raises UserError where that is nothing, although it has a share."""
    examples = tuple(example for example in whole.examples if drawn_to(example.question, shares) == split)
    if not examples and shares.get(split) != 0:
        raise UserError(f"No row of {place} falls into the {split} split. {way_out}")
    return Split(examples, whole.bad_rows)
