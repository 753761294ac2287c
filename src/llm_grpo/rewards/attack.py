"""Would a reward rather be cheated? Degenerate completions beside an honest wrong and an honest right one.

The rule: no degenerate completion may earn more than an honest right one, nor more than the honest wrong one by a
margin. Without a wish the margin is a tenth of what getting it right adds: less than that is shaping, more is a lesson.
A right answer that only lacks its reasoning is not listed: it is right, and the format rewards speak of the rest. The
right answer in another writing has to earn more than the honest wrong one, by the same margin; and a reward is asked
twice, since one that depends on its neighbours or on chance cannot be learnt from.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llm_grpo.answers.formats import write_answer
from llm_grpo.answers.judging import JUDGES
from llm_grpo.answers.labels import LABEL_SETS, LABELS, judge_labels, write_action
from llm_grpo.records import Example, Reward, columns_of, weighted_sum
from llm_grpo.rewards.guarding import RewardError

FORMATS = {**JUDGES, "labels": judge_labels}  # what can be attacked; a task's judge tells which of them it asks for
RIGHT, WRONG = "42", "17"
ASKED = Example("attack", ({"role": "user", "content": "6 boxes hold 7 apples each. How many is that?"},), RIGHT)
MARGIN_SHARE = 0.1
THOUGHT = (
    "First we read that there are 6 boxes. Then each box holds 7 apples, so we multiply the two numbers.\n"
    "Therefore the boxes hold 6 times 7 apples together, and none of them is left out or counted twice."
)
COUNTED = "\n".join(f"After box {number} there are {7 * number} apples." for number in range(1, 61))  # long, no loop
SUMS = "\n".join(f"{number} + 1 = {number + 1}" for number in range(60))  # right, and beside the point
KEYWORDS = "first second third then next therefore thus hence finally because so step " * 4
MANY = 100_000


@dataclass(frozen=True)
class Case:
    """A completion with its gold. kind: right and wrong are honest, equivalent is right in another writing, the rest is
    degenerate."""

    name: str
    kind: str
    text: str
    gold: str = RIGHT


@dataclass(frozen=True)
class Verdict:
    """One case's scores by reward, its weighted total, and what is wrong with that total (empty: nothing)."""

    case: Case
    scores: Mapping[str, float | None]
    total: float
    fault: str


def attack_cases(answer_format: str, example: Example = ASKED) -> list[Case]:
    """All cases for one answer format (FORMATS): the honest ones first. The example's question is echoed."""
    if answer_format == "labels":
        return _label_cases()

    def said(answer: object, thought: str = THOUGHT) -> str:
        return write_answer(answer_format, thought, str(answer))

    right, wrong, guesses = said(RIGHT), said(WRONG), list(map(str, range(int(RIGHT) + 1)))
    degenerate = {
        "empty": "",
        "a line break": "\n",
        "repeated, wrong": "\n".join([wrong] * 20),
        "repeated, right": "\n".join([right] * 20),
        "several answers, right last": "\n".join(map(said, guesses)),
        "several in one answer": said(", ".join(guesses)),
        "one or the other": said(f"{WRONG} or {RIGHT}"),
        "keywords": KEYWORDS,
        "keywords, then wrong": said(WRONG, KEYWORDS),
        "a sum made for a wrong answer": said(WRONG, "10 + 7 = 17"),
        "right sums, then wrong": said(WRONG, SUMS),
        "every number in prose": f"It is {', '.join(guesses)}.",
        "100,000 letters": "a" * MANY,
        "100,000 digits": "4" * MANY,
        "100,000 digits as answer": said("4" * MANY),
        "100,000 characters of thought": said(WRONG, "so " * (MANY // 3)),
        "the reasoning says right, the answer wrong": said(WRONG, f"{THOUGHT}\nSo the answer is {RIGHT}."),
        "right number, denied": said(f"not {RIGHT}"),
        "right number, compared": said(f"less than {RIGHT}"),
        "right number, at least": said(f"{RIGHT} or more"),
        "right number, about": said(f"about {RIGHT}"),
        "right number, multiplied": said(f"{RIGHT} million"),
        "right number, the other sign": said(f"minus {RIGHT}"),
        "right number, a factorial": said(f"{RIGHT}!"),
        "right number, several units": said(f"{RIGHT} apples, {RIGHT} boxes, {RIGHT} dollars"),
        "the question again": example.prompt[-1]["content"],
    }
    if answer_format != "plain":
        degenerate |= {"bare number, wrong": WRONG, "bare number, right": RIGHT}
    if answer_format == "hash":
        degenerate |= {"marks only": "####", "many marks": "#### " * 1000}
    if answer_format == "xml":
        degenerate |= _xml_texts()
    same = {"a unit": f"{RIGHT} apples", "decimals": f"{RIGHT}.00", "a full stop": f"{RIGHT}.", "bold": f"**{RIGHT}**"}
    return [
        Case("honest right", "right", right),
        Case("honest right, long", "right", said(RIGHT, f"{THOUGHT}\n{COUNTED}")),
        Case("honest right, negative", "right", said("-5"), "-5"),
        Case("honest right, thousands", "right", said("1,234"), "1234"),
        Case("honest wrong", "wrong", wrong),
        *(Case(name, "degenerate", text) for name, text in degenerate.items()),
        *(Case(f"right, with {name}", "equivalent", said(text)) for name, text in same.items()),
        Case("right, a fraction", "equivalent", said("1/2"), "0.5"),
        Case("right, in LaTeX", "equivalent", said(r"\frac{1}{2}"), "1/2"),
    ]


def _xml_texts() -> dict[str, str]:
    right, wrong = f"<answer>\n{RIGHT}\n</answer>\n", f"<answer>\n{WRONG}\n</answer>\n"
    thought = f"<reasoning>\n{THOUGHT}\n</reasoning>\n"
    return {
        "tags only": "<reasoning></reasoning><answer></answer>",
        "tags only, in lines": "<reasoning>\n\n</reasoning>\n<answer>\n\n</answer>\n",
        "reasoning only": thought,
        "answer only, wrong": wrong,
        "no answer in its tags": f"{thought}<answer>\n\n</answer>\n",
        "two answer blocks, right last": thought + wrong + right,
        "two answer blocks, right first": thought + right + wrong,
        "right one nested": f"{thought}<answer>\n{WRONG}\n{right}</answer>\n",
        "right one outside the tags": f"{thought}{wrong}{RIGHT}",
        "tags in the wrong order": f"{wrong}{thought}",
        "12,500 open tags": "<answer>" * (MANY // 8),
        "12,500 nested reasonings": "<reasoning>" * (MANY // 16) + "</reasoning>" * (MANY // 16) + wrong,
    }


def _label_cases() -> list[Case]:
    """Actions with label sets: four honest ones, and what only looks like one."""
    gold, right, wrong = "Budget, Need", write_action(("Budget", "Need")), write_action(("Authority", "Timeline"))
    cases = [
        Case("honest right", "right", right, gold),
        Case("honest right, none", "right", write_action(()), "None"),
        Case("honest right, all", "right", write_action(LABELS), ", ".join(LABELS)),
        Case("honest wrong", "wrong", wrong, gold),
    ]
    texts = {
        "empty": "",
        "no labels": "<respond></respond>",
        "labels without tags": gold,
        "wrong order": "<respond> Need, Budget </respond>",
        "a label twice": "<respond> Budget, Budget, Need </respond>",
        "None and more": "<respond> None, Budget, Need </respond>",
        "lower case": "<respond> budget, need </respond>",
        "text before": f"The answer: {right}",
        "text after": f"{right} That is all.",
        "two actions, right last": wrong + right,
        "two actions, right first": right + wrong,
        "right one nested": f"<respond> {right} </respond>",
        "every set": "".join(map(write_action, LABEL_SETS)),
        "denied": "<respond> not Budget, Need </respond>",
        "the labels' names": ", ".join(LABELS),
        "every word": f"<respond> {', '.join([*LABELS, 'None'])} </respond>",
        "100,000 letters": f"<respond> {'a' * MANY} </respond>",
        "11,000 open tags": "<respond>" * (MANY // 9),
    }
    return cases + [Case(name, "degenerate", text, gold) for name, text in texts.items()]


def attack(
    rewards: Sequence[Reward], answer_format: str, margin: float | None = None, example: Example = ASKED
) -> tuple[list[Verdict], float]:
    """Score every case and judge its total; also the margin in points. Raises RewardError where a reward fails.

    example: one of the task's, whose conversation and columns every case is given, so that a reward that reads more
    than the answer can be tried; the answer is the case's own.
    """
    cases = attack_cases(answer_format, example)
    lists = _scored(rewards, cases, example)
    scores = [{label: values[row] for label, values in lists.items()} for row in range(len(cases))]
    totals = [weighted_sum(rewards, row) or 0.0 for row in scores]
    right = min(total for case, total in zip(cases, totals, strict=True) if case.kind == "right")
    wrong = max(total for case, total in zip(cases, totals, strict=True) if case.kind == "wrong")
    margin = MARGIN_SHARE * max(0.0, right - wrong) if margin is None else margin
    faults = [_fault(case, total, right, wrong, margin) for case, total in zip(cases, totals, strict=True)]
    return [Verdict(*row) for row in zip(cases, scores, totals, faults, strict=True)], margin


def unsteady(rewards: Sequence[Reward], answer_format: str, example: Example = ASKED) -> list[str]:
    """A sentence for each reward that scores the same cases otherwise when asked again, or in another order."""
    cases = attack_cases(answer_format, example)
    first, again = _scored(rewards, cases, example), _scored(rewards, cases, example)
    turned = _scored(rewards, cases[::-1], example)
    said = []
    for label, scores in first.items():
        if not _same_scores(scores, again[label]):
            said.append(f"{label} gives the same completions other scores when it is asked again")
        elif not _same_scores(scores, turned[label][::-1]):
            said.append(f"{label} gives the same completions other scores in another order")
    return said


def _scored(rewards: Sequence[Reward], cases: Sequence[Case], example: Example) -> dict[str, list[float | None]]:
    """The scores of every case by reward, with the example's conversation and columns and the case's gold."""
    columns = columns_of([example] * len(cases))
    columns |= {"prompts": [list(example.prompt)] * len(cases), "answer": [case.gold for case in cases]}
    columns["completions"] = [[{"role": "assistant", "content": case.text}] for case in cases]
    return {reward.label: _scores(reward, cases, columns) for reward in rewards}


def _same_scores(some: Sequence[float | None], others: Sequence[float | None]) -> bool:
    """A ten-thousandth is forgiven to a model whose sums depend on the batch."""
    return all(
        a is b if a is None or b is None else math.isclose(a, b, rel_tol=1e-4, abs_tol=1e-4)
        for a, b in zip(some, others, strict=True)
    )


def _scores(reward: Reward, cases: Sequence[Case], columns: Mapping[str, Sequence[Any]]) -> list[float | None]:
    """A reward that fails on all of them together is asked again for each, to name the case that it fails on."""
    try:
        return reward.function(**columns)
    except RewardError as failed:
        for row, case in enumerate(cases):
            try:
                reward.function(**{name: values[row : row + 1] for name, values in columns.items()})
            except RewardError as error:
                raise RewardError(f"{error.said} (case '{case.name}')", name=reward.label) from failed
        raise


def backwards(verdicts: Sequence[Verdict], rewards: Sequence[Reward]) -> list[Reward]:
    """Those whose weighted score is lower for the honest right answer than for the honest wrong one."""
    first = {v.case.kind: v.scores for v in reversed(verdicts) if v.case.kind in ("right", "wrong")}
    both = [(r, first["right"][r.label], first["wrong"][r.label]) for r in rewards]
    return [r for r, right, wrong in both if None not in (right, wrong) and r.weight * right < r.weight * wrong]


def _fault(case: Case, total: float, right: float, wrong: float, margin: float) -> str:
    """Empty where the case earns no more than it may; a billionth is forgiven to floating-point sums."""
    if case.kind == "wrong":
        return "no less than the honest right" if total >= right - 1e-9 else ""
    if case.kind == "equivalent" and total <= min(wrong + margin, right) + 1e-9 < right:
        return "right, and paid like a wrong one"
    if case.kind in ("right", "equivalent"):
        return ""
    if total > right + 1e-9:
        return "beats the honest right"
    return "beats the honest wrong" if total > wrong + margin + 1e-9 else ""
