"""The 16-bit base that an adapter is merged into: found by name, opened, refused where it is quantized.

An adapter trained on 4-bit weights belongs on the 16-bit original. Merging it into the dequantized weights would keep
the error of the quantization for good.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llm_grpo.errors import UserError, first_line, hub_errors
from llm_grpo.export.tensors import Stored, read_header

FOUR_BIT_SUFFIXES = ("-unsloth-bnb-4bit", "-bnb-4bit")  # longest first; Unsloth's names for its quantized copies
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
TOKENIZER_FILES = (
    "tokenizer*", "vocab*", "merges.txt", "special_tokens_map.json", "added_tokens.json", "chat_template*", "*.model",
)  # fmt: skip
OTHER_FILES = ("generation_config.json", "*.py", "LICENSE*")  # *.py: the code of models that bring their own
NAME_IT = "Name the 16-bit original, a folder or a Hub name, as model.merge_base (or --base)."


@dataclass(frozen=True)
class Base:
    """A whole model in a folder. shards: file name -> its tensors by name, and its metadata."""

    name: str
    folder: Path
    config: dict[str, Any]
    shards: dict[str, tuple[dict[str, Stored], dict[str, str]]]


def original(name: str) -> str:
    """What `open_base` opens for that name: a folder as it is, a Hub name of a 4-bit copy as its 16-bit original.

    `unsloth/Qwen2.5-3B-Instruct-bnb-4bit` -> `unsloth/Qwen2.5-3B-Instruct`
    """
    suffix = "" if Path(name).is_dir() else next((s for s in FOUR_BIT_SUFFIXES if name.lower().endswith(s)), "")
    return name[: len(name) - len(suffix)]


def shown(name: str) -> str:
    """A name that may go out into the world: of an absolute path only the last part."""
    return Path(name).name if Path(name).is_absolute() or name.startswith("~") else name


def open_base(name: str, revision: str | None = None) -> Base:
    """The base of that name: a local folder, or a model of the Hub. Raises UserError where there is no 16-bit one."""
    if not name:
        raise UserError(f"The adapter does not say what it was trained on. {NAME_IT}")
    folder = Path(name)
    if not folder.is_dir():
        asked, name = name, original(name)
        folder = _download(name, revision if asked == name else None)  # a revision is of one repository only
    config = _config(folder, name)
    return Base(name, folder, config, _shards(folder, name))


def _download(name: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download

    patterns = ["config.json", INDEX, "model*.safetensors", "README.md", *TOKENIZER_FILES, *OTHER_FILES]
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=patterns))
    except hub_errors() as error:
        why = f"The base '{name}' is no folder here and cannot be had from the Hub ({first_line(error)})."
        raise UserError(f"{why} {NAME_IT}") from error


def _config(folder: Path, name: str) -> dict[str, Any]:
    file = folder / "config.json"
    if not file.is_file():
        raise UserError(f"The base '{name}' has no config.json. {NAME_IT}")
    config = json.loads(file.read_text(encoding="utf-8"))
    if config.get("quantization_config"):
        method = config["quantization_config"].get("quant_method", "unknown")
        raise UserError(f"The base '{name}' is quantized ({method}); its rounding errors would stay. {NAME_IT}")
    return config


def _shards(folder: Path, name: str) -> dict[str, tuple[dict[str, Stored], dict[str, str]]]:
    if (folder / INDEX).is_file():
        names = json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"].values()
    else:
        names = [WEIGHTS]
    files = [folder / file for file in dict.fromkeys(names)]
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise UserError(f"The base '{name}' lacks {', '.join(missing)}, and only safetensors can be merged. {NAME_IT}")
    return {file.name: read_header(file) for file in files}
