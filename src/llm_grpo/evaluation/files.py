"""The files of an evaluation: completions made elsewhere, and the JSON of what was scored."""

from __future__ import annotations

import json
from itertools import count
from pathlib import Path
from typing import Any

from llm_grpo.errors import UserError
from llm_grpo.evaluation.scoring import SHARES
from llm_grpo.text_files import json_lines, open_json_lines, read_text


def read_completions(path: Path) -> dict[str, str]:
    """{id: completion} of a JSONL file. Raises UserError by file and line."""
    if not path.is_file():
        raise UserError(f"--completions: there is no file {path}.")
    texts: dict[str, str] = {}
    for where, row in json_lines(read_text(open_json_lines(path)), str(path)):
        if not isinstance(row, dict) or not {"id", "completion"} <= row.keys():
            raise UserError(f'{where}: needs JSON with "id" and "completion".')
        name, text = row["id"], row["completion"]
        if not isinstance(name, str) or not isinstance(text, str) or name in texts:
            raise UserError(f"{where}: id and completion must be texts, and each id stands once.")
        texts[name] = text
    if not texts:
        raise UserError(f"{path} holds no completions.")
    return texts


def read_report(path: Path) -> dict[str, Any]:
    """An evaluation as src/eval.py and src/train.py write it, whole as far as a comparison reads it."""
    if not path.is_file():
        raise UserError(f"--compare: there is no file {path}.")
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
        [report[f"{share}{kind}"] for share in SHARES for kind in ("", "_ci95")]
        [(i["id"], i["answer"], i["strict"], i["lenient"]) for i in report["items"]]
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f"{path}: not an evaluation written by src/eval.py or src/train.py.") from None
    return report


def new_report(folder: Path, split: str) -> Path:
    """A name that is not taken: nothing finished is overwritten."""
    numbered = (folder / f"{split}-{number}.json" for number in count(1))
    return next(file for file in numbered if not file.exists())
