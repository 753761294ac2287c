"""SVAMP as it ships: the three parts are what the rule makes of the rows, and no story stands in two of them."""

from __future__ import annotations

import json
import random
import re
from itertools import combinations
from pathlib import Path

import pytest

from examples.split_svamp import AT_LEAST, FOLDER, calculation, close_pairs, split, steps
from llm_grpo.config.loading import load_config
from llm_grpo.tasks import build_task

ROOT = Path(__file__).parent.parent
DOC = ROOT / "docs/smollm2.md"
NAMES = ("train", "validation", "test")
PARTS = {name: [json.loads(line) for line in (FOLDER / f"{name}.jsonl").open(encoding="utf-8")] for name in NAMES}
ROWS = [row for rows in PARTS.values() for row in rows]


def test_the_files_are_what_the_rule_makes_of_the_rows_in_any_order() -> None:
    shuffled = random.Random(0).sample(ROWS, len(ROWS))
    assert split(shuffled) == PARTS
    assert len(ROWS) == 1000 and all(len(PARTS[name]) >= size for name, size in AT_LEAST.items())


def test_no_close_pair_crosses_the_split_by_the_rules_own_measure_and_by_another() -> None:
    part = [name for name, rows in PARTS.items() for _ in rows]
    pairs = list(close_pairs(ROWS, 0.3))
    assert len(pairs) > 3000, "else the measure finds nothing, and nothing would cross"
    assert not [(ROWS[i]["id"], ROWS[j]["id"]) for i, j in pairs if part[i] != part[j]]
    triples = {name: [_triples(row["question"]) for row in rows] for name, rows in PARTS.items()}
    nearest = max(
        len(a & b) / len(a | b) for one, two in combinations(NAMES, 2) for a in triples[one] for b in triples[two]
    )
    assert nearest < 0.15
    story = [t for t, row in zip(triples["train"], PARTS["train"], strict=True) if row["group"] == "chal-3"]
    assert max(len(a & b) / len(a | b) for a, b in combinations(story, 2)) > 0.8, "what a variant looks like by it"


def _triples(text: str) -> set[tuple[str, ...]]:
    words = [re.sub(r"\d+", "N", word) for word in re.findall(r"[a-z]+|\d+", text.lower())]
    return {tuple(words[i : i + 3]) for i in range(len(words) - 2)}


@pytest.mark.parametrize(
    ("equation", "solution"),
    [
        ("( 76.0 - 25.0 )", ["76 - 25 = 51"]),
        ("( 6.0 - ( 3.0 + 2.0 ) )", ["3 + 2 = 5", "6 - 5 = 1"]),  # inside out
        ("( ( 4.0 + 13.0 ) * 15.0 )", ["4 + 13 = 17", "17 * 15 = 255"]),
        ("( ( 4.0 - 8.0 ) + 5.0 )", ["4 - 8 = -4", "-4 + 5 = 1"]),  # below nought on the way
        ("( 28.0 * ( 24.0 / 16.0 ) )", ["24 / 16 = 1.5", "28 * 1.5 = 42"]),
        ("8.0", []),  # chal-555
    ],
)
def test_an_equation_is_written_as_steps(equation: str, solution: list[str]) -> None:
    assert steps(equation) == solution


@pytest.mark.parametrize("form", ["calculation", "solution"])
def test_the_shipped_config_reads_all_of_it_and_judges_its_solutions_right(form: str) -> None:
    """And with the overrides of docs/smollm2.md those that are worked out."""
    words = [] if form == "calculation" else re.findall(r"'(task\.args\.[^']+)'", DOC.read_text(encoding="utf-8"))
    config = load_config(ROOT / "configs/smollm2.yaml", words, environment={})
    task = build_task(config.task.name, config.task.args)
    for name, rows in PARTS.items():
        examples = task.load(name).examples
        assert [e.id for e in examples] == [row["id"] for row in rows if row[form] or form == "solution"]
        for e in examples:
            right = e.answer if form == "calculation" else f"{e.meta['solution']}\n#### {e.answer}"
            assert task.judge(right, e.answer).strict and not task.judge(f"{right}1", e.answer).strict


@pytest.mark.parametrize(
    ("equation", "answer", "written"),
    [
        ("( 76.0 - 25.0 )", "51", "76 - 25"),
        ("( ( 4.0 + 13.0 ) * 15.0 )", "255", "(4 + 13) * 15"),
        ("( 6.0 - ( 3.0 + 2.0 ) )", "1", "6 - (3 + 2)"),
        ("( 2.5 * 10.0 )", "25", "2.5 * 10"),
        ("8.0", "8", "8"),
        ("( ( 4.0 - 2.0 ) + 3.0 )", "1", ""),  # chal-680
    ],
)
def test_an_equation_is_written_as_a_calculation_where_it_is_the_answer(
    equation: str, answer: str, written: str
) -> None:
    assert calculation(equation, answer) == written


def test_every_problem_but_one_has_its_calculation() -> None:
    assert [row["id"] for row in ROWS if not row["calculation"]] == ["chal-680"]
