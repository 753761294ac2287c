"""Write generated sales calls as a CSV with the five columns of lead qualification, to look at or to start from.

python examples/write_sales_calls.py --rows 400 --output calls.csv
python src/train.py --config configs/lead_qualification.yaml task.args.path=calls.csv
"""

from __future__ import annotations

import argparse
import csv
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))  # run without installing anything
from llm_grpo.tasks.lead_qualification import COLUMNS, generated


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, required=True, metavar="FILE")
    args = parser.parse_args()
    if args.rows < 1 or args.output.exists() or not args.output.parent.is_dir():
        parser.error(
            f"--rows {args.rows} has to be at least 1, and --output {args.output} a new file in a folder that is there."
        )
    # Read back, a call falls into the split it was made for: eight of ten are for training.
    streams = {split: generated(split, args.seed) for split in ("train", "validation", "test")}
    turns = ("train",) * 8 + ("validation", "test")
    with args.output.open("x", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(next(streams[turns[number % 10]]) for number in range(args.rows))
    print(f"{args.rows} calls in {args.output}")


if __name__ == "__main__":
    main()
