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
_OTHERS = {"\u2026": "...", "\u2044": "/", "\u2215": "/", "\u2236": ":", "\u3002": ".", "\u3010": "[", "\u3011": "]",
           "\u00ba": "\u00b0"}  # fmt: skip
_TYPOGRAPHY = str.maketrans(_SIGNS | _QUOTES | _INVISIBLE | _WIDE | _OTHERS)

_WRAPPERS = (
    r"boxed|fbox|framebox|[mh]box|text(?:bf|it|rm|sf|tt|up|sc|normal)?|emph|underline|operatorname"
    r"|math(?:rm|bf|it|sf|tt|normal)|bm|boldsymbol"
)
_OPENED = re.compile(rf"\\(?:{_WRAPPERS})\s?(?=\{{)")
_LATEX_DRESS = [  # what only says how it looks, in this order; an escaped `$` is a currency (\uff04)
    (re.compile(r"\\(?:textdollar(?![a-zA-Z])\s?|\$)"), "\uff04"),
    (re.compile(r"\\pounds(?![a-zA-Z])\s?"), "\u00a3"),
    (re.compile(r"\\(?:text)?euro(?![a-zA-Z])\s?"), "\u20ac"),
    (re.compile(r"\\([%#&])"), r"\1"),
    (re.compile(r"\^\s?(?:\\circ|\{\s?\\circ\s?\})|\\(?:text)?degrees?(?![a-zA-Z])"), "\u00b0"),
    (re.compile(r"\\(?:left|right|displaystyle|textstyle|big|Big|bigl|bigr|limits|bf|rm|it)(?![a-zA-Z])"), ""),
    (re.compile(r"\\(?:text)?color\s?\{[a-z]+\}|\\!"), ""),
    (re.compile(r"\\(?:quad|qquad|enspace|thinspace)(?![a-zA-Z])|\\[ ,;:>]|\\\\"), " "),
]
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
    """The text without LaTeX that only says how it looks. A pair of `$` is dress, one alone a currency."""
    for pattern, plain in _LATEX_DRESS if "\\" in text else ():
        text = pattern.sub(plain, text)
    if "\\" in text:
        text = _TIE.sub(" ", text)
    text = re.sub(r"\\[()\[\]]", " ", _OPENED.sub("", text))
    return text.replace("$", " ") if text.count("$") % 2 == 0 else text


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
