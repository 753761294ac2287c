"""Your own data without code: a file with a question and an answer in each row, as JSON lines, JSON, CSV or Parquet."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from llm_grpo.answers.equality import MATCHES
from llm_grpo.answers.formats import extract_boxed_answer, extract_hash_answer, extract_xml_answer
from llm_grpo.answers.judging import JUDGES
from llm_grpo.errors import NotAtHandError, UserError, check_choice, not_there
from llm_grpo.prompts import SYSTEM_PROMPTS
from llm_grpo.records import Example, Split, Task
from llm_grpo.tasks.readers import Row, read_csv, read_json, read_jsonl, read_parquet
from llm_grpo.tasks.rows import BadRowError, check_shares, check_split, collect, drawn, question_hash, text_of


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
    """How an example lies in a row. Hashable, so that a source is read once for each layout."""

    question: str
    answer: str
    id: str | None
    gold_format: str
    match: str
    max_bad_share: float


class Source(NamedTuple):
    """Where the rows of a split stand. Hashable, so that they are read once until a file changes.

    name: as it is said. stem: an example without an id of its own is called by it and the number of its line.
    """

    read: Callable[[Any], Iterator[Row]]
    place: Any  # what `read` is given
    name: str
    stem: str
    changed_ns: int = 0


Find = Callable[[str, str], Source]  # (split, what the user gave for it) -> where its rows stand


def table_task(
    kind: str,
    find: Find,
    given: Mapping[str, str | None],
    *,
    columns: Mapping[str, str] | None = None,
    answer_format: str = "xml",
    gold_format: str = "plain",
    match: str = "value",
    system: str | None = None,
    validation_share: float = 0.05,
    test_share: float = 0.05,
    max_bad_share: float = 0.01,
) -> Task:
    """The task whose rows `find` finds; given: {split: what the user gave for it}.

    columns: our names (question, answer, id) to the file's. Other columns go to Example.meta; without an id column an
        example is called by its file and line.
    answer_format: how the model is to answer: xml, hash, boxed or plain.
    gold_format: how the gold stands in the answer column: xml, hash, boxed or plain.
    match: when an answer is the gold: value (as text, number or formula), number, calculation (`(9 + 5) / 2` is 7),
        text (case and spaces aside) or exact (every character).
    validation_share, test_share: drawn from the train rows by a hash of the question where the split has no rows of its
        own, so that a question asked twice stays in one split.
    max_bad_share: more bad rows than this share of a file stop the run. Every split reports the bad rows of the file it
        is drawn from.
    """
    check_choice("task.args.answer_format", answer_format, JUDGES)
    check_choice("task.args.match", match, MATCHES)
    layout = _layout(columns or {}, gold_format, match, max_bad_share)
    shares = {"validation": validation_share, "test": test_share}
    check_shares(shares)
    said = SYSTEM_PROMPTS[answer_format] if system is None else system
    judge = functools.partial(JUDGES[answer_format], same=MATCHES[match])
    return Task(kind, said, lambda split: _load(split, find, given, shares, layout), judge)


def with_table_arguments(task: Callable[..., Task]) -> Callable[..., Task]:
    """The task with the arguments of `table_task` in place of its `**rest`, so that they too are checked by name."""
    own, shared = (list(inspect.signature(function).parameters.values()) for function in (task, table_task))
    task.__signature__ = inspect.Signature([*own[:-1], *(p for p in shared if p.kind is p.KEYWORD_ONLY)])
    return task


def _file_task(kind: str, read: Callable[[Path], Iterator[Row]]) -> Callable[..., Task]:
    """The task function for one kind of file; all kinds have the same arguments."""

    def file_task(*, path: str, validation_path: str | None = None, test_path: str | None = None, **rest: Any) -> Task:
        """A task from files of your own; a split without one is drawn from `path`. The rest is said at `table_task`."""
        given = {"train": path, "validation": validation_path, "test": test_path}
        return table_task(kind, functools.partial(_file, read), given, **rest)

    return with_table_arguments(file_task)


jsonl_task = _file_task("jsonl", read_jsonl)
json_task = _file_task("json", read_json)
csv_task = _file_task("csv", read_csv)
parquet_task = _file_task("parquet", read_parquet)


def _layout(columns: Mapping[str, str], gold_format: str, match: str, max_bad_share: float) -> Layout:
    if not isinstance(columns, Mapping):
        raise UserError(f"task.args.columns: give a mapping such as {{question: prompt}}, not {columns!r}.")
    for name in columns:
        check_choice("task.args.columns", name, ("question", "answer", "id"))
    check_choice("task.args.gold_format", gold_format, GOLD_FORMATS)
    question, answer = columns.get("question", "question"), columns.get("answer", "answer")
    return Layout(question, answer, columns.get("id"), gold_format, match, max_bad_share)


def _load(
    split: str, find: Find, given: Mapping[str, str | None], shares: Mapping[str, float], layout: Layout
) -> Split:
    check_split("this task", split)
    others = {name: find(name, place) for name, place in given.items() if name != "train" and place}
    if split in others:
        # A question that stands in two files belongs to the last one: what is learnt must not be what is tested.
        places = list(others.values())
        return _read(others[split], layout, tuple(places[places.index(others[split]) + 1 :]))
    whole = _read(find("train", given["train"] or ""), layout, tuple(others.values()))
    drawn_shares = {name: share for name, share in shares.items() if name not in others}
    own = f"a {split} split of its own (task.args.{split}_path; of the Hub, {split}_split)"
    return drawn(whole, split, drawn_shares, given["train"], f"With so few rows, give the task {own}.")


def _file(read: Callable[[Path], Iterator[Row]], split: str, given: str) -> Source:
    path, argument = Path(given), f"task.args.{'' if split == 'train' else split + '_'}path"
    if given.startswith("hf://"):
        raise UserError(f"{argument}: {given} is on the Hub; write task: {{name: hub, args: {{path: {given}}}}}.")
    if not path.is_file():
        raise NotAtHandError(f"{argument}: {not_there(path)}")
    return Source(read, path, path.name, path.stem, path.stat().st_mtime_ns)


@functools.lru_cache(maxsize=8)
def _read(source: Source, layout: Layout, not_in: tuple[Source, ...]) -> Split:
    """The examples of a source but for questions that stand in `not_in`."""
    taken = {
        question_hash(example.prompt[-1]["content"]): other.name
        for other in not_in
        for example in _read(other, layout, ()).examples
    }

    def to_example(line: int, row: Mapping[str, Any]) -> Example:
        example = _example(f"{source.stem}/{line}", row, layout)
        other = taken.get(question_hash(example.prompt[-1]["content"])) if taken else None
        if other:
            raise BadRowError(f"the question also stands in {other}")
        return example

    return collect(source.read(source.place), to_example, layout.max_bad_share)


def _example(default_id: str, row: Mapping[str, Any], layout: Layout) -> Example:
    question = text_of(row, layout.question)
    answer = GOLD_FORMATS[layout.gold_format](_text_or_number(row, layout.answer))
    if not answer:
        raise BadRowError(f"no {layout.gold_format} answer in '{layout.answer}'")
    valued, plain = layout.match in ("number", "calculation"), answer.isascii() and answer.isdigit()
    if valued and not plain and not MATCHES[layout.match](answer, answer):
        raise BadRowError(f"'{answer[:40]}' in '{layout.answer}' is no {layout.match} (task.args.match)")
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
