"""Does the completion have the form that was asked for: three of the five published rewards, corrected.

The published ones are regular expressions with `.*?`; here they are the same questions asked of tag positions, because
a lazy pattern is quadratic on thousands of open tags. tests/test_rewards_published.py holds them against the patterns.
"""

from __future__ import annotations

import re

from llm_grpo.answers.formats import FORMATS, TAGS, well_formed
from llm_grpo.errors import UserError, check_choice

_TURN = re.compile(r"</reasoning>\s*<answer>")
_STRICT_TURN = "\n</reasoning>\n<answer>\n"
_STRICT_END = "\n</answer>\n"


def strict_format(text: str, *, published: bool = False, dotall: bool = True, answer_format: str = "xml") -> float:
    """0 or 0.5: exactly the two blocks, once each, filled, nothing outside them (published: line by line).

    dotall belongs to the published pattern: False is the early gist, whose `.` does not cross lines.
    answer_format: hash asks for one `####` with one line behind it, boxed for one `\\boxed{}`, plain for one line.
    """
    _only_published(published, dotall)
    check_choice("answer_format", answer_format, ["xml"] if published else FORMATS)
    return 0.5 if (_published_strict(text, dotall) if published else FORMATS[answer_format].formed(text)) else 0.0


def soft_format(text: str, *, published: bool = False, dotall: bool = True, anywhere: bool = False) -> float:
    """0 or 0.5: the two blocks, once each, filled, side by side; text around them is free (published: behind them).

    dotall and anywhere belong to the published pattern: dotall=False is the early gist, whose `.` does not cross lines;
    anywhere=True searches for it (S3), where the others match it at the start of the text.
    """
    _only_published(published, dotall, anywhere)
    if not published:
        return 0.5 if well_formed(_inner(text)) else 0.0
    if anywhere:  # with DOTALL what begins at the first tag reaches as far as what begins at any other
        text = "".join(text.partition(TAGS[0])[1:])
    return 0.5 if _published_soft(text, dotall) else 0.0


def _inner(text: str) -> str:
    """From the first `<reasoning>` to the last `</answer>`; the whole text where either is missing."""
    start, end = text.find(TAGS[0]), text.rfind(TAGS[3])
    return text[start : end + len(TAGS[3])] if 0 <= start < end else text


def _published_strict(text: str, dotall: bool) -> bool:
    """^<reasoning>\\n.*?\\n</reasoning>\\n<answer>\\n.*?\\n</answer>\\n$ by positions."""
    head = "<reasoning>\n"
    if not text.startswith(head):
        return False
    body = text[:-1] if text.endswith("\n\n") else text  # `$` also matches before one last newline
    end = len(body) - len(_STRICT_END)
    turn = text.find(_STRICT_TURN if dotall else "\n", len(head))
    if turn < 0 or not text.startswith(_STRICT_TURN, turn):
        return False
    answer = turn + len(_STRICT_TURN)
    if not body.endswith(_STRICT_END) or answer > end:
        return False
    return dotall or text.find("\n", answer) == end


def _published_soft(text: str, dotall: bool) -> bool:
    """<reasoning>.*?</reasoning>\\s*<answer>.*?</answer> at the start of the text, by positions."""
    if not text.startswith(TAGS[0]):
        return False
    if dotall:
        turn = _TURN.search(text)
        return turn is not None and text.find(TAGS[3], turn.end()) >= 0
    line_end = text.find("\n")
    turns = [turn for turn in _TURN.finditer(text) if line_end < 0 or turn.start() < line_end]
    # On the first line the earliest turn reaches furthest; only the last one can lead to another line.
    return any(TAGS[3] in text[turn.end() :].partition("\n")[0] for turn in (turns[:1] + turns[-1:]))


def xmlcount(text: str, *, published: bool = False) -> float:
    """0 to 0.5: an eighth for each of the four tags that stands once, less 0.001 per character outside the blocks.

    A block that is missing or empty pays nothing at all (leaving it out must not be a way round the penalty), and the
    penalty never reaches into the answer or below 0. published: the counts with newlines, where the penalty is the
    length of the whole text if that ends at `</answer>` (from minus infinity).
    """
    return _published_xmlcount(text) if published else _xmlcount(text)


def _xmlcount(text: str) -> float:
    once = [tag for tag in TAGS if text.count(tag) == 1]
    places = [text.find(tag) for tag in once]
    if TAGS[0] not in once or TAGS[2] not in once or places != sorted(places):
        return 0.0
    before, _, rest = text.partition(TAGS[0])
    reasoning, _, rest = rest.partition(TAGS[2])
    answer, _, after = rest.partition(TAGS[3])
    thought, _, between = reasoning.partition(TAGS[1])
    if not thought.strip() or not answer.strip():
        return 0.0
    outside = len(before.strip()) + len(between.strip()) + len(after.strip())
    return max(0.0, 0.125 * len(once) - 0.001 * outside)


def _published_xmlcount(text: str) -> float:
    """Term by term in the published order, so that the sum is the same float."""
    score = 0.0
    for tag in ("<reasoning>\n", "\n</reasoning>\n"):
        score += 0.125 if text.count(tag) == 1 else 0.0
    if text.count("\n<answer>\n") == 1:
        score += 0.125
        score -= len(text.split("\n</answer>\n")[-1]) * 0.001
    if text.count("\n</answer>") == 1:
        score += 0.125
        score -= (len(text.partition("\n</answer>")[2]) - 1) * 0.001
    return score


def _only_published(published: bool, dotall: bool, anywhere: bool = False) -> None:
    if not published and (anywhere or not dotall):
        named = "anywhere: true" if anywhere else "dotall: false"
        raise UserError(f"{named} is a property of the published pattern; set published: true as well.")
    if anywhere and not dotall:
        raise UserError("anywhere: true was published with DOTALL only; leave dotall as it is.")
