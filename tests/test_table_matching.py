"""A large table of one's own: pairs that stand twice, when an answer is the gold, and prompts measured in bulk."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from llm_grpo.answers.formats import FORMATS
from llm_grpo.answers.judging import JUDGES
from llm_grpo.errors import UserError
from llm_grpo.prompts import split_by_length
from llm_grpo.records import Example
from llm_grpo.rewards import build_reward
from llm_grpo.tasks import build_task
from llm_grpo.tasks import table as table_module

FIELDS = ("question", "answer", "generated_at", "pair_id")


def rows_of(count: int) -> list[dict[str, str]]:
    return [
        {
            "question": f"What is {n}+1?",
            "answer": f"{n}+1={n + 1}\n#### {n + 1}",
            "generated_at": "now",
            "pair_id": f"p{n}",
        }
        for n in range(count)
    ]


def write(file: Path, rows: list[dict[str, str]]) -> Path:
    with file.open("w", newline="") as target:
        if file.suffix == ".csv":
            writer = csv.DictWriter(target, FIELDS)
            writer.writeheader()
            writer.writerows(rows)
        else:
            target.writelines(json.dumps(row) + "\n" for row in rows)
    return file


def qa(file: Path, **args: object):
    given = {"path": str(file), "columns": {"id": "pair_id"}, "answer_format": "hash", "gold_format": "hash", **args}
    return build_task(file.suffix[1:], given)


@pytest.mark.parametrize("ending", ["jsonl", "csv"])
def test_a_pair_that_stands_twice_is_named_with_both_lines_and_does_not_stop_the_run(
    tmp_path: Path, ending: str
) -> None:
    rows = rows_of(400)
    rows[300] = {**rows[300], "pair_id": "p7"}
    task = qa(write(tmp_path / f"qa.{ending}", rows))
    (bad,) = task.load("train").bad_rows
    first, again = (8, 301) if ending == "jsonl" else (16, 602)  # a CSV row of two lines each, behind the header
    assert (bad.line, bad.reason) == (again, f"the id 'p7' stands in line {first} already")
    assert bad.file.endswith(f"qa.{ending}")
    everything = [example for split in ("train", "validation", "test") for example in task.load(split).examples]
    assert len(everything) == 399 and len({example.id for example in everything}) == 399
    assert everything[0].meta["generated_at"] == "now" and everything[0].answer.isdigit()


def test_too_many_pairs_that_stand_twice_stop_the_run(tmp_path: Path) -> None:
    rows = [{**row, "pair_id": f"p{number % 350}"} for number, row in enumerate(rows_of(400))]
    with pytest.raises(
        UserError, match=r"50 of 400 rows .*allows 1.0%(.|\n)*qa.jsonl:351: the id 'p0' stands in line 1"
    ):
        qa(write(tmp_path / "qa.jsonl", rows)).load("train")


def test_a_file_is_read_once_for_all_splits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = []
    monkeypatch.setattr(table_module, "_example", lambda *a, real=table_module._example: opened.append(1) or real(*a))
    task = qa(write(tmp_path / "qa.jsonl", rows_of(300)))
    for split in ("train", "validation", "test", "train"):
        task.load(split)
    assert len(opened) == 300


KINDS = ["value", "number", "calculation", "text", "exact"]
MATCHES = [
    # given, gold, value, number, calculation, text, exact
    ("42", "42", 1, 1, 1, 1, 1, "the same characters"),
    ("42.0", "42", 1, 1, 1, 0, 0, "the same value, written otherwise"),
    ("$1,234", "1234", 1, 1, 1, 0, 0, "dress of a number"),
    ("42 miles", "42 km", 0, 1, 1, 0, 0, "number looks at the number alone"),
    ("6 * 7", "42", 0, 0, 1, 0, 0, "what it comes to"),
    ("30 + 12", "7 * 6", 1, 0, 1, 0, 0, "another way there"),
    ("6 * 7 = 42", "42", 0, 0, 0, 0, 0, "a statement is no calculation"),
    ("6 * 8 = 42", "42", 0, 0, 0, 0, 0, "nor is a wrong one"),
    ("Paris.", "paris", 1, 0, 0, 1, 0, "case and full stop"),
    ("New  York", "New York", 1, 0, 0, 1, 0, "a blank more"),
    ("Paris", "London", 0, 0, 0, 0, 0, "another answer"),
    ("²", "2", 0, 0, 0, 0, 0, "a superscript is no digit"),
    ("", "", 0, 0, 0, 0, 0, "nothing equals nothing"),
    ("1 or 2", "1", 0, 0, 0, 0, 0, "two numbers are no answer"),
]  # fmt: skip


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("row", MATCHES, ids=[row[-1] for row in MATCHES])
def test_task_and_reward_agree_on_when_an_answer_is_the_gold(tmp_path: Path, row: tuple, name: str) -> None:
    given, gold, *right, why = row
    wanted = bool(right[KINDS.index(name)])
    judge = qa(write(tmp_path / "qa.jsonl", rows_of(300)), match=name).judge
    text = f"so\n#### {given}"
    assert judge(text, gold).strict == wanted, why
    if gold:
        reward = build_reward("correctness_reward_func", {"answer_format": "hash", "match": name})
        completion = [[{"role": "assistant", "content": text}]]
        assert reward(prompts=[[]], completions=completion, answer=[gold]) == [2.0 if wanted else 0.0], why


def test_a_gold_that_is_no_number_is_told_where_numbers_are_compared(tmp_path: Path) -> None:
    rows = rows_of(300)
    rows[4]["answer"] = "so\n#### Paris"
    file = write(tmp_path / "qa.jsonl", rows)
    (bad,) = qa(file, match="number").load("train").bad_rows
    assert (bad.line, bad.reason) == (5, "'Paris' in 'answer' is no number (task.args.match)")
    assert not qa(file, match="text").load("train").bad_rows
    with pytest.raises(UserError, match="task.args.match: there is no 'nubmer'. Did you mean 'number'"):
        qa(file, match="nubmer")


FORMED = [
    ("hash", "so\n#### 42", True), ("hash", "#### 41\n#### 42", False), ("hash", "42", False), ("hash", "#### 4\nmore", False),
    ("boxed", "so \\boxed{42}, as said", True), ("boxed", "\\boxed{41} \\boxed{42}", False), ("boxed", "\\boxed{}", False),
    ("boxed", "\\boxed{42", False), ("boxed", "42", False), ("plain", "42", True), ("plain", "so\n42", False), ("xml", "#### 42", False),
]  # fmt: skip


@pytest.mark.parametrize(("answer_format", "text", "formed"), FORMED)
def test_the_format_reward_knows_the_answer_formats(answer_format: str, text: str, formed: bool) -> None:
    reward = build_reward("strict_format_reward_func", {"answer_format": answer_format})
    assert reward(prompts=[[]], completions=[text], answer=["42"]) == [0.5 if formed else 0.0]
    assert JUDGES[answer_format](text, "42").formatted == FORMATS[answer_format].formed(text) == formed
    with pytest.raises(UserError, match="answer_format"):
        build_reward("strict_format_reward_func", {"answer_format": "hsah"})


def test_prompts_in_bulk_are_measured_as_one_by_one(tokenizer) -> None:
    texts = ["a " * n for n in range(60)] + ["é" * n for n in range(60)] + ["\u0958" * 20, "12345 " * 9]
    pairs = [(Example(str(n), (), "1"), [{"role": "user", "content": text}]) for n, text in enumerate(texts)]
    for limit in (30, 47, 90):
        kept, too_long = split_by_length(pairs, tokenizer, limit)
        lengths = {
            example.id: len(tokenizer.apply_chat_template(prompt, add_generation_prompt=True)["input_ids"])
            for example, prompt in pairs
        }
        assert [example.id for example, _ in kept] == [name for name, tokens in lengths.items() if tokens <= limit]
        assert too_long == [(name, tokens) for name, tokens in lengths.items() if tokens > limit]
