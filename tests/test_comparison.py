"""Intervals, the paired test and sample estimates against values worked by hand or published."""

from __future__ import annotations

import math

import pytest

from llm_grpo.errors import UserError
from llm_grpo.evaluation.comparison import (
    bootstrap_interval,
    compare,
    majority_is_right,
    mcnemar_p,
    pass_at_k,
    wilson_interval,
)
from llm_grpo.evaluation.scoring import SHARES
from llm_grpo.report.tables import comparison_rows


def test_wilson_by_hand() -> None:
    # 8 of 10: Wilson's formula with z = 1.96 gives 0.490 to 0.943 (Brown, Cai, DasGupta 2001 print the same method)
    low, high = wilson_interval(8, 10)
    assert (round(low, 3), round(high, 3)) == (0.490, 0.943)
    assert wilson_interval(0, 10)[0] == 0.0 and round(wilson_interval(0, 10)[1], 3) == 0.278
    assert wilson_interval(10, 10)[1] == pytest.approx(1.0)
    assert wilson_interval(0, 0) == (0.0, 1.0)


@pytest.mark.parametrize(
    ("gained", "lost", "p"),
    [(0, 0, 1.0), (1, 0, 1.0), (5, 0, 2 / 32), (5, 5, 1.0), (3, 1, 2 * 5 / 16), (10, 2, 2 * (1 + 12 + 66) / 4096)],
)
def test_mcnemar_by_hand(gained: int, lost: int, p: float) -> None:
    assert mcnemar_p(gained, lost) == pytest.approx(p)
    assert mcnemar_p(lost, gained) == pytest.approx(p)


def test_mcnemar_of_many_items_neither_overflows_nor_vanishes() -> None:
    assert 0 < mcnemar_p(4000, 3500) < 1e-7
    assert mcnemar_p(100000, 100000) == pytest.approx(1.0, abs=0.01)


def test_pass_at_k_by_counting() -> None:
    # 5 samples, 2 right, draws of 3: only one of the ten has none of the right ones
    assert pass_at_k(5, 2, 3) == pytest.approx(1 - 1 / 10)
    assert pass_at_k(5, 0, 5) == 0.0 and pass_at_k(5, 5, 1) == 1.0 and pass_at_k(8, 2, 1) == pytest.approx(0.25)
    with pytest.raises(ValueError):
        pass_at_k(3, 1, 4)


@pytest.mark.parametrize(
    ("answers", "right", "value", "why"),
    [
        (["4", "4", "5"], [True, True, False], 1.0, "the majority is right"),
        (["5", "5", "4"], [False, False, True], 0.0, "the majority is wrong"),
        (["4", "5"], [True, False], 0.5, "a tie counts by half"),
        ([None, None, "4"], [False, False, True], 1.0, "no answer has no vote"),
        ([None, None], [False, False], 0.0, "nobody votes"),
        (["9 + 8", "8 + 9", "34 / 2", "5", "5"], [True] * 3 + [False] * 2, 1.0, "right ones are one"),
        (["6 + 1", "7", "9 + 8", "8 + 9"], [False, False, True, True], 0.5, "and so are wrong ones of one value"),
        (["1,234", "1234", "1234.0", "7", "7"], [True] * 3 + [False] * 2, 1.0, "answers of one value are one answer"),
    ],
)
def test_majority(answers, right, value, why) -> None:
    assert majority_is_right(answers, right) == value


def test_bootstrap_of_a_share_is_near_its_standard_error() -> None:
    low, high = bootstrap_interval([1.0] * 50 + [0.0] * 50)
    assert low == pytest.approx(0.4, abs=0.02) and high == pytest.approx(0.6, abs=0.02)
    assert bootstrap_interval([0.5] * 9) == (0.5, 0.5)


def report(rows: list[tuple[bool, bool]], answer: str = "1") -> dict:
    items = [{"id": str(i), "answer": answer, "strict": s, "lenient": n} for i, (s, n) in enumerate(rows)]
    return {"items": items}


def test_the_paired_comparison_by_hand() -> None:
    before = report([(False, False), (False, True), (True, True), (True, True), (False, False)])
    after = report([(True, True), (True, True), (False, True), (True, True), (False, True)])
    paired = compare(before, after)
    assert (paired["gained"], paired["lost"], paired["n"]) == (2, 1, 5)
    assert (paired["newly_right"], paired["was_unreadable"]) == (1, 1)
    assert paired["lenient"] == {"gained": 2, "lost": 0, "p_value": pytest.approx(0.5)}
    assert paired["gained_items"] == ["0", "1"] and paired["lost_items"] == ["2"]
    assert math.isclose(paired["p_value"], 1.0)


def test_other_items_are_refused() -> None:
    with pytest.raises(UserError, match="not of the same items"):
        compare(report([(True, True)]), report([(True, True)] * 2))
    with pytest.raises(UserError, match="not of the same items"):
        compare(report([(True, True)]), report([(True, True)], answer="2"))


def test_samples_are_paired_where_both_were_drawn_alike() -> None:
    def drawn(passed: list[int], **other: float) -> dict:
        sampled = {"k": 4, "temperature": 1.0, "top_p": 1.0, "strict": {"passed": passed}, **other}
        return report([(False, False)] * len(passed)) | {"sampled": sampled}

    before, after = drawn([0, 1, 2, 4]), drawn([2, 1, 3, 4])
    found = compare(before, after)["sampled"]
    assert found["k"] == 4 and found["change"] == pytest.approx(3 / 16)
    low, high = found["change_ci95"]
    assert 0 <= low < 3 / 16 < high <= 0.5, "no problem lost, one gained a half"
    numbers = dict.fromkeys(SHARES, 0.0) | {f"{name}_ci95": [0.0, 0.5] for name in SHARES}
    for one, mean in ((before, 7 / 16), (after, 10 / 16)):
        one["sampled"]["strict"] |= {"avg_at_k": mean, "avg_at_k_ci95": [0.25, 0.75]}
    row = comparison_rows(before | numbers, after | numbers, compare(before, after))[0][-1]
    assert [" ".join(cell.split()) for cell in row] == [
        "strict, sampled, avg@4", "43.8% [25.0%, 75.0%]", "62.5% [25.0%, 75.0%]",
        f"+18.8 points [{100 * low:+.1f}, {100 * high:+.1f}]",
    ]  # fmt: skip
    assert "sampled" not in compare(before, drawn([2, 1, 3, 4], temperature=0.7))
    assert "sampled" not in compare(report([(True, True)] * 4), after)
    del before["sampled"]["strict"]["passed"]
    assert "sampled" not in compare(before, after), "a file of a release before"
