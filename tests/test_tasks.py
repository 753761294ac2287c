"""Data sets become examples: hard golds, rows that cannot be used, and splits that never share a problem."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from llm_grpo.answers.equality import same_answer
from llm_grpo.errors import UserError
from llm_grpo.records import Split, Task
from llm_grpo.tasks import build_task
from llm_grpo.tasks.readers import read_jsonl

ROOT = Path(__file__).parents[1]
SPLITS = ("train", "validation", "test")


def write_jsonl(path: Path, rows: list[object]) -> Path:
    """One line per row; a string is written as it is."""
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def gsm8k_folder(folder: Path, train: list[object], test: list[object] | None = None) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    write_jsonl(folder / "train.jsonl", train)
    write_jsonl(folder / "test.jsonl", test or [{"question": "What is 1+1?", "answer": "2\n#### 2"}])
    return folder


def plain_rows(count: int) -> list[object]:
    return [{"question": f"What is {n}+1?", "answer": f"{n}+1\n#### {n + 1}"} for n in range(count)]


def questions(split: Split) -> set[str]:
    return {example.prompt[-1]["content"] for example in split.examples}


# --- gsm8k -----------------------------------------------------------------------------------------------------

HARD_GOLDS = [
    ("He has 3.\n#### 3", "3", "the plain case"),
    ("so\n#### 1,234", "1234", "a thousands separator"),
    ("so\n#### 109,200,000", "109200000", "several separators"),
    ("so\n#### $18", "18", "a currency sign"),
    ("he loses\n#### -5", "-5", "a negative number keeps its sign"),
    ("so\n#### -1,000", "-1000", "sign and separator"),
    ("so\n####7", "7", "no blank behind the mark"),
    ("so\n####   7  ", "7", "blanks around it"),
    ("so\n#### 0.5", "0.5", "a decimal point stays"),
    ("#### is the mark\n#### 12", "12", "the last mark counts, not the first"),
    ("so\n#### 8\n", "8", "a newline at the end"),
]


@pytest.mark.parametrize(("solution", "gold", "why"), HARD_GOLDS)
def test_gsm8k_gold(tmp_path: Path, solution: str, gold: str, why: str) -> None:
    folder = gsm8k_folder(tmp_path, [{"question": "How many?", "answer": solution}])
    split = build_task("gsm8k", {"path": str(folder), "validation_size": 0}).load("train")
    assert split.examples[0].answer == gold, why


UNUSABLE = [
    ({"question": "q", "answer": "no mark at all"}, "####", "without a mark there is no gold"),
    ({"question": "q", "answer": "mark, nothing behind\n####  "}, "####", "empty answer"),
    ({"question": "q", "answer": "#### $"}, "####", "nothing but a currency sign"),
    ({"question": "q"}, "no column 'answer'", "missing key"),
    ({"question": "q", "anwser": "#### 1"}, "Did you mean 'anwser'", "a slip in the key is named"),
    ({"question": "q", "answer": 5}, "int, not text", "a number where text belongs"),
    ({"question": ["q"], "answer": "#### 1"}, "list, not text", "a list as question"),
    ({"question": "  ", "answer": "#### 1"}, "'question' is empty", "an empty question"),
    ({"question": "q \ud800", "answer": "#### 1"}, "not valid UTF-8", "a lone surrogate no tokenizer takes"),
    ('{"question": "q", "answer": "#### 1"', "broken JSON", "cut off in the middle"),
    ('["question", "answer"]', "not list", "JSON, but no object"),
    ("[" * 100_000, "broken JSON", "nested deeper than the parser goes"),
    ('{"question": "q", "answer": ' + "9" * 10_000 + "}", "broken JSON", "a number longer than Python reads"),
]


@pytest.mark.parametrize(("row", "reason", "why"), UNUSABLE)
def test_gsm8k_unusable_row_is_told_by_file_and_line(tmp_path: Path, row: object, reason: str, why: str) -> None:
    folder = gsm8k_folder(tmp_path, [*plain_rows(2), row, *plain_rows(1)])
    split = build_task("gsm8k", {"path": str(folder), "validation_size": 1, "max_bad_share": 0.5}).load("train")
    (bad,) = split.bad_rows
    assert bad.line == 3 and bad.file.endswith("train.jsonl") and reason in bad.reason, why
    assert len(split.examples) == 2, "three good rows, one of them held back"


def test_bytes_that_are_not_utf8_cost_one_row(tmp_path: Path) -> None:
    folder = gsm8k_folder(tmp_path, plain_rows(3))
    file = folder / "train.jsonl"
    file.write_bytes(b'{"question": "caf\xe9?", "answer": "#### 1"}\r\n\r\n' + file.read_bytes())
    split = build_task("gsm8k", {"path": str(folder), "validation_size": 0, "max_bad_share": 0.5}).load("train")
    assert [(bad.line, bad.reason) for bad in split.bad_rows] == [(1, "'question' is not valid UTF-8 (the byte 0xe9)")]
    assert [example.id for example in split.examples] == ["gsm8k/train/3", "gsm8k/train/4", "gsm8k/train/5"]


def test_too_many_bad_rows_stop_the_run_and_are_shown(tmp_path: Path) -> None:
    folder = gsm8k_folder(tmp_path, [*plain_rows(90), *["{broken"] * 10])
    with pytest.raises(UserError, match=r"10 of 100 rows .*1\.0%") as error:
        build_task("gsm8k", {"path": str(folder)}).load("train")
    assert "train.jsonl:91: broken JSON" in str(error.value) and "..." in str(error.value)
    allowed = build_task("gsm8k", {"path": str(folder), "max_bad_share": 0.1, "validation_size": 9}).load("train")
    assert len(allowed.examples) == 81 and len(allowed.bad_rows) == 10


def test_gsm8k_holds_back_a_fixed_part_from_the_whole_file(tmp_path: Path) -> None:
    rows = plain_rows(300)
    task = build_task("gsm8k", {"path": str(gsm8k_folder(tmp_path / "a", rows)), "validation_size": 50})
    train, validation = questions(task.load("train")), questions(task.load("validation"))
    assert len(validation) == 50 and len(train) == 250 and not train & validation
    assert not {f"What is {n}+1?" for n in range(50)} <= validation, "not the head of the file"
    turned = build_task("gsm8k", {"path": str(gsm8k_folder(tmp_path / "b", rows[::-1])), "validation_size": 50})
    assert questions(turned.load("validation")) == validation, "the order of the rows does not matter"


@pytest.mark.parametrize("size", [-1, 3, 100])
def test_gsm8k_refuses_a_validation_part_that_leaves_nothing(tmp_path: Path, size: int) -> None:
    task = build_task("gsm8k", {"path": str(gsm8k_folder(tmp_path, plain_rows(3))), "validation_size": size})
    with pytest.raises(UserError, match=r"validation_size is -?\d+; give 0 to 2"):
        task.load("train")


def test_gsm8k_place_by_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gsm8k_folder(tmp_path / "gsm8k", plain_rows(4), plain_rows(2))
    monkeypatch.setenv("LLM_GRPO_DATA", str(tmp_path))
    assert len(build_task("gsm8k", {}).load("test").examples) == 2
    with pytest.raises(UserError, match=r"is not there.*task\.args\.path"):
        build_task("gsm8k", {"path": str(tmp_path / "nowhere")}).load("test")


def test_gsm8k_offline_says_the_way_out() -> None:
    """In a process of its own, because huggingface_hub reads HF_HUB_OFFLINE once, when it is imported."""
    code = "from llm_grpo.tasks import build_task; build_task('gsm8k', {}).load('test')"
    environment = {name: value for name, value in os.environ.items() if name != "LLM_GRPO_DATA"}
    environment |= {"HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT / "src"), "HF_HOME": "/nonexistent"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    last = done.stderr.strip().splitlines()[-1]
    for part in ("NotAtHandError: openai/gsm8k cannot be had", "task.args.path", "LLM_GRPO_DATA"):
        assert part in last


def test_the_real_gsm8k_loads_whole() -> None:
    given = os.environ.get("LLM_GRPO_DATA")
    folder = Path(given) if given else ROOT / "../shared/data"
    if not (folder / "gsm8k" / "train.jsonl").is_file():
        pytest.skip("GSM8K is not here: set LLM_GRPO_DATA to the folder that holds gsm8k/")
    task = build_task("gsm8k", {"path": str(folder / "gsm8k")})
    loaded = {split: task.load(split) for split in SPLITS}
    assert [len(loaded[split].examples) for split in SPLITS] == [7217, 256, 1319]
    assert not any(loaded[split].bad_rows for split in SPLITS)
    examples = [example for split in SPLITS for example in loaded[split].examples]
    assert len({example.id for example in examples}) == 8792
    assert len(set.union(*(questions(loaded[split]) for split in SPLITS))) == 8792, "no question stands in two splits"
    golds = [example.answer for example in examples]
    assert all(gold.lstrip("-").isdecimal() for gold in golds), "no comma, no currency sign is left"
    assert sum(gold.startswith("-") for gold in golds) == 5
    for example in examples:
        assert task.judge(f"<reasoning>\nx\n</reasoning>\n<answer>\n{example.answer}\n</answer>", example.answer).strict
        assert same_answer(example.meta["solution"].rpartition("####")[2], example.answer)


# --- jsonl and csv -----------------------------------------------------------------------------------------------


def table(path: Path, **args: object) -> Task:
    """A task whose rows all train, unless told otherwise."""
    kind = "csv" if path.suffix == ".csv" else "jsonl"
    return build_task(kind, {"path": str(path), "validation_share": 0, "test_share": 0} | args)


def test_columns_are_mapped_and_the_rest_is_kept(tmp_path: Path) -> None:
    row = {"key": "a1", "prompt": "What?", "gold": "x", "level": 3}
    file = write_jsonl(tmp_path / "mine.jsonl", [row])
    task = table(file, columns={"question": "prompt", "answer": "gold", "id": "key"})
    (example,) = task.load("train").examples
    assert (example.id, example.answer, dict(example.meta)) == ("a1", "x", {"level": 3})
    assert example.prompt == ({"role": "user", "content": "What?"},)
    assert table(write_jsonl(tmp_path / "b.jsonl", plain_rows(1))).load("train").examples[0].id == "b/1"


GOLDS = [
    ("plain", "  Paris ", "Paris", "blanks around it"),
    ("plain", 42, "42", "JSON's own number"),
    ("plain", -0.5, "-0.5", "a decimal number"),
    ("hash", "so\n#### 1,234", "1,234", "kept as it is written: the judge compares values"),
    ("xml", "<reasoning>\nr\n</reasoning>\n<answer>\nred\n</answer>", "red", "a whole model answer as gold"),
]


@pytest.mark.parametrize(("gold_format", "written", "gold", "why"), GOLDS)
def test_gold_formats(tmp_path: Path, gold_format: str, written: object, gold: str, why: str) -> None:
    file = write_jsonl(tmp_path / "t.jsonl", [{"question": "q", "answer": written}])
    assert table(file, gold_format=gold_format).load("train").examples[0].answer == gold, why


NO_GOLDS = [
    ("hash", "42", "no hash answer"),
    ("xml", "42", "no xml answer"),
    ("xml", "<answer>  </answer>", "no xml answer"),
    ("plain", "", "'answer' is empty"),
    ("plain", True, "'answer' is bool, not text"),
    ("plain", None, "'answer' is NoneType, not text"),
    ("plain", float("nan"), "'answer' is float, not text"),
]


@pytest.mark.parametrize(("gold_format", "written", "reason"), NO_GOLDS)
def test_a_row_without_a_gold_is_a_bad_one(tmp_path: Path, gold_format: str, written: object, reason: str) -> None:
    file = write_jsonl(tmp_path / "t.jsonl", [{"question": "q", "answer": written}])
    with pytest.raises(UserError, match=f"t.jsonl:1: {reason}"):
        table(file, gold_format=gold_format).load("train")


ANSWERS = [("xml", "<reasoning>\nr\n</reasoning>\n<answer>\n8\n</answer>"), ("hash", "r\n#### 8"), ("plain", "8")]
ANSWERS += [("boxed", "r\n\\boxed{8}")]


@pytest.mark.parametrize(("answer_format", "right"), ANSWERS)
def test_answer_format_chooses_judge_and_system_prompt(tmp_path: Path, answer_format: str, right: str) -> None:
    task = table(write_jsonl(tmp_path / "t.jsonl", plain_rows(8)), gold_format="hash", answer_format=answer_format)
    gold = task.load("train").examples[7].answer
    assert task.judge(right, gold).strict and not task.judge(right.replace("8", "9"), gold).lenient
    for name, text in ANSWERS:
        assert task.judge(text, gold).strict == (name == answer_format), "each format is told from the others"
    assert {"xml": "<answer>", "hash": "####", "plain": "alone", "boxed": "\\boxed{"}[answer_format] in task.system
    assert table(tmp_path / "t.jsonl", system="Be brief.").system == "Be brief."


def test_csv_lines_are_the_physical_ones(tmp_path: Path) -> None:
    file = tmp_path / "t.csv"
    file.write_text(
        "\ufeffquestion,answer,note\r\n"  # a byte-order mark, as spreadsheets write it
        '"two\r\nlines, and a comma",1,"he said ""so"""\r\n'
        "short,2\r\n"
        "\r\n"
        "long,3,n,extra\r\n"
        "no answer,,n\r\n"
        f"very long,{'9' * 200_000},n\r\n"
        "last,5,n\r\n",
        encoding="utf-8",
        newline="",
    )
    split = table(file, max_bad_share=0.9).load("train")
    assert [(e.id, e.answer[:3]) for e in split.examples] == [("t/2", "1"), ("t/8", "999"), ("t/9", "5")]
    assert split.examples[0].prompt[0]["content"] == "two\r\nlines, and a comma"
    assert split.examples[0].meta == {"note": 'he said "so"'}
    assert [(bad.line, bad.reason) for bad in split.bad_rows] == [
        (4, "2 fields where the header has 3"),
        (6, "4 fields where the header has 3"),
        (7, "'answer' is empty"),
    ]


def test_csv_quote_that_is_never_closed_is_told_where_it_opens(tmp_path: Path) -> None:
    file = tmp_path / "t.csv"
    file.write_text('question,answer\na,1\nb,2\n"c,3\nd,4\n', encoding="utf-8")
    (bad,) = table(file, max_bad_share=0.9).load("train").bad_rows
    assert bad.line == 4 and "broken CSV" in bad.reason


BAD_HEADERS = [("", "name the columns"), ("question,question\n1,2\n", "each once"), ('"question,answer\n', "broken")]


@pytest.mark.parametrize(("text", "said"), BAD_HEADERS)
def test_csv_needs_a_header(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(UserError, match=said):
        table(tmp_path / "t.csv").load("train")


def test_a_missing_column_is_told_with_the_nearest(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("questions,gold\nq,1\n")
    with pytest.raises(UserError, match=r"t.csv:2: no column 'question'\. Did you mean 'questions'\?"):
        table(tmp_path / "t.csv").load("train")
    with pytest.raises(UserError, match=r"no column 'golden'\. Did you mean 'gold'\?"):
        table(tmp_path / "t.csv", columns={"question": "questions", "answer": "golden"}).load("train")


def test_an_id_given_twice_is_a_bad_row(tmp_path: Path) -> None:
    rows = [{"id": name, "question": f"q{n}", "answer": "1"} for n, name in enumerate(["a", "b", 7, "a", "7"])]
    split = table(write_jsonl(tmp_path / "t.jsonl", rows), columns={"id": "id"}, max_bad_share=0.5).load("train")
    assert [example.id for example in split.examples] == ["a", "b", "7"]
    assert [(bad.line, bad.reason) for bad in split.bad_rows] == [
        (4, "the id 'a' stands in line 1 already"),
        (5, "the id '7' stands in line 3 already"),
    ]


def test_splits_are_drawn_by_question_and_never_share_one(tmp_path: Path) -> None:
    twice = [{"question": row["question"].upper() + " ", "answer": row["answer"]} for row in plain_rows(400)]
    file = write_jsonl(tmp_path / "t.jsonl", plain_rows(400) + twice)
    task = table(file, validation_share=0.1, test_share=0.2)
    drawn = {split: {q.casefold().strip() for q in questions(task.load(split))} for split in SPLITS}
    assert sum(len(task.load(split).examples) for split in SPLITS) == 800
    assert sum(map(len, drawn.values())) == 400, "the two spellings of a question stay in one split"
    assert 20 <= len(drawn["validation"]) <= 60 and 50 <= len(drawn["test"]) <= 110
    wider = table(file, validation_share=0.3, test_share=0.2)
    assert questions(wider.load("test")) == questions(task.load("test")), "the test split does not move"


def test_files_of_their_own_win_and_a_shared_question_trains_nobody(tmp_path: Path) -> None:
    rows = plain_rows(10)
    train = write_jsonl(tmp_path / "train.jsonl", rows[:8])
    validation = write_jsonl(tmp_path / "v.jsonl", rows[7:9])
    test = write_jsonl(tmp_path / "test.jsonl", rows[8:])
    task = table(train, validation_path=str(validation), test_path=str(test), gold_format="hash", max_bad_share=0.5)
    assert questions(task.load("train")) == {row["question"] for row in rows[:7]}
    assert questions(task.load("validation")) == {rows[7]["question"]}
    assert questions(task.load("test")) == {row["question"] for row in rows[8:]}
    assert [str(bad) for bad in task.load("train").bad_rows] == [f"{train}:8: the question also stands in v.jsonl"]
    assert [bad.reason for bad in task.load("validation").bad_rows] == ["the question also stands in test.jsonl"]


def test_a_file_is_read_once_until_it_changes(tmp_path: Path) -> None:
    file = write_jsonl(tmp_path / "t.jsonl", plain_rows(40))
    first, again = table(file).load("train"), table(file, system="other").load("train")
    assert first.examples[0] is again.examples[0], "a second task in the process shares what was read"
    write_jsonl(file, plain_rows(50))
    os.utime(file, ns=(1, 1))
    assert len(table(file).load("train").examples) == 50


WRONG_ARGUMENTS = [
    ({"colums": {}}, r"unknown argument 'colums'\. Did you mean 'columns'"),
    ({"columns": {"qestion": "q"}}, r"columns: there is no 'qestion'\. Did you mean 'question'"),
    ({"columns": ["q"]}, "it takes Mapping"),
    ({"answer_format": "xlm"}, r"answer_format: there is no 'xlm'\. Did you mean 'xml'"),
    ({"gold_format": "json"}, r"gold_format: there is no 'json'\. Allowed: boxed, hash, plain, xml"),
    ({"test_share": 0.6, "validation_share": 0.5}, "stays below 1"),
    ({"test_share": -0.1}, "numbers from 0"),
    ({"validation_share": "5%"}, "it takes float"),
]


@pytest.mark.parametrize(("args", "said"), WRONG_ARGUMENTS)
def test_wrong_arguments_are_named(tmp_path: Path, args: dict[str, object], said: str) -> None:
    with pytest.raises(UserError, match=said):
        table(write_jsonl(tmp_path / "t.jsonl", plain_rows(3)), **args)


def test_missing_files_and_empty_splits_are_named(tmp_path: Path) -> None:
    file = write_jsonl(tmp_path / "t.jsonl", plain_rows(3))
    with pytest.raises(UserError, match=r"task\.args\.path: there is no file"):
        table(tmp_path / "gone.jsonl").load("train")
    with pytest.raises(UserError, match=r"task\.args\.test_path: there is no file gone"):
        table(file, test_path="gone").load("train")
    with pytest.raises(UserError, match="falls into the test split"):
        table(file, test_share=1e-9).load("test")
    assert table(file).load("test").examples == (), "a share of 0 asks for no test split"
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(UserError, match="no rows"):
        table(tmp_path / "empty.jsonl").load("train")
    for task in (table(file), build_task("gsm8k", {"path": str(tmp_path)})):
        with pytest.raises(UserError, match="There is no split 'dev'"):
            task.load("dev")


def test_rows_are_streamed(tmp_path: Path) -> None:
    """The first rows of a file are there before its end is read."""
    file = tmp_path / "endless.jsonl"
    os.mkfifo(file)
    code = f"f = open({str(file)!r}, 'w')\nwhile True: f.write('{{}}\\n')"
    writer = subprocess.Popen([sys.executable, "-c", code])
    try:
        rows = read_jsonl(file)
        assert [next(rows).line for _ in range(1000)] == list(range(1, 1001))
    finally:
        writer.kill()
        writer.wait()
