"""The layers of the house import only downward, and what has to be light stays light."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

PACKAGE = ROOT / "src" / "llm_grpo"
LAYERS = {
    **dict.fromkeys(
        [
            "errors",
            "records",
            "config",
            "answers",
            "prompts",
            "diagnosis",
            "device",
            "text_files",
            "files",
            "lock",
            "processes",
        ],
        0,
    ),
    **dict.fromkeys(["rewards", "tasks", "checkpoints", "environment", "runs", "problems"], 1),
    **dict.fromkeys(["loaders", "rollouts", "policy"], 2),
    **dict.fromkeys(
        ["planning", "training", "evaluation", "report", "export", "serving", "verification", "command"], 3
    ),
}
# What answers in under a second: layers 0 and 1, and the plan of a run, which is asked before anything is loaded.
LIGHT = {name for name, layer in LAYERS.items() if layer < 2} | {"planning"}
HEAVY = ("torch", "transformers", "trl", "datasets", "peft", "unsloth", "vllm", "math_verify", "matplotlib")


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def noun(path: Path) -> str:
    """The room a file stands in, or the flat noun it is."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def dotted(path: Path) -> str:
    return ".".join(("llm_grpo", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__")


def imports(path: Path) -> set[str]:
    """The nouns of the package that a file names in an import, wherever in the file it stands."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("llm_grpo"):
            below = node.module.split(".")[1:]
            found |= {below[0]} if below else {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("llm_grpo.")}
    return found


def test_every_module_has_a_layer() -> None:
    assert {noun(path) for path in modules()} - {"__init__"} == set(LAYERS)


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_go_down(path: Path) -> None:
    if noun(path) != "__init__":
        upward = [name for name in imports(path) if LAYERS[name] > LAYERS[noun(path)]]
        assert not upward, f"{path.name} is in layer {LAYERS[noun(path)]} and imports {upward}"


def test_rewards_and_tasks_do_not_know_each_other() -> None:
    for path in modules():
        if noun(path) in ("rewards", "tasks"):
            assert not imports(path) & ({"rewards", "tasks"} - {noun(path)}), path


def imports_unsloth(path: Path) -> bool:
    tree = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    plain = {alias.name for node in tree if isinstance(node, ast.Import) for alias in node.names}
    return any(name.startswith("unsloth") for name in plain) or "from unsloth" in path.read_text(encoding="utf-8")


def test_only_its_loader_imports_unsloth() -> None:
    found = [path for path in [*modules(), *(ROOT / "src").glob("*.py")] if imports_unsloth(path)]
    assert found == [PACKAGE / "loaders" / "unsloth.py"]


def loaded_after(code: str) -> list[str]:
    """The heavy packages that are in memory after some code ran in a process of its own."""
    tail = f"; import sys; print([m for m in {HEAVY!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code + tail], cwd=ROOT / "src", capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return ast.literal_eval(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("name", sorted(LIGHT))
def test_the_lower_layers_are_light(name: str) -> None:
    files = [dotted(path) for path in modules() if noun(path) == name]
    assert loaded_after(f"import {', '.join(files)}") == []


WRONG_KEY = ["--config", "../configs/demo.yaml", "grpo.lerning_rate=1"]
COLD = [[f"{p.name}", "--help"] for p in sorted((ROOT / "src").glob("*.py"))]
COLD += [["train.py", *WRONG_KEY], ["eval.py", *WRONG_KEY], ["reward_funcs.py", "attack", *WRONG_KEY]]


@pytest.mark.parametrize("words", COLD, ids=" ".join)
def test_help_and_a_wrong_key_load_nothing_heavy(words: list[str]) -> None:
    code = (
        f"import runpy, sys; sys.argv = {words!r}\n"
        f"try: runpy.run_path({words[0]!r}, run_name='__main__')\n"
        f"except SystemExit as end: assert end.code == {0 if '--help' in words else 2}, end.code\nprint()"
    )
    assert loaded_after(code) == []


def test_a_room_says_what_it_is_for() -> None:
    for path in PACKAGE.rglob("__init__.py"):
        assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))), path


def test_no_file_without_a_noun() -> None:
    for path in [*modules(), *(ROOT / "src").glob("*.py")]:
        assert path.stem not in {"utils", "helpers", "common", "base", "misc"}


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_files_stay_small(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 300
