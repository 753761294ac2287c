"""The public names, and the lab as a person runs it: list, score, attack, exit codes, nothing lost."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import reward_funcs
from llm_grpo.rewards import REWARDS

ROOT = Path(__file__).parent.parent
SCRIPT = ROOT / "src" / "reward_funcs.py"
GOOD = "<reasoning>6 x 7 = 42</reasoning><answer>42</answer>"
CONFIG = """
model: {name: some/model}
task: {name: word_problems}
rewards:
"""


def run(*argv: object, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, SCRIPT, *map(str, argv)], cwd=cwd, capture_output=True, text=True)


def write_lines(path: Path, *rows: object) -> Path:
    path.write_text("".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def read_lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_the_public_names_are_the_rewards_of_the_table() -> None:
    for name in REWARDS:
        assert getattr(reward_funcs, name) is REWARDS[name]
    assert reward_funcs.extract_xml_answer(GOOD) == reward_funcs.extract_hash_answer("#### 42") == "42"


def test_the_import_is_light() -> None:
    code = "import sys, reward_funcs; print([m for m in ('torch', 'transformers', 'trl', 'sympy', 'rich') if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT / "src", capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


@pytest.mark.parametrize(
    "argv", [("--help",), ("score", "--help"), ("score", "--rewards", "correctnes", "--input", "a", "--output", "b")]
)
def test_help_and_errors_load_nothing_heavy(argv: tuple[str, ...]) -> None:
    code = f"""import sys, reward_funcs
try: reward_funcs.main({list(argv)!r})
except SystemExit: pass
print([m for m in ('torch', 'transformers', 'trl', 'sympy', 'numpy') if m in sys.modules])"""
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT / "src", capture_output=True, text=True, check=True)
    assert found.stdout.endswith("[]\n"), found.stdout


def test_list_names_every_reward_with_its_range() -> None:
    listed = run("list")
    assert listed.returncode == 0
    for name in REWARDS:
        assert name in listed.stdout
    assert "0 or 2" in listed.stdout and "0 to 0.5" in listed.stdout


def test_score_adds_one_field_and_keeps_the_rest(tmp_path: Path) -> None:
    rows = [
        {"completion": GOOD, "answer": "42", "id": "a", "tags": ["\u00fc", {"x": 1.5}], "n": 10**20},
        {"completion": [{"role": "assistant", "content": "42"}], "answer": 42},
        {"completion": "lone \ud800 surrogate", "answer": "0.5", "scores": {"older": 1}},
        {"completion": GOOD},
    ]
    source, target = write_lines(tmp_path / "in.jsonl", *rows[:2], "\n", *rows[2:]), tmp_path / "new" / "out.jsonl"
    names = ["correctness_reward_func", "int_reward_func", "xmlcount_reward_func"]
    done = run("score", "--rewards", ",".join(names), "--input", source, "--output", target)
    assert done.returncode == 0, done.stderr
    scored = read_lines(target)
    expected = [[2.0, 0.5, 0.5], [0.0, 0.0, 0.0], [0.0, None, 0.0], [None, 0.5, 0.5]]
    assert [[row["scores"][name] for name in names] for row in scored] == expected
    assert scored[2]["scores"]["older"] == 1
    assert [{key: value for key, value in row.items() if key != "scores"} for row in scored[:2]] == rows[:2]
    assert scored[2]["completion"] == rows[2]["completion"]
    assert "4 lines, 1 of them without an answer" in done.stdout


def test_score_can_publish_and_set_arguments(tmp_path: Path) -> None:
    source = write_lines(tmp_path / "in.jsonl", {"completion": "42", "answer": "42"})
    target, common = tmp_path / "out.jsonl", ("--input", source, "--output", tmp_path / "out.jsonl")
    assert run("score", "--rewards", "correctness_reward_func", "--published", *common).returncode == 0
    assert read_lines(target)[0]["scores"] == {"correctness_reward_func": 2.0}
    own = "examples/custom_reward.py:close_to_gold"
    write_lines(source, {"completion": "<answer>40</answer>", "answer": "42"})
    assert run("score", "--rewards", own, *common).returncode == 0
    assert read_lines(target)[0]["scores"] == {own: 1.0}
    assert run("score", "--rewards", own, "--set", f"{own}.tolerance=1e-3", *common).returncode == 0
    assert read_lines(target)[0]["scores"] == {own: 0.0}


def test_the_example_pays_for_steps_only_beside_a_right_answer(tmp_path: Path) -> None:
    rows = [
        {"completion": text, "answer": "42"} for text in (GOOD, GOOD.replace("=", "is"), GOOD.replace(">42", ">43"))
    ]
    source, own = write_lines(tmp_path / "in.jsonl", *rows), "examples/custom_reward.py:shows_its_steps"
    assert run("score", "--rewards", own, "--input", source, "--output", tmp_path / "out.jsonl").returncode == 0
    assert [row["scores"][own] for row in read_lines(tmp_path / "out.jsonl")] == [0.5, 0.0, 0.0]


BROKEN = [
    ('{"completion": "x"\n', "in.jsonl:2: not JSON", "broken JSON"),
    ("[1]\n", "in.jsonl:2: an object is needed", "no object"),
    ('{"completon": "x"}\n', "in.jsonl:2: there is no field 'completion'. Did you mean 'completon'?", "a typo"),
    ('{"completion": 3}\n', "in.jsonl:2: 'completion' must be a string", "no text"),
    ('{"completion": "x", "scores": 3}\n', "in.jsonl:2: the field 'scores' holds something", "a field that is taken"),
    ("[" * 100_000 + "\n", "in.jsonl:2: not JSON", "nested thousands deep"),
]


@pytest.mark.parametrize(("line", "message", "why"), BROKEN)
def test_a_broken_line_is_named_and_nothing_is_lost(tmp_path: Path, line: str, message: str, why: str) -> None:
    source = write_lines(tmp_path / "in.jsonl", {"completion": GOOD, "answer": "42"}, line)
    target = write_lines(tmp_path / "out.jsonl", {"kept": True})
    before = source.read_bytes()
    done = run("score", "--input", source, "--output", target)
    assert (done.returncode, done.stdout) == (2, ""), why
    assert message in done.stderr and "Traceback" not in done.stderr, why
    assert read_lines(target) == [{"kept": True}] and source.read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jsonl", "out.jsonl"], "no partial file is left"


def test_bytes_that_are_no_text_are_named(tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_bytes(b'{"completion": "\xff"}\n')
    done = run("score", "--input", tmp_path / "in.jsonl", "--output", tmp_path / "out.jsonl")
    assert done.returncode == 2 and "in.jsonl:1: the byte 0xff is not UTF-8" in done.stderr


def test_an_own_reward_that_fails_is_named_with_the_line(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text("def f(completions, answer, **kwargs):\n    return [1 / int(a) for a in answer]\n")
    rows = [{"completion": "x", "answer": str(number)} for number in [1] * 300 + [0, 1]]
    source = write_lines(tmp_path / "in.jsonl", *rows)
    done = run("score", "--rewards", "own.py:f", "--input", source, "--output", tmp_path / "out.jsonl", cwd=tmp_path)
    assert done.returncode == 2 and not (tmp_path / "out.jsonl").exists()
    assert f"{source}:301: reward 'f'" in done.stderr and "raised ZeroDivisionError" in done.stderr


USER_ERRORS = [
    (("score", "--rewards", "int_reward_func,int_reward_func"), "give each name once"),
    (("score", "--rewards", "int_reward_fun"), "Did you mean 'int_reward_func'?"),
    (("score", "--set", "int_reward_fun.published=true"), "write NAME.ARG=VALUE"),
    (("score", "--set", "int_reward_func.publish=true"), "Did you mean 'published'?"),
]


@pytest.mark.parametrize(("argv", "message"), USER_ERRORS)
def test_user_errors_exit_with_2(tmp_path: Path, argv: tuple[str, ...], message: str) -> None:
    source = write_lines(tmp_path / "in.jsonl", {"completion": GOOD, "answer": "42"})
    done = run(*argv, "--input", source, "--output", tmp_path / "out.jsonl")
    assert done.returncode == 2 and message in done.stderr and "Traceback" not in done.stderr


def test_a_missing_input_names_the_nearest(tmp_path: Path) -> None:
    write_lines(tmp_path / "cases.jsonl", {"completion": GOOD})
    done = run("score", "--input", tmp_path / "case.jsonl", "--output", tmp_path / "out.jsonl")
    assert done.returncode == 2 and "Did you mean 'cases.jsonl'?" in done.stderr


def write_config(folder: Path, args: str) -> Path:
    lines = [f"  - {{name: {name}{args}}}\n" for name in REWARDS if not name.startswith("lead_")]  # no labels here
    (folder / "config.yaml").write_text(CONFIG + "".join(lines))
    return folder / "config.yaml"


def test_attack_exits_by_its_outcome(tmp_path: Path) -> None:
    stands = run("attack", "--config", write_config(tmp_path, ""))
    assert stands.returncode == 0 and "no attack succeeds" in stands.stdout, stands.stderr
    falls = run("attack", "--config", write_config(tmp_path, ", args: {published: true}"))
    assert falls.returncode == 1 and "cases are not paid as they should" in falls.stdout
    assert run("attack", "--config", tmp_path / "none.yaml").returncode == 2
    nothing_beats_nan = run("attack", "--config", tmp_path / "config.yaml", "--margin", "nan")
    assert nothing_beats_nan.returncode == 2 and "--margin" in nothing_beats_nan.stderr


def test_attack_takes_overrides_and_a_margin(tmp_path: Path) -> None:
    config = write_config(tmp_path, "")
    only_format = "rewards=[{name: strict_format_reward_func}]"
    fallen = run("attack", "--config", config, only_format)
    assert fallen.returncode == 1 and "no less than the honest right" in fallen.stdout
    assert "margin over the honest wrong one: 0.5 points" in run("attack", "--config", config, "--margin", "0.5").stdout


@pytest.mark.parametrize("config", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda path: path.name)
def test_every_shipped_config_withstands_the_attack(config: Path) -> None:
    done = run("attack", "--config", config)
    assert done.returncode == 0, done.stdout + done.stderr
