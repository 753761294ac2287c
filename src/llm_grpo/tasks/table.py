"""Your own data without code: a JSONL or CSV file with a question and an answer in each row."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from llm_grpo.answers.judging import (
    JUDGES,
    MATCHES,
    extract_boxed_answer,
    extract_hash_answer,
    extract_xml_answer,
    parse_number,
)
from llm_grpo.errors import UserError, did_you_mean
from llm_grpo.prompts import SYSTEM_PROMPTS
from llm_grpo.records import Example, Split, Task
from llm_grpo.tasks.rows import BadRowError, Row, collect, question_hash, read_csv, read_jsonl, text_of


def last_hash_answer(text: str) -> str | None:
    """What stands behind the last `####`: a gold solution may name the mark on its way."""
    _, mark, behind = text.rpartition("####")
    return extract_hash_answer(mark + behind)


GOLD_FORMATS: dict[str, Callable[[str], str | None]] = {
    "plain": str.strip,
    "hash": last_hash_answer,
    "xml": extract_xml_answer,
    "boxed": extract_boxed_answer,
}


class Layout(NamedTuple):
    """How an example lies in a row. Hashable, so that a file is read once for each layout."""

    read: Callable[[Path], Iterator[Row]]
    question: str
    answer: str
    id: str | None
    gold_format: str
    numeric: bool
    max_bad_share: float


def _task_reading(read: Callable[[Path], Iterator[Row]], kind: str) -> Callable[..., Task]:
    """The task function for one kind of file; both kinds have the same arguments."""

    def table_task(
        *,
        path: str,
        validation_path: str | None = None,
        test_path: str | None = None,
        columns: Mapping[str, str] | None = None,
        answer_format: str = "xml",
        gold_format: str = "plain",
        match: str = "value",
        system: str | None = None,
        validation_share: float = 0.05,
        test_share: float = 0.05,
        max_bad_share: float = 0.01,
    ) -> Task:
        """A task from files of your own.

        columns: our names (question, answer, id) to the file's. Other columns go to Example.meta; without an id column
            an example is called by its file and line.
        answer_format: how the model is to answer: xml, hash, boxed or plain.
        gold_format: how the gold stands in the answer column: xml, hash, boxed or plain.
        match: when an answer is the gold: value (as text, number or formula), number, text (case and spaces aside) or
            exact (every character).
        validation_share, test_share: drawn from `path` by a hash of the question where the split has no file of its
            own, so that a question asked twice stays in one split.
        max_bad_share: more bad rows than this share of a file stop the run. Every split reports the bad rows of the
            file it is drawn from.
        """
        _known("answer_format", answer_format, JUDGES)
        _known("match", match, MATCHES)
        layout = _layout(read, columns or {}, gold_format, match == "number", max_bad_share)
        files = {"train": path, "validation": validation_path, "test": test_path}
        shares = {"validation": validation_share, "test": test_share}
        _check_shares(shares)
        said = SYSTEM_PROMPTS[answer_format] if system is None else system
        judge = functools.partial(JUDGES[answer_format], same=MATCHES[match])
        return Task(kind, said, lambda split: _load(split, files, shares, layout), judge)

    return table_task


jsonl_task = _task_reading(read_jsonl, "jsonl")
csv_task = _task_reading(read_csv, "csv")


def _known(argument: str, given: str, allowed: Iterable[str]) -> None:
    if given not in allowed:
        raise UserError(f"task.args.{argument}: there is no '{given}'.{did_you_mean(given, allowed)}")


def _layout(read: Any, columns: Mapping[str, str], gold_format: str, numeric: bool, max_bad_share: float) -> Layout:
    if not isinstance(columns, Mapping):
        raise UserError(f"task.args.columns: give a mapping such as {{question: prompt}}, not {columns!r}.")
    for name in columns:
        _known("columns", name, ("question", "answer", "id"))
    _known("gold_format", gold_format, GOLD_FORMATS)
    question, answer = columns.get("question", "question"), columns.get("answer", "answer")
    return Layout(read, question, answer, columns.get("id"), gold_format, numeric, max_bad_share)


def _check_shares(shares: Mapping[str, float]) -> None:
    numbers = all(isinstance(share, int | float) and share >= 0 for share in shares.values())
    if not numbers or sum(shares.values()) >= 1:
        given = ", ".join(f"{name}_share={share!r}" for name, share in shares.items())
        raise UserError(f"task.args: {given} must be numbers from 0 whose sum stays below 1.")


def _load(split: str, files: Mapping[str, str | None], shares: Mapping[str, float], layout: Layout) -> Split:
    if split not in files:
        raise UserError(f"There is no split '{split}'; this task has {', '.join(files)}.")
    others = tuple(_path(name, file) for name, file in files.items() if name != "train" and file)
    own = files[split]
    if own and split != "train":
        # A question that stands in two files belongs to the last one: what is learnt must not be what is tested.
        return _read(_path(split, own), layout, others[others.index(_path(split, own)) + 1 :])
    whole = _read(_path("train", files["train"]), layout, others)
    drawn = {name: share for name, share in shares.items() if not files[name]}
    examples = tuple(e for e in whole.examples if _drawn_to(e, drawn) == split)
    if not examples and drawn.get(split) != 0:
        raise UserError(
            f"No row of {files['train']} falls into the {split} split. With so few rows, give task.args.{split}_path."
        )
    return Split(examples, whole.bad_rows)


def _path(split: str, file: str | None) -> Path:
    path = Path(file or "")
    if not path.is_file():
        raise UserError(f"task.args.{'' if split == 'train' else split + '_'}path: there is no file '{file}'.")
    return path


def _drawn_to(example: Example, shares: Mapping[str, float]) -> str:
    """The split of an example of the main file; test first, so that it stays the same when validation_share changes."""
    place = question_hash(example.prompt[-1]["content"])
    for split in ("test", "validation"):
        if place < shares.get(split, 0):
            return split
        place -= shares.get(split, 0)
    return "train"


def _read(path: Path, layout: Layout, not_in: tuple[Path, ...]) -> Split:
    """The file's examples but for questions that stand in `not_in`; read once until the file changes."""
    return _read_once(path, path.stat().st_mtime_ns, layout, not_in)


@functools.lru_cache(maxsize=8)
def _read_once(path: Path, _changed_ns: int, layout: Layout, not_in: tuple[Path, ...]) -> Split:
    taken = {
        question_hash(example.prompt[-1]["content"]): other.name
        for other in not_in
        for example in _read(other, layout, ()).examples
    }

    stem = path.stem

    def to_example(line: int, row: Mapping[str, Any]) -> Example:
        example = _example(f"{stem}/{line}", row, layout)
        other = taken.get(question_hash(example.prompt[-1]["content"])) if taken else None
        if other:
            raise BadRowError(f"the question also stands in {other}")
        return example

    return collect(layout.read(path), to_example, layout.max_bad_share)


def _example(default_id: str, row: Mapping[str, Any], layout: Layout) -> Example:
    question = text_of(row, layout.question)
    answer = GOLD_FORMATS[layout.gold_format](_text_or_number(row, layout.answer))
    if not answer:
        raise BadRowError(f"no {layout.gold_format} answer in '{layout.answer}'")
    if layout.numeric and not (answer.isascii() and answer.isdigit()) and parse_number(answer) is None:
        raise BadRowError(f"'{answer[:40]}' in '{layout.answer}' is no number (task.args.match)")
    identity = _text_or_number(row, layout.id) if layout.id else default_id
    meta = {name: value for name, value in row.items() if name not in (layout.question, layout.answer, layout.id)}
    if layout.gold_format in ("hash", "boxed"):
        meta.setdefault("solution", row[layout.answer])  # what stands before the mark is how it is solved
    return Example(identity, ({"role": "user", "content": question},), answer, meta)


def _text_or_number(row: Mapping[str, Any], column: str) -> str:
    """As `text_of`, but JSON writes 42 as readily as "42"; true, null and NaN are no answers."""
    value = row.get(column)
    is_number = type(value) is int or (type(value) is float and math.isfinite(value))
    return str(value) if is_number else text_of(row, column)
