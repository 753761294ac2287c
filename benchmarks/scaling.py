"""The scaling model of docs/scaling.md, on paper: a step on 1 to 64 cards, by the plan of planning/duration.py.

    python benchmarks/scaling.py                                   # configs/grpo_64.yaml on H100s
    python benchmarks/scaling.py --config C --card A100 --link 12.5

Nothing is run. Generation and update are the plan's, everything at its longest. Besides there are the sum of the LoRA's
gradient over all trainers (a ring: each card sends and gets twice what it has, but for its own share) and the adapter's
way to vLLM. What is assumed is printed above the table.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import astuple
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "src"))

from llm_grpo.config.loading import load_config  # noqa: E402
from llm_grpo.planning.batch import explain_batch  # noqa: E402
from llm_grpo.planning.duration import CALL, CARDS, REACHED, Speed, Work, work_of  # noqa: E402
from llm_grpo.planning.memory import engine_of, trained_parameters  # noqa: E402
from llm_grpo.planning.shapes import model_shape  # noqa: E402

COUNTS = (1, 2, 4, 8, 16, 32, 64)
VALUE_BYTES = 4  # of a gradient, and of an adapter as it is saved
SYNC_GB_S = 2.0  # an adapter written and read back through memory that both sides see


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default=str(ROOT / "configs" / "grpo_64.yaml"))
    parser.add_argument("--card", default="H100", choices=list(CARDS))
    parser.add_argument("--link", type=float, default=20.0, help="GB/s between two cards; 12.5 is 100 Gbit/s")
    args = parser.parse_args()
    config = load_config(args.config, environment={})
    shape, rows = model_shape(config.model.name), explain_batch(config).completions_per_update
    (flops, read), call = CARDS[args.card], CALL[engine_of(config, gpu=True)]
    speed, adapter = Speed(REACHED[0] * flops, REACHED[1] * read, call), VALUE_BYTES * trained_parameters(config, shape)
    part = parts_of(args.config, rows)
    print(f"{config.model.name}, {rows} completions of at most {config.grpo['max_completion_length']} tokens a step; "
          f"{args.card}, {REACHED[0]:.0%} of its FLOP/s and {REACHED[1]:.0%} of its bytes/s; {call * 1e3:g} ms a layer "
          f"and token besides; an adapter of {adapter / 1e6:.0f} MB over {args.link:g} GB/s a link, at {SYNC_GB_S:g} "
          "GB/s to vLLM\n")  # fmt: skip
    print(
        "| cards | generation | update | gradient | adapter | the same step | times | N times the step | efficiency |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    alone = None
    for cards in COUNTS:
        ring, sync = 2 * (cards - 1) / cards * adapter / (args.link * 1e9), adapter / (SYNC_GB_S * 1e9)
        work = part(rows / cards)
        drawn, learned = speed.generation(work), speed.update(work)
        step = drawn + learned + ring + sync
        whole = speed.generation(part(rows)) + speed.update(part(rows)) + ring + sync
        alone = alone or step
        print(f"| {cards} | {drawn:.1f} s | {learned:.1f} s | {ring:.2f} s | {sync:.2f} s | {step:.1f} s | "
              f"{alone / step:.1f} | {whole:.1f} s | {alone / whole:.0%} |")  # fmt: skip


def parts_of(config: str, rows: int):
    """Rows of a card -> its work: linear in the rows, but for what is read and called however few they are."""

    def of(count: int) -> Work:
        words = [f"grpo.per_device_train_batch_size={count}", "grpo.gradient_accumulation_steps=1"]
        values = load_config(config, words, environment={})
        return work_of(values, model_shape(values.model.name), gpu=True)

    few, many = astuple(of(rows // 2)), astuple(of(rows))

    def part(count: float) -> Work:
        return Work(*(a + (b - a) * (count - rows / 2) / (rows / 2) for a, b in zip(few, many, strict=True)))

    return part


if __name__ == "__main__":
    main()
