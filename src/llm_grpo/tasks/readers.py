"""The rows of a file, one at a time: JSON lines, a JSON array, CSV, Parquet. A row that cannot be read says why.

Text is opened so that bytes which are not UTF-8 become lone surrogates: `rows.collect` refuses them row by row, and one
bad byte does not end the whole file.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping
from io import BufferedReader, TextIOWrapper
from pathlib import Path
from typing import Any, NamedTuple

from llm_grpo.errors import UserError
from llm_grpo.text_files import is_array, open_json_lines, open_text

LONGEST_FIELD = 2**27  # characters in one CSV field; Python's own limit of 131,072 is too small for long documents


class Row(NamedTuple):
    """A row where it stands; `values` is the reason where it could not even be read."""

    file: str
    line: int  # from 1: the physical line where the row starts; where there are no lines, the number of the row
    values: Mapping[str, Any] | str


def read_jsonl(path: Path) -> Iterator[Row]:
    """The rows of a JSONL file. Empty lines are no rows."""
    with open_json_lines(path) as file:
        yield from _json_lines(path, file)


def _json_lines(path: Path, file: BufferedReader) -> Iterator[Row]:
    # newline="\n": a lone carriage return must not shift the line numbers.
    for number, line in enumerate(_decoded(file, newline="\n"), start=1):
        if line.strip():
            yield Row(str(path), number, _parse_json(line))


def _decoded(file: BufferedReader, newline: str) -> TextIOWrapper:
    return TextIOWrapper(file, encoding="utf-8-sig", errors="surrogateescape", newline=newline)


def _parse_json(line: str) -> Mapping[str, Any] | str:
    try:
        return _object(json.loads(line))
    except (ValueError, RecursionError) as error:  # RecursionError: ten thousand brackets
        return f"broken JSON ({getattr(error, 'msg', error)})"


def _object(value: Any) -> Mapping[str, Any] | str:
    return value if isinstance(value, dict) else f"a JSON object is expected, not {type(value).__name__}"


def read_json(path: Path) -> Iterator[Row]:
    """The rows of a .json file: an array of objects, or one object a line."""
    with open_text(path) as file:
        yield from (_array if is_array(file) else _json_lines)(path, file)


def _array(path: Path, file: BufferedReader) -> Iterator[Row]:
    try:
        rows = json.loads(_decoded(file, newline="\n").read())
    except (ValueError, RecursionError) as error:
        place = f":{error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
        raise UserError(f"{path}{place}: broken JSON ({getattr(error, 'msg', error)}).") from error
    for number, value in enumerate(rows, start=1):
        yield Row(str(path), number, _object(value))


def read_parquet(path: Path) -> Iterator[Row]:
    """The rows of a Parquet file, as Python values."""
    from pyarrow import ArrowException
    from pyarrow.parquet import ParquetFile

    try:
        rows = (row for batch in ParquetFile(path).iter_batches() for row in batch.to_pylist())
        for number, values in enumerate(rows, start=1):
            yield Row(str(path), number, values)
    except (ArrowException, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read as Parquet ({error}).") from error


def read_csv(path: Path) -> Iterator[Row]:
    """The rows of a CSV file with a header."""
    csv.field_size_limit(LONGEST_FIELD)
    with open_text(path) as file:
        reader = csv.reader(_decoded(file, newline=""), strict=True)
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


def _named(header: list[str], fields: list[str]) -> Mapping[str, Any] | str:
    if len(fields) != len(header):
        return f"{len(fields)} fields where the header has {len(header)}"
    return dict(zip(header, fields, strict=True))
