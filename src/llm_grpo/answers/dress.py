"""What is only dress: typography, Unicode's many ways to write a character, LaTeX that says how a thing looks."""

from __future__ import annotations

import html
import re
import unicodedata

_MOST_NORMALISED = 2000  # characters; a long run of combining marks takes quadratic time to be put in order

_SIGNS = dict.fromkeys("\u2212\u2010\u2011\u2012\u2013\u2014\u2015\ufe63", "-")  # what models write for a minus
_QUOTES = dict.fromkeys("\u2018\u2019\u201a\u201b\u2032\u00b4\u02bc\u2039\u203a", "'") | dict.fromkeys(
    "\u201c\u201d\u201e\u00ab\u00bb\u300c\u300d", '"'
)
_INVISIBLE = dict.fromkeys("\u200b\u200c\u200d\u2060\ufeff\u00ad", "")
_WIDE = {chr(code + 0xFEE0): chr(code) for code in range(0x21, 0x7F)}  # full-width forms of ASCII
_TYPOGRAPHY = str.maketrans(
    _SIGNS
    | _QUOTES
    | _INVISIBLE
    | _WIDE
    | {
        "\u2026": "...",
        "\u2044": "/",
        "\u2215": "/",
        "\u2236": ":",
        "\u3002": ".",
        "\u3010": "[",
        "\u3011": "]",
        "\u00ba": "\u00b0",
    }
)

_WRAPPERS = (
    r"boxed|fbox|framebox|[mh]box|text(?:bf|it|rm|sf|tt|up|sc|normal)?|emph|underline|operatorname"
    r"|math(?:rm|bf|it|sf|tt|normal)|bm|boldsymbol"
)
_OPENED = re.compile(rf"\\(?:{_WRAPPERS})\s?(?=\{{)")
_LOOKS = re.compile(
    r"\\(?:left|right|displaystyle|textstyle|big|Big|bigl|bigr|limits|bf|rm|it)(?![a-zA-Z])|\\(?:text)?color\s?\{[a-z]+\}|\\!"
)
_SPACE = re.compile(r"\\(?:quad|qquad|enspace|thinspace)(?![a-zA-Z])|\\[ ,;:>]|\\\\")
_DEGREE = re.compile(r"\^\s?(?:\\circ|\{\s?\\circ\s?\})|\\degrees?(?![a-zA-Z])|\\textdegree(?![a-zA-Z])")
_CURRENCIES = {r"\textdollar": "\uff04", r"\pounds": "\u00a3", r"\texteuro": "\u20ac", r"\euro": "\u20ac"}
_CURRENCY = re.compile(r"\\(?:textdollar|pounds|texteuro|euro)(?![a-zA-Z])\s?")
_TIE = re.compile(r"~(?=[a-zA-Z\\{])")  # LaTeX's space between a number and its unit; `~42` is about 42
_MATHS = re.compile(r"^(?:\${1,2}|\\\(|\\\[)([^$\\]*(?:\\[^()\[\]][^$\\]*)*)(?:\${1,2}|\\\)|\\\])[.]?$")
_INNERMOST = re.compile(rf"\\(?:{_WRAPPERS})\s?\{{([^{{}}\\]*)\}}")
_BRACE = re.compile(r"\\?[{}]")


def typed(text: str) -> str:
    """The text with a keyboard's characters for signs, quotes and full-width forms, and accents as one character.

    A superscript or a fraction sign is left alone: NFKC would make digits of them, and `5\u00b2` would be 52.
    """
    if len(text) <= _MOST_NORMALISED:
        text = unicodedata.normalize("NFC", text)
    return html.unescape(text).translate(_TYPOGRAPHY)


def without_latex_dress(text: str) -> str:
    """The text without LaTeX that only says how it looks. An escaped `$` is a currency (\uff04), a pair of them not."""
    text = (
        _CURRENCY.sub(lambda m: _CURRENCIES[m[0].strip()], text)
        .replace("\\$", "\uff04")
        .replace("\\%", "%")
        .replace("\\#", "#")
        .replace("\\&", "&")
    )
    text = _SPACE.sub(" ", _LOOKS.sub("", _DEGREE.sub("\u00b0", text)))
    if "\\" in text:
        text = _TIE.sub(" ", text)
    text = re.sub(r"\\[()\[\]]", " ", _OPENED.sub("", text))
    pairs = text.count("$")
    return text.replace("$", " ") if pairs and pairs % 2 == 0 else text


def unwrapped(text: str) -> str:
    """What stands in a wrapper around the whole text: `\\boxed{\\text{Paris}}` is Paris. Three deep at most."""
    for _ in range(3):
        text = text.strip()
        text = _INNERMOST.sub(r"\1", _MATHS.sub(r"\1", text)).strip()
        opened = _OPENED.match(text)
        if not opened or closing_brace(text, opened.end()) != len(text) - 1:
            return text
        text = text[opened.end() + 1 : -1]
    return text.strip()


def closing_brace(text: str, start: int) -> int:
    """Where the brace that opens at `start` is closed, or -1. Braces behind a backslash do not count."""
    depth = 0
    for brace in _BRACE.finditer(text, start):
        depth += {"{": 1, "}": -1}.get(brace[0], 0)
        if depth == 0:
            return brace.start()
    return -1
