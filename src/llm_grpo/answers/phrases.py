"""What stands beside a number: whether it is harmless, and the sign, multiplier, currency and unit it adds.

One side of an equation is read at a time: subject, copula, phrase (vocabulary.py). What does harm in each of them is a
table of patterns, over its words with NUMBER where the number stands and MONEY for a currency. A side without a number
is a name (`x = 42`), and harmless unless it is an expression (`-x = 42`) or denies something.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction

from llm_grpo.answers import vocabulary as known
from llm_grpo.answers.tokens import Token

_HARMLESS_SIGNS = frozenset(".,:;\"'*_`#()[]&%\u00b0\u2192\u21d2\u2234\u2022")
_DENIED = frozenset("\u274c\u2717\u2718\u2715\u2716\u274e\u26d4\U0001f6ab\u2796")  # pictures of a no
_BEFORE_DIGITS = frozenset("([{*_`\"'")  # what may stand between a sign and its number
NUMBER, MONEY = "\0", "\1"
_START, _END = r"(?<![^\W_])(?<![^\W_]')", r"(?!'?[^\W_])"  # of a word; don't is one


def _any(words: Iterable[str]) -> str:
    """A pattern of these words, case-folded."""
    return rf"{_START}(?:{'|'.join(sorted(words))}){_END}"


_COUNTS = known.SPELLED.keys() | known.MULTIPLIERS.keys() | {f"{word}s" for word in known.MULTIPLIERS}
_NO_NOUNS = (known.FILLERS - {":"} | known.BETWEEN_TWO | {"or", "point"}) - _COUNTS
_LETTER = r"[^\W\d_]"
_PIECE = r" ?(?:[^\W_]+(?:'[^\W_]+)*(?!'?[^\W_])|[^\w\s]|_)"  # a whole word or a sign, so that nothing backtracks
_DENIES = rf"{_any(known.CHANGING)}|n't{_END}"
_BOUNDED = rf"{_any(known.LIMITING)}|{_any(['at'])}(?:{_PIECE}){{0,2}} ?{_any(['least', 'most'])}"
# A number word that counts nothing of its own: `forty 2`, `42 and one`. `the three friends` is harmless.
_LOOSE_COUNT = rf"(?:{_any(_COUNTS)}(?:(?! ?{_LETTER})|(?= ?{_any(_NO_NOUNS)}))|{_any(['zero'])})"
_FIRST_SIGN = rf"^{NUMBER}(?: ?[-()\u00b0/])?"
_FIRST = rf"{_FIRST_SIGN} ?"  # right behind the number

_SUBJECT = re.compile(rf"{_DENIES}|{_any(['minus', 'negative'])}|^ ?-")
_FRONT = re.compile(
    "|".join([
        _DENIES,
        _BOUNDED,
        _any(known.LEADING | known.UNCLEAR_COUNTS | known.PLACING - {"up", "down"}),
        rf"^ ?{_any(['up', 'down'])}|{_any(['up', 'down'])} {_any(['to'])}",  # up to 10; but he picked up 10 cans
        _LOOSE_COUNT,
        rf"(?<={_LETTER})(?<!minus)(?<!negative)(?<!neg)(?<!plus)(?<!positive)\(",  # f(42)
        "/",
    ])
)  # fmt: skip
# Read with their case: a letter that may be a variable. Building C has 59 floors, and 5 m are meters.
_LETTER_IN_FRONT = re.compile(rf"{_START}(?![aiAI]{_END})(?![A-Z] ?{_LETTER}){_LETTER}{_END}")
_LETTER_BEHIND = re.compile(
    rf"{_START}(?![{''.join(known.UNIT_LETTERS)}]|[aiI] ?{_LETTER})[A-Za-z\u0370-\u03ff]{_END}|{_FIRST_SIGN}[aiI]{_END}"
)
# Something of the number: the cosine of 60, tens of 42. `a profit of 42` describes a thing, and a total is one.
_OF = re.compile(rf"{_any(['of'])}(?:[\W_]|{_any(known.SIGN_WORDS.keys() - {'-', '+'})})*{NUMBER}")
_A_THING = re.compile(rf"{_any(['a', 'an', 'total'])}(?:{_PIECE}){{0,3}} ?$")
_ONE = rf"(?<=each |this |that ){_any(['one'])}|(?<=every ){_any(['one'])}|{_any(['one'])} of{_END}"
_REST = re.compile(
    "|".join([
        _DENIES,
        _BOUNDED,
        _any(known.SIGN_WORDS.keys() - {"-", "+"} | known.GREEK),
        rf"(?<!per )(?<!each )(?<!every )(?<!/)(?<!/ ){_any(known.UNCLEAR_COUNTS)}",  # 4 score
        # Over 42 and up; but 42 left over, and 42 apples down in the cellar.
        rf"(?:^{NUMBER}|{_any(['and'])}|[-,(]) ?{_any(known.PLACING)}|{_any(known.PLACING)}(?! ?{_LETTER})",
        rf"{_FIRST}{_any(['to', 'sq'])}(?: the{_END}|[\W\d_]*$)",  # 5 to the third, 5 sq.
        rf"(?<!{_LETTER})(?<!{_LETTER} ){_any(known.POWER_WORDS)}",  # 8 squared; but 8 meters squared
        # 42 and more, 42 less 5; but 42 more.
        rf"(?:{_any(['and', 'any'])}|[,;]) ?{_any(known.COMPARATIVES)}|{_any(['less'])}(?! ?\.| than{_END}|$)",
        rf"{_FIRST}{_any(['times', 'time'])}(?! ?{_any(known.AFTER_TIMES)})(?= ?{_LETTER})",  # 5 times x
        rf"(?<!per )(?!{_ONE}){_LOOSE_COUNT}",  # 42 and one; but per hundred, each one, one of them
        # Two letters that are no unit: 5 xy.
        rf"{_FIRST}(?!{_any(known.SHORT_UNITS | known.FILLERS)})(?:[A-Za-z]|[\u0370-\u03ff]){{2}}{_END}",
        rf"(?<!\S)-|-(?!{_LETTER})",  # 42 - x; but 42-foot
    ])
)  # fmt: skip


@dataclass(frozen=True)
class Reading:
    """The one number of a text, the units and things that stand behind it, and its currency (empty: none)."""

    value: Fraction
    words: frozenset[str] = frozenset()
    money: str = ""


def read_side(tokens: Sequence[Token], *, first: bool, last: bool) -> Reading | str | None:
    """The number of one side of an equation, "" for a harmless name, None for what is unclear.

    first, last: whether it is the first and the last side; a sign may stand loose behind `=` (x = - 5), where it is
    neither a bullet nor a dash.
    """
    places = [place for place, token in enumerate(tokens) if token.kind == "number"]
    if any(token.kind == "odd" or token.said < " " for token in tokens):
        return None
    if not places:
        return "" if _is_name(tokens, last) else None
    head, tail = places[0], places[-1]
    start = 1 + max((place for place in range(head) if tokens[place].text in known.COPULAS), default=-1)
    subject, front, between, rest = tokens[:start], tokens[start:head], tokens[head + 1 : tail], tokens[tail + 1 :]
    if known.spelled([token.text for token in front if token.kind == "word"]) == tokens[head].value:
        front = [token for token in front if token.kind == "money" or token.text == "("]  # forty-two (42)
    sign = _sign(front, tokens[head], loose=not first)
    behind = [known.unit_of(token.text) for token in rest[1:2]]
    is_money = any(token.kind == "money" for token in front) or any(unit in known.MONEY for unit in behind)
    factor, rest = _multiplied(rest, is_money)
    values = {tokens[place].value for place in places}
    if sign is None or factor is None or len(values) != 1 or None in values or not _balanced(tokens):
        return None
    value = sign * values.pop() * factor
    harmless = (
        _is_harmless_subject(subject) and _is_harmless_front(front, tokens[head]) and _is_harmless_rest(rest, value)
    )
    if not harmless or (len(places) > 1 and not _says_it_again(between, sign, factor)):
        return None
    return _reading(value, front, rest)


def _reading(value: Fraction, front: Sequence[Token], rest: Sequence[Token]) -> Reading | None:
    """With its units, or None where two currencies stand beside it, or an accountant's brackets ($5)."""
    named = {known.unit_of(token.text) for place, token in enumerate(rest) if _names_a_unit(rest, place)}
    money = {known.MONEY.get(token.text, token.text) for token in [*front, *rest] if token.kind == "money"}
    money |= {known.MONEY[word] for word in named if word in known.MONEY}
    bracketed = [token.text for token in front if token.text == "(" or token.kind == "money"]
    if len(money) > 1 or (len(bracketed) > 1 and len(front) == len(bracketed)):
        return None
    return Reading(value, frozenset(named - known.MONEY.keys()), money.pop() if money else "")


def _names_a_unit(rest: Sequence[Token], place: int) -> bool:
    token = rest[place]
    if token.text in "%\u00b0":
        return True
    is_last = place == len(rest) - 1 or rest[place + 1].kind != "word"
    return token.kind == "word" and (token.text not in known.FILLERS or (token.text == "in" and is_last and not place))


def _is_name(tokens: Sequence[Token], last: bool) -> bool:
    """x, f(x), the total cost, a + b: but no -x, no `x !` before `=`, nothing denied, no other relation."""
    if not _is_harmless_subject([token for token in tokens if token.text != "+"]):
        return False
    return tokens[0].text not in "-+" and tokens[-1].text not in "+-/&" and (last or tokens[-1].text != "!")


def _text(tokens: Sequence[Token]) -> str:
    pieces = (f"{'' if token.glued else ' '}{MONEY if token.kind == 'money' else token.said}" for token in tokens)
    return "".join(pieces)


def _is_harmless_subject(tokens: Sequence[Token]) -> bool:
    """What names the quantity may compare and count, but not deny or double it."""
    text = _text(tokens)
    return not _SUBJECT.search(text.casefold()) and _has_harmless_signs(text, "-")


def _is_harmless_front(front: Sequence[Token], number: Token) -> bool:
    """Between the copula and the number: no comparison, no function, no other number, no variable."""
    text = _text(front) + ("" if number.glued else " ") + NUMBER
    folded = text.casefold()
    taken = any(not _A_THING.search(folded, 0, of.start()) for of in _OF.finditer(folded))
    harm = taken or _FRONT.search(folded) or _LETTER_IN_FRONT.search(text)
    return not harm and _has_harmless_signs(text, "-+" + NUMBER)


def _is_harmless_rest(rest: Sequence[Token], value: Fraction) -> bool:
    """Behind the number: units, things, and where they are; nothing that adds, bounds, or may be a variable."""
    text = re.sub(r"\(([^()]*)\)", lambda m: "" if _spelled(m[1]) == value else m[0], _text(rest))  # 42 (forty-two)
    text = NUMBER + re.sub(r"\bleft((?: \S+)?) over\b", r"left\1", text, flags=re.IGNORECASE)
    return not (_REST.search(text.casefold()) or _LETTER_BEHIND.search(text)) and _has_harmless_signs(
        text, "-" + NUMBER
    )


def _spelled(text: str) -> int | None:
    return known.spelled(text.casefold().replace("-", " ").split())


def _has_harmless_signs(text: str, but: str) -> bool:
    """Punctuation, brackets and emphasis; a slash only before a word; no mathematical sign, nothing unheard of."""
    if re.search(rf"/(?! ?{_LETTER})|(?<!{_LETTER})(?<!{_LETTER} )!", text):
        return False
    return all(
        sign.isalnum()
        or sign in _HARMLESS_SIGNS
        or sign in f" /!{MONEY}{but}"
        or (unicodedata.category(sign) == "So" and sign not in _DENIED)
        or (unicodedata.category(sign)[0] == "M" and re.search(rf"{_LETTER} ?$", text[:place]) is not None)
        for place, sign in enumerate(text)
    )


def _sign(front: Sequence[Token], number: Token, *, loose: bool) -> int | None:
    """1 or -1; None where a sign is doubled, loose, or stands between two things (`x - 5`)."""
    places = [place for place, token in enumerate(front) if token.text in known.SIGN_WORDS]
    if not places:
        return 1
    at, token, behind = places[0], front[places[0]], [*front[places[0] + 1 :], number]
    opened = all(other.kind == "money" or other.text in _BEFORE_DIGITS for other in behind[:-1])
    if len(places) > 1 or not opened:
        return None
    if token.kind == "word":
        clear = all(other.kind != "word" or other.text in known.BEFORE_SIGN for other in front[max(0, at - 1) : at])
    else:
        joined = behind[0].glued or (loose and at == 0)
        clear = joined and not (token.glued and front[at - 1].kind == "word")
    return known.SIGN_WORDS[token.text] if clear else None


def _multiplied(rest: Sequence[Token], is_money: bool) -> tuple[Fraction | None, Sequence[Token]]:
    """The factor that the words right behind a number make, and what stands behind them. None: a letter of no value."""
    factor = Fraction(1)
    while rest:
        token = rest[1] if rest[0].text == "-" and rest[0].glued and len(rest) > 1 else rest[0]
        word = token.text
        many = known.MULTIPLIERS.get(word) or known.MULTIPLIERS.get(word.removesuffix("s"))
        if many is None and factor == 1 and token is rest[0]:
            if token.glued:
                many = known.SUFFIXES.get(token.said) or (known.MONEY_SUFFIXES.get(word) if is_money else None)
            elif token.said == "k" or (is_money and token.said in ("m", "M", "mm", "MM", "b", "B", "K")):
                many = known.MONEY_SUFFIXES[word]
        if many is None:
            return factor, rest
        factor, rest = factor * many, rest[1 + (token is not rest[0]) :]
    return factor, rest


def _says_it_again(between: Sequence[Token], sign: int, factor: Fraction) -> bool:
    """42 apples are 42: the same number twice, with nothing between that reckons with the two."""
    words = {token.text for token in between if token.kind == "word"}
    quiet = all(token.kind != "sign" or token.text in ".()*:" for token in between)
    reckons = known.BETWEEN_TWO | known.LIMITING | known.CHANGING | known.SIGN_WORDS.keys() | known.MULTIPLIERS.keys()
    return bool(words) and quiet and not words & reckons and sign == 1 and factor == 1


def _balanced(tokens: Sequence[Token]) -> bool:
    texts = [token.text for token in tokens]
    return all(texts.count(opened) == texts.count(closed) for opened, closed in ("()", "[]"))
