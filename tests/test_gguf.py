"""The call of llama.cpp's converter, with a program in its place; with the real one where a checkout is at hand."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from conftest import TINY

from llm_grpo.errors import UserError
from llm_grpo.export.gguf import FOLDER_VARIABLE, SCRIPT, convert, find_converter

WRITES = """
import sys
from pathlib import Path
assert __name__ == "__main__" and Path(sys.argv[0]).name == "convert_hf_to_gguf.py", sys.argv
model, option, out, *rest = sys.argv[1:]
assert (option, rest) == ("--outfile", ["--outtype", "auto"]), sys.argv
Path(out).write_text("GGUF of " + Path(model).name)
"""
REFUSES = 'import sys; print("line 1", file=sys.stderr); sys.exit("BPE pre-tokenizer was not recognized")'
SILENT = "pass"
# A checkout's own package beside the script, as far as the starter looks into it.
PACKAGE = """
class TextModel:
    def get_vocab_base_pre(self, tokenizer):
        if tokenizer == "known":
            return "llama-bpe"
        raise NotImplementedError("BPE pre-tokenizer was not recognized")
"""
ASKS = """
import sys
from pathlib import Path
from conversion.base import TextModel
Path(sys.argv[3]).write_text(" ".join(TextModel().get_vocab_base_pre(name) for name in ("known", "new")))
"""


def checkout(folder: Path, script: str, package: str | None = None) -> Path:
    (folder / "conversion").mkdir(parents=True)
    (folder / SCRIPT).write_text(script)
    if package:
        (folder / "conversion/base.py").write_text(package)
    return folder / SCRIPT


def model(folder: Path, kind: str) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(f'{{"model_type": "{kind}"}}')
    return folder


def test_the_file_appears_when_it_is_whole(tmp_path: Path) -> None:
    script = checkout(tmp_path / "llama.cpp", WRITES)
    file = convert(script, model(tmp_path / "merged", "llama"), tmp_path / "gguf/name.gguf")
    assert file.read_text() == "GGUF of merged" and [path.name for path in file.parent.iterdir()] == ["name.gguf"]


FAILURES = [
    (REFUSES, "hash of their output.*\n.*line 1\n.*BPE pre-tokenizer", "what it said is shown, with the reason"),
    (SILENT, "refused", "it went well and wrote nothing"),
    ("raise ValueError('odd')", "ValueError: odd", "it broke down"),
]


@pytest.mark.parametrize(("script", "said", "why"), FAILURES)
def test_what_the_converter_refuses(tmp_path: Path, script: str, said: str, why: str) -> None:
    with pytest.raises(UserError, match=said):
        convert(checkout(tmp_path / "llama.cpp", script), model(tmp_path / "merged", "llama"), tmp_path / "x.gguf")
    assert not list(tmp_path.glob("*x.gguf"))


def test_a_new_vocabulary_of_type_qwen2_has_a_known_pre_tokenizer(tmp_path: Path) -> None:
    script = checkout(tmp_path / "llama.cpp", ASKS, PACKAGE)
    assert convert(script, model(tmp_path / "a", "qwen2"), tmp_path / "a.gguf").read_text() == "llama-bpe qwen2"
    with pytest.raises(UserError, match="not recognized"):
        convert(script, model(tmp_path / "b", "llama"), tmp_path / "b.gguf")


def test_where_it_is_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.delenv(FOLDER_VARIABLE, raising=False)
    with pytest.raises(UserError, match=rf"{SCRIPT} out/merged --outfile out/merged.gguf"):
        find_converter(Path("out/merged"))
    on_path = checkout(tmp_path / "bin", WRITES)
    on_path.chmod(0o755)
    assert find_converter(tmp_path) == on_path
    unsloth = checkout(tmp_path / ".unsloth/llama.cpp", WRITES)
    assert find_converter(tmp_path) == unsloth, "Unsloth's before the PATH's"
    named = checkout(tmp_path / "mine", WRITES)
    monkeypatch.setenv(FOLDER_VARIABLE, str(named.parent))
    assert find_converter(tmp_path) == named


@pytest.mark.skipif(
    not (Path(os.environ.get(FOLDER_VARIABLE, "")) / SCRIPT).is_file(), reason=f"{FOLDER_VARIABLE} names no checkout"
)
def test_the_real_converter_takes_the_demo_model(tmp_path: Path) -> None:
    """Needs llama.cpp's sources and sentencepiece, nothing built. What is written is read by llama.cpp's own reader."""
    folder = Path(os.environ[FOLDER_VARIABLE])
    file = convert(folder / SCRIPT, TINY, tmp_path / "tiny.gguf")
    sys.path.insert(0, str(folder / "gguf-py"))
    from gguf import GGUFReader

    reader = GGUFReader(file)
    assert reader.fields["tokenizer.ggml.pre"].contents() == "qwen2" and len(reader.tensors) == 38
