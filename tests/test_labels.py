"""Label sets: strict parsing as its README says, the original's reading, a person's reading, and what is counted."""

from __future__ import annotations

from pathlib import Path

import pytest

from llm_grpo.answers.labels import (
    LABEL_SETS,
    LABELS,
    judge_labels,
    label_metrics,
    parse_action,
    read_labels,
    write_action,
)
from llm_grpo.records import Completion, Example, Scored
from llm_grpo.report.confusion import draw_confusion

ALL = LABELS
BAD = None
# text, strict, as the original code reads it, as a person does, why
ACTIONS = [
    ("<respond> None </respond>", (), (), (), "no label"),
    ("<respond> Budget </respond>", ("Budget",), ("Budget",), ("Budget",), "one label"),
    ("<respond> Authority, Budget, Timeline, Need </respond>", ALL, ALL, ALL, "all four"),
    ("<respond>Authority,Need</respond>", ("Authority", "Need"), ("Authority", "Need"), ("Authority", "Need"), "no blanks"),
    ("\n <respond> Need </respond>\n", ("Need",), ("Need",), ("Need",), "whitespace around the action"),
    ("<respond>\nNeed\n</respond>", ("Need",), ("Need",), ("Need",), "line breaks inside"),
    ("<respond> Budget, Budget </respond>", BAD, ("Budget",), ("Budget",), "a duplicate"),
    ("<respond> Need, Budget </respond>", BAD, BAD, ("Budget", "Need"), "wrong order"),
    ("<respond> Price </respond>", BAD, BAD, BAD, "an unknown label"),
    ("<respond> Budget, Price </respond>", BAD, BAD, BAD, "a known and an unknown label"),
    ("<respond> budget </respond>", BAD, BAD, ("Budget",), "a label in lower case"),
    ("<respond> none </respond>", BAD, (), (), "None in lower case"),
    ("<respond> None, Budget </respond>", BAD, BAD, BAD, "None excludes the others"),
    ("<respond> None, None </respond>", BAD, BAD, (), "None twice"),
    ("<respond></respond>", BAD, (), BAD, "empty"),
    ("<respond>   </respond>", BAD, (), BAD, "blank"),
    ("<respond> , </respond>", BAD, BAD, BAD, "a comma and no label"),
    ("<respond> Budget, </respond>", BAD, BAD, ("Budget",), "a comma too many"),
    ("<respond> Budget Need </respond>", BAD, BAD, BAD, "no comma"),
    ("<respond> 'Budget' </respond>", BAD, ("Budget",), ("Budget",), "quotes inside"),
    ("<RESPOND> Budget </RESPOND>", BAD, ("Budget",), ("Budget",), "tags in upper case"),
    ("< respond > Budget < / respond >", BAD, ("Budget",), ("Budget",), "blanks in the tags"),
    ("Sure! <respond> Budget </respond>", BAD, BAD, ("Budget",), "text before"),
    ("<respond> Budget </respond> Done.", BAD, BAD, ("Budget",), "text after"),
    ("<respond> Budget </respond><respond> Need </respond>", BAD, BAD, ("Need",), "two actions"),
    ("<respond> <respond> Need </respond> </respond>", BAD, BAD, ("Need",), "nested"),
    ("<respond> Budget", BAD, BAD, ("Budget",), "never closed"),
    ("Budget </respond>", BAD, BAD, BAD, "never opened"),
    ("Budget and Need", BAD, BAD, ("Budget", "Need"), "no tags at all"),
    ("Let me see.\nBudget, Need.", BAD, BAD, ("Budget", "Need"), "no tags, the last line"),
    ("", BAD, BAD, BAD, "nothing"),
    ("<respond>", BAD, BAD, BAD, "an open tag alone"),
    ("</respond><respond>", BAD, BAD, BAD, "tags the wrong way round"),
    ("<respond> Budget\u200b </respond>", BAD, BAD, BAD, "an invisible character is a character"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "strict", "published", "person", "why"), ACTIONS, ids=[row[4] for row in ACTIONS])
def test_actions(text: str, strict: tuple | None, published: tuple | None, person: tuple | None, why: str) -> None:
    assert parse_action(text) == strict, why
    assert parse_action(text, published=True) == published, why
    assert read_labels(text) == person, why


def test_every_set_is_read_back_as_it_is_written() -> None:
    assert len(LABEL_SETS) == len(set(LABEL_SETS)) == 16
    for labels in LABEL_SETS:
        text = write_action(labels)
        assert parse_action(text) == parse_action(text, published=True) == read_labels(text) == labels


JUDGED = [
    ("<respond> Budget, Need </respond>", "Budget, Need", "right", True, True, True),
    ("<respond> Budget </respond>", "Budget", "wrong set", False, False, True),
    ("<respond> Need, Budget </respond>", "Budget, Need", "right but for the order", False, True, False),
    ("I cannot say.", None, "no labels", False, False, False),
]


@pytest.mark.parametrize(("text", "extracted", "why", "strict", "lenient", "formatted"), JUDGED)
def test_judge(text: str, extracted: str | None, why: str, strict: bool, lenient: bool, formatted: bool) -> None:
    judged = judge_labels(text, "Budget, Need")
    assert (judged.strict, judged.lenient, judged.formatted) == (strict, lenient, formatted), why
    assert judged.extracted == (extracted if strict or formatted or not lenient else "Budget, Need")


def scored(*pairs: tuple[str, str]) -> list[Scored]:
    return [
        Scored(Example(str(i), (), gold), Completion(text, 5), judge_labels(text, gold), {})
        for i, (gold, text) in enumerate(pairs)
    ]


BY_HAND = [
    ("Budget", "<respond> Budget </respond>"),  # right
    ("Budget, Need", "<respond> Budget </respond>"),  # Need is missed
    ("None", "<respond> Budget, Need </respond>"),  # both are wrong
    ("Need", "no idea"),  # invalid: Need is missed
    ("None", "<respond> None </respond>"),  # right
]


def test_metrics_counted_by_hand() -> None:
    found = label_metrics(scored(*BY_HAND))
    budget, need = found.classes["Budget"], found.classes["Need"]
    assert [budget[name] for name in ("tp", "fp", "fn", "tn")] == [2, 1, 0, 2]
    assert budget["precision"] == pytest.approx(2 / 3) and budget["recall"] == 1 and budget["f1"] == pytest.approx(0.8)
    assert [need[name] for name in ("tp", "fp", "fn", "tn")] == [0, 1, 2, 2]
    assert need["precision"] == need["recall"] == need["f1"] == 0
    assert [found.classes["Authority"][name] for name in ("tp", "fp", "fn", "tn")] == [0, 0, 0, 5]
    assert found.numbers["exact_match"] == 0.4 and found.numbers["invalid_format_rate"] == 0.2
    assert found.numbers["macro_f1"] == pytest.approx(0.2)


def test_the_confusion_counts_each_answer_once() -> None:
    confusion = label_metrics(scored(*BY_HAND)).confusion
    at = {
        (gold, answered): count
        for gold, row in zip(confusion["gold"], confusion["counts"], strict=True)
        for answered, count in zip(confusion["answered"], row, strict=True)
        if count
    }
    assert at == {
        ("Budget", "Budget"): 1, ("Budget, Need", "Budget"): 1, ("None", "Budget, Need"): 1,
        ("Need", "invalid"): 1, ("None", "None"): 1,
    }  # fmt: skip
    assert (len(confusion["gold"]), len(confusion["answered"])) == (16, 17)


def test_no_answers_are_no_error() -> None:
    assert label_metrics([]).numbers["exact_match"] == 0


def test_the_picture_is_drawn_where_there_is_a_confusion(tmp_path: Path) -> None:
    from dataclasses import asdict

    report = {"metrics": asdict(label_metrics(scored(*BY_HAND)))}
    assert draw_confusion({"before": report, "after": report}, tmp_path / "c.png")
    assert (tmp_path / "c.png").read_bytes()[:4] == b"\x89PNG" and (tmp_path / "c.png").stat().st_size > 20_000
    assert not draw_confusion({"before": {}}, tmp_path / "none.png") and not (tmp_path / "none.png").exists()
