"""Small arithmetic stories made from a seed: the demo's data, and a task whose gold answers are certain.

Ten kinds of story take one, two or three steps, and no number on the way exceeds 99. Which split a story belongs to is
a hash of its text, whatever the seed: no story of one split is ever made for another, in any process, on any machine.
Splits share names, things and phrasings; what is new in a held-out story is how they and its numbers come together.
"""

from __future__ import annotations

import hashlib
import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from random import Random

from llm_grpo.answers.judging import JUDGES
from llm_grpo.records import Example, Split, Task
from llm_grpo.tasks.rows import SPLITS, check_sizes, check_split

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
    """One kind of story: how its numbers a, b, c, d are drawn, in the order in which they are told, and the steps to
    the answer; e and f are what the first and the second come to."""

    numbers: Callable[[Random], tuple[int, ...]]
    steps: str
    phrasings: tuple[str, ...]

    def worked_out(self, numbers: tuple[int, ...]) -> tuple[str, ...]:
        """Such as ('12+5=17', '17-3=14')."""
        values, said = dict(zip("abcd", numbers, strict=False)), []
        for result, (left, sign, right) in zip("efg", self.steps.split(), strict=False):
            a, b = values[left], values[right]
            values[result] = SIGNS[sign](a, b)
            said.append(f"{a}{sign}{b}={values[result]}")
        return tuple(said)


def _between(*ranges: tuple[int, int]) -> Callable[[Random], tuple[int, ...]]:
    return lambda rng: tuple(rng.randint(low, high) for low, high in ranges)


def _shared(rng: Random) -> tuple[int, ...]:
    """a and b add up to a multiple of c, so that sharing comes out even."""
    friends, each = rng.randint(2, 9), rng.randint(2, 9)
    first = rng.randint(1, friends * each - 1)
    return first, friends * each - first, friends


SIGNS = {"+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.floordiv}
FEW, SOME, MANY = (2, 9), (2, 40), (10, 60)
KINDS: dict[str, Kind] = {
    "gain": Kind(_between(MANY, SOME), "a+b", (
        "{n} has {a} {o}. {m} gives {n} {b} more. How many {o} does {n} have now?",
        "{n} finds {a} {o} and then {b} more. How many {o} is that?",
    )),
    "loss": Kind(_between(MANY, SOME), "a-b", (
        "{n} has {a} {o} and gives {b} to {m}. How many {o} are left?",
        "Of {a} {o}, {n} loses {b}. How many {o} are left?",
    )),
    "boxes": Kind(_between(FEW, FEW), "a*b", (
        "{n} has {a} boxes with {b} {o} in each. How many {o} is that?",
        "{n} fills {a} bags with {b} {o} each. How many {o} does {n} need?",
    )),
    "gain_loss": Kind(_between(MANY, SOME, SOME), "a+b e-c", (
        "{n} has {a} {o}, gets {b} more from {m} and loses {c}. How many {o} are left?",
        "{n} picks {a} {o}, then {b} more, and sells {c}. How many {o} are left?",
    )),
    "boxes_gain": Kind(_between(FEW, FEW, SOME), "a*b e+c", (
        "{n} has {a} boxes with {b} {o} in each. {m} gives {n} {c} more. How many {o} does {n} have now?",
        "{n} buys {a} bags of {b} {o} and finds {c} more. How many {o} is that?",
    )),
    "boxes_loss": Kind(_between(FEW, FEW, SOME), "a*b e-c", (
        "{n} has {a} boxes with {b} {o} in each and gives {c} to {m}. How many {o} are left?",
        "{n} buys {a} bags of {b} {o} and loses {c}. How many {o} are left?",
    )),
    "share": Kind(_shared, "a+b e/c", (
        "{n} has {a} {o}, buys {b} more and shares them among {c} friends. How many {o} does each friend get?",
        "{n} and {m} put {a} and {b} {o} into {c} equal bags. How many {o} are in each bag?",
    )),
    "together": Kind(_between(SOME, FEW), "a+b a+e", (
        "{n} has {a} {o}. {m} has {b} more than {n}. How many {o} do both have together?",
        "{n} sells {a} {o}, and {m} sells {b} more than {n}. How many {o} do both sell together?",
    )),
    "market": Kind(_between(FEW, FEW, SOME, SOME), "a*b e-c f+d", (
        "{n} has {a} boxes with {b} {o} in each, sells {c} and then buys {d}. How many {o} does {n} have now?",
        "{n} packs {a} bags of {b} {o}, gives {c} to {m} and gets {d} back. How many {o} does {n} have now?",
    )),
    "two_sorts": Kind(_between(FEW, FEW, FEW, FEW), "a*b c*d e+f", (
        "{n} has {a} boxes with {b} {o} in each and {c} boxes with {d} in each. How many {o} is that?",
        "{n} buys {a} bags of {b} {o} and {c} bags of {d}. How many {o} does {n} have now?",
    )),
}  # fmt: skip


def split_of(text: str) -> str:
    """'train', 'validation' or 'test' (8 : 1 : 1), by a hash of the story alone."""
    bucket = hashlib.sha256(text.encode()).digest()[0] % 10
    return {0: "test", 1: "validation"}.get(bucket, "train")


def _small(steps: tuple[str, ...]) -> bool:
    return all(1 <= int(step.partition("=")[2]) <= LARGEST_NUMBER for step in steps)


def make_story(rng: Random, kind: str) -> tuple[str, tuple[str, ...]]:
    """One story of that kind and the steps that solve it, such as ('12+5=17', '17-3=14')."""
    told = KINDS[kind]
    while not _small(told.worked_out(numbers := told.numbers(rng))):
        pass
    (n, m), o = rng.sample(NAMES, 2), rng.choice(THINGS)
    text = rng.choice(told.phrasings).format(n=n, m=m, o=o, **dict(zip("abcd", numbers, strict=False)))
    return text, told.worked_out(numbers)


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


def word_problems(*, seed: int = 0, train_size: int = 4000, validation_size: int = 500, test_size: int = 1000) -> Task:
    """The task of that seed: 'train', 'validation' and 'test' of the given sizes. Raises UserError on a bad size."""
    sizes = dict(zip(SPLITS, (train_size, validation_size, test_size), strict=True))
    check_sizes(sizes, MOST_PER_SPLIT)

    def load(split: str) -> Split:
        check_split("word_problems", split)
        stream = stories(split, seed)
        return Split(tuple(next(stream) for _ in range(sizes[split])))

    return Task("word_problems", SYSTEM, load, JUDGES["xml"])
