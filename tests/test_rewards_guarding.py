"""A reward function's scores are checked: whatever is wrong is said with its name, the step and the row."""

from __future__ import annotations

import math
from fractions import Fraction
from types import SimpleNamespace
from typing import Any

import pytest

from llm_grpo.rewards import RewardError, check_scores, guard

ROWS = {"prompts": ["a", "b", "c"], "completions": ["x", "y", "z"]}


def returning(value: Any) -> Any:
    return guard(lambda prompts, completions, **columns: value, "mine")


GOOD_SCORES = [
    ([1.0, 0, None], [1.0, 0.0, None], "floats, ints, None"),
    ((1, 2, 3), [1.0, 2.0, 3.0], "a tuple"),
    ([True, False, True], [1.0, 0.0, 1.0], "bools"),
    ([Fraction(1, 2), 0, 0], [0.5, 0.0, 0.0], "any real number"),
    ((score for score in (1, 2, 3)), [1.0, 2.0, 3.0], "a generator"),
]


@pytest.mark.parametrize(("scores", "expected", "why"), GOOD_SCORES)
def test_scores_become_floats(scores: Any, expected: list[float | None], why: str) -> None:
    found = returning(scores)(**ROWS)
    assert found == expected, why
    assert all(score is None or type(score) is float for score in found)


BAD_SCORES = [
    ([1.0, 2.0], "returned 2 scores for 3 completions", None, "too few"),
    ([1.0] * 4, "returned 4 scores for 3 completions", None, "too many"),
    ("abc", "returned str 'abc'; it must return a list", None, "a string of the right length"),
    (1.0, "returned float; it must return a list", None, "one number for all"),
    (None, "returned NoneType", None, "forgot to return"),
    ({"a": 1, "b": 2, "c": 3}, "returned dict", None, "a dict of the right length"),
    ([1.0, "0.5", 1.0], "row 1: the score is str '0.5'", 1, "a string as score"),
    ([1.0, 1.0, math.nan], "row 2: the score is nan", 2, "not a number"),
    ([math.inf, 1.0, 1.0], "row 0: the score is inf", 0, "infinite"),
    ([-math.inf, 1.0, 1.0], "row 0: the score is -inf", 0, "infinite"),
    ([10**400, 1.0, 1.0], "row 0: the score is too large", 0, "no float"),
    ([[1.0], 1.0, 1.0], "row 0: the score is list", 0, "nested"),
    ([1j, 1.0, 1.0], "row 0: the score is complex", 0, "complex"),
]


@pytest.mark.parametrize(("scores", "message", "row", "why"), BAD_SCORES)
def test_wrong_scores_are_named(scores: Any, message: str, row: int | None, why: str) -> None:
    with pytest.raises(RewardError, match="reward 'mine'") as caught:
        returning(scores)(**ROWS)
    assert message in str(caught.value), why
    assert (caught.value.name, caught.value.row) == ("mine", row)


def test_arrays_and_tensors() -> None:
    numpy = pytest.importorskip("numpy")
    assert returning(numpy.array([1.0, 0.5, 0.0], dtype=numpy.float32))(**ROWS) == [1.0, 0.5, 0.0]
    assert returning([numpy.float64(1), numpy.bool_(True), numpy.int64(2)])(**ROWS) == [1.0, 1.0, 2.0]
    for wrong in (numpy.array(1.0), numpy.zeros((3, 1)), [numpy.float32("nan"), 0, 0], [numpy.zeros(1), 0, 0]):
        with pytest.raises(RewardError):
            returning(wrong)(**ROWS)


def test_torch_scores() -> None:
    torch = pytest.importorskip("torch")
    assert returning(torch.tensor([1.0, 0.5, 0.0]))(**ROWS) == [1.0, 0.5, 0.0]
    assert returning([torch.tensor(1.0), torch.tensor(True), 0])(**ROWS) == [1.0, 1.0, 0.0]
    with pytest.raises(RewardError, match="row 0"):
        returning([torch.tensor(float("nan")), 0, 0])(**ROWS)


def raises_on_y(prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
    return [float({"x": 1, "z": 2}[completion]) for completion in completions]


def test_an_exception_is_told_with_its_row_and_place() -> None:
    with pytest.raises(
        RewardError, match=r"reward 'mine', row 1 raised KeyError: 'y' \(.*test_rewards_guarding.py"
    ) as e:
        guard(raises_on_y, "mine")(**ROWS, answer=["1", "2", "3"])
    assert e.value.row == 1 and isinstance(e.value.__cause__, KeyError)


def test_an_exception_of_the_whole_batch_has_no_row() -> None:
    def no_batches(prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
        if len(completions) > 1:
            raise RuntimeError("one at a time")
        return [1.0]

    with pytest.raises(RewardError, match="reward 'mine' raised RuntimeError: one at a time") as caught:
        guard(no_batches, "mine")(**ROWS)
    assert caught.value.row is None


def test_the_step_is_told_where_it_is_known() -> None:
    state = SimpleNamespace(global_step=7)
    with pytest.raises(RewardError, match="reward 'mine' at step 8, row 1"):
        guard(raises_on_y, "mine")(**ROWS, trainer_state=state)


def test_ctrl_c_is_not_an_error_of_the_reward() -> None:
    def interrupted(prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        guard(interrupted, "mine")(**ROWS)


def test_check_scores_alone() -> None:
    assert check_scores("mine", [1, None], 2) == [1.0, None]
    with pytest.raises(RewardError, match="reward 'mine' returned 1 scores for 2"):
        check_scores("mine", [1], 2)
