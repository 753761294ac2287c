"""Every command of the README runs, in order, in a folder that looks like a fresh clone after `make demo`."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import pytest
import torch
from conftest import ROOT, SMALL, warm

README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = [
    line.split("  #")[0].strip()
    for block in re.findall(r"```bash\n(.*?)```", README, re.DOTALL)
    for line in block.splitlines()
    if line.strip()
]


def test_the_readme_has_its_commands_and_the_makefile_its_targets() -> None:
    assert COMMANDS[:2] == ["make demo", "make test"]
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert {command.split()[1] for command in COMMANDS if command.startswith("make")} <= targets
    kinds = ("make ", "pip install ", "python src/", "python examples/get_smollm2.py", "source .venv")
    known = [command for command in COMMANDS if command.startswith(kinds)]
    assert known == COMMANDS, "a command of a kind this test does not try"


def test_every_script_is_among_the_commands_and_in_the_tree() -> None:
    for script in (ROOT / "src").glob("*.py"):
        assert any(f"src/{script.name}" in command for command in COMMANDS), script.name
        assert f"  {script.name}" in README


def test_every_module_has_its_role_in_the_tree() -> None:
    tree = README.split("llm_grpo/\n", 1)[1].split("```")[0]
    for path in (ROOT / "src" / "llm_grpo").iterdir():
        if path.stem != "__init__" and path.name != "__pycache__":
            assert re.search(rf"\b{path.stem}\b", tree), path.name


def test_links_and_pictures_are_there() -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", README):
        assert (ROOT / target).exists(), target


@pytest.fixture(scope="module")
def clone(demo_run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clone")
    for name in ("src", "configs", "examples"):
        (folder / name).symlink_to(ROOT / name)
    shutil.copytree(demo_run[0], folder / "outputs" / "demo")
    return folder


def test_the_commands_run_in_order(clone: Path) -> None:
    failed = []
    for command in COMMANDS:
        if not command.startswith("python ") or "src/serve.py" in command:
            continue  # a server runs until it is stopped; tests/test_serve_script.py does both
        if "smollm2" in command:
            continue  # 93 MB and two hours; tests/test_real_model.py runs a slice of it
        words = shlex.split(command)[1:]
        needs_gpu = "configs/grpo.yaml" in command and "src/train.py" in command and "--dry-run" not in command
        if needs_gpu and torch.cuda.is_available():
            continue
        if "src/train.py" in command and "demo.yaml" in command:
            words += [word for word in SMALL if not word.startswith("grpo.max_steps")]
            words = [word.replace("grpo.max_steps=20", "grpo.max_steps=2") for word in words]
        words = [word.replace("grpo.max_steps=30", "grpo.max_steps=3") for word in words]
        done = warm(trains="src/train.py" in command).run(words, cwd=clone)
        if done.returncode != (2 if needs_gpu else 0):
            failed.append(f"{command}\n{done.stdout[-1500:]}{done.stderr[-1500:]}")
    assert not failed, "\n\n".join(failed)
