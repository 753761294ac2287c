"""When two formulas in LaTeX are equal, by math-verify, for the answers that are no plain number.

Two traps are avoided. math-verify's time limits are signals, which only work on the main thread (a reward may run on
any), so they stay off; and without a limit `9^{9^{9^9}}` never ends, so only formulas that are short and tame by the
rules below are handed over. Anything else is not equal. And it rounds: a decimal to six places, a difference to
fifteen, so that 6.6 \\times 10^{-34} would be 1.6 \\times 10^{-19}. It is given exact fractions and asked for 300
digits, more than two different formulas of this size can agree in; plain numbers are compared in numerals.py and never
come here.
"""

from __future__ import annotations

import logging
import math
import re
import unicodedata
from typing import Any

MAX_LATEX_CHARS = 100
_DIGITS = 300

_DRESS = re.compile(r"\\(?:boxed|left|right|quad|displaystyle)(?![a-zA-Z])|\\[()\[\] ,;:!%]|\$")
_TYPED = [  # what a keyboard or Unicode has for LaTeX
    (re.compile(r"(?:\u221a|(?<![a-zA-Z\\])sqrt)\s?(?:\(([^()]*)\)|([0-9]+|[a-z]))"), r"\\sqrt{\1\2}"),
    (re.compile(r"\u03c0|(?<![a-zA-Z\\])pi(?![a-zA-Z])"), r"\\pi "),
    (re.compile(r"\u221e"), r"\\infty "),
    (re.compile(r"\u2264|\\leq?(?![a-zA-Z])"), r"\\leq "),
    (re.compile(r"\u2265|\\geq?(?![a-zA-Z])"), r"\\geq "),
    (re.compile(r"\u2260|\\neq?(?![a-zA-Z])"), r"\\neq "),
    (re.compile(r"\*\*"), "^"),
    (re.compile(r"\u00d7"), r"\\times "),
    (re.compile(r"[\u00b7\u22c5*]"), r"\\cdot "),
]
_RAISED = re.compile("[\u00b2\u00b3\u00b9\u2070\u2074-\u2079\u207b]+")
_SUM = re.compile(r"[\w)]\s?[+]\s?[\w(]|\)\s?\(")
_NAMED = re.compile(r"^\s*[a-zA-Z]\s*=")  # `x = 42` is 42
_TOKEN = re.compile(
    r"\\(?:[dt]?frac|sqrt|pi|cdot|times|div)(?![a-zA-Z])|\\[{}]"  # the commands that stay tame, and sets
    r"|[-+*/()\[\]{}^.,0-9\s]|(?<![a-zA-Z])[a-zA-Z](?![a-zA-Z])"  # one character each, so that nothing backtracks
)
_LONG_DIGITS = re.compile(r"[0-9]{13}")
_POWER = re.compile(r"\^\s*(?:\{\s*-?([0-9]{1,2})\s*\}|([0-9])|)")
_ROOT = re.compile(r"\\sqrt(?:\[[0-9]\])?\s?(?:\{[^{}\\]*\}|[0-9])")
_COMMAND = re.compile(r"\\[a-zA-Z]+")


def same_latex(given: str, gold: str) -> bool:
    """Whether two short formulas, one of them LaTeX or with a power, have the same value. Both may be anything."""
    if max(len(given), len(gold)) > MAX_LATEX_CHARS:
        return False
    if not any(mark in given + gold for mark in "\\^") and not (_SUM.search(given) and _SUM.search(gold)):
        return False
    mine, theirs = _undressed(given), _undressed(gold)
    return _brackets(mine) == _brackets(theirs) and _is_tame(mine) and _is_tame(theirs) and _verified(mine, theirs)


def as_latex(text: str) -> str:
    """With LaTeX for what is typed or Unicode: \u221a2, sqrt(2), \u03c0, x\u00b2, 2**5, 2\u00b7x."""
    for pattern, latex in _TYPED:
        text = pattern.sub(latex, text)
    return _RAISED.sub(lambda m: f"^{{{unicodedata.normalize('NFKC', m[0])}}}".replace("\u2212", "-"), text)


def _brackets(formula: str) -> str:
    """The ends of a list or an interval: (3, 4] is not [3, 4), nor a set."""
    ends = formula.removeprefix("\\")[:1] + formula[-1:]
    return "".join(end for end in ends if end in "()[]{}") if "," in formula else ""


def _undressed(text: str) -> str:
    return _NAMED.sub("", _DRESS.sub(" ", text)).strip()


def _is_tame(formula: str) -> bool:
    """Numbers with few roots and small powers, or short polynomials: what ends well within a second.

    Refused is where fuzzing found sympy thinking for minutes: letters beside a root or a bar, roots of roots or of
    fractions, decimals beside a root.
    """
    powers = [match[1] or match[2] for match in _POWER.finditer(formula)]
    if not formula or _TOKEN.sub("", formula) or _LONG_DIGITS.search(formula) or None in powers:
        return False
    size = math.prod(max(1, int(power)) for power in powers)
    if not re.search("[a-zA-Z]", _COMMAND.sub("", formula)):
        roots = formula.count("sqrt")
        return size <= 100 and roots == len(_ROOT.findall(formula)) <= 3 and not (roots and "." in formula)
    sums = formula.count("+") + formula.count("-")
    return size <= 4 and sums <= 6 and not re.search("sqrt|frac|div|/", formula)


def _verified(given: str, gold: str) -> bool:
    logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns of the time limits that we replace
    from math_verify import LatexExtractionConfig, parse, verify  # late: it brings sympy

    reading = (LatexExtractionConfig(),)
    found = [parse(f"${text}$", reading, fallback_mode="no_fallback", parsing_timeout=None) for text in (gold, given)]
    if not all(found):
        return False
    exact = [_exact(formulas[0]) for formulas in found]
    return verify(exact[0], exact[1], numeric_precision=_DIGITS, timeout_seconds=None)


def _exact(formula: Any) -> Any:
    """The formula with each decimal as the fraction that was written."""
    from sympy import Float, Rational

    return formula.xreplace({decimal: Rational(str(decimal)) for decimal in formula.atoms(Float)})
