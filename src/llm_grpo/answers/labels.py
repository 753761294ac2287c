"""Label sets in a `<respond> LABELS </respond>` action: how they are written, parsed strictly, and read with goodwill.

LABELS is None or some of Authority, Budget, Timeline, Need, in that order, with commas between them. A set is a tuple
in that order; () is None. Everything takes linear time, because model output is data.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from itertools import chain, combinations

from llm_grpo.records import Judgement, Metrics, Scored

LABELS = ("Authority", "Budget", "Timeline", "Need")
NONE, INVALID = "None", "invalid"
OPEN, CLOSE = "<respond>", "</respond>"
LabelSet = tuple[str, ...]
LABEL_SETS: tuple[LabelSet, ...] = tuple(chain.from_iterable(combinations(LABELS, size) for size in range(5)))

_LOOSE_OPEN = re.compile(r"<\s*respond\s*>", re.IGNORECASE)
_LOOSE_CLOSE = re.compile(r"<\s*/\s*respond\s*>", re.IGNORECASE)
_BETWEEN = re.compile(r",|;|&|\band\b", re.IGNORECASE)
_QUOTES = "\"'` \t\r\n"
_KNOWN = {label.casefold() for label in LABELS}


def write_labels(labels: LabelSet) -> str:
    """`Authority, Need`, or `None` for no label."""
    return ", ".join(labels) or NONE


def write_action(labels: LabelSet) -> str:
    """`<respond> Authority, Need </respond>`"""
    return f"{OPEN} {write_labels(labels)} {CLOSE}"


def parse_labels(text: str) -> LabelSet | None:
    """The set that is written in canonical order, each label once, case included; None where it is not that."""
    names = tuple(name.strip() for name in text.split(","))
    if names == (NONE,):
        return ()
    return names if names in LABEL_SETS else None


def parse_action(text: str, *, published: bool = False) -> LabelSet | None:
    """The set of a completion that is exactly one action; None where it is malformed or its labels are not a set.

    Whitespace around the tags, the labels and the commas is free; nothing else is. published: as the original code
    reads it: tags in any case and with inner blanks, quotes inside them, repeated labels dropped, an empty action and
    `none` in any case as None.
    """
    if published:
        return _parse_published(text.strip())
    text = text.strip()
    if not text.startswith(OPEN) or not text.endswith(CLOSE):
        return None
    return parse_labels(text[len(OPEN) : -len(CLOSE)])


def _parse_published(text: str) -> LabelSet | None:
    opened, last = _LOOSE_OPEN.match(text), text.rfind("<")
    if opened is None or last < opened.end() or not _LOOSE_CLOSE.fullmatch(text, last):
        return None
    inner = text[opened.end() : last].strip(_QUOTES)
    if inner.lower() in ("", "none"):
        return ()
    names = tuple(dict.fromkeys(name.strip() for name in inner.split(",")))
    return names if names in LABEL_SETS else None


def read_labels(text: str) -> LabelSet | None:
    """The set a person would read: in the last action, else on the last line; in any case, order and repetition."""
    opened = [match.end() for match in _LOOSE_OPEN.finditer(text)]
    if opened:
        said = text[opened[-1] :]
        closed = _LOOSE_CLOSE.search(said)
        said = said[: closed.start()] if closed else said
    else:
        said = text.strip().rpartition("\n")[2]
    words = {name.strip(_QUOTES + ".*").casefold() for name in _BETWEEN.split(said)} - {""}
    if words == {NONE.casefold()}:
        return ()
    return tuple(label for label in LABELS if label.casefold() in words) if words and words <= _KNOWN else None


def judge_labels(text: str, gold: str) -> Judgement:
    """Strict reads exactly one action; lenient what a person would read. The gold is a set in canonical order."""
    strict, right = parse_action(text), parse_labels(gold)
    read = strict if strict is not None else read_labels(text)
    found = read is not None and read == right
    extracted = None if read is None else write_labels(read)
    return Judgement(extracted, strict=found and strict is not None, lenient=found, formatted=strict is not None)


def label_metrics(scored: Sequence[Scored]) -> Metrics:
    """Invalid-format rate, exact matches, and of each label the 2x2 counts with precision, recall, F1; read strictly.

    An invalid answer names no label: it costs recall and never precision, and its own rate stands beside. A share
    without anything to count (a label that was never named) is 0.
    """
    pairs = [(parse_labels(s.example.answer) or (), parse_action(s.completion.answer)) for s in scored]
    n = max(1, len(pairs))
    classes = {
        label: _two_by_two([(label in gold, label in (given or ())) for gold, given in pairs]) for label in LABELS
    }
    counts = Counter((gold, given) for gold, given in pairs)
    answered = [*LABEL_SETS, None]
    return Metrics(
        numbers={
            "exact_match": sum(gold == given for gold, given in pairs) / n,
            "invalid_format_rate": sum(given is None for _, given in pairs) / n,
            "macro_f1": sum(row["f1"] for row in classes.values()) / len(LABELS),
        },
        classes=classes,
        confusion={
            "gold": [write_labels(labels) for labels in LABEL_SETS],
            "answered": [INVALID if labels is None else write_labels(labels) for labels in answered],
            "counts": [[counts[gold, given] for given in answered] for gold in LABEL_SETS],
        },
    )


def _two_by_two(pairs: Sequence[tuple[bool, bool]]) -> dict[str, float]:
    """Of (is there, was named) pairs: the four counts, precision, recall and their harmonic mean."""
    counts = Counter(pairs)
    tp, fp, fn, tn = (counts[pair] for pair in ((True, True), (False, True), (True, False), (False, False)))
    shares = {
        "precision": tp / max(1, tp + fp),
        "recall": tp / max(1, tp + fn),
        "f1": 2 * tp / max(1, 2 * tp + fp + fn),
    }
    return {"tp": tp, "fp": fp, "fn": fn, "tn": tn, **shares}
