"""What a text file is: UTF-8, with or without a byte-order mark. Anything else is named, with what to do."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from io import BufferedReader
from pathlib import Path
from typing import Any

from llm_grpo.errors import UserError

HEAD = 4096  # bytes by which a file is known
UTF16 = "UTF-16 text (save it as UTF-8, or: iconv -f UTF-16 -t UTF-8)"
KINDS = {
    b"\xff\xfe": UTF16,
    b"\xfe\xff": UTF16,
    b"PAR1": "Apache Parquet (the task `parquet` reads it)",
    b"ARROW1": "an Arrow file (write it as Parquet, which the task `parquet` reads)",
    b"\x1f\x8b": "compressed by gzip (unpack it with gunzip)",
    b"\x28\xb5\x2f\xfd": "compressed by zstd (unpack it with unzstd)",
    b"BZh": "compressed by bzip2 (unpack it with bunzip2)",
    b"\xfd7zXZ": "compressed by xz (unpack it with unxz)",
    b"PK\x03\x04": "a zip archive (unpack it) or a spreadsheet (save it as CSV)",
}
ARRAY = re.compile(rb"(\xef\xbb\xbf)?\s*\[\s*(\{|$)")  # a row that is a list by mistake, [1, 2], is no array of rows


def open_text(path: Path) -> BufferedReader:
    """The file, opened as bytes; what is no text is known by its first bytes. Raises UserError."""
    file = path.open("rb")
    head = file.peek(HEAD)
    kind = next((kind for start, kind in KINDS.items() if head.startswith(start)), None)
    if kind is None and b"\0" in head:
        kind = UTF16 if b"\0" in head[:2] else "no text (it holds zero bytes)"
    if kind:
        file.close()
        raise UserError(f"{path} is {kind}.")
    return file


def open_json_lines(path: Path) -> BufferedReader:
    """As `open_text`, and one JSON array is no JSON lines."""
    file = open_text(path)
    if is_array(file):
        file.close()
        raise UserError(f"{path} is a JSON array, not one JSON object a line (a task reads it with task.name=json).")
    return file


def is_array(file: BufferedReader) -> bool:
    return ARRAY.match(file.peek(HEAD)) is not None


def read_text(file: BufferedReader) -> str:
    """The whole of an opened file, without its byte-order mark. Raises UserError by file and line."""
    with file:
        data = file.read()
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line, byte = data.count(b"\n", 0, error.start) + 1, data[error.start]
        raise UserError(f"{file.name}:{line}: the byte 0x{byte:02x} is not UTF-8; save the file as UTF-8.") from error


def json_lines(text: str, name: str) -> Iterator[tuple[str, Any]]:
    """(NAME:LINE, value) of each line that is not blank. Raises UserError where one is not JSON."""
    for number, line in enumerate(text.split("\n"), start=1):  # splitlines would cut a text at U+2028 too
        try:
            if line.strip():
                yield f"{name}:{number}", json.loads(line)
        except (ValueError, RecursionError) as error:  # RecursionError: nested thousands deep
            raise UserError(f"{name}:{number}: not JSON ({getattr(error, 'msg', error)}).") from None
