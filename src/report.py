"""What happened in a run, as one HTML file that opens anywhere; with two runs, one against the other.

python src/report.py outputs/demo
python src/report.py outputs/demo outputs/other --output compared.html
python src/report.py outputs/demo --price_per_hour 2.50
"""

from __future__ import annotations

import argparse
from pathlib import Path

from llm_grpo import command

console = command.console()


def main(argv: list[str] | None = None) -> int:
    from llm_grpo import runs
    from llm_grpo.errors import UserError
    from llm_grpo.files import read_json, write_json
    from llm_grpo.report.page import write_report
    from llm_grpo.report.tables import spent_text

    args = arguments().parse_args(argv)
    run, other = runs.find(args.run), runs.find(args.other) if args.other else None
    target = Path(args.output) if args.output else None
    if args.price_per_hour is not None:
        if not 0 < args.price_per_hour < float("inf"):
            raise UserError(f"--price_per_hour {args.price_per_hour:g}: a price above 0.")
        summary = read_json(run.summary)
        if not summary or "hours" not in summary.get("spent", {}):
            raise UserError(
                f"--price_per_hour: {run.folder} has no summary with hours: the run is not finished, or older."
            )
        summary["spent"]["price_per_hour"] = args.price_per_hour
        write_json(run.summary, summary)
        console.print(spent_text(summary), highlight=False)
    if other is not None and target is None:
        target = run.folder / f"against_{other.folder.name}.html"
    page = write_report(run, other, target)
    console.print(f"Report: {page} ({page.stat().st_size / 1e6:.1f} MB). Open it in a browser.")
    return 0


def arguments() -> argparse.ArgumentParser:
    parser = command.parser(__doc__)
    parser.add_argument("run", metavar="RUN", help="a run's folder, for example outputs/demo")
    parser.add_argument("other", metavar="RUN2", nargs="?", help="a second one, to compare")
    parser.add_argument("--price_per_hour", type=float, metavar="MONEY", help="of the machine; kept in summary.json")
    parser.add_argument("--output", metavar="FILE", help="default: RUN/report.html, or RUN/against_RUN2.html")
    return parser


if __name__ == "__main__":
    command.run(main)
