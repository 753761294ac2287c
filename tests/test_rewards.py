"""How a name in YAML becomes a reward: the table, the arguments, files of one's own, and TRL's shape."""

from __future__ import annotations

from pathlib import Path

import pytest

from llm_grpo.errors import UserError
from llm_grpo.rewards import REWARDS, build_reward, lift
from llm_grpo.rewards.files import may_bring_libraries

GOOD = "<reasoning>x</reasoning><answer>42</answer>"
PAID = {  # to GOOD, a bare number and nothing, where not only the first is paid
    "conciseness_reward_func": [0.0, -0.5, -0.5],  # a penalty, also for leaving the reasoning out
    "repetition_reward_func": [0.0, 0.0, 0.0],  # none of the three repeats itself
    "cot_clarity_reward_func": [0.0, 0.0, 0.0],  # none of the three calculates
    "lead_qualification_reward_func": [None, None, None],  # 42 is no label set
}
OWN = """
def brief(prompts, completions, answer, **kwargs):
    return [1.0 if len(c[0]["content"]) < 100 else 0.0 for c in completions]

def scaled(completions, *, factor=1.0, **kwargs):
    return [factor for _ in completions]

def without_rest(prompts, completions, answer):
    return [len(p) for p in prompts]

async def later(completions, **kwargs):
    return [3 for _ in completions]
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rewards").mkdir()
    (tmp_path / "rewards" / "own.py").write_text(OWN)
    return tmp_path / "rewards" / "own.py"


def chat(*texts: str) -> list[list[dict[str, str]]]:
    return [[{"role": "assistant", "content": text}] for text in texts]


@pytest.mark.parametrize("name", REWARDS)
def test_every_reward_takes_conversations_and_strings(name: str) -> None:
    reward, columns = build_reward(name), {"answer": ["42"] * 3, "question": ["?"] * 3, "trainer_state": None}
    texts = (GOOD, "42", "")
    from_chat = reward(prompts=["?"] * 3, completions=chat(*texts), **columns)
    assert from_chat == reward(prompts=["?"] * 3, completions=list(texts), **columns)
    assert from_chat == PAID.get(name, [from_chat[0], 0.0, 0.0]) and (name in PAID or from_chat[0] > 0)
    assert reward.__name__ == name


def test_the_table_reads_as_the_published_functions_are_called() -> None:
    assert REWARDS["xmlcount_reward_func"](chat(GOOD)) == [0.5]
    assert REWARDS["correctness_reward_func"](["?"], chat(GOOD), ["42"]) == [2.0]
    assert REWARDS["correctness_reward_func"](["?"], chat("42"), ["42"], published=True) == [2.0]
    assert REWARDS["int_reward_func"](chat(GOOD)) == [0.5], "the gold is not needed"
    with pytest.raises(TypeError, match="at most 3"):
        REWARDS["correctness_reward_func"](["?"], chat(GOOD), ["42"], ["more"])


def test_completions_of_several_messages_and_parts() -> None:
    parts = [
        {
            "role": "assistant",
            "content": [{"type": "text", "text": "<answer>4"}, {"type": "text", "text": "2</answer>"}],
        }
    ]
    tools = [{"role": "assistant", "content": None}, {"role": "tool", "content": "7"}, *parts]
    assert REWARDS["correctness_reward_func"](["?"] * 3, [parts, tools, []], ["42"] * 3) == [2.0, 2.0, 0.0]


def test_golds_may_be_numbers_or_missing() -> None:
    assert build_reward("correctness_reward_func")(["?"] * 2, chat(GOOD, GOOD), answer=[42, None]) == [2.0, None]


def test_a_column_that_is_missing_is_named() -> None:
    with pytest.raises(UserError, match="correctness_reward_func needs the column 'answer'; the data have gold"):
        REWARDS["correctness_reward_func"](completions=chat(GOOD), gold=["42"])


def test_arguments_are_bound_and_win_over_a_column_of_their_name() -> None:
    reward = build_reward("correctness_reward_func", {"published": True})
    assert reward(["?"], chat("42"), answer=["42"], published=["no"]) == [2.0]
    assert REWARDS["correctness_reward_func"](["?"], chat("42"), ["42"], published=["a column"]) == [0.0]


def test_lift_reads_columns_by_name() -> None:
    def both(text: str, answer: str, level: str = "easy", *, factor: float = 1.0) -> float:
        return factor * len(text + answer + level)

    lifted = lift(both, "both")
    assert lifted(prompts=["?"], completions=["a"], answer=["b"]) == [6.0]
    assert lifted(prompts=["?"], completions=["a"], answer=["b"], level=["hard!"], factor=2.0) == [14.0]


WRONG_NAMES = [
    ("correctnes_reward_func", {}, "Did you mean 'correctness_reward_func'", "a typo"),
    (
        "xmlcount_reward_func",
        {"publishd": True},
        "unknown argument 'publishd'. Did you mean 'published'",
        "an argument",
    ),
    ("xmlcount_reward_func", {"published": "false"}, "published: 'false' given, it takes bool", "a true string"),
    ("xmlcount_reward_func", {"dotall": False}, "unknown argument 'dotall'", "another function's argument"),
    ("soft_format_reward_func", {"dotall": False}, "set published: true", "only the published one has a pattern"),
    ("correctness_reward_func", {"answer_format": "xlm"}, "Did you mean 'xml'", "a value"),
    ("rewards/own.py:breif", {}, "no function 'breif'. Did you mean 'brief'", "a function's name"),
    ("rewards/own.py", {}, "write path/to/file.py:function", "no function named"),
    ("rewards/won.py:brief", {}, "no file rewards/won.py. Did you mean 'own.py'", "a file's name"),
    ("nowhere/own.py:brief", {}, "there is no file", "a folder's name"),
    ("rewards/own.py:scaled", {"facto": 2}, "unknown argument 'facto'. Did you mean 'factor'", "an own argument"),
]


@pytest.mark.parametrize(("name", "args", "message", "why"), WRONG_NAMES)
def test_what_cannot_be_built_says_why(own: Path, name: str, args: dict[str, object], message: str, why: str) -> None:
    with pytest.raises(UserError, match=message):
        build_reward(name, args)


@pytest.mark.parametrize(
    ("text", "brings", "why"),
    [
        ("import re, json\nfrom collections import Counter\n", False, "the standard library brings nothing"),
        ("import trl\n", True, "comes before Unsloth, which has to be first"),
        ("def f():\n    from transformers import pipeline\n", True, "when it is called, which may be early"),
        ("import sentence_transformers\n", True, "brings transformers by itself"),
        ("from . import mine\n", True, "who knows what that imports"),
        ("import importlib\nimportlib.import_module('tr' + 'l')\n", True, "can import anything"),
        ("def broken(\n", False, "told when it is loaded"),
    ],
)
def test_a_file_that_may_bring_libraries_is_known_without_running_it(
    tmp_path: Path, text: str, brings: bool, why: str
) -> None:
    (tmp_path / "mine.py").write_text(text)
    assert may_bring_libraries(f"{tmp_path}/mine.py:f") is brings, why
    assert not may_bring_libraries(f"{tmp_path}/nowhere.py:f") and not may_bring_libraries("int_reward_func")


def test_functions_from_files(own: Path) -> None:
    brief = build_reward("rewards/own.py:brief")
    assert brief(["?"] * 2, chat("a", "a" * 200), answer=["", ""], trainer_state=None) == [1.0, 0.0]
    assert brief.__name__ == "brief"
    assert build_reward(f"{own}:scaled", {"factor": 2})(["?"], chat("a")) == [2.0], "absolute paths as well"
    assert build_reward("rewards/own.py:later")(["?"], chat("a")) == [3.0], "async functions are awaited"


def test_a_function_that_does_not_take_the_columns_is_explained(own: Path) -> None:
    reward = build_reward("rewards/own.py:without_rest")
    with pytest.raises(UserError, match="reward 'without_rest'.*unexpected keyword argument 'question'"):
        reward(["?"], chat("a"), answer=["42"], question=["?"])


FAILING_FILES = [
    ("import nowhere_to_be_found\n", "line 1: ModuleNotFoundError: No module named 'nowhere_to_be_found'"),
    ("x = 1\ny = x / 0\n", "line 2: ZeroDivisionError"),
    ("def f(:\n", "line 1: SyntaxError"),
    ("import sys\nsys.exit('done')\n", "line 2: SystemExit: done"),
]


@pytest.mark.parametrize(("source", "message"), FAILING_FILES)
def test_a_file_that_fails_at_import_is_reported_with_its_own_error(own: Path, source: str, message: str) -> None:
    own.write_text(source)
    with pytest.raises(UserError, match=f"own.py failed at import, {message}"):
        build_reward("rewards/own.py:f")


def test_a_file_is_read_anew(own: Path) -> None:
    own.write_text("def f(completions, **kwargs): return [1 for _ in completions]\n")
    assert build_reward("rewards/own.py:f")(["?"], chat("a")) == [1.0]
    own.write_text("def f(completions, **kwargs): return [22 for _ in completions]\n")
    assert build_reward("rewards/own.py:f")(["?"], chat("a")) == [22.0]
