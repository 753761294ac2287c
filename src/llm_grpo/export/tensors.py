"""Safetensors files read and written in pieces: the memory in use never depends on the size of a file.

The `safetensors` package maps or builds whole files; merging needs neither. The format (8 bytes of length, a JSON
header, the raw tensors) is described at https://huggingface.co/docs/safetensors.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch

from llm_grpo.errors import UserError

FLOATS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
CHUNK_ELEMENTS = 2**24  # 64 MB in float32: what is held of a tensor at a time
CHUNK_BYTES = 2**24
LONGEST_HEADER = 100_000_000  # bytes, the format's own limit


@dataclass(frozen=True)
class Stored:
    """A tensor where it lies: `size` bytes from byte `start` of `file`, row by row; `dtype` as the format calls it."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    start: int
    size: int

    def rows(self, first: int, last: int) -> torch.Tensor:
        """Rows first to last (without last) of the first axis; only for FLOATS."""
        row_bytes = self.size // max(1, self.shape[0])
        with self.file.open("rb") as file:
            file.seek(self.start + first * row_bytes)
            data = bytearray(file.read((last - first) * row_bytes))
        return torch.frombuffer(data, dtype=FLOATS[self.dtype]).reshape(last - first, *self.shape[1:])

    def load(self) -> torch.Tensor:
        """The whole tensor in float32. For small ones: an adapter's."""
        return self.rows(0, self.shape[0]).float()


@dataclass(frozen=True)
class Delta:
    """What LoRA adds to a weight: scale * B @ A, or its transpose where the weight lies as (in, out)."""

    a: Stored  # (r, in)
    b: Stored  # (out, r)
    scale: float
    transposed: bool

    def loaded(self) -> tuple[torch.Tensor, torch.Tensor]:
        return self.a.load(), self.b.load()

    def rows(self, a: torch.Tensor, b: torch.Tensor, first: int, last: int) -> torch.Tensor:
        """The same rows of the sum, in float32."""
        if self.transposed:
            return (b @ a[:, first:last]).T.mul_(self.scale)
        return (b[first:last] @ a).mul_(self.scale)


@dataclass(frozen=True)
class Planned:
    """A tensor to write: where it comes from, its new type, and what is added to it."""

    name: str
    source: Stored
    dtype: str
    delta: Delta | None = None

    @property
    def copied(self) -> bool:
        return self.delta is None and self.dtype == self.source.dtype

    @property
    def size(self) -> int:
        return self.source.size if self.copied else math.prod(self.source.shape) * FLOATS[self.dtype].itemsize

    @property
    def width(self) -> int:
        """Bytes of one element; of an empty tensor, whose type may be unknown here, the widest there is."""
        elements = math.prod(self.source.shape)
        return self.size // elements if elements else 8


def read_header(file: Path) -> tuple[dict[str, Stored], dict[str, str]]:
    """Every tensor of a file by its name, and the file's metadata. Raises UserError where the file is not whole."""
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        text = stream.read(length) if length <= LONGEST_HEADER else b""
    try:
        header: dict[str, Any] = json.loads(text)
    except ValueError as error:
        raise UserError(f"{file} is not a safetensors file, or was cut off. Fetch it again.") from error
    metadata = header.pop("__metadata__", {})
    tensors = {name: _stored(file, 8 + length, entry) for name, entry in header.items()}
    if max((t.start + t.size for t in tensors.values()), default=0) > file.stat().st_size:
        raise UserError(f"{file} was cut off: it is shorter than its header says. Fetch it again.")
    return tensors, metadata


def _stored(file: Path, data: int, entry: Mapping[str, Any]) -> Stored:
    first, last = entry["data_offsets"]
    return Stored(file, entry["dtype"], tuple(entry["shape"]), data + first, last - first)


def write_file(file: Path, tensors: Sequence[Planned], metadata: Mapping[str, str]) -> Iterator[int]:
    """Write the file, header first; yields the number of bytes after each piece, so that the caller can show them."""
    # Widest type first, as the safetensors package does it: every tensor then starts at a multiple of its width.
    ordered = sorted(tensors, key=lambda t: t.width, reverse=True)
    with file.open("wb") as out:
        out.write(_header(ordered, metadata))
        for tensor in ordered:
            for piece in _copied(tensor) if tensor.copied else _computed(tensor):
                out.write(piece)
                yield len(piece)


def _header(tensors: Sequence[Planned], metadata: Mapping[str, str]) -> bytes:
    header: dict[str, Any] = {"__metadata__": {"format": "pt", **metadata}}
    end = 0
    for tensor in tensors:
        start, end = end, end + tensor.size
        header[tensor.name] = {"dtype": tensor.dtype, "shape": tensor.source.shape, "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _copied(tensor: Planned) -> Iterator[bytes]:
    with tensor.source.file.open("rb") as file:
        file.seek(tensor.source.start)
        for done in range(0, tensor.size, CHUNK_BYTES):
            yield _read_exactly(file, min(CHUNK_BYTES, tensor.size - done))


def _read_exactly(file: BinaryIO, size: int) -> bytes:
    data = file.read(size)
    if len(data) != size:
        raise UserError(f"{file.name} became shorter while it was read.")
    return data


def _computed(tensor: Planned) -> Iterator[memoryview]:
    """The rows in float32 (float64 if the source is), with their delta, rounded once to the new type."""
    source, dtype = tensor.source, FLOATS[tensor.dtype]
    flat = source.shape if source.shape else (1,)
    source = Stored(source.file, source.dtype, flat, source.start, source.size)
    wide = torch.promote_types(FLOATS[source.dtype], torch.float32)
    halves = tensor.delta.loaded() if tensor.delta else ()
    step = max(1, CHUNK_ELEMENTS // max(1, math.prod(flat[1:])))
    for first in range(0, flat[0], step):
        last = min(first + step, flat[0])
        rows = source.rows(first, last).to(wide)
        if tensor.delta:
            rows += tensor.delta.rows(*halves, first, last)
        yield _as_bytes(tensor.name, rows.to(dtype))


def _as_bytes(name: str, rows: torch.Tensor) -> memoryview:
    if not torch.isfinite(rows).all():
        dtype = str(rows.dtype).removeprefix("torch.")
        way_out = "Choose --dtype bfloat16." if dtype == "float16" else "The adapter or the base is broken."
        raise UserError(f"The merged tensor '{name}' holds values that are no numbers in {dtype}. {way_out}")
    return memoryview(rows.contiguous().view(torch.uint8).numpy()).cast("B")
