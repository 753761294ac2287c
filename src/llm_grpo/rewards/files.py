"""Somebody's own reward, named in YAML as `path/to/file.py:function` (the path from the current directory)."""

from __future__ import annotations

import ast
import importlib.util
import inspect
import sys
import traceback
import zlib
from pathlib import Path
from types import ModuleType

from llm_grpo.errors import UserError, did_you_mean, not_there
from llm_grpo.records import RewardFunction


def load_function(name: str) -> RewardFunction:
    """The function that `path/to/file.py:function` names. Raises UserError."""
    file, _, function = name.rpartition(":")
    if not file.endswith(".py") or not function.isidentifier():
        raise UserError(f"reward '{name}': write path/to/file.py:function to name a function of your own.")
    module = _imported(Path(file).expanduser(), name)
    found = getattr(module, function, None)
    if not callable(found):
        own = [key for key, value in vars(module).items() if inspect.isfunction(value) and not key.startswith("_")]
        raise UserError(f"reward '{name}': {file} has no function '{function}'.{did_you_mean(function, own)}")
    return found


def may_bring_libraries(name: str) -> bool:
    """Whether the file of `path/to/file.py:function` imports more than the standard library.

    In a training run Unsloth has to come before trl, transformers and peft, and who knows what a library imports. The
    file is read, not run; one that is missing or broken is told of by `load_function`.
    """
    path = Path(name.rpartition(":")[0]).expanduser()
    try:
        tree = ast.parse(path.read_bytes())
    except (OSError, SyntaxError, ValueError):
        return False
    named = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    named |= {node.module or "." for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    return not {module.partition(".")[0] for module in named} <= sys.stdlib_module_names - {"importlib"}


def _imported(path: Path, name: str) -> ModuleType:
    """The file as a module of its own name, read anew each time (a notebook's user edits it between two runs)."""
    if not path.is_file():
        raise UserError(f"reward '{name}', seen from the current folder: {not_there(path)}")
    key = f"reward_file_{path.stem}_{zlib.crc32(str(path.resolve()).encode()):08x}"
    spec = importlib.util.spec_from_file_location(key, path)
    assert spec is not None and spec.loader is not None  # the suffix is .py
    module = importlib.util.module_from_spec(spec)
    sys.modules[key] = module  # dataclasses and pickle look their module up there
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # whatever somebody's file does at import is their news, not a crash
        del sys.modules[key]
        raise UserError(f"reward '{name}': {path} failed at import, {_place(error, path)}") from error
    return module


def _place(error: BaseException, path: Path) -> str:
    """The line of the file where it failed, and the error in its own words."""
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if Path(frame.filename).resolve() == path.resolve()]
    line = error.lineno if isinstance(error, SyntaxError) else (lines or ["?"])[-1]
    return f"line {line}: {type(error).__name__}: {error}"
