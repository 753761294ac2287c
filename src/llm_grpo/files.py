"""How files of ours are written and read: whole or not at all, lines one by one, and what is torn is known as such.

Of several processes of a training the first writes, and these functions do nothing in the others.
"""

from __future__ import annotations

import errno
import gzip
import hashlib
import json
import os
import shutil
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from llm_grpo import processes
from llm_grpo.errors import UserError

# What safetensors says in an error of its own, and torch.save (2.13), which writes on from where it thinks it is.
FULL = ("No space left", "Disk quota", "unexpected pos", "iostream error")


@contextmanager
def disk_told(folder: Path) -> Iterator[None]:
    """Whatever is written below a folder: that its disk became full is said in one line, whoever wrote."""
    try:
        yield
    except Exception as error:
        if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or any(said in str(error) for said in FULL):
            raise UserError(f"The disk at {folder} is full; nothing that was finished is lost. Make room.") from error
        raise


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    if not processes.is_first():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.write_text(text, encoding="utf-8")
    to_disk(draft)
    draft.replace(path)


def to_disk(*paths: Path) -> None:
    """Wait until files are where a power cut leaves them: a name is given, and what it replaces goes, after that."""
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        except OSError:
            if path.is_file():  # not every network's file system does it for folders
                raise
        finally:
            os.close(descriptor)


def write_json(path: Path, data: Any) -> None:
    write_text(path, json.dumps(data, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """What one of our own files holds; None where it is not there or torn, so that it is made again."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None


def sha256(path: Path) -> str:
    """Of a file of any size, in hexadecimal."""
    hashed = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            hashed.update(block)
    return hashed.hexdigest()


def swap_in(draft: Path, folder: Path) -> None:
    """Put a finished folder in the place of another; `restore` undoes what a kill leaves half done."""
    if not processes.is_first():
        return
    to_disk(*draft.rglob("*"), draft)
    old = folder.with_name(f".{folder.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    draft.rename(folder)
    to_disk(folder.parent)
    shutil.rmtree(old, ignore_errors=True)


def restore(folder: Path) -> None:
    old = folder.with_name(f".{folder.name}.old")
    if old.exists() and not folder.exists():
        old.rename(folder)


def append_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """One line each; compressed where the name ends in .gz."""
    if not processes.is_first():
        return
    with _opened(path, "at") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def read_jsonl(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of one of our own files, one in memory at a time; a last line cut off by a kill is left out."""
    torn = 0
    for number, line in enumerate(_lines(path), start=1):
        if torn:
            raise UserError(f"{path}:{torn}: not JSON, although whole lines follow.")
        try:
            row = json.loads(line)
        except ValueError:
            torn = number
        else:
            yield row


def _lines(path: Path) -> Iterator[str]:
    if not path.is_file():
        return
    try:
        with _opened(path, "rt") as file:
            yield from (line for line in file if line.strip())
    except (EOFError, zlib.error, gzip.BadGzipFile):  # compressed, and cut off by a kill
        return


def _opened(path: Path, mode: str) -> Any:
    """A text file whose lines end at "\\n" alone: a completion may hold U+2028 or a carriage return."""
    return (gzip.open if path.suffix == ".gz" else open)(path, mode, encoding="utf-8", errors="replace", newline="\n")
