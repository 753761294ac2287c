"""The notebook runs on the demo model, from a run that is there and from one it trains itself."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import nbformat
import pytest
from conftest import ROOT, SMALL
from nbclient import NotebookClient

NOTEBOOK = ROOT / "notebooks" / "GRPO_Training.ipynb"


def executed(folder: Path, parameters: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The text of all outputs, with the install cell left out and the parameters cell replaced."""
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    notebook.cells = [cell for cell in notebook.cells if "install" not in cell.metadata.get("tags", [])]
    for cell in notebook.cells:
        if "parameters" in cell.metadata.get("tags", []):
            cell.source = parameters
    monkeypatch.setenv("PATH", f"{ROOT / '.venv' / 'bin'}:{os.environ['PATH']}")
    NotebookClient(
        notebook, timeout=540, kernel_name="python3", resources={"metadata": {"path": str(folder)}}
    ).execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    pictures = sum("image/png" in output.get("data", {}) for output in outputs)
    assert pictures >= 1, "the curves are shown"
    return "".join(
        str(output.get("text", "")) + str(output.get("data", {}).get("text/plain", "")) for output in outputs
    )


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    for name in ("src", "configs", "examples"):
        (tmp_path / name).symlink_to(ROOT / name)
    return tmp_path


def test_it_opens_an_existing_run(clone: Path, demo_run, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(demo_run[0], clone / "outputs" / "demo")
    said = executed(
        clone, 'CONFIG, OVERRIDES, TRAIN, RUN = "configs/demo.yaml", [], False, "outputs/demo"', monkeypatch
    )
    for text in ("strict accuracy", "share of the data seen", "unsloth needs", "model.safetensors"):
        assert text in said, text


def test_it_trains(clone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    overrides = [word.replace("grpo.max_steps=4", "grpo.max_steps=2") for word in SMALL] + ["run.name=nb"]
    said = executed(
        clone, f'CONFIG, OVERRIDES, TRAIN, RUN = "configs/demo.yaml", {overrides!r}, True, "outputs/nb"', monkeypatch
    )
    assert "The merged model answers" in said and "McNemar p" in said


def test_it_defines_nothing() -> None:
    for cell in nbformat.read(NOTEBOOK, as_version=4).cells:
        if cell.cell_type == "code":
            assert not any(line.lstrip().startswith(("def ", "class ")) for line in cell.source.splitlines())
            assert not cell.outputs, "outputs are not committed"
