"""Task word_problems: the same everywhere, split without overlap, and with gold answers that are right."""

from __future__ import annotations

import re
import subprocess
import sys
from collections import Counter
from itertools import islice
from pathlib import Path

import pytest

from llm_grpo.errors import UserError
from llm_grpo.records import Example
from llm_grpo.tasks.word_problems import KINDS, MOST_PER_SPLIT, split_of, stories, word_problems

SRC = Path(__file__).resolve().parent.parent / "src"
SPLITS = ("train", "validation", "test")

# what each kind asks, said a second time and without the module's own steps
ANSWERS = {
    "gain": lambda a, b: a + b,
    "loss": lambda a, b: a - b,
    "boxes": lambda a, b: a * b,
    "gain_loss": lambda a, b, c: a + b - c,
    "boxes_gain": lambda a, b, c: a * b + c,
    "boxes_loss": lambda a, b, c: a * b - c,
    "share": lambda a, b, c: (a + b) / c,
    "together": lambda a, b: a + (a + b),
    "market": lambda a, b, c, d: a * b - c + d,
    "two_sorts": lambda a, b, c, d: a * b + c * d,
}


def text_of(example: Example) -> str:
    return example.prompt[0]["content"]


def everything(seed: int) -> dict[str, tuple[Example, ...]]:
    task = word_problems(seed=seed, train_size=2000, validation_size=500, test_size=1000)
    return {split: task.load(split).examples for split in SPLITS}


def test_sizes_ids_and_shape() -> None:
    by_split = everything(0)
    assert {split: len(examples) for split, examples in by_split.items()} == {
        "train": 2000, "validation": 500, "test": 1000,
    }  # fmt: skip
    assert by_split["test"][17].id == "word_problems/test/17"
    for examples in by_split.values():
        assert len({example.id for example in examples}) == len(examples)
        assert all([message["role"] for message in example.prompt] == ["user"] for example in examples)


def test_no_story_stands_twice_whatever_the_seeds() -> None:
    seen: dict[str, str] = {}
    for seed in (0, 1):
        for split, examples in everything(seed).items():
            texts = {text_of(example) for example in examples}
            assert len(texts) == len(examples)  # none twice within a split
            assert all(seen.setdefault(text, split) == split for text in texts)


def test_split_of_a_story_never_changes() -> None:
    # written down once: a model shipped earlier was trained on the train split as it is cut here
    assert split_of("Maya finds 23 apples and then 37 more. How many apples is that?") == "train"
    shares = Counter(split_of(f"story {i}") for i in range(5000))
    assert 0.76 < shares["train"] / 5000 < 0.84
    assert shares["test"] > 400 and shares["validation"] > 400


def test_golds_are_right_by_the_numbers_told() -> None:
    for examples in everything(3).values():
        for example in examples:
            numbers = [int(number) for number in re.findall(r"\d+", text_of(example))]
            assert ANSWERS[example.meta["kind"]](*numbers) == int(example.answer), text_of(example)


def test_steps_are_true_small_and_end_in_the_answer() -> None:
    for example in everything(4)["train"]:
        for step in example.meta["steps"]:
            a, sign, b, result = re.fullmatch(r"(\d+)([-+*/])(\d+)=(\d+)", step).groups()
            assert {"+": int(a) + int(b), "-": int(a) - int(b), "*": int(a) * int(b), "/": int(a) / int(b)}[
                sign
            ] == int(result)
            assert 1 <= int(result) <= 99
        assert example.meta["steps"][-1].endswith(f"={example.answer}")


def test_every_kind_and_every_number_of_steps_is_there_in_equal_shares() -> None:
    examples = word_problems(test_size=1000).load("test").examples
    assert Counter(example.meta["kind"] for example in examples) == dict.fromkeys(KINDS, 100)
    assert {len(example.meta["steps"]) for example in examples} == {1, 2, 3}


@pytest.mark.parametrize("kind", KINDS)
def test_every_phrasing_tells_every_number_in_order(kind: str) -> None:
    for phrasing in KINDS[kind].phrasings:
        told = re.findall(r"\{([a-d])\}", phrasing)
        assert told == sorted(set(told)) == list("abcd")[: len(told)]


def test_same_seed_same_stories_in_another_process_and_other_seed_others() -> None:
    code = "from llm_grpo.tasks.word_problems import word_problems as w; "
    code += "print([e.prompt[0]['content'] for e in w().load('test').examples])"
    printed = {
        subprocess.run(
            [sys.executable, "-c", code], env={"PYTHONPATH": str(SRC), "PYTHONHASHSEED": salt}, capture_output=True,
            text=True, check=True,
        ).stdout
        for salt in ("1", "2")
    }  # fmt: skip
    assert printed == {f"{[text_of(example) for example in word_problems().load('test').examples]}\n"}
    assert word_problems(seed=1).load("test").examples[0] != word_problems().load("test").examples[0]


def test_a_smaller_size_is_the_beginning_of_a_larger_one() -> None:
    assert word_problems(test_size=30).load("test").examples == word_problems().load("test").examples[:30]


def test_the_largest_size_can_be_made() -> None:
    texts = {text_of(example) for example in islice(stories("test", 0), MOST_PER_SPLIT)}
    assert len(texts) == MOST_PER_SPLIT  # the stream would never end if a kind ran out of stories


@pytest.mark.parametrize("size", [0, -3, MOST_PER_SPLIT + 1, 2.0, "7", True, None])
@pytest.mark.parametrize("name", ["train_size", "validation_size", "test_size"])
def test_a_bad_size_is_the_users_mistake(name: str, size: object) -> None:
    with pytest.raises(UserError, match=name):
        word_problems(**{name: size})


def test_an_unknown_split_is_the_users_mistake() -> None:
    with pytest.raises(UserError, match="dev"):
        word_problems().load("dev")


def test_judge_gold_in_the_format_earns_all_and_a_wrong_answer_nothing() -> None:
    task = word_problems(test_size=50)
    for example in task.load("test").examples:
        steps = "\n".join(example.meta["steps"])
        right = task.judge(f"<reasoning>\n{steps}\n</reasoning>\n<answer>\n{example.answer}\n</answer>", example.answer)
        assert right.strict and right.lenient and right.formatted
        wrong = task.judge(f"<reasoning>\n{steps}\n</reasoning>\n<answer>\n100\n</answer>", example.answer)
        assert wrong.formatted and not wrong.strict and not wrong.lenient
        loose = task.judge(f"{steps}\nThe answer is {example.answer}.", example.answer)
        assert loose.lenient and not loose.strict and not loose.formatted
