"""A million random and hostile completions through every reward: no exception, no value out of range, and how fast.

    python benchmarks/reward_fuzz.py [--count 1000000] [--seed 0]

Writes benchmarks/results/reward_fuzz-DATE.json: what was run, the counts, and completions per second of each reward on
texts of the length a model really writes. One core; the million takes some minutes.
"""

from __future__ import annotations

import argparse
import inspect
import json
import os
import platform
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "src"))

from llm_grpo.answers.formats import write_answer  # noqa: E402
from llm_grpo.answers.judging import JUDGES  # noqa: E402
from llm_grpo.rewards import REWARDS  # noqa: E402
from llm_grpo.rewards.attack import THOUGHT  # noqa: E402

BATCH = 1000
TAGS = [
    "<reasoning>",
    "</reasoning>",
    "<answer>",
    "</answer>",
    "\n",
    "\n</reasoning>\n<answer>\n",
    "\n</answer>\n",
    "####",
]
WORDS = [
    "42",
    "-5",
    "1,234.50",
    "80%",
    "$18",
    "1/2",
    "\u00b2",
    "\u0663",
    "\u00bd",
    "7" * 50,
    ".",
    ",",
    "-",
    " or ",
    "apples",
]
LATEX = [r"\boxed{", r"\frac{1}{2}", r"\sqrt{", r"\text{", "}", "{", "^", "$", "\\", r"\pi", "x", "=", "+"]
GOLDS = ["42", "-5", "1,234", "1/2", "Paris", "", None, r"\frac{1}{2}", "\u00b2", "7" * 50]


def random_text(rng: random.Random) -> str:
    """Any characters, surrogates included: what no model writes and a broken decoder might."""
    return "".join(
        chr(rng.choice((rng.randrange(128), rng.randrange(0x3000), rng.randrange(0x110000)))) for _ in range(40)
    )


def soup(rng: random.Random) -> str:
    """Tags, numbers and LaTeX in any order."""
    return "".join(rng.choice(rng.choice((TAGS, TAGS, WORDS, LATEX))) for _ in range(rng.randrange(25)))


def mutated(rng: random.Random) -> str:
    """A good completion with some of it cut out, doubled, or replaced."""
    text = write_answer("xml", THOUGHT, rng.choice(WORDS))
    for _ in range(rng.randrange(1, 4)):
        start, length = rng.randrange(len(text) + 1), rng.randrange(30)
        text = text[:start] + rng.choice((soup(rng), "", text[start : start + length] * 2)) + text[start + length :]
    return text


def answered(rng: random.Random) -> str:
    """The right form around any answer, so that reading and comparing are reached."""
    inner = "".join(rng.choice(rng.choice((WORDS, LATEX))) for _ in range(rng.randrange(1, 8)))
    return write_answer("xml", THOUGHT, inner)


KINDS: tuple[Callable[[random.Random], str], ...] = (random_text, soup, mutated, answered)


def variants() -> Iterator[tuple[str, Callable[..., list[float | None]], dict[str, Any], float, float]]:
    """(name, reward, arguments, lowest, highest) of each reward, corrected and published."""
    for name, reward in REWARDS.items():
        low, _, high = (inspect.getdoc(reward) or "").partition(": ")[0].split()
        known = inspect.signature(reward).parameters
        yield name, reward, {}, float(low), float(high)
        floor = float("-inf") if name == "xmlcount_reward_func" else float(low)
        yield f"{name} published", reward, {"published": True}, floor, float(high)
        for argument, value in {"dotall": False, "anywhere": True, "fuzzy": True}.items():
            if argument in known:
                args = {"published": True, argument: value}
                yield f"{name} published, {argument}={value}", reward, args, floor, float(high)


def fuzz(count: int, seed: int) -> dict[str, Any]:
    """Score `count` texts by every variant and judge; counts what raised or left its range, with the first of each."""
    rng, seconds, nulls, faults = random.Random(seed), 0.0, 0, []
    checks = [*map(reward_check, variants()), *map(judge_check, JUDGES.items())]
    for batch in range(0, count, BATCH):
        texts = [KINDS[place % len(KINDS)](rng) for place in range(min(BATCH, count - batch))]
        golds = [rng.choice(GOLDS) for _ in texts]
        start = time.perf_counter()
        for name, check in checks:
            for text, gold in zip(texts, golds, strict=True):
                try:
                    nulls += check(text, gold)
                except Exception as error:  # that none of any kind is raised is what is measured here
                    faults.append((name, type(error).__name__, gold, text))
        seconds += time.perf_counter() - start
    calls = count * len(checks)
    return {"texts": count, "calls": calls, "faults": len(faults), "first_faults": faults[:10], "nulls": nulls,
            "seconds": round(seconds, 1)}  # fmt: skip


def reward_check(variant: tuple[Any, ...]) -> tuple[str, Callable[[str, str | None], bool]]:
    """A function that scores one text and says whether the score is null; out of range it raises."""
    name, reward, args, low, high = variant

    def check(text: str, gold: str | None) -> bool:
        score = reward(completions=[text], answer=[gold], **args)[0]
        assert score is None or low <= score <= high, score
        return score is None

    return name, check


def judge_check(item: tuple[str, Callable[[str, str], Any]]) -> tuple[str, Callable[[str, str | None], bool]]:
    """A function that judges one text; strictly right but not formatted, or not leniently right, raises."""
    name, judge = item

    def check(text: str, gold: str | None) -> bool:
        judged = judge(text, gold or "")
        assert not judged.strict or (judged.lenient and judged.formatted)
        return False

    return f"judge_{name}", check


def throughput(count: int = 2000) -> dict[str, int]:
    """Completions per second of each variant and judge, on well-formed completions of about 1,000 characters."""
    texts = [write_answer("xml", "Then 6 boxes of 7 apples are 42. " * 30, str(number)) for number in range(count)]
    golds = ["42"] * count
    calls = {
        name: lambda r=reward, a=args: r(completions=texts, answer=golds, **a) for name, reward, args, *_ in variants()
    }
    for name, judge in JUDGES.items():
        calls[f"judge_{name}"] = lambda j=judge: [j(text, "42") for text in texts]
    return {name: round(count / min(_timed(call) for _ in range(5))) for name, call in calls.items()}


def _timed(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--count", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    now = datetime.now(timezone.utc)
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout.strip()
    result = {
        "date": now.isoformat(timespec="seconds"),
        "command": f"python benchmarks/reward_fuzz.py --count {args.count} --seed {args.seed}",
        "commit": commit,
        "python": platform.python_version(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, one used",
        "completions_per_second": throughput(),
        "fuzz": fuzz(args.count, args.seed),
    }
    path = ROOT / "benchmarks" / "results" / f"reward_fuzz-{now:%Y-%m-%d}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=2))
    print(f"written to {path.relative_to(ROOT)}")
    sys.exit(1 if result["fuzz"]["faults"] else 0)


if __name__ == "__main__":
    main()
