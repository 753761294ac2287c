"""What stands beside a number: whether it is harmless, and the sign, multiplier, currency and unit it adds.

One side of an equation is read at a time: subject, copula, phrase (vocabulary.py). A side without a number is a name
(`x = 42`), and harmless unless it is an expression (`-x = 42`) or denies something.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from llm_grpo.answers.tokens import Token
from llm_grpo.answers.vocabulary import (
    AFTER_TIMES,
    BEFORE_SIGN,
    BETWEEN_TWO,
    CHANGING,
    COMPARATIVES,
    COPULAS,
    FILLERS,
    GREEK,
    LEADING,
    LIMITING,
    MONEY,
    MONEY_SUFFIXES,
    MULTIPLIERS,
    PLACING,
    POWER_WORDS,
    SHORT_UNITS,
    SIGN_WORDS,
    SPELLED,
    SUFFIXES,
    UNCLEAR_COUNTS,
    UNIT_LETTERS,
    spelled,
    unit_of,
)

_HARMLESS_SIGNS = frozenset(".,:;\"'*_`#()[]&%\u00b0\u2192\u21d2\u2234\u2022")
_DENIED = frozenset("\u274c\u2717\u2718\u2715\u2716\u274e\u26d4\U0001f6ab\u2796")  # pictures of a no
_BEFORE_DIGITS = frozenset("([{*_`\"'")  # what may stand between a sign and its number
_NOT_A_NOUN = FILLERS | BETWEEN_TWO | SPELLED.keys() | MULTIPLIERS.keys() | {"or", "point"}


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
    if any(token.kind == "odd" for token in tokens):
        return None
    if not places:
        return "" if _is_name(tokens, last) else None
    head, tail = places[0], places[-1]
    start = 1 + max((place for place in range(head) if tokens[place].text in COPULAS), default=-1)
    subject, front, between, rest = tokens[:start], tokens[start:head], tokens[head + 1 : tail], tokens[tail + 1 :]
    if spelled([token.text for token in front if token.kind == "word"]) == tokens[head].value:
        front = [token for token in front if token.kind == "money" or token.text == "("]  # forty-two (42)
    sign = _sign(front, tokens[head], loose=not first)
    is_money = any(token.kind == "money" for token in front) or any(unit_of(t.text) in MONEY for t in rest[1:2])
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
    named = {unit_of(token.text) for place, token in enumerate(rest) if _names_a_unit(rest, place)}
    money = {MONEY.get(token.text, token.text) for token in [*front, *rest] if token.kind == "money"}
    money |= {MONEY[word] for word in named if word in MONEY}
    bracketed = [token.text for token in front if token.text == "(" or token.kind == "money"]
    if len(money) > 1 or (len(bracketed) > 1 and len(front) == len(bracketed)):
        return None
    return Reading(value, frozenset(named - MONEY.keys()), money.pop() if money else "")


def _names_a_unit(rest: Sequence[Token], place: int) -> bool:
    token = rest[place]
    if token.text in "%\u00b0":
        return True
    is_last = place == len(rest) - 1 or rest[place + 1].kind != "word"
    return token.kind == "word" and (token.text not in FILLERS or (token.text == "in" and is_last and not place))


def _is_name(tokens: Sequence[Token], last: bool) -> bool:
    """x, f(x), the total cost, a + b: but no -x, no `x !` before `=`, nothing denied, no other relation."""
    signs = [token for token in tokens if token.kind == "sign"]
    if not _is_harmless_subject([token for token in tokens if token.text != "+"]) or any(t.text == "?" for t in signs):
        return False
    return tokens[0].text not in "-+" and tokens[-1].text not in "+-/&" and (last or tokens[-1].text != "!")


def _is_harmless_subject(tokens: Sequence[Token]) -> bool:
    """What names the quantity may compare and count, but not deny or double it."""
    for place, token in enumerate(tokens):
        if _denies(token) or token.text in ("minus", "negative"):
            return False
        if token.kind == "sign" and token.text != "-" and not _is_harmless_sign(tokens, place):
            return False
    return not (tokens and tokens[0].text == "-")


def _is_harmless_front(front: Sequence[Token], number: Token) -> bool:
    """Between the copula and the number: no comparison, no function, no other number, no variable."""
    for place, token in enumerate(front):
        if token.kind == "sign":
            applied = token.text == "(" and token.glued and place and _is_noun(front[place - 1])  # f(42)
            if applied or token.text == "/" or (token.text not in "-+" and not _is_harmless_sign(front, place)):
                return False
        elif token.kind == "word" and token.text not in SIGN_WORDS:
            if _denies(token) or token.text in LIMITING | LEADING | UNCLEAR_COUNTS:
                return False
            if _is_loose_count(front, place, number) or _is_taken_of(front, place):
                return False
            following = [*front, number][place + 1]
            names = token.said.isupper() and following.kind == "word"  # Building C has 59 floors
            if len(token.text) == 1 and token.text not in "ai" and not names:
                return False  # a variable
            if token.text in ("up", "down"):  # he picked up 10 cans; up to 10
                if following.text == "to" or place == 0:
                    return False
            elif token.text in PLACING or (token.text in ("least", "most") and _behind_at(front, place)):
                return False
    return True


def _is_taken_of(front: Sequence[Token], place: int) -> bool:
    """Something of the number: the cosine of 60, tens of 42. `a profit of 42` describes a thing, and a total is one."""
    if front[place].text != "of" or any(_is_noun(token) for token in front[place + 1 :]):
        return False
    return not any(token.text in ("a", "an", "total") for token in front[max(0, place - 4) : place])


def _is_harmless_rest(rest: Sequence[Token], value: Fraction) -> bool:
    """Behind the number: units, things, and where they are; nothing that adds, bounds, or may be a variable."""
    for place, token in enumerate(rest):
        before, after = rest[place - 1].text if place else "", rest[place + 1].text if place + 1 < len(rest) else ""
        if token.kind == "word":
            if not _is_harmless_word(rest, place, before, after, value):
                return False
        elif token.text == "-":
            if not (token.glued and place + 1 < len(rest) and rest[place + 1].kind == "word" and rest[place + 1].glued):
                return False
        elif token.kind == "sign" and not _is_harmless_sign(rest, place):
            return False
    return True


def _is_harmless_word(rest: Sequence[Token], place: int, before: str, after: str, value: Fraction) -> bool:
    token, word = rest[place], rest[place].text
    first = not place or (place == 1 and before in ("-", "(", ")", "\u00b0", "/"))
    if _denies(token) or word in SIGN_WORDS:
        return False
    if word in UNCLEAR_COUNTS:
        return before in ("per", "each", "every", "/")
    if word in LIMITING or word in GREEK or (word in ("least", "most") and _behind_at(rest, place)):
        return False
    if word in PLACING:
        left = word == "over" and "left" in (before, rest[place - 2].text if place > 1 else "")
        return left or (before not in ("", "and", ",", "-", "(") and after.isalpha())
    if word in ("to", "sq") and first:  # 5 to the third, 5 sq.
        return after != "the" and any(other.kind == "word" for other in rest[place + 1 :])
    if word in POWER_WORDS:
        return bool(place) and rest[place - 1].kind == "word"
    if word in COMPARATIVES:
        return before not in ("and", "any", ",", ";") and (word != "less" or after in ("", ".", "than"))
    if word in ("times", "time") and first:
        return not after or after in AFTER_TIMES or not after.isalnum()
    if word == "one" and (after == "of" or before in ("each", "every", "this", "that")):
        return True
    if word in SPELLED or word in MULTIPLIERS or word[:-1] in MULTIPLIERS:
        return not _is_loose_count(rest, place, None) or before == "per" or _spells(rest, place, value)
    if len(word) > 2 or not (word.isascii() or "\u0370" <= word[0] <= "\u03ff"):  # Greek letters are variables, too
        return True
    return _is_harmless_short(token, first, after)


def _is_harmless_short(token: Token, first: bool, after: str) -> bool:
    """One or two letters: a unit or a little word, else perhaps a variable (5x, 5 xy)."""
    if len(token.text) == 2:
        return token.text in SHORT_UNITS or token.text in FILLERS or not first
    if token.said in UNIT_LETTERS:
        return True
    return token.text in "ai" and not (token.glued and first) and after.isalpha()


def _is_harmless_sign(tokens: Sequence[Token], place: int) -> bool:
    """Punctuation, brackets and emphasis; a slash only before a word; no mathematical sign, nothing unheard of."""
    sign = tokens[place].text
    if sign == "/":
        return place + 1 < len(tokens) and tokens[place + 1].kind == "word"
    if sign == "!":
        return bool(place) and tokens[place - 1].kind == "word"
    if sign == "-":
        return False
    is_mark = unicodedata.category(sign)[0] == "M" and bool(place) and tokens[place - 1].kind == "word"
    return sign in _HARMLESS_SIGNS or (unicodedata.category(sign) == "So" and sign not in _DENIED) or is_mark


def _behind_at(tokens: Sequence[Token], place: int) -> bool:
    """at least, at the very most; the most is no bound by itself."""
    return any(token.text == "at" for token in tokens[max(0, place - 3) : place])


def _is_noun(token: Token) -> bool:
    return token.kind == "word" and token.text not in SIGN_WORDS


def _denies(token: Token) -> bool:
    return token.kind == "word" and (token.text in CHANGING or token.text.endswith("n't"))


def _is_loose_count(tokens: Sequence[Token], place: int, number: Token | None) -> bool:
    """A number word that counts nothing of its own: `forty 2`, `42 and one`. `the three friends` is harmless."""
    word = tokens[place].text
    if word not in SPELLED and word not in MULTIPLIERS and word[:-1] not in MULTIPLIERS:
        return False
    following = tokens[place + 1] if place + 1 < len(tokens) else number
    if following is not None and (following.text in SPELLED or following.text in MULTIPLIERS):
        return _is_loose_count(tokens, place + 1, number) if place < 20 else True
    return following is None or following.kind != "word" or following.text in _NOT_A_NOUN or word == "zero"


def _spells(rest: Sequence[Token], place: int, value: Fraction) -> bool:
    """Whether the word belongs to brackets that say the same number again: 42 (forty-two)."""
    texts = [token.text for token in rest]
    if "(" not in texts[:place] or ")" not in texts[place:]:
        return False
    opened = max(index for index in range(place) if texts[index] == "(")
    return spelled([text for text in texts[opened + 1 : texts.index(")", place)] if text != "-"]) == value


def _sign(front: Sequence[Token], number: Token, *, loose: bool) -> int | None:
    """1 or -1; None where a sign is doubled, loose, or stands between two things (`x - 5`)."""
    places = [place for place, token in enumerate(front) if token.text in SIGN_WORDS]
    if not places:
        return 1
    at, token, behind = places[0], front[places[0]], [*front[places[0] + 1 :], number]
    opened = all(other.kind == "money" or other.text in _BEFORE_DIGITS for other in behind[:-1])
    if len(places) > 1 or not opened:
        return None
    if token.kind == "word":
        clear = all(other.kind != "word" or other.text in BEFORE_SIGN for other in front[max(0, at - 1) : at])
    else:
        joined = behind[0].glued or (loose and at == 0)
        clear = joined and not (token.glued and front[at - 1].kind == "word")
    return SIGN_WORDS[token.text] if clear else None


def _multiplied(rest: Sequence[Token], is_money: bool) -> tuple[Fraction | None, Sequence[Token]]:
    """The factor that the words right behind a number make, and what stands behind them. None: a letter of no value."""
    factor = Fraction(1)
    while rest:
        token = rest[1] if rest[0].text == "-" and rest[0].glued and len(rest) > 1 else rest[0]
        word = token.text
        many = MULTIPLIERS.get(word) or MULTIPLIERS.get(word.removesuffix("s"))
        if many is None and factor == 1 and token is rest[0]:
            if token.glued:
                many = SUFFIXES.get(token.said) or (MONEY_SUFFIXES.get(word) if is_money else None)
            elif token.said == "k" or (is_money and token.said in ("m", "M", "mm", "MM", "b", "B", "K")):
                many = MONEY_SUFFIXES[word]
        if many is None:
            return factor, rest
        factor, rest = factor * many, rest[1 + (token is not rest[0]) :]
    return factor, rest


def _says_it_again(between: Sequence[Token], sign: int, factor: Fraction) -> bool:
    """42 apples are 42: the same number twice, with nothing between that reckons with the two."""
    words = {token.text for token in between if token.kind == "word"}
    quiet = all(token.kind != "sign" or token.text in ".()*:" for token in between)
    bad = words & (BETWEEN_TWO | LIMITING | CHANGING | SIGN_WORDS.keys() | MULTIPLIERS.keys())
    return bool(words) and quiet and not bad and sign == 1 and factor == 1


def _balanced(tokens: Sequence[Token]) -> bool:
    texts = [token.text for token in tokens]
    return all(texts.count(opened) == texts.count(closed) for opened, closed in ("()", "[]"))
