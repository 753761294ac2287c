"""Empty the CUDA code that a card of one architecture never runs, in place, so that the library packs small.

    python benchmarks/gpu_kit/prune_fatbin.py LIBRARY.so [--architecture 90] [--keep REGEX]

Bytes are zeroed, no offset moves. Emptied are the entries for other architectures (the driver chooses by an entry's
header and never reads the others), PTX where the same container holds the architecture's own code, and with --keep
the instructions of uncompressed code none of whose kernels matches; the ELF around them stays whole, so that the module
still registers, and to run such a kernel would be an error. Symbol tables are left to `strip --strip-unneeded`.
"""

from __future__ import annotations

import argparse
import re
import struct
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

MAGIC, PTX, CUBIN = 0xBA55ED50, 1, 2


@dataclass(frozen=True)
class Entry:
    """Code for one architecture inside a container of `.nv_fatbin`."""

    start: int
    size: int
    kind: int
    architecture: int


def sections(data: bytearray, base: int = 0) -> Iterator[tuple[str, int, int]]:
    """(name, offset in data, bytes) of the sections of an ELF that begins at `base`."""
    table = struct.unpack_from("<Q", data, base + 0x28)[0]
    size, count, names = struct.unpack_from("<HHH", data, base + 0x3A)
    headers = [struct.unpack_from("<IIQQQQ", data, base + table + i * size) for i in range(count)]
    for name, _, _, _, offset, length in headers:
        start = base + headers[names][4] + name
        yield bytes(data[start : data.index(b"\0", start)]).decode(errors="replace"), base + offset, length


def containers(data: bytearray, offset: int, size: int) -> dict[int, list[Entry]]:
    """The entries of every container in a section, by where the container begins."""
    found: dict[int, list[Entry]] = defaultdict(list)
    at = offset
    while at < offset + size - 16:
        magic, _, head, length = struct.unpack_from("<IHHQ", data, at)
        if magic != MAGIC:
            at += 8
            continue
        entry, stop = at + head, at + head + length
        while entry < stop:
            kind, _, header, payload = struct.unpack_from("<HHIQ", data, entry)
            architecture = struct.unpack_from("<I", data, entry + 28)[0]
            found[at].append(Entry(entry + header, payload, kind, architecture))
            entry += header + payload
        at = stop
    return found


def is_run(entry: Entry, beside: list[Entry], architecture: int) -> bool:
    """The architecture's own code, or where there is none the newest PTX that it can compile."""
    own = any(other.kind == CUBIN and other.architecture == architecture for other in beside)
    if own:
        return entry.kind == CUBIN and entry.architecture == architecture
    newest = max((e.architecture for e in beside if e.kind == PTX and e.architecture <= architecture), default=None)
    return entry.kind == PTX and entry.architecture == newest


def prune(data: bytearray, architecture: int, keep: str | None) -> int:
    """Zero what is never run; how many bytes that were."""
    emptied = 0
    fatbins = [(offset, size) for name, offset, size in sections(data) if name == ".nv_fatbin"]
    for entries in (entries for place in fatbins for entries in containers(data, *place).values()):
        for entry in entries:
            image = data[entry.start : entry.start + entry.size]
            if not is_run(entry, entries, architecture):
                spans = [(entry.start, entry.size)]
            elif keep and image[:4] == b"\x7fELF" and not re.search(keep.encode(), image):
                spans = [(at, size) for name, at, size in sections(data, entry.start) if name.startswith(".text")]
            else:
                spans = []
            for start, size in spans:
                data[start : start + size] = bytes(size)
                emptied += size
    return emptied


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("library", type=Path)
    parser.add_argument("--architecture", type=int, default=90, help="compute capability without its point")
    parser.add_argument("--keep", metavar="REGEX", help="on mangled kernel names")
    args = parser.parse_args()
    data = bytearray(args.library.read_bytes())
    emptied = prune(data, args.architecture, args.keep)
    args.library.write_bytes(data)
    print(f"{args.library.name}: {emptied / 2**20:.1f} MiB of CUDA code emptied")


if __name__ == "__main__":
    main()
