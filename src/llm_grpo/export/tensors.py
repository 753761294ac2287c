"""Safetensors files read and written in pieces: the memory in use never depends on the size of a file.

The `safetensors` package reads slices and writes whole files only; so the writing is ours. The format (8 bytes of
length, a JSON header, the raw tensors) is described at https://huggingface.co/docs/safetensors.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from llm_grpo.errors import UserError

FLOATS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
CHUNK_ELEMENTS = 2**24  # 64 MB in float32: what is held of a tensor at a time


@dataclass(frozen=True)
class Stored:
    """A tensor where it lies: `size` bytes under `name` in `file`; `dtype` as the format calls it."""

    file: Path
    name: str
    dtype: str
    shape: tuple[int, ...]
    size: int

    def rows(self, first: int, last: int) -> torch.Tensor:
        """Rows first to last (without last) of the first axis; a single number is a row. The file is mapped no longer
        than they are held."""
        with safe_open(self.file, "pt") as file:
            return (file.get_slice(self.name) if self.shape else file.get_tensor(self.name)[None])[first:last]

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
    try:
        with safe_open(file, "pt") as opened:
            return {name: _stored(file, opened, name) for name in opened.keys()}, opened.metadata() or {}  # noqa: SIM118
    except SafetensorError as error:
        raise UserError(f"{file} is not a safetensors file, or was cut off ({error}). Fetch it again.") from error


def _stored(file: Path, opened: Any, name: str) -> Stored:
    tensor = opened.get_tensor(name)  # mapped, not read
    return Stored(file, name, opened.get_slice(name).get_dtype(), tuple(tensor.shape), tensor.nbytes)


def write_file(file: Path, tensors: Sequence[Planned], metadata: Mapping[str, str]) -> Iterator[int]:
    """Write the file, header first; yields the number of bytes after each piece, so that the caller can show them."""
    # Widest type first, as the safetensors package does it: every tensor then starts at a multiple of its width.
    ordered = sorted(tensors, key=lambda t: t.width, reverse=True)
    with file.open("wb") as out:
        out.write(_header(ordered, metadata))
        for tensor in ordered:
            for rows in _pieces(tensor):
                piece = rows.contiguous().view(torch.uint8).reshape(-1).numpy()
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


def _pieces(tensor: Planned) -> Iterator[torch.Tensor]:
    """The rows as they are, or in float32 (float64 if the source is) with their delta, rounded once to the new type."""
    shape = tensor.source.shape or (1,)
    halves = tensor.delta.loaded() if tensor.delta else ()
    step = max(1, CHUNK_ELEMENTS // max(1, math.prod(shape[1:])))
    for first in range(0, shape[0], step):
        last = min(first + step, shape[0])
        rows = tensor.source.rows(first, last)
        if not tensor.copied:
            rows = rows.to(torch.promote_types(rows.dtype, torch.float32))
            rows = rows + tensor.delta.rows(*halves, first, last) if tensor.delta else rows
            rows = _finite(tensor.name, rows.to(FLOATS[tensor.dtype]))
        yield rows


def _finite(name: str, rows: torch.Tensor) -> torch.Tensor:
    if torch.isfinite(rows).all():
        return rows
    dtype = str(rows.dtype).removeprefix("torch.")
    way_out = "Choose --dtype bfloat16." if dtype == "float16" else "The adapter or the base is broken."
    raise UserError(f"The merged tensor '{name}' holds values that are no numbers in {dtype}. {way_out}")
