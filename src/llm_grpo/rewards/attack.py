"""Would a reward rather be cheated? Degenerate completions beside an honest wrong and an honest right one.

The rule: no degenerate completion may earn more than an honest right one, nor more than the honest wrong one by a
margin. Without a wish the margin is a tenth of what getting it right adds: less than that is shaping, more is a lesson.
A right answer that only lacks its reasoning is not listed: it is right, and the format rewards speak of the rest.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from llm_grpo.answers.judging import JUDGES, write_answer
from llm_grpo.answers.labels import LABEL_SETS, LABELS, judge_labels, write_action
from llm_grpo.records import Example, Reward, columns_of, weighted_sum

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
    """A completion with its gold. kind: right and wrong are honest, the rest is degenerate."""

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


def attack_cases(answer_format: str) -> list[Case]:
    """All cases for one answer format (FORMATS): the honest ones first."""
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
    return cases + {"xml": _xml_cases, "hash": _hash_cases, "plain": list}[answer_format]()


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
    cases = attack_cases(answer_format)
    columns = columns_of([example] * len(cases))
    columns |= {"prompts": [list(example.prompt)] * len(cases), "answer": [case.gold for case in cases]}
    completions = [[{"role": "assistant", "content": case.text}] for case in cases]
    lists = {reward.label: reward.function(completions=completions, **columns) for reward in rewards}
    scores = [{label: values[row] for label, values in lists.items()} for row in range(len(cases))]
    totals = [weighted_sum(rewards, row) or 0.0 for row in scores]
    right = min(total for case, total in zip(cases, totals, strict=True) if case.kind == "right")
    wrong = max(total for case, total in zip(cases, totals, strict=True) if case.kind == "wrong")
    margin = MARGIN_SHARE * max(0.0, right - wrong) if margin is None else margin
    faults = [_fault(case, total, right, wrong, margin) for case, total in zip(cases, totals, strict=True)]
    return [Verdict(*row) for row in zip(cases, scores, totals, faults, strict=True)], margin


def backwards(verdicts: Sequence[Verdict], rewards: Sequence[Reward]) -> list[Reward]:
    """Those whose weighted score is lower for the honest right answer than for the honest wrong one."""
    first = {v.case.kind: v.scores for v in reversed(verdicts) if v.case.kind != "degenerate"}
    both = [(r, first["right"][r.label], first["wrong"][r.label]) for r in rewards]
    return [r for r, right, wrong in both if None not in (right, wrong) and r.weight * right < r.weight * wrong]


def _fault(case: Case, total: float, right: float, wrong: float, margin: float) -> str:
    """Empty where the case earns no more than it may; a billionth is forgiven to floating-point sums."""
    if case.kind == "wrong":
        return "no less than the honest right" if total >= right - 1e-9 else ""
    if case.kind == "right":
        return ""
    if total > right + 1e-9:
        return "beats the honest right"
    return "beats the honest wrong" if total > wrong + margin + 1e-9 else ""
