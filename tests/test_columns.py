"""One set of columns: a reward sees the values of the data, the same ones in training, in evaluation and in the lab."""

from __future__ import annotations

import json
from ast import literal_eval
from pathlib import Path

import pytest
from conftest import SMALL, run_script

from llm_grpo import runs
from llm_grpo.records import RESERVED_COLUMNS, Example, columns_of

COLUMNS = [
    # name, values of the first rows in turn, why
    ("level", [3, 2.5], "an integer beside a decimal number is no text"),
    ("tags", [[1, 2], ["a"]], "lists of different kinds"),
    ("big", [2**63, 1], "wider than 64 bits"),
    ("note", ["so", None], "nothing beside a text"),
    ("mixed", ["7", 7], "a text beside a number"),
    ("nested", [{"a": 1}, {"b": [1, {"c": None}]}], "objects with different keys"),
    ("question", [8, 9], "a column that is called as what a person is shown"),
    ("image", ["a.png", None], "a name that means a picture to TRL, had it been in its dataset"),
    ("role", ["a", "b"], "a name that chat templates use, which Unsloth would hand to them"),
    ("prompt", ["mine", "mine"], "a name that is TRL's own does not reach a reward"),
]
REWARD = """
import json

def seen(prompts, completions, id, answer, level, **columns):
    with open({file!r}, "a") as file:
        for row, name in enumerate(id):
            mine = {{key: value[row] for key, value in columns.items() if isinstance(value, list)}}
            mine.pop("completion_ids", None)
            print(repr({{"id": name, "answer": answer[row], "level": level[row], **mine}}), file=file)
    return [float(len(text[0]["content"]) % 3) for text in completions]
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """data.jsonl, seen.py and the words of a config that uses them."""
    folder = tmp_path_factory.mktemp("columns")
    rows = []
    for number in range(80):
        row = {name: values[number % 2] for name, values, _ in COLUMNS}
        rows.append({"asked": f"Tom has {number} pens and buys 7 more. How many?", "gold": number + 7, **row})
    del rows[1]["note"]
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "seen.py").write_text(REWARD.format(file=str(folder / "seen.txt")))
    return folder


def words(folder: Path) -> list[str]:
    args = {"path": f"{folder}/data.jsonl", "columns": {"question": "asked", "answer": "gold"}}
    args |= {"validation_share": 0.1, "test_share": 0.2}
    task = {"name": "jsonl", "args": args}
    rewards = [{"name": f"{folder}/seen.py:seen"}]
    return [f"task={json.dumps(task)}", f"rewards={json.dumps(rewards)}", f"run.output_dir={folder}/outputs"]


def test_rewards_see_the_same_values_in_training_evaluation_and_lab(data: Path) -> None:
    seen = data / "seen.txt"
    small = [*words(data), *SMALL, "grpo.max_steps=2", "grpo.per_device_train_batch_size=32"]
    done = run_script("src/train.py", "--config", "configs/demo.yaml", *small)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [literal_eval(line) for line in seen.read_text().splitlines()]
    run = runs.Run(data / "outputs" / "demo")
    trained = [row for file in run.completion_files() for row in runs.read_jsonl(file)]
    evaluated = json.loads(run.before.read_text())["items"]
    assert {row["id"] for row in rows} >= {row["id"] for row in [*trained, *evaluated]} and trained and evaluated
    for row in rows:
        number = int(row["id"].rpartition("/")[2]) - 1
        wanted = {name: values[number % 2] for name, values, _ in COLUMNS if name not in RESERVED_COLUMNS}
        wanted |= {"id": f"data/{number + 1}", "answer": str(number + 7)}
        assert row == wanted and repr(sorted(row.items())) == repr(sorted(wanted.items())), (
            "the types too: 3 is not 3.0"
        )
    for row in [*trained, *evaluated]:
        assert row["question"].endswith("How many?"), "what the model was asked, not a column of that name"
    seen.unlink()
    done = run_script("src/reward_funcs.py", "attack", "--config", "configs/demo.yaml", *words(data))
    assert done.returncode in (0, 1), done.stderr
    lab = [literal_eval(line) for line in seen.read_text().splitlines()]
    assert all(row["tags"] == [1, 2] or row["tags"] == ["a"] for row in lab) and lab


@pytest.mark.parametrize(("name", "values", "why"), COLUMNS, ids=[row[0] for row in COLUMNS])
def test_values_are_handed_over_as_they_are(name: str, values: list[object], why: str) -> None:
    examples = [
        Example(str(n), ({"role": "user", "content": "?"},), "1", {name: value}) for n, value in enumerate(values)
    ]
    columns = columns_of(examples)
    assert columns.pop("answer") == ["1", "1"] and columns.pop("id") == ["0", "1"]
    assert repr(columns) == repr({} if name in RESERVED_COLUMNS else {name: values}), why
    assert examples[0].question == "?", why
