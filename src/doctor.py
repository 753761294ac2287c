"""Is this machine ready for this config? Found in seconds, without a model; exit code 1 where a run would fail.

python src/doctor.py --config configs/demo.yaml
python src/doctor.py --config configs/grpo.yaml --json
python src/doctor.py --config configs/grpo.yaml --fit 24GB      # values that fit such a card, to be given to train.py
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict

from llm_grpo import command
from llm_grpo.config.loading import load_config

console = command.console()
MARKS = {"ok": ("ok", "green"), "look": ("look", "yellow"), "fault": ("FAULT", "bold red")}


def main(argv: list[str] | None = None) -> int:
    from llm_grpo.planning.card import card_bytes, fit
    from llm_grpo.planning.doctor import examine

    args = arguments().parse_intermixed_args(argv)
    config = load_config(args.config, args.overrides)
    if args.fit is not None:
        print(" ".join(fit(config, card_bytes(args.fit))))
        return 0
    findings = examine(config)
    if args.json:
        print(json.dumps([asdict(finding) for finding in findings], indent=2, ensure_ascii=False))
    else:
        show(findings)
    return 1 if any(finding.state == "fault" for finding in findings) else 0


def arguments() -> argparse.ArgumentParser:
    parser = command.parser(__doc__)
    parser.add_argument("--config", required=True, metavar="YAML", help="for example configs/grpo.yaml")
    parser.add_argument("--json", action="store_true", help="the findings as JSON on standard output")
    parser.add_argument(
        "--fit", metavar="24GB", help="write the values that fit a card of so much memory, as overrides"
    )
    command.add_overrides(parser)
    return parser


def show(findings: list) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, show_header=False)
    for finding in findings:
        mark, style = MARKS[finding.state]
        do = Text(f"\n-> {finding.do}", style="bold") if finding.do else Text()
        table.add_row(Text(mark, style=style), finding.what, Text(finding.found) + do)
    console.print(table)
    faults = sum(finding.state == "fault" for finding in findings)
    said = "ready" if not faults else f"{faults} fault{'s' if faults > 1 else ''}: a run would fail"
    console.print(said, style="green" if not faults else "bold red")


if __name__ == "__main__":
    command.run(main)
