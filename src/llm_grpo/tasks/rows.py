"""Rows of a JSONL or CSV file and what becomes of them: an Example each, or a BadRow with its file, line and reason."""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from llm_grpo.errors import UserError, did_you_mean
from llm_grpo.records import BadRow, Example, Split

SHOWN_BAD_ROWS = 5
LONGEST_FIELD = 2**27  # characters in one CSV field; Python's own limit of 131,072 is too small for long documents


class BadRowError(ValueError):
    """This row cannot be used, for the reason given."""


ToExample = Callable[[int, Mapping[str, Any]], Example]


class Row(NamedTuple):
    """A row where it stands; `values` is the reason where it could not even be read."""

    file: str
    line: int  # from 1: the physical line where the row starts
    values: Mapping[str, Any] | str


def read_jsonl(path: Path) -> Iterator[Row]:
    """The rows of a JSONL file, one at a time. Empty lines are no rows."""
    # newline="\n": a lone carriage return must not shift the line numbers. Bytes that are not UTF-8 become lone
    # surrogates, which `text_of` refuses row by row, so that one bad byte does not end the whole file.
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="\n") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                yield Row(str(path), number, _parse_json(line))


def _parse_json(line: str) -> dict[str, Any] | str:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:  # RecursionError: ten thousand brackets
        return f"broken JSON ({getattr(error, 'msg', error)})"
    return value if isinstance(value, dict) else f"a JSON object is expected, not {type(value).__name__}"


def read_csv(path: Path) -> Iterator[Row]:
    """The rows of a CSV file with a header, one at a time."""
    csv.field_size_limit(LONGEST_FIELD)
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as lines:
        reader = csv.reader(lines, strict=True)
        header = _header(path, reader)
        while True:
            start = reader.line_num + 1
            try:
                fields = next(reader, None)
            except csv.Error as error:
                yield Row(str(path), start, f"broken CSV ({error}); is a quote left open?")
                continue
            if fields is None:
                return
            if fields:
                yield Row(str(path), start, _named(header, fields))


def _header(path: Path, reader: Iterator[list[str]]) -> list[str]:
    try:
        header = [name.strip() for name in next(reader, [])]
    except csv.Error as error:
        raise UserError(f"{path}: the line with the column names is broken ({error}).") from error
    if not header or len(set(header)) < len(header):
        raise UserError(f"{path}: the first line must name the columns, each once; it says {header}.")
    return header


def _named(header: list[str], fields: list[str]) -> dict[str, Any] | str:
    if len(fields) != len(header):
        return f"{len(fields)} fields where the header has {len(header)}"
    return dict(zip(header, fields, strict=True))


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
            example = to_example(line, values)
            if example.id in examples:
                raise BadRowError(f"the id '{example.id}' stands in line {first[example.id]} already")
            examples[example.id], first[example.id] = example, line
        except BadRowError as reason:
            bad.append(BadRow(file, line, str(reason)))
    return check_share(Split(tuple(examples.values()), tuple(bad)), max_bad_share)


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
    """The text in that column: a non-empty string of valid Unicode. Raises BadRowError."""
    if column not in row:
        raise BadRowError(f"no column '{column}'.{did_you_mean(column, row)}")
    value = row[column]
    if not isinstance(value, str):
        raise BadRowError(f"'{column}' is {type(value).__name__}, not text")
    if not value.strip():
        raise BadRowError(f"'{column}' is empty")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise BadRowError(f"'{column}' is not valid UTF-8") from error
    return value


def question_hash(question: str) -> float:
    """A number in [0, 1) made of the words alone: the same on every machine, whatever the blanks or the case."""
    words = " ".join(question.split()).casefold()
    return int.from_bytes(hashlib.sha256(words.encode()).digest()[:8], "big") / 2**64
