"""Small arithmetic stories made from a seed: the demo's data, and a task whose gold answers are certain.

Ten kinds of story take one, two or three steps, and no number on the way exceeds 99. Which split a story belongs to is
a hash of its text, whatever the seed: no story of one split is ever made for another, in any process, on any machine.
Splits share names, things and phrasings; what is new in a held-out story is how they and its numbers come together.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from random import Random

from llm_grpo.answers.judging import JUDGES
from llm_grpo.errors import UserError
from llm_grpo.records import Example, Split, Task

SYSTEM = "Reply as\n<reasoning>\n...\n</reasoning>\n<answer>\n...\n</answer>"
MOST_PER_SPLIT = 50_000  # well below the number of different stories, so that making them always ends
LARGEST_NUMBER = 99

NAMES = (
    "Ada Alan Amir Anna Ben Clara Dan Emma Eva Finn Grace Hugo Ines Ivan Jack Kim Lena Leo Lina Maya Mia Nora Omar "
    "Rosa Sam Tara Tom Vera Will Zoe"
).split()
THINGS = (
    "apples balls beads books buttons cakes cards coins cups eggs figs flags keys lemons marbles nuts pears pens plums "
    "rings roses shells stamps stars"
).split()


@dataclass(frozen=True)
class Kind:
    """One kind of story: its numbers a, b, c, d in the order in which they are told, and the steps to the answer."""

    numbers: Callable[[Random], tuple[int, ...]]
    steps: Callable[..., tuple[str, ...]]
    phrasings: tuple[str, ...]


def _step(a: int, sign: str, b: int) -> int:
    return {"+": a + b, "-": a - b, "*": a * b, "/": a // b}[sign]


def _chain(first: int, *then: tuple[str, int]) -> tuple[str, ...]:
    """Each step starts from the result of the one before: 12+5=17, 17-3=14."""
    steps, value = [], first
    for sign, number in then:
        result = _step(value, sign, number)
        steps.append(f"{value}{sign}{number}={result}")
        value = result
    return tuple(steps)


def _two_products(a: int, b: int, c: int, d: int) -> tuple[str, ...]:
    return (f"{a}*{b}={a * b}", f"{c}*{d}={c * d}", f"{a * b}+{c * d}={a * b + c * d}")


def _between(*ranges: tuple[int, int]) -> Callable[[Random], tuple[int, ...]]:
    return lambda rng: tuple(rng.randint(low, high) for low, high in ranges)


def _shared(rng: Random) -> tuple[int, ...]:
    """a and b add up to a multiple of c, so that sharing comes out even."""
    friends, each = rng.randint(2, 9), rng.randint(2, 9)
    first = rng.randint(1, friends * each - 1)
    return first, friends * each - first, friends


FEW, SOME, MANY = (2, 9), (2, 40), (10, 60)
KINDS: dict[str, Kind] = {
    "gain": Kind(
        _between(MANY, SOME),
        lambda a, b: _chain(a, ("+", b)),
        (
            "{n} has {a} {o}. {m} gives {n} {b} more. How many {o} does {n} have now?",
            "{n} finds {a} {o} and then {b} more. How many {o} is that?",
        ),
    ),
    "loss": Kind(
        _between(MANY, SOME),
        lambda a, b: _chain(a, ("-", b)),
        (
            "{n} has {a} {o} and gives {b} to {m}. How many {o} are left?",
            "Of {a} {o}, {n} loses {b}. How many {o} are left?",
        ),
    ),
    "boxes": Kind(
        _between(FEW, FEW),
        lambda a, b: _chain(a, ("*", b)),
        (
            "{n} has {a} boxes with {b} {o} in each. How many {o} is that?",
            "{n} fills {a} bags with {b} {o} each. How many {o} does {n} need?",
        ),
    ),
    "gain_loss": Kind(
        _between(MANY, SOME, SOME),
        lambda a, b, c: _chain(a, ("+", b), ("-", c)),
        (
            "{n} has {a} {o}, gets {b} more from {m} and loses {c}. How many {o} are left?",
            "{n} picks {a} {o}, then {b} more, and sells {c}. How many {o} are left?",
        ),
    ),
    "boxes_gain": Kind(
        _between(FEW, FEW, SOME),
        lambda a, b, c: _chain(a, ("*", b), ("+", c)),
        (
            "{n} has {a} boxes with {b} {o} in each. {m} gives {n} {c} more. How many {o} does {n} have now?",
            "{n} buys {a} bags of {b} {o} and finds {c} more. How many {o} is that?",
        ),
    ),
    "boxes_loss": Kind(
        _between(FEW, FEW, SOME),
        lambda a, b, c: _chain(a, ("*", b), ("-", c)),
        (
            "{n} has {a} boxes with {b} {o} in each and gives {c} to {m}. How many {o} are left?",
            "{n} buys {a} bags of {b} {o} and loses {c}. How many {o} are left?",
        ),
    ),
    "share": Kind(
        _shared,
        lambda a, b, c: _chain(a, ("+", b), ("/", c)),
        (
            "{n} has {a} {o}, buys {b} more and shares them among {c} friends. How many {o} does each friend get?",
            "{n} and {m} put {a} and {b} {o} into {c} equal bags. How many {o} are in each bag?",
        ),
    ),
    "together": Kind(
        _between(SOME, FEW),
        lambda a, b: (f"{a}+{b}={a + b}", f"{a}+{a + b}={a + a + b}"),
        (
            "{n} has {a} {o}. {m} has {b} more than {n}. How many {o} do both have together?",
            "{n} sells {a} {o}, and {m} sells {b} more than {n}. How many {o} do both sell together?",
        ),
    ),
    "market": Kind(
        _between(FEW, FEW, SOME, SOME),
        lambda a, b, c, d: _chain(a, ("*", b), ("-", c), ("+", d)),
        (
            "{n} has {a} boxes with {b} {o} in each, sells {c} and then buys {d}. How many {o} does {n} have now?",
            "{n} packs {a} bags of {b} {o}, gives {c} to {m} and gets {d} back. How many {o} does {n} have now?",
        ),
    ),
    "two_sorts": Kind(
        _between(FEW, FEW, FEW, FEW),
        _two_products,
        (
            "{n} has {a} boxes with {b} {o} in each and {c} boxes with {d} in each. How many {o} is that?",
            "{n} buys {a} bags of {b} {o} and {c} bags of {d}. How many {o} does {n} have now?",
        ),
    ),
}


def split_of(text: str) -> str:
    """'train', 'validation' or 'test' (8 : 1 : 1), by a hash of the story alone."""
    bucket = hashlib.sha256(text.encode()).digest()[0] % 10
    return {0: "test", 1: "validation"}.get(bucket, "train")


def _small(steps: tuple[str, ...]) -> bool:
    return all(1 <= int(step.partition("=")[2]) <= LARGEST_NUMBER for step in steps)


def make_story(rng: Random, kind: str) -> tuple[str, tuple[str, ...]]:
    """One story of that kind and the steps that solve it, such as ('12+5=17', '17-3=14')."""
    told = KINDS[kind]
    numbers = told.numbers(rng)
    while not _small(told.steps(*numbers)):
        numbers = told.numbers(rng)
    (n, m), o = rng.sample(NAMES, 2), rng.choice(THINGS)
    text = rng.choice(told.phrasings).format(n=n, m=m, o=o, **dict(zip("abcd", numbers, strict=False)))
    return text, told.steps(*numbers)


def stories(split: str, seed: int) -> Iterator[Example]:
    """An endless stream of different stories of one split; the kinds take turns."""
    rng, seen, kinds = Random(f"word_problems/{split}/{seed}"), set[str](), list(KINDS)
    while True:
        kind = kinds[len(seen) % len(kinds)]
        text, steps = make_story(rng, kind)
        if split_of(text) == split and text not in seen:
            answer = steps[-1].partition("=")[2]
            meta = {"kind": kind, "steps": steps, "solution": "\n".join(steps)}
            yield Example(f"word_problems/{split}/{len(seen)}", ({"role": "user", "content": text},), answer, meta)
            seen.add(text)


def _check_size(name: str, size: int) -> int:
    if isinstance(size, bool) or not isinstance(size, int) or not 1 <= size <= MOST_PER_SPLIT:
        raise UserError(f"task.args.{name} is {size!r}; give a whole number from 1 to {MOST_PER_SPLIT}.")
    return size


def word_problems(*, seed: int = 0, train_size: int = 4000, validation_size: int = 500, test_size: int = 1000) -> Task:
    """The task of that seed: 'train', 'validation' and 'test' of the given sizes. Raises UserError on a bad size."""
    sizes = {
        "train": _check_size("train_size", train_size),
        "validation": _check_size("validation_size", validation_size),
        "test": _check_size("test_size", test_size),
    }

    def load(split: str) -> Split:
        if split not in sizes:
            raise UserError(f"There is no split '{split}'; word_problems has {', '.join(sizes)}.")
        stream = stories(split, seed)
        return Split(tuple(next(stream) for _ in range(sizes[split])))

    return Task("word_problems", SYSTEM, load, JUDGES["xml"])
