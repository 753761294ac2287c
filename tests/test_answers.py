"""Answers: how they are read, when two are equal, what a judge says. Each row has its reason beside it."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_grpo.answers.equality import same_answer
from llm_grpo.answers.formats import extract_hash_answer, extract_xml_answer, only_answer, well_formed
from llm_grpo.answers.judging import JUDGES
from llm_grpo.answers.numerals import last_said, parse_number

NUMBERS = [
    ("$1,234.00", 1234, "currency, thousands, cents"),
    ("80%", 80, "a percent sign is a unit"),
    (r"80\%", 80, "the same in LaTeX"),
    ("22.", 22, "a full stop"),
    ("-5", -5, "negative"),
    ("\u22125", -5, "typographic minus"),
    ("-$5", -5, "sign before the currency"),
    ("$-5", -5, "sign behind the currency"),
    ("+7", 7, "explicit plus"),
    (r"\boxed{12}", 12, "boxed"),
    (r"$\boxed{\text{12}}$", 12, "boxed twice, in dollars"),
    ("1/2", Fraction(1, 2), "fraction"),
    (r"\frac{1}{2}", Fraction(1, 2), "fraction in LaTeX"),
    (r"-\frac{1}{2}", Fraction(-1, 2), "negative fraction in LaTeX"),
    ("2 1/2", Fraction(5, 2), "mixed number"),
    (r"2\frac{1}{2}", Fraction(5, 2), "mixed number in LaTeX"),
    ("760,000", 760000, "thousands"),
    ("180.00", 180, "trailing zeros"),
    (".5", Fraction(1, 2), "no leading zero"),
    ("42 apples", 42, "a word behind"),
    ("The answer is 42.", 42, "words before"),
    ("$18 per day", 18, "currency and a unit in words"),
    ("$18/day", 18, "a slash before a word is no fraction"),
    ("5km", 5, "a unit glued on"),
    ("42 m\u00b2", 42, "the power belongs to the unit"),
    ("42 m^2", 42, "the power belongs to the unit, in ASCII"),
    (r"90^\circ", 90, "degrees"),
    ("**42**", 42, "Markdown"),
    ("42 = 42", 42, "the same number twice"),
    ("1\u202f234", 1234, "narrow space between groups"),
    (r"1{,}234", 1234, "LaTeX thousands"),
    (r"1\,234", 1234, "LaTeX thin space"),
    ("1.5e3", 1500, "exponent"),
    ("0.1", Fraction(1, 10), "exact, not the nearest float"),
    ("007", 7, "leading zeros"),
]

NO_NUMBERS = [
    ("", "empty"),
    ("   ", "blank"),
    ("forty-two", "words"),
    ("\u00b2", "a superscript is not 2"),
    ("5\u00b2", "nor is five squared 5"),
    ("\u0663", "other scripts' digits: nobody asked for them, isdigit() is true"),
    ("\u00b9", "isnumeric() is true and int() fails"),
    ("41 or 42", "two numbers"),
    ("41, 42", "a list"),
    ("41\n42", "on two lines"),
    ("10-20", "a range"),
    ("3 + 4 = 7", "a calculation is not an answer"),
    ("1,23,4", "commas anywhere"),
    ("12,34", "neither thousands nor, surely, a decimal comma"),
    ("0,123", "thousands never start with 0"),
    ("1.2.3", "a version"),
    ("1/2/2024", "a date"),
    ("10:30", "a time"),
    ("1/0", "no value"),
    ("B12", "a name"),
    ("1_000", "code"),
    ("5x10", "a product"),
    ("x^2", "a power of an unknown"),
    ("\u00b15", "two values"),
    ("- 5", "a loose minus: a list's bullet or a sign"),
    (r"\sqrt{2}", "LaTeX that is no plain number"),
    ("9" * 100_000, "longer than any answer; int() would be quadratic"),
    ("1e999999999", "an exponent that would fill the memory"),
]


@pytest.mark.parametrize(("text", "value", "why"), NUMBERS)
def test_a_number_is_read_exactly(text: str, value: Fraction, why: str) -> None:
    assert parse_number(text) == value, why


@pytest.mark.parametrize(("text", "why"), NO_NUMBERS)
def test_what_says_no_single_number_is_none(text: str, why: str) -> None:
    assert parse_number(text) is None, why


@settings(max_examples=200, deadline=None)
@given(st.fractions(min_value=-(10**12), max_value=10**12, max_denominator=1000))
def test_every_fraction_comes_back(value: Fraction) -> None:
    assert parse_number(str(value)) == value
    assert parse_number(f"it is ${value} apples") == value


@settings(max_examples=200, deadline=None)
@given(st.integers(min_value=-(10**15), max_value=10**15))
def test_every_integer_comes_back_with_its_thousands(value: int) -> None:
    assert parse_number(f"{value:,}") == value == parse_number(f"{value}.00")
    assert last_said(f"so 3 times {value:,}.")[0] == f"{value:,}"


SAME = [
    ("42", "42", True, "equal text"),
    ("42.0", "42", True, "equal value"),
    ("$1,234.00", "1234", True, "dress on the answer"),
    ("1234", "1,234", True, "dress on the gold"),
    ("80%", "80", True, "percent as a unit"),
    ("0.8", "80%", False, "a percentage is not its hundredth"),
    ("42 apples", "42", True, "a unit beside the answer"),
    ("42", "42 apples", True, "a unit beside the gold"),
    ("The answer is 42 apples", "42 apples", True, "the gold's unit among other words"),
    ("5 miles", "5 km", False, "another unit"),
    ("0.5", "1/2", True, "fraction and decimal"),
    ("0.333", "1/3", False, "rounded is not equal"),
    ("10000", "10001", False, "near is not equal (a fuzzy ratio paid 1.8 for it)"),
    ("180", "18", False, "a digit more"),
    ("-10", "10", False, "the sign"),
    ("41 or 42", "42", False, "a hedge"),
    ("\u00b2", "2", False, "a superscript"),
    ("", "42", False, "empty"),
    ("  ", " ", False, "empty equals nothing, not even an empty gold"),
    (None, "42", False, "no answer"),
    ("paris", " Paris ", True, "text: case and spaces"),
    ("New   York", "new york", True, "text: spaces inside"),
    ("**Paris**.", "Paris", True, "text: emphasis and full stop"),
    (r"\boxed{\text{Paris}}", "Paris", True, "text in LaTeX wrappers"),
    ("Paris, France", "Paris", False, "text: no substring match"),
    (".5", "5", False, "a leading point is no full stop"),
    ("B12", "B12", True, "a name with digits, as text"),
    ("B12", "12", False, "a name is not its number"),
    ("10:30", "10:30", True, "a time, as text"),
    ("1" * 100_000, "1" * 100_000, True, "very long, as text"),
    ("1" * 100_000, "1", False, "very long against short"),
    (r"\sqrt{1764}", "42", True, "LaTeX by math-verify"),
    (r"\frac{\sqrt{2}}{2}", r"\frac{1}{\sqrt{2}}", True, "LaTeX: the same value"),
    (r"x = \frac{84}{2}", "42", True, "LaTeX: with its name"),
    (r"\frac{84}{2}", "43", False, "LaTeX: another value"),
    (r"\{41, 42\}", "42", False, "LaTeX: a set is a hedge"),
    (r"41,\frac{84}{2}", "42", False, "LaTeX: a list is a hedge"),
    (r"41=\frac{84}{2}", "42", False, "LaTeX: an equation is a hedge"),
    (r"9^{9^{9^9}}\cdot 1", "42", False, "a tower of powers must not be computed"),
    (r"\sqrt{\sqrt{\sqrt{\frac{0.5}{99}}}}", "42", False, "sympy thinks for minutes about this one: not asked"),
    (r"\sqrt{\frac{x}{0}}", "42", False, "and about this one"),
    (r"\frac{1}{0}", "42", False, "LaTeX: no value"),
]


@pytest.mark.parametrize(("text", "gold", "same", "why"), SAME)
def test_same_answer(text: str | None, gold: str, same: bool, why: str) -> None:
    assert same_answer(text, gold) is same, why


def test_latex_is_compared_on_any_thread() -> None:
    """math-verify's own time limits are signals and would raise here."""
    with ThreadPoolExecutor(1) as thread:
        assert thread.submit(same_answer, r"\sqrt{1764}", "42").result()


XML = [
    ("<answer>42</answer>", "42", "42", "plain"),
    ("<answer>\n 42 \n</answer>", "42", "42", "stripped"),
    ("no tag 42", None, "no tag 42", "no tag: no answer; published: the whole text"),
    ("<answer>42", None, "42", "never closed: no answer; published: to the end"),
    ("<answer>7</answer> <answer>42</answer>", "42", "42", "the last block"),
    ("<answer>42</answer> in <answer> tags", "42", "tags", "a late mention"),
    ("<answer></answer>", "", "", "empty"),
    ("</answer>42<answer>", None, "", "wrong order"),
    ("<answer>1<answer>42</answer>", "42", "42", "the innermost opening"),
]


@pytest.mark.parametrize(("text", "answer", "published", "why"), XML)
def test_extract_xml_answer(text: str, answer: str | None, published: str, why: str) -> None:
    assert extract_xml_answer(text) == answer, why
    assert extract_xml_answer(text, published=True) == published, why


HASH = [
    ("6 x 7 = 42\n#### 42", "42", "42", "42", "GSM8K"),
    ("#### 1,234", "1,234", "1,234", "1234", "commas are kept; a later copy of the function drops them"),
    ("#### $5", "$5", "$5", "5", "currency likewise"),
    ("#### -5", "-5", "-5", "-5", "negative"),
    ("no mark", None, None, None, "no mark, no answer"),
    ("####", "", "", "", "nothing behind it"),
    ("#### 42\n\nQuestion: ...\n#### 7", "42", "42\n\nQuestion: ...", "42", "the first mark, and its line"),
]


@pytest.mark.parametrize(("text", "answer", "published", "bare", "why"), HASH)
def test_extract_hash_answer(text: str, answer: str | None, published: str | None, bare: str | None, why: str) -> None:
    assert extract_hash_answer(text) == answer, why
    assert extract_hash_answer(text, published=True) == published, why
    assert extract_hash_answer(text, drop_separators=True) == bare, why


def test_only_answer_takes_no_hedge() -> None:
    assert only_answer("<answer>42</answer>") == "42"
    assert only_answer("<answer>42</answer><answer>42</answer>") is None
    assert only_answer("<answer>1<answer>42</answer>") is None
    assert only_answer("#### 42", "hash") == "42"
    assert only_answer("#### 41\n#### 42", "hash") is None
    assert only_answer(" 42 ", "plain") == "42"
    assert only_answer("41\n42", "plain") is None


WELL_FORMED = [
    ("<reasoning>x</reasoning><answer>42</answer>", True, "one line, as the demo's model writes it"),
    ("<reasoning>\nx\n</reasoning>\n<answer>\n42\n</answer>", True, "lines, ending at </answer> as chat models do"),
    ("<reasoning>\nx\ny\n</reasoning>\n\n<answer>\n42\n</answer>\n", True, "more lines, and a newline at the end"),
    ("", False, "empty"),
    ("42", False, "no tags"),
    ("<answer>42</answer>", False, "no reasoning"),
    ("<reasoning>x</reasoning>", False, "no answer"),
    ("<reasoning> </reasoning><answer>42</answer>", False, "empty reasoning"),
    ("<reasoning>x</reasoning><answer>\n</answer>", False, "empty answer"),
    ("<reasoning>x</reasoning><answer>42", False, "cut short"),
    ("<answer>42</answer><reasoning>x</reasoning>", False, "wrong order"),
    ("<reasoning>x<answer>42</answer></reasoning>", False, "nested"),
    ("Sure! <reasoning>x</reasoning><answer>42</answer>", False, "a preamble"),
    ("<reasoning>x</reasoning> so <answer>42</answer>", False, "something between"),
    ("<reasoning>x</reasoning><answer>42</answer> Done", False, "something behind"),
    ("<reasoning>x</reasoning><answer>42</answer><answer>42</answer>", False, "two answers"),
    ("<reasoning>x</reasoning><reasoning>y</reasoning><answer>42</answer>", False, "two reasonings"),
    ("<Reasoning>x</Reasoning><Answer>42</Answer>", False, "other tags"),
]


@pytest.mark.parametrize(("text", "formed", "why"), WELL_FORMED)
def test_well_formed(text: str, formed: bool, why: str) -> None:
    assert well_formed(text) is formed, why


JUDGED_XML = [  # text, gold, (extracted, strict, lenient, formatted)
    ("<reasoning>x</reasoning><answer>42</answer>", "42", ("42", True, True, True), "right and well formed"),
    ("<reasoning>x</reasoning><answer>7</answer>", "42", ("7", False, False, True), "wrong"),
    ("<answer>42</answer>", "42", ("42", False, True, False), "right but not in the form"),
    ("I think 6 x 7 = 42.", "42", ("42", False, True, False), "right but unreadable: the last number"),
    ("It is 42, not 41", "42", ("41", False, False, False), "the last number decides"),
    ("<reasoning>42</reasoning><answer></answer>", "42", ("", False, False, False), "an empty answer is the answer"),
    ("<reasoning>x</reasoning><answer>41 or 42</answer>", "42", ("41 or 42", False, False, True), "a hedge"),
    ("", "42", (None, False, False, False), "nothing"),
    ("Let me see.\nParis", "Paris", ("Paris", False, True, False), "text: the last line"),
]


@pytest.mark.parametrize(("text", "gold", "said", "why"), JUDGED_XML)
def test_judge_xml(text: str, gold: str, said: tuple[str | None, bool, bool, bool], why: str) -> None:
    judged = JUDGES["xml"](text, gold)
    assert (judged.extracted, judged.strict, judged.lenient, judged.formatted) == said, why


def test_judge_hash() -> None:
    assert JUDGES["hash"]("6 x 7\n#### 42", "42").strict
    assert JUDGES["hash"]("6 x 7\n#### 1,234", "1234").strict
    late = JUDGES["hash"]("#### 42\nand more", "42")
    assert late.lenient and not late.formatted and not late.strict
    assert JUDGES["hash"]("it is 42", "42").lenient and not JUDGES["hash"]("it is 42", "42").formatted
    assert not JUDGES["hash"]("#### 7\n#### 42", "42").formatted


def test_judge_plain() -> None:
    assert JUDGES["plain"](" Budget \n", "budget").strict
    assert JUDGES["plain"]("42 apples", "42").strict
    wordy = JUDGES["plain"]("Let me think: 6 x 7.\nSo 42", "42")
    assert wordy.lenient and not wordy.strict and not wordy.formatted
    assert not JUDGES["plain"]("", "42").formatted


@settings(max_examples=300, deadline=None)
@given(st.text(), st.text())
def test_judges_say_something_of_every_text(text: str, gold: str) -> None:
    for judge in JUDGES.values():
        judged = judge(text, gold)
        assert not judged.strict or (judged.lenient and judged.formatted)
    assert parse_number(text) is None or isinstance(parse_number(text), Fraction)


LATEX = st.lists(
    st.sampled_from(
        [r"\frac", r"\sqrt", "{", "}", "^", "2", "9", "99", "x", "y", "+", "-", r"\pi", r"\cdot", "(", ")", "[", "]"]
        + [r"\{", r"\}", ",", "=", " ", r"\infty", "/", "_", ".", r"\times", r"\boxed", "$", "\\"]
    ),
    max_size=14,
).map("".join)


@settings(max_examples=150, deadline=3000)  # milliseconds for one formula, the first of which loads sympy
@given(LATEX, LATEX)
def test_latex_soup_neither_raises_nor_hangs(given_text: str, gold: str) -> None:
    assert same_answer(given_text, "\\" + gold) in (True, False)
