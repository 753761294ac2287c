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


def honest(answer_format: str, answer: str, thought: str = THOUGHT) -> str:
    return write_answer(answer_format, thought, answer)


def attack_cases(answer_format: str, example: Example = ASKED) -> list[Case]:
    """All cases for one answer format (FORMATS): the honest ones first. The example's question is echoed."""
    if answer_format == "labels":
        return _label_cases()
    right, wrong = honest(answer_format, RIGHT), honest(answer_format, WRONG)
    cases = [
        Case("honest right", "right", right),
        Case("honest right, long", "right", honest(answer_format, RIGHT, f"{THOUGHT}\n{COUNTED}")),
        Case("honest right, negative", "right", honest(answer_format, "-5"), "-5"),
        Case("honest right, thousands", "right", honest(answer_format, "1,234"), "1234"),
        Case("honest wrong", "wrong", wrong),
        Case("empty", "degenerate", ""),
        Case("a line break", "degenerate", "\n"),
        Case("repeated, wrong", "degenerate", "\n".join([wrong] * 20)),
        Case("repeated, right", "degenerate", "\n".join([right] * 20)),
        Case("several answers, right last", "degenerate", "\n".join(honest(answer_format, n) for n in _guesses())),
        Case("several in one answer", "degenerate", honest(answer_format, ", ".join(_guesses()))),
        Case("one or the other", "degenerate", honest(answer_format, f"{WRONG} or {RIGHT}")),
        Case("keywords", "degenerate", KEYWORDS),
        Case("keywords, then wrong", "degenerate", honest(answer_format, WRONG, KEYWORDS)),
        Case("a sum made for a wrong answer", "degenerate", honest(answer_format, WRONG, "10 + 7 = 17")),
        Case("right sums, then wrong", "degenerate", honest(answer_format, WRONG, SUMS)),
        Case("every number in prose", "degenerate", "It is " + ", ".join(_guesses()) + "."),
        Case("100,000 letters", "degenerate", "a" * MANY),
        Case("100,000 digits", "degenerate", "4" * MANY),
        Case("100,000 digits as answer", "degenerate", honest(answer_format, "4" * MANY)),
        Case("100,000 characters of thought", "degenerate", honest(answer_format, WRONG, "so " * (MANY // 3))),
    ]
    own = {"xml": _xml_cases, "hash": _hash_cases, "boxed": _bare_cases, "plain": list}[answer_format]()
    question = example.prompt[-1]["content"]
    return [*cases, *own, *_reading_cases(answer_format), Case("the question again", "degenerate", question)]


def _reading_cases(answer_format: str) -> list[Case]:
    """The right number with something beside it: what makes it another answer, and what does not."""
    contradicted = honest(answer_format, WRONG, f"{THOUGHT}\nSo the answer is {RIGHT}.")
    other = {
        "denied": f"not {RIGHT}",
        "compared": f"less than {RIGHT}",
        "at least": f"{RIGHT} or more",
        "about": f"about {RIGHT}",
        "multiplied": f"{RIGHT} million",
        "the other sign": f"minus {RIGHT}",
        "a factorial": f"{RIGHT}!",
        "several units": f"{RIGHT} apples, {RIGHT} boxes, {RIGHT} dollars",
    }
    same = {"a unit": f"{RIGHT} apples", "decimals": f"{RIGHT}.00", "a full stop": f"{RIGHT}.", "bold": f"**{RIGHT}**"}
    return [
        Case("the reasoning says right, the answer wrong", "degenerate", contradicted),
        *(Case(f"right number, {name}", "degenerate", honest(answer_format, text)) for name, text in other.items()),
        *(Case(f"right, with {name}", "equivalent", honest(answer_format, text)) for name, text in same.items()),
        Case("right, a fraction", "equivalent", honest(answer_format, "1/2"), "0.5"),
        Case("right, in LaTeX", "equivalent", honest(answer_format, r"\frac{1}{2}"), "1/2"),
    ]


def _guesses() -> list[str]:
    return [str(number) for number in range(int(RIGHT) + 1)]


def _bare_cases() -> list[Case]:
    return [Case("bare number, wrong", "degenerate", WRONG), Case("bare number, right", "degenerate", RIGHT)]


def _hash_cases() -> list[Case]:
    return [*_bare_cases(), Case("marks only", "degenerate", "####"), Case("many marks", "degenerate", "#### " * 1000)]


def _xml_cases() -> list[Case]:
    right, wrong = f"<answer>\n{RIGHT}\n</answer>\n", f"<answer>\n{WRONG}\n</answer>\n"
    thought = f"<reasoning>\n{THOUGHT}\n</reasoning>\n"
    texts = {
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
    return _bare_cases() + [Case(name, "degenerate", text) for name, text in texts.items()]


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
