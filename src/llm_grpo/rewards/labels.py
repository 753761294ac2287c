"""The reward of lead qualification: one number for an action with a set of labels, as its README publishes it."""

from __future__ import annotations

from llm_grpo.answers.labels import LABELS, parse_action, parse_labels

INVALID, VALID, EXACT = -2.0, 0.5, 2.0


def lead_qualification(
    text: str, answer: str | None = None, *, published: bool = False, graded: bool = False
) -> float | None:
    """-2 to 2: -2 for anything but one valid action, 0.5 for a valid one, 2 (in its place) for the exact label set.

    published: the original's code, which is milder than its README (see labels.parse_action) and pays 1 for a valid
    action where there is no gold. Otherwise a row whose gold is no label set cannot be judged (None).
    graded: between 0.5 and 2 by the share of the four labels that are rightly there or rightly missing, for a model
    that never hits the exact set.
    """
    gold = parse_labels(answer or "")
    if gold is None and not published:
        return None
    given = parse_action(text, published=published)
    if given is None:
        return INVALID
    if gold is None:
        return 1.0
    if given == gold:
        return EXACT
    agreed = sum((label in given) == (label in gold) for label in LABELS)
    return VALID + (EXACT - VALID) * agreed / len(LABELS) if graded else VALID
