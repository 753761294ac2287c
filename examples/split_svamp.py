"""SVAMP in three parts that share no story: writes examples/svamp/{train,validation,test}.jsonl.

    python examples/split_svamp.py examples/svamp/*.jsonl

SVAMP (https://github.com/arkilpatel/SVAMP, MIT) was made by varying about a hundred stories: other numbers, the
question turned around, something said that does not matter. Variants of one story stand anywhere in the file. Here two
problems are of one group where they are alike, and whatever they are linked by in turn; a group lies in one part.
The rows are read from any files of theirs, whatever their order; the three that ship give themselves again.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from itertools import combinations
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))

from llm_grpo.answers.calculation import same_calculation  # noqa: E402

FOLDER = Path(__file__).parent / "svamp"
ALIKE = 0.3  # of `likeness`; at 0.26 a quarter of all problems hang together, at 0.4 variants fall apart
AT_LEAST = {"test": 320, "validation": 160}  # rows; the rest trains
LARGEST_HELD_OUT = 50  # rows of a group: more of one story would make a test of that story
Row = Mapping[str, str]

NAME = re.compile(r"(?<=[a-z,'] )[A-Z][a-z]+")  # a capital inside a sentence
ENDING = re.compile(r"(?<=...)(ies|es|s|ing|ed|y|ied|e)$")
INNERMOST = re.compile(r"\( (\S+) ([-+*/]) (\S+) \)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", type=Path, nargs="+", help="JSON lines with id, question, answer, type, equation")
    rows = [json.loads(line) for file in parser.parse_args().files for line in file.open(encoding="utf-8")]
    for name, part in split(rows).items():
        lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in part)
        (FOLDER / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
        print(f"{name}: {len(part)} problems of {len({row['group'] for row in part})} groups")


def clean(row: Row) -> Row:
    """A row of the original in our columns, with the solution written from its equation, one operation a line."""
    kept = {name: row[name].strip() for name in ("id", "question", "answer", "equation")}
    kind = row["type"].replace("Divison", "Division")  # one is misspelt
    solution = "\n".join(steps(row["equation"]))
    return {**kept, "type": kind, "solution": solution, "calculation": calculation(row["equation"], row["answer"])}


def calculation(equation: str, answer: str) -> str:
    """`( ( 3.0 + 4.0 ) * 2.0 )` as (3 + 4) * 2; empty where that is not the answer."""
    said = re.sub(r"\.0\b", "", equation).replace("( ", "(").replace(" )", ")")
    if said.startswith("("):  # around the whole: each operation of the original has brackets of its own
        said = said[1:-1]
    return said if same_calculation(said, answer) else ""


def steps(equation: str) -> list[str]:
    """`( ( 3.0 + 4.0 ) * 2.0 )` as 3 + 4 = 7 and 7 * 2 = 14."""
    said = []
    while match := INNERMOST.search(equation):
        a, b = Fraction(match[1]), Fraction(match[3])
        value = {"+": a + b, "-": a - b, "*": a * b}[match[2]] if match[2] != "/" else a / b
        said.append(f"{_number(a)} {match[2]} {_number(b)} = {_number(value)}")
        equation = f"{equation[: match.start()]}{value}{equation[match.end() :]}"
    return said


def _number(value: Fraction) -> str:
    return str(value) if value.denominator == 1 else f"{float(value):.4g}"


def split(rows: Iterable[Row]) -> dict[str, list[Row]]:
    """{part: rows}, each row with its group; groups are dealt out by a hash, so that the order of the file is none.

    Among the training rows the kinds of problem take turns, so that who shows the first few shows different ones.
    """
    rows = sorted(map(clean, rows), key=lambda row: int(row["id"].partition("-")[2]))
    grouped = defaultdict(list)
    for row, group in zip(rows, groups(rows), strict=True):
        grouped[group].append({**row, "group": group})
    parts: dict[str, list[Row]] = {"train": [], "validation": [], "test": []}
    for group in sorted(grouped, key=_hash):
        fits = len(grouped[group]) <= LARGEST_HELD_OUT
        part = next((name for name, size in AT_LEAST.items() if fits and len(parts[name]) < size), "train")
        parts[part] += grouped[group]
    for name, part in parts.items():
        part.sort(key=lambda row: _hash(row["id"]))
        seen = Counter[str]()
        turns = {row["id"]: (seen.update([row["type"]]) or seen[row["type"]], row["type"]) for row in part}
        parts[name] = sorted(part, key=lambda row: turns[row["id"]])
    return parts


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def groups(rows: Sequence[Row]) -> list[str]:
    """The group of each row, called by its first member: linked are the rows that are ALIKE, and links add up."""
    group = list(range(len(rows)))
    for i, j in close_pairs(rows, ALIKE):
        old, new = sorted((group[i], group[j]), reverse=True)
        group = [new if g == old else g for g in group]
    return [rows[g]["id"] for g in group]


def close_pairs(rows: Sequence[Row], limit: float) -> Iterable[tuple[int, int]]:
    """The pairs (i < j) of rows whose likeness is at least `limit`.

    Likeness: of all that two problems say, the share that both say; each word weighs as it is rare (its inverse
    document frequency). Said are the words but for names, without numbers and endings, and the shape of the equation.
    """
    names = {name.lower() for row in rows for name in NAME.findall(row["question"])}
    said = [_said(row, names) for row in rows]
    common = Counter(word for words in said for word in words)
    weight = {word: math.log(len(rows) / count) for word, count in common.items()}
    own = [sum(weight[word] for word in sorted(words)) for words in said]
    for i, j in combinations(range(len(rows)), 2):
        both = sum(weight[word] for word in sorted(said[i] & said[j]))
        if both >= limit * (own[i] + own[j] - both):
            yield i, j


def _said(row: Row, names: set[str]) -> frozenset[str]:
    words = re.findall(r"[a-z]+", row["question"].lower())
    shape = re.sub(r"[\d.]+", "N", row["equation"])
    return frozenset({ENDING.sub("", word) for word in words if word not in names} | {shape})


if __name__ == "__main__":
    main()
