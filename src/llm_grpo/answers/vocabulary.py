"""The English words and signs that may stand beside a number, by what they do to its value.

A noun nobody knows is a thing that is counted (`42 apples`) and harmless, since no list holds all nouns. What may
change a value is a closed class, and these are it: whoever finds a word missing adds it here, and nowhere else. Each
set says where its words do harm: everywhere, in the phrase around the number, only in front of it, or only behind it.
The phrase begins behind the last `is`, `=` or colon before the number: what stands before that names what was asked, so
that `The least common multiple is 42` is 42 and `It is at least 42` is no number.
"""

from __future__ import annotations

from fractions import Fraction


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


SIGN_WORDS = {"minus": -1, "negative": -1, "neg": -1, "plus": 1, "positive": 1, "-": -1, "+": 1}

# Right behind a number they multiply it; anywhere else it is unclear what they do.
MULTIPLIERS: dict[str, Fraction] = {
    "hundred": Fraction(100), "thousand": Fraction(10**3), "lakh": Fraction(10**5), "million": Fraction(10**6),
    "crore": Fraction(10**7), "billion": Fraction(10**9), "trillion": Fraction(10**12), "dozen": Fraction(12),
    "mln": Fraction(10**6), "mn": Fraction(10**6), "bln": Fraction(10**9), "bn": Fraction(10**9),
    "halve": Fraction(1, 2), "third": Fraction(1, 3), "fourth": Fraction(1, 4),
    "fifth": Fraction(1, 5), "sixth": Fraction(1, 6), "seventh": Fraction(1, 7), "eighth": Fraction(1, 8),
    "ninth": Fraction(1, 9), "tenth": Fraction(1, 10), "twelfth": Fraction(1, 12), "twentieth": Fraction(1, 20),
    "quadrillion": Fraction(10**15), "hundredth": Fraction(1, 100),
    "thousandth": Fraction(1, 1000), "millionth": Fraction(1, 10**6),
}  # fmt: skip
# A letter that is glued to the digits. m is a metre, but behind a currency ($5m) a million, and b and t are theirs.
SUFFIXES = {"k": 10**3, "K": 10**3, "M": 10**6, "B": 10**9, "T": 10**12}
_CHINESE = {10**2: "\u767e", 10**3: "\u5343", 10**4: "\u4e07\u842c", 10**8: "\u4ebf\u5104"}
SUFFIXES |= {letter: value for value, letters in _CHINESE.items() for letter in letters}
MONEY_SUFFIXES = {"k": 10**3, "m": 10**6, "mm": 10**6, "b": 10**9, "t": 10**12}
# Number or thing, nobody can tell: four score, the score; three quarters of a mile, three quarters of a dollar each.
UNCLEAR_COUNTS = _words(
    "score scores gross grand quarter quarters mil mega giga mill mio mrd trn thou thsd lac doz myriad googol fold ppm "
    "bps basis zillion quintillion sextillion septillion octillion"
)

_UNITS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
)
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety"
SPELLED = {word: value for value, word in enumerate((_UNITS + "eighteen nineteen").split())}
SPELLED |= {word: 10 * ten for ten, word in enumerate(_TENS.split(), start=2)}

# Everywhere, before the copula too: `It is not so that x = 42`, `twice the answer is 42`.
CHANGING = _words(
    "not no never neither either nor none nobody nothing cannot cant false untrue wrong incorrect undefined "
    "impossible fails half twice thrice double doubled triple tripled treble quadruple quadrupled halved multiplied "
    "divided maybe perhaps possibly probably factorial modulo repeating recurring infinity infinite infinitely "
    "imaginary versus vs unlikely doubt doubtful inverted might could unequal isnt arent wasnt werent aint dont "
    "doesnt didnt wont wouldnt couldnt shouldnt hasnt havent"
)
# In the phrase: comparison, range, rounding, condition, another base, an operation or a function that is left open.
LIMITING = _words(
    "maximum max minimum atleast atmost or if unless but within approximately approx approximate roughly nearly "
    "almost circa ca barely under below above beneath beyond upward upwards onward onwards estimated estimate ish odd "
    "something tops exceed exceeds exceeding exceeded rounded rounding ballpark thereabouts etc without except "
    "excluding excludes instead unlike mille opposite excess unknown log ln lg cos tan cot csc sqrt root arcsin "
    "arccos arctan sinh cosh tanh sgn det exp gcd lcm mod choose pi tau xy xz yz xyz "
    "ab abc bc binary hex hexadecimal octal quite squareroot "
    "virtually practically scarcely nigh capped limited starting lacks"
)
# In front, and right behind the number or an `and`: `over 42`, `42 and up`. Behind a thing they say where it is.
PLACING = _words("over about around between up down different counting")
LEADING = _words(
    "square squares cube cubes roots sin sec min abs floor ceil ceiling factor factors multiple multiples divisor "
    "divisors power powers fraction part parts portion portions percentage inverse reciprocal complement remainder "
    "more less fewer greater larger smaller bigger higher lower near close nearing approaching from as point before "
    "after until till since past through than some other times upto base sub lim against hardly north south excess "
    "good est logarithm sine cosine tangent"
)
# `42 more` is 42, `42 and more` is not.
GREEK = _words("alpha beta gamma delta epsilon theta lambda sigma omega phi psi")  # variables, behind a number
COMPARATIVES = _words("more less fewer greater larger smaller bigger higher lower change some then")
POWER_WORDS = _words("squared cubed sqd")  # `8 squared` is 64; `8 meters squared` are 8
AFTER_TIMES = _words("as per each every in more daily weekly monthly a")  # `5 times a day` is 5; `5 times x` is not
BETWEEN_TWO = _words("and by to of out with per times x")  # between two numbers, though they be equal

COPULAS = _words("is are was were be equals gives makes totals that's it's :")
BEFORE_SIGN = COPULAS | _words("a of to at exactly only just it's that's so therefore thus hence answer")  # of minus 5
# Words that say nothing of what is counted, so that `The answer is 42` is right where the gold is `42 apples`.
FILLERS = COPULAS | _words(
    "answer result equal therefore so hence thus a an the of in on at to for and also they there their his her its "
    "our your my he she it we you i this that these those will would has have had have've final value total "
    "altogether overall only just exactly precisely all left remaining more less fewer which who so then now again "
    "here please thanks sum amount each every per with as by from us am pm do does did we'll he'll she'll they'll "
    "let's we've there're"
)
UNIT_LETTERS = frozenset("mgshlLAWVNJCF\u03a9")  # k is a thousand, K that or kelvin; the others may be variables
SHORT_UNITS = _words(
    "km cm mm nm dm kg mg lb oz ft mi hr yd ml cl dl kw mw gb mb kb tb hz ms ns pa mw kj cc in am pm st nd rd th yr "
    "mo wk ha gm rs kr sq cu \u03bcm \u03bcg \u03bcs \u03bcl"
)

_SYNONYMS = {  # written apart by people who mean the same; the first is the name
    "kilometer": "km kilometre", "meter": "m metre", "centimeter": "cm centimetre", "millimeter": "mm millimetre",
    "kilogram": "kg kilo", "gram": "g gm", "pound": "lb lbs", "ounce": "oz", "mile": "mi", "foot": "ft feet",
    "inch": "in inche", "yard": "yd", "hour": "h hr", "minute": "min", "second": "s sec", "liter": "l litre",
    "milliliter": "ml millilitre", "degree": "deg °", "percent": "% pct percentage", "year": "yr", "week": "wk",
    "celsius": "c celsiu", "fahrenheit": "f",
}  # fmt: skip
SYNONYMS = {other: name for name, others in _SYNONYMS.items() for other in others.split()}
MEASURES = frozenset(_SYNONYMS)
MONEY = {
    "$": "dollar", "us$": "dollar", "usd": "dollar", "dollar": "dollar", "buck": "dollar", "€": "euro", "eur": "euro",
    "euro": "euro", "£": "pound", "gbp": "pound", "¥": "yen", "jpy": "yen", "yen": "yen", "₹": "rupee", "inr": "rupee",
    "rs": "rupee", "rupee": "rupee", "¢": "cent", "cent": "cent", "penny": "cent", "pennie": "cent",
    "pence": "pence", "chf": "franc",
    "aud": "a$", "au$": "a$", "cad": "c$", "ca$": "c$", "cny": "yuan", "rmb": "yuan", "yuan": "yuan",
}  # fmt: skip


def unit_of(word: str) -> str:
    """The name of a unit or thing whatever its number and spelling: `kms`, `kilometers` and `km` are one."""
    single = word[:-1] if len(word) > 2 and word.endswith("s") and not word.endswith("ss") else word
    return SYNONYMS.get(word) or SYNONYMS.get(single) or single


def spelled(words: list[str]) -> int | None:
    """The number below a million that English words say (`three hundred forty two`), or None."""
    total = part = 0
    for word in words:
        if word in SPELLED:
            part += SPELLED[word]
        elif word == "hundred":
            part *= 100
        elif word == "thousand":
            total, part = total + part * 1000, 0
        elif word != "and":
            return None
    return total + part if words else None
