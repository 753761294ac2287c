"""Files and data sets as tables: every kind read into the same rows, and whatever it is not named as what it is."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import pytest
from conftest import ROOT

import train
from llm_grpo.config.loading import load_config
from llm_grpo.errors import NotAtHandError, UserError
from llm_grpo.evaluation.files import read_completions
from llm_grpo.prompts import ensure_template
from llm_grpo.records import Task
from llm_grpo.rewards.scoring import score_file
from llm_grpo.rollouts.asking import read_prompts
from llm_grpo.tasks import build_task
from llm_grpo.tasks.hub import hub_name

ROWS = [{"question": f"What is {n}+1?", "answer": n + 1, "note": f"né {n}"} for n in range(4)]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)
CSV = "question,answer,note\n" + "".join(f"What is {n}+1?,{n + 1},né {n}\n" for n in range(4))


def task_of(kind: str, path: Path, **args: object) -> Task:
    """Every row trains, unless told otherwise."""
    return build_task(kind, {"path": str(path), "validation_share": 0, "test_share": 0, **args})


def parquet(path: Path, rows: list[dict]) -> Path:
    from pyarrow import Table
    from pyarrow.parquet import write_table

    write_table(Table.from_pylist(rows), path, row_group_size=3)
    return path


def written(path: Path, text: str | bytes) -> Path:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


READ = [
    ("jsonl", LINES, "one object a line"),
    ("jsonl", "\ufeff" + LINES, "with a byte-order mark"),
    ("json", json.dumps(ROWS), "an array in one line"),
    ("json", "\ufeff\n" + json.dumps(ROWS, indent=2, ensure_ascii=False), "an array over many lines, with a mark"),
    ("json", LINES, "objects line by line under the name .json"),
    ("csv", CSV, "a table"),
    ("csv", "\ufeff" + CSV, "as spreadsheets write it"),
    ("parquet", None, "columns"),
]


@pytest.mark.parametrize(("kind", "text", "why"), READ, ids=[f"{row[0]}-{row[2]}" for row in READ])
def test_every_kind_gives_the_same_examples(tmp_path: Path, kind: str, text: str | None, why: str) -> None:
    file = tmp_path / f"t.{kind}"
    parquet(file, ROWS) if text is None else written(file, text)
    examples = task_of(kind, file).load("train").examples
    assert [e.question for e in examples] == [row["question"] for row in ROWS], why
    assert [e.answer for e in examples] == ["1", "2", "3", "4"]
    assert [e.meta for e in examples] == [{"note": row["note"]} for row in ROWS]
    lines = {"jsonl": 1, "csv": 2, "json": 1, "parquet": 1}[kind]
    assert [e.id for e in examples] == [f"t/{n + lines}" for n in range(4)]


def test_parquet_gives_python_values(tmp_path: Path) -> None:
    row = {"question": "q", "answer": "a", "at": datetime(2026, 1, 1), "tags": [1, 2], "raw": b"\xff", "none": None}
    (example,) = task_of("parquet", parquet(tmp_path / "t.parquet", [row])).load("train").examples
    assert example.meta == {name: row[name] for name in ("at", "tags", "raw", "none")}


NAMED = [
    ("jsonl", gzip.compress(LINES.encode()), "compressed by gzip (unpack it", "gzip"),
    ("csv", gzip.compress(CSV.encode()), "compressed by gzip", "gzip under the name of a table"),
    ("jsonl", LINES.encode("utf-16"), "UTF-16 text (save it as UTF-8", "UTF-16 with its mark"),
    ("csv", CSV.encode("utf-16-be"), "UTF-16 text", "UTF-16 without a mark"),
    ("csv", CSV.encode("utf-16-le"), "UTF-16 text", "the other order"),
    ("jsonl", b"PAR1 and more", "Apache Parquet (the task `parquet` reads it)", "Parquet"),
    ("json", b"PAR1 and more", "Apache Parquet", "Parquet under the name of JSON"),
    ("csv", b"PK\x03\x04 and more", "a spreadsheet (save it as CSV)", "a workbook"),
    ("jsonl", json.dumps(ROWS).encode(), "is a JSON array.*task.name=json", "an array in one line"),
    ("jsonl", json.dumps(ROWS, indent=1).encode(), "is a JSON array", "an array over many lines"),
    ("json", b'[{"question": "q", "answer": 1},\n{"question" "q"}]', "t.json:2: broken JSON", "a fault in the array"),
    ("parquet", LINES.encode(), "cannot be read as Parquet", "text under the name of Parquet"),
    ("csv", b"question,answer\nq,\0\n", "no text", "zero bytes inside"),
]


@pytest.mark.parametrize(("kind", "content", "said", "why"), NAMED, ids=[row[3] for row in NAMED])
def test_what_it_is_not_is_named(tmp_path: Path, kind: str, content: bytes, said: str, why: str) -> None:
    file = written(tmp_path / f"t.{kind}", content)
    with pytest.raises(UserError, match=said.replace("(", r"\(").replace(")", r"\)")):
        task_of(kind, file).load("train")


NOT_UTF8 = [
    ("jsonl", LINES.encode().replace("é 2".encode(), b"\xe9 2"), 3, "'note'", "in a column that nobody reads"),
    ("jsonl", LINES.encode().replace(b'"answer": 3', b'"a\xe9": 1, "answer": 3'), 3, r"'a\udce9'", "in a name"),
    ("csv", CSV.encode().replace("é 2".encode(), b"\xe9 2"), 4, "'note'", "in a table"),
    ("json", json.dumps(ROWS, indent=1).encode().replace(rb"n\u00e9 2", b"\xe9"), 3, "'note'", "in an array"),
    ("jsonl", LINES.encode().replace('"né 2"'.encode(), b'[{"a": "\xe9"}]'), 3, "'note'", "deep inside"),
]


@pytest.mark.parametrize(("kind", "content", "line", "column", "why"), NOT_UTF8, ids=[row[4] for row in NOT_UTF8])
def test_one_byte_that_is_not_utf8_is_told(
    tmp_path: Path, kind: str, content: bytes, line: int, column: str, why: str
) -> None:
    file = written(tmp_path / f"t.{kind}", content)
    split = task_of(kind, file, max_bad_share=0.3).load("train")
    assert [str(bad) for bad in split.bad_rows] == [f"{file}:{line}: {column} is not valid UTF-8 (the byte 0xe9)"], why
    assert len(split.examples) == 3
    with pytest.raises(UserError, match="1 of 4 rows cannot be used"):
        task_of(kind, file).load("train")


def test_every_row_has_the_columns_of_its_file(tmp_path: Path) -> None:
    """A reward asks for a column by name in every batch, also where no row of the batch has it."""
    file = written(tmp_path / "t.jsonl", LINES + '{"question": "q", "answer": 1, "level": 3}\n')
    metas = [example.meta for example in task_of("jsonl", file).load("train").examples]
    assert metas == [{"note": row["note"], "level": None} for row in ROWS] + [{"note": None, "level": 3}]


# --- prompts, completions, templates, files of the lab -----------------------------------------------------------


def template(path: Path) -> object:
    class Tokenizer:
        chat_template = ""

        def apply_chat_template(self, messages: list, **options: object) -> str:
            return self.chat_template + str(messages)

    ensure_template(tokenizer := Tokenizer(), str(path))
    return tokenizer.chat_template


def scored(path: Path) -> object:
    return score_file(
        {"one": lambda completions, **columns: [1.0] * len(completions)}, path, path.with_suffix(".out")
    ).lines


PLACES: list[tuple[Callable[[Path], object], str, object]] = [
    (lambda path: read_prompts(str(path)), '{"prompt": "p"}\n', ["p"]),
    (read_completions, '{"id": "a", "completion": "c"}\n', {"a": "c"}),
    (template, "{{ messages }}", "{{ messages }}"),
    (scored, '{"completion": "c", "answer": "1"}\n', 1),
]


@pytest.mark.parametrize(("read", "text", "wanted"), PLACES, ids=["prompts", "completions", "template", "lab"])
def test_other_files_are_read_and_named_alike(tmp_path: Path, read: Callable, text: str, wanted: object) -> None:
    assert read(written(tmp_path / "plain", text)) == read(written(tmp_path / "mark", "\ufeff" + text)) == wanted
    others = [(text.encode("utf-16"), "UTF-16"), (gzip.compress(text.encode()), "gzip"), (b"PAR1", "Parquet")]
    others.append((text.strip().encode() + b"\n\xe9", "other:2: .*(is not UTF-8|codec can't decode)"))
    if read is not template:
        others.append((json.dumps([json.loads(text)]).encode(), "JSON array"))
    for content, said in others:
        with pytest.raises(UserError, match=said):
            read(written(tmp_path / "other", content))


# --- the Hub -----------------------------------------------------------------------------------------------------


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def data_set(folder: Path) -> Path:
    """A data set as it lies on the Hub: a file for each split."""
    (folder / "data").mkdir(parents=True)
    rows = [{"question": f"What is {n}+1?", "answer": f"so\n#### {n + 1}", "level": n} for n in range(300)]
    parquet(folder / "data" / "train-00000-of-00001.parquet", rows[:280])
    parquet(folder / "data" / "test-00000-of-00001.parquet", rows[270:])
    return folder


def test_a_data_set_of_the_hub(tmp_path: Path, cache: None) -> None:
    folder = data_set(tmp_path / "mine")
    task = build_task("hub", {"path": str(folder), "test_split": "test", "gold_format": "hash", "max_bad_share": 0.05})
    loaded = {split: task.load(split) for split in ("train", "validation", "test")}
    assert [e.answer for e in loaded["test"].examples] == [str(n + 1) for n in range(270, 300)]
    assert loaded["test"].examples[0].id == "mine/test/1" and loaded["test"].examples[0].meta["level"] == 270
    drawn = len(loaded["train"].examples) + len(loaded["validation"].examples)
    assert drawn == 270 and len(loaded["validation"].examples) > 3, "what is not named is drawn from `split`"
    assert {bad.reason for bad in loaded["train"].bad_rows} == {f"the question also stands in {folder}/test"}


WRONG = [
    (
        {"path": "nobody/nothing-of-that-name"},
        NotAtHandError,
        "nobody/nothing-of-that-name cannot be had",
        "unreachable",
    ),
    ({"path": "FOLDER", "split": "dev"}, UserError, "cannot read split 'dev'.*dev", "no such split"),
    ({"path": "FOLDER/data/test-00000-of-00001.parquet"}, UserError, "is a file; task.name is its kind", "a file"),
    (
        {"path": "hf://datasets/nobody/nothing@v1/data/*.parquet"},
        NotAtHandError,
        "nobody/nothing cannot be had",
        "hf://",
    ),
]


@pytest.mark.parametrize(("args", "error", "said", "why"), WRONG, ids=[row[3] for row in WRONG])
def test_what_the_hub_does_not_give(tmp_path: Path, cache: None, args: dict, error: type, said: str, why: str) -> None:
    folder = data_set(tmp_path / "mine")
    args = {name: value.replace("FOLDER", str(folder)) for name, value in args.items()}
    with pytest.raises(error, match=said) as raised:
        build_task("hub", args).load("train")
    assert raised.type is error


NAMES = [
    ("owner/set", ("owner/set", None, None), "as the Hub shows it"),
    ("hf://datasets/owner/set", ("owner/set", None, None), "as huggingface_hub writes it"),
    ("hf://datasets/owner/set@v1/data/*.parquet", ("owner/set", "v1", "data/*.parquet"), "a revision, and files in it"),
    ("./folder/set", ("./folder/set", None, None), "a folder"),
]


@pytest.mark.parametrize(("path", "wanted", "why"), NAMES, ids=[row[2] for row in NAMES])
def test_hub_names(path: str, wanted: tuple, why: str) -> None:
    assert hub_name(path) == wanted, why


def test_a_file_on_the_hub_is_the_hubs_task() -> None:
    task = build_task("csv", {"path": "hf://datasets/a/b"})
    with pytest.raises(UserError, match=r"is on the Hub; write task: \{name: hub, args: \{path: hf://datasets/a/b\}\}"):
        task.load("train")


# --- what a plan can go on without -------------------------------------------------------------------------------


def planned(task: dict) -> int:
    return train.dry_run(load_config(ROOT / "configs" / "demo.yaml", [f"task={json.dumps(task)}"], environment={}))


AWAY = [
    ({"name": "jsonl", "args": {"path": "nowhere.jsonl"}}, "a file that is not there"),
    ({"name": "gsm8k", "args": {"path": "nowhere"}}, "a folder that is not there"),
    ({"name": "lead_qualification", "args": {"path": "nowhere.csv"}}, "a table that is not there"),
    ({"name": "hub", "args": {"path": "nobody/nothing"}}, "a data set that cannot be reached"),
]


@pytest.mark.parametrize(("task", "why"), AWAY, ids=[row[1] for row in AWAY])
def test_a_plan_goes_on_without_what_is_not_at_hand(task: dict, why: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert planned(task) == 0, why
    assert "The data are not at hand" in capsys.readouterr().out


def test_a_plan_does_not_go_on_with_broken_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broken = written(tmp_path / "t.jsonl", LINES + "{broken\n")
    with pytest.raises(UserError, match=f"1 of 5 rows cannot be used(.|\n)*{broken}:5: broken JSON"):
        planned({"name": "jsonl", "args": {"path": str(broken)}})
    assert "not at hand" not in capsys.readouterr().out
