"""What the scripts in src/ share as command lines: parsing, exit codes, bars, and quiet libraries."""

from __future__ import annotations

import argparse
import json
import logging
import os
import shutil
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import NoReturn

from rich.console import Console
from rich.progress import Progress

from llm_grpo import processes
from llm_grpo.errors import UserError

OTHERS_WAIT_S = 3.0
SILENCE_S = 60  # without a terminal, where there is no bar


def run(main: Callable[[], int]) -> None:
    """Exit with main's code: 2 after a user's mistake (one message, no traceback), 130 after Ctrl-C."""
    # OpenMP's threads spin while they wait, which costs far more than it saves where anything else runs: on 2 cores a
    # step of the demo takes 0.9 s spinning and 1.2 s sleeping when idle, but 7 to 40 s and 2 s beside a busy process.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # torch's allocator on a CPU asks for huge pages: what grows and is thrown away (keys and values, logits) costs a
    # page fault for 2 MiB and not for 4 KiB. docs/rollouts.md has the numbers.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    quiet_libraries()
    try:
        load_env_file()
        sys.exit(main())
    except processes.ToldByTheFirst:
        sys.exit(0)
    except UserError as error:
        _leave(f"error: {error}", 2)
    except (OSError, UnicodeError, json.JSONDecodeError) as error:  # a file or folder that cannot be read or written
        _leave(f"error: {type(error).__name__}: {error}", 2)
    except KeyboardInterrupt:
        _leave("\nStopped.", 130)
    finally:
        processes.part()


def _leave(said: str, code: int) -> NoReturn:
    """Of several processes the first says it. The others wait: where the first ends too, torchrun ends them meanwhile;
    where they are still there, it is a fault of their own."""
    if not processes.is_first():
        time.sleep(OTHERS_WAIT_S)
        said = f"process {processes.rank()} of {processes.count()}: {said.strip()}"
    print(said, file=sys.stderr)
    sys.exit(code)


def load_env_file() -> None:
    """Variables of `.env` in the current directory, where the environment does not have them already."""
    if Path(".env").is_file():
        from dotenv import load_dotenv

        load_dotenv(".env", override=False)


def parser(doc: str | None) -> argparse.ArgumentParser:
    """A parser that shows the script's docstring as it is written."""
    found = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    # `--run=~/outputs/demo`, which a shell leaves as it is: of arguments without a type, and of paths. Texts are of
    # type str.
    found.register("type", None, os.path.expanduser)
    found.register("type", Path, lambda text: Path(text).expanduser())
    return found


def add_overrides(to: argparse.ArgumentParser) -> None:
    to.add_argument(
        "overrides", nargs="*", metavar="section.key=value", help="replaces a value or section of the config"
    )


def console() -> Console:
    """The terminal, where what is printed is text and no markup; a file or a pipe is wide enough for every table. Of
    several processes the first has it."""
    how = {"highlight": False, "markup": False, "quiet": not processes.is_first()}
    return Console(**how) if Console().is_terminal else Console(**how, width=120)


def add_which_model(parser: argparse.ArgumentParser) -> None:
    """The three ways to name a model, of which one is given, and the base of the first two."""
    which = parser.add_mutually_exclusive_group()
    run, adapter = "a run's folder: its base with the adapter that was evaluated", "an adapter's folder, on its base"
    which.add_argument("--run", metavar="DIR", help=run)
    which.add_argument("--adapter", metavar="DIR", help=adapter)
    which.add_argument("--model", metavar="NAME", help="a model's folder or Hub name (base or merged)")
    base = "with --run or --adapter: the base, where it is not the one they name (any more)"
    parser.add_argument("--base", metavar="NAME", help=base)


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Which model; who generates, and how precisely."""
    add_which_model(parser)
    parser.add_argument(
        "--dtype",
        choices=["float32", "bfloat16"],
        help="unless given float32 on a CPU; bfloat16 is faster there, and some greedy answers are others",
    )
    parser.add_argument("--engine", default="auto", choices=["auto", "vllm", "transformers"], help="who generates")


@contextmanager
def progress(console: Console, what: str | None, total: int) -> Iterator[Callable[[int], None] | None]:
    """A bar that is gone when it is done; in a log a line a minute. Yields what to call with the number done, and None
    where `what` is None."""
    if what is None:
        yield None
        return
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        line, done = bar.add_task(what, total=total), 0
        began = said = time.monotonic()

        def on_done(count: int) -> None:
            nonlocal done, said
            bar.advance(line, count)
            done, now = done + count, time.monotonic()
            if not console.is_terminal and done < total and now - said > SILENCE_S:
                said, left = now, timedelta(seconds=round((now - began) * (total - done) / done))
                console.print(f"{what} {done}/{total}  {left} left", highlight=False)

        yield on_done


@contextmanager
def library_output_in(file: Path) -> Iterator[None]:
    """While this lasts, whatever libraries print goes to a file; after an exception its place is said."""
    file.parent.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    kept = [os.dup(number) for number in (1, 2)]
    try:
        with file.open("ab") as log:
            for number in (1, 2):
                os.dup2(log.fileno(), number)
            yield
            sys.stdout.flush()
            sys.stderr.flush()
    except UserError:
        raise
    except BaseException:
        os.write(kept[1], f"What the libraries said is in {file}.\n".encode())
        raise
    finally:
        for number, copy in zip((1, 2), kept, strict=True):
            os.dup2(copy, number)
            os.close(copy)


def quiet_libraries() -> None:
    """No warnings of libraries about themselves on the screen; errors stay."""
    warnings.filterwarnings("ignore")
    for name in ("huggingface_hub", "urllib3"):
        logging.getLogger(name).setLevel(logging.ERROR)  # their retries; what fails in the end raises
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")  # its import resets the level that is set above
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")


def check_output(path: Path) -> None:
    """Before the work: the file is not there yet and can be written. Raises UserError."""
    if path.exists():
        raise UserError(f"--output: {path} exists already; remove it or choose another name.")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        path.unlink()
    except OSError as error:
        raise UserError(f"--output: {path} cannot be written ({error.strerror}).") from None


def python() -> str:
    """How the user starts the Python that runs this: `python` where that is the one on the path."""
    here, found = Path(sys.executable), shutil.which("python")
    if found and Path(found).parent == here.parent:
        return "python"
    return str(here.relative_to(Path.cwd())) if here.is_relative_to(Path.cwd()) else str(here)
