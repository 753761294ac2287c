"""One process at a time in a run's folder."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import IO

from llm_grpo.errors import UserError

_held: dict[Path, IO[str]] = {}  # open as long as the process lives


def hold(path: Path) -> None:
    """Take the lock for as long as this process lives. Raises UserError where another living process has it.

    The kernel holds it, not the file: whatever ends a process, kill -9 too, gives it back, and a file that is left
    behind means nothing. The file tells who has it. Where the file system knows no locks, nobody is kept out.
    """
    path = path.resolve()
    if path in _held:
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a+", encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path.parent} cannot be written ({error.strerror}). Change run.output_dir.") from None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        who = file.read().strip() or "another process"
        raise UserError(
            f"{path.name.removeprefix('.').removesuffix('.lock')} is being trained now, by {who}. Wait for its end, "
            "stop it (Ctrl-C there, or kill), or choose another name (run.name=NAME)."
        ) from None
    except OSError:
        pass
    _held[path] = file
    file.truncate(0)
    file.write(f"process {os.getpid()} on {os.uname().nodename}")
    file.flush()
