"""The model card: README.md with metadata for the Hub, made from what the run measured and from nothing else.

A section whose data are not there is left out. Absolute paths of the machine that trained are reduced to their last
part. The file is written anew each time, unless its first comment was removed: then it belongs to the user.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from llm_grpo.config.schema import Config
from llm_grpo.errors import UserError
from llm_grpo.evaluation.comparison import compare, pairs_of, stages
from llm_grpo.export.proof import read_proof
from llm_grpo.export.source import shown
from llm_grpo.files import write_text
from llm_grpo.problems import system_prompt, worked_examples
from llm_grpo.prompts import with_system
from llm_grpo.report.tables import NAMES, interval, p_value, sampled_change, spent_text
from llm_grpo.runs import Run, is_whole_model, last_step
from llm_grpo.tasks.hub import hub_name

FILE = "README.md"
OURS = "<!-- Written by llm-grpo, and written anew at each push. Delete this line to keep your own changes. -->"
OF_PEFT = "[More Information Needed]"  # stands in the empty card that PEFT writes beside an adapter
DATASETS = {"gsm8k": "openai/gsm8k"}  # tasks whose data have a name on the Hub; those of `hub` are named in its path


@dataclass(frozen=True)
class Subject:
    """What the card is of. folder: what is published; merged: the merged weights it is or was made of, if any;
    base: a folder or a Hub name; repo: its name-to-be on the Hub."""

    folder: Path
    adapter: Path
    base: str
    merged: Path | None = None
    method: str = "merged_16bit"
    repo: str | None = None
    run: Run | None = None
    proof_skipped: bool = False

    @property
    def is_whole(self) -> bool:
        """Whether a whole model was trained (`lora: null`), not an adapter."""
        return is_whole_model(self.adapter)

    @property
    def learned(self) -> str:
        return "trained model" if self.is_whole else "adapter"

    @property
    def name(self) -> str:
        if self.repo:
            return self.repo.rpartition("/")[2]
        return self.run.config().run.name if self.run else self.adapter.resolve().name


@dataclass(frozen=True)
class Measured:
    """The evaluations of this very adapter and of what it came from, by name, itself last. paired: (left, right,
    counts) of each with the one before it, and of the last with the first."""

    reports: dict[str, Mapping[str, Any]]
    paired: list[tuple[str, str, Mapping[str, Any]]]

    @property
    def after(self) -> Mapping[str, Any]:
        return [*self.reports.values()][-1]


def write_card(subject: Subject) -> Path:
    """Write the folder's README.md, its metadata checked by huggingface_hub; a card of the user's own stays."""
    file = subject.folder / FILE
    old = file.read_text(encoding="utf-8") if file.is_file() else OURS
    if OURS in old or OF_PEFT in old:
        write_text(file, checked(card(subject)))
    return file


def checked(text: str) -> str:
    """The same text, if huggingface_hub reads its metadata back, measured results included."""
    from huggingface_hub import ModelCard

    data = ModelCard(text).data
    assert data.license and ("\nmodel-index:" not in text or data.eval_results), data.to_dict()
    return text


def card(subject: Subject) -> str:
    """The whole text, metadata first: card.md, filled in."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    run, config = subject.run, subject.run.config() if subject.run else None
    measured = measurements(run, subject.adapter) if run else None
    licence, said = licence_of(subject.base)
    data, on_the_hub = data_of(config) if config else (None, None)
    system, shots = (system_prompt(config), worked_examples(config)) if config else ("", ())
    source = FileSystemLoader(Path(__file__).parent)
    template = Environment(
        loader=source, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    template.filters |= {
        "fence": fence,
        "json": json.dumps,
        "yaml": partial(yaml.safe_dump, sort_keys=False, allow_unicode=True),
        "repr": repr,
    }
    return template.get_template("card.md").render(
        ours=OURS,
        subject=subject,
        name=subject.repo or subject.folder.name,
        base_is_local=Path(subject.base).is_dir(),
        config=config,
        public=_public(config.as_dict()) if config else None,
        measured=measured,
        proof=read_proof(subject.merged) if subject.merged else None,
        environment=_read(run.environment) if run else None,
        steps=run.steps() if run else None,
        spent=spent_text(_read(run.summary)) if run else "",
        system=system,
        shots=shots,
        opening=[repr(message) for message in with_system([], system, shots)],
        max_tokens=config.grpo["max_completion_length"] if config else 512,
        licence=said,
        licence_fields=licence,
        data=data,
        on_the_hub=on_the_hub,
        sampled_change=sampled_change,
        names=NAMES,
        interval=interval,
        p_value=p_value,
        shown=shown,
        quote=shlex.quote,
    )


def measurements(run: Run, adapter: Path) -> Measured | None:
    """What the run measured of this adapter at the step it has now; None where it measured another one, or nothing."""
    before, after_sft, after = (_read(file) for file in (run.before, run.after_sft, run.after))
    step = _read(adapter / "validation.json").get("step", last_step(run))
    if not after or Path(after.get("adapter", "")).name != adapter.name or after.get("step") != step:
        return None
    found = stages(before, after_sft, after)
    return Measured(dict(found), [(a, b, compare(old, new)) for (a, old), (b, new) in pairs_of(found)])


def data_of(config: Config) -> tuple[str, str | None]:
    """(what the run learned from, its name on the Hub if it has one there): a path, or the task's name."""
    task, path = config.task.name, config.task.args.get("path")
    if task != "hub" or Path(path).is_dir():
        return shown(path) if path else task, DATASETS.get(task)
    owned, _, _ = hub_name(path)
    return owned, owned


def licence_of(base: str) -> tuple[dict[str, str], str]:
    """(the licence fields of the base's own card, a sentence). Where the base does not say, neither do we."""
    from huggingface_hub import metadata_load, try_to_load_from_cache

    local = Path(base).is_dir()
    file = Path(base) / FILE if local else try_to_load_from_cache(base, FILE)
    of_base = (metadata_load(file) or {}) if isinstance(file, (str, Path)) and Path(file).is_file() else {}
    found = {key: of_base[key] for key in ("license", "license_name", "license_link") if of_base.get(key)}
    if not found.get("license"):
        said = f"`{shown(base)}` does not say here under which licence it stands, and these weights inherit it:"
        return {"license": "unknown"}, f"{said} find it out before you pass them on."
    link = found.get("license_link", "")
    if link and not link.startswith("http") and not local:
        found["license_link"] = f"https://huggingface.co/{base}/blob/main/{link}"
    return found, f"`{found.get('license_name', found['license'])}`, as the base `{shown(base)}` says of itself."


def _read(file: Path) -> dict[str, Any]:
    """A JSON file of a run; empty where there is none yet. Raises UserError where it is broken."""
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except json.JSONDecodeError as error:
        raise UserError(f"{file} is broken ({error}); the card cannot be made from it.") from error


def _public(node: Any) -> Any:
    """The same without the folders of the machine that trained."""
    if isinstance(node, Mapping):
        return {key: _public(value) for key, value in node.items()}
    if isinstance(node, list):
        return [_public(value) for value in node]
    return shown(node) if isinstance(node, str) and "\n" not in node else node


def fence(text: str, language: str = "text") -> str:
    """A code block that the text cannot end: its fence is longer than any row of backticks inside."""
    marks = "`" * max(3, 1 + max(map(len, re.findall(r"`+", text)), default=0))
    return f"{marks}{language}\n{text.strip()}\n{marks}"
