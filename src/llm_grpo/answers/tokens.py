"""A text as tokens (numbers, currencies, words, signs), with the exact value of each number that is written well."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from fractions import Fraction

from llm_grpo.answers.dress import typed, without_latex_dress

_SPACES = "\u00a0\u2007\u2008\u2009\u200a\u202f"
_GROUP_SPACE = re.compile(rf"(?<=[0-9])(?:[{_SPACES}]|\\[,;!])(?=[0-9]{{3}}(?![0-9]))")
_GROUPS = re.compile(r"(?<![0-9.'])(?<![0-9] )[1-9][0-9]{0,2}(?:(?:'[0-9]{3})+|(?: [0-9]{3}){2,})(?!['/]?[0-9]| [0-9])")
_FRACTION = re.compile(r"\\(?:[dtcs]?|nice)frac\{(-?[0-9][0-9,]*)\}\{([0-9]+)\}")
_OVER = re.compile(r"(?<=[0-9])(?:\s?/\s?|\s?\\over\s?)(?=[0-9])")
_SHORT_FRACTION = re.compile(r"\\[dt]?frac([0-9])([0-9])(?![0-9])")  # \frac12
VULGAR = re.compile(
    "[\u00bc-\u00be\u2150-\u215e]|[\u00b9\u00b2\u00b3\u2070\u2074-\u2079]{1,9}[/\u2044][\u2080-\u2089]{1,9}"
)
_SUPERSCRIPTS = str.maketrans(
    "\u2070\u00b9\u00b2\u00b3\u2074\u2075\u2076\u2077\u2078\u2079\u207a\u207b", "0123456789+-"
)
_RAISED_DIGITS = "".join(map(chr, _SUPERSCRIPTS))
_RAISED = rf"\^\s?\{{?\s?(?P<power>[-+]?[0-9]{{1,3}})\s?\}}?(?![0-9.])|(?P<raised>[{_RAISED_DIGITS}]{{1,4}})"
_TIMES_TEN = re.compile(rf"(?<=[0-9])\s?(?:\\times|\\cdot|[x\u00d7*\u00b7\u22c5])\s?(?:10|\{{10\}})(?:{_RAISED})")
_TEN = re.compile(rf"(?<![\w.,^/)}}\u00d7*\u00b7])10(?:{_RAISED})(?!\s?[!^])")
_AND = re.compile(r"(?<=[0-9])\sand\s(?=[0-9]+/[0-9])")  # 2 and 1/2
_ONE_WRITING = [  # what is written in several ways, behind the LaTeX dress, in this order
    (re.compile(r"\b(?:adds?|sums?|comes?|amounts?|totals?) (?:up )?to\b", re.IGNORECASE), "is"),
    (re.compile(r"\b(USD|EUR|GBP|JPY|INR|CHF|AUD|CAD)(?=[-0-9])"), r"\1 "),
    (re.compile(r"(?<![^\W\d_])Rs\.?\s?(?=[0-9])", re.IGNORECASE), "\u20b9"),
    (re.compile(r"(?<=[0-9])[{}]+(?=[0-9])"), " "),
    (re.compile(r"[{}]"), ""),
    (re.compile(r"\b([ap])\.m\.(?!\w)", re.IGNORECASE), r"\1m"),
    (re.compile(r"(?<=[0-9])(?:/-|,-)(?=\s*(?:[^\W\d]|$))"), ""),  # 500/- and 500,- are prices
    (re.compile(r"\bin the red(?=\W*$)", re.IGNORECASE), "below zero"),
    (re.compile(r"\b(per(?= cent)|may(?= be)) ", re.IGNORECASE), r"\1"),
    # The power of a unit (m\u00b2, cm^3) belongs to its word; `x^2`, `5x10` and `1e3` are no units.
    (
        re.compile(r"(?:(?<=[^\W\d_]{2})|(?<=[ms]))(?:[\u00b2\u00b3]|\^[23]|(?<=[mt])[23])(?![0-9.,]*[0-9]|[^\W_])"),
        "",
    ),
    (re.compile(r"^\s*\(?[a-zA-Z]\)\s"), ""),  # (A) 42: a choice and what it says
]

_TOKEN = re.compile(
    r"(?P<number>(?:(?P<whole>[0-9]{1,9})\s{1,9}(?=[0-9]{1,9}/[0-9]))?(?P<top>\.?[0-9][0-9.,]*)"
    r"(?:[eE](?P<power>[-+]?[0-9]{1,3})(?![\w.]))?(?:/(?P<bottom>[0-9]+))?)"
    r"|(?P<money>(?<![^\W\d_])(?:[A-Z]{1,2}|U\.S\.\s?)?[$\uff04]|[\u00a2\u00a3\u00a5\u20a0-\u20c0])"
    r"|(?P<word>[^\W\d_]+(?:'[^\W\d_]+)*)|(?P<sign>\S)"
)
_DIGITS = re.compile(
    r"(?:[0-9]+|[1-9][0-9]{0,2}(?:,[0-9]{3})+|[1-9][0-9]?(?:,[0-9]{2})+,[0-9]{3})(?:\.[0-9]+)?|\.[0-9]+"
)  # 10,00,000 is Indian


@dataclass(frozen=True)
class Token:
    """A piece of a text.

    kind: number, money, word, sign, or odd (superscripts, other scripts). said: as written; text: case-folded.
    value: of a number that makes sense. glued: nothing stands between it and the token before.
    """

    kind: str
    said: str
    text: str
    value: Fraction | None
    glued: bool


def plain(text: str) -> str:
    """Without what is only dress, and with one way to write a thing: 1,234 and 1/2 and 1.5e3."""
    text = typed(_GROUP_SPACE.sub("", text).replace("{,}", ","))
    text = _GROUPS.sub(lambda m: m[0].replace("'", "").replace(" ", ""), text)
    text = VULGAR.sub(lambda m: _mixed(m, unicodedata.normalize("NFKC", m[0]).replace("\u2044", "/")), text)
    text = _FRACTION.sub(lambda m: _mixed(m, f"{m[1]}/{m[2]}"), _SHORT_FRACTION.sub(r"\\frac{\1}{\2}", text))
    text = _TEN.sub(lambda m: f"1{_exponent(m)}", _TIMES_TEN.sub(_exponent, text))
    text = without_latex_dress(_AND.sub(" ", _OVER.sub("/", text)))
    for pattern, one in _ONE_WRITING:
        text = pattern.sub(one, text)
    return text


def tokens_of(text: str) -> list[Token]:
    """The pieces of a plain text."""
    tokens, end = [], 0
    for match in _TOKEN.finditer(text):
        kind = match.lastgroup if match.lastgroup in ("money", "word", "sign") else "number"
        value = _value(match, text) if kind == "number" else None
        said = match[0].replace("\uff04", "$")
        if kind == "word" and not said.replace("'", "").isalpha():
            kind = "odd"
        tokens.append(Token(kind, said, said.casefold(), value, bool(tokens) and match.start() == end))
        end = match.end()
    return tokens


def _mixed(match: re.Match[str], fraction: str) -> str:
    """A mixed number keeps its two parts apart: 2\\frac{1}{2} is 2 1/2."""
    return f" {fraction}" if match.string[max(0, match.start() - 1) : match.start()].isdigit() else fraction


def _exponent(match: re.Match[str]) -> str:
    return f"e{match['power'] or match['raised'].translate(_SUPERSCRIPTS)}"


def _value(match: re.Match[str], text: str) -> Fraction | None:
    """One number of the text without its sign, or None where its digits, neighbours or denominator make no sense."""
    top = match["top"].rstrip(".,")
    before, after = text[max(0, match.start() - 1) : match.start()], text[match.end() : match.end() + 2]
    glued = (
        before.isalnum()
        or before == "^"
        or (before == "_" and text[max(0, match.start() - 2)].isalnum())
        or (after[:1] == "/" and after[1:].isdigit())
    )
    if glued or not _DIGITS.fullmatch(top) or ".." in match["top"]:
        return None
    value = Fraction(top.replace(",", "")) * Fraction(10) ** int(match["power"] or 0)
    if match["bottom"]:
        if not int(match["bottom"]) or top != match["top"]:
            return None
        value /= int(match["bottom"])
    return value + int(match["whole"] or 0)
