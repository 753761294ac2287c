"""report.html: one run (or two, against each other) as one file that opens anywhere, without a server or a network.

Jinja fills report/page.html with what stands in the run's folder; a model's words are data and are shown as text.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from markupsafe import Markup

from llm_grpo.config.dotted import leaves
from llm_grpo.diagnosis.diagnoses import diagnose
from llm_grpo.evaluation.comparison import compare
from llm_grpo.files import read_json, read_jsonl, write_text
from llm_grpo.report.rollouts import shown_groups
from llm_grpo.report.svg import Line, bars, chart
from llm_grpo.report.tables import NAMES, p_value, share
from llm_grpo.runs import Run

HERE = Path(__file__).parent
MOST_ITEMS = 40  # items gained and lost that are shown, each; and completions a reward failed on or was slow with

# (title, {metric: label}, limits). A chart without a number is left out, so that one list serves every engine.
CHARTS: tuple[tuple[str, dict[str, str], tuple[float, float] | None], ...] = (
    ("Accuracy and format", {"accuracy": "strict, sampled", "format_rate": "format, sampled"}, (0, 1)),
    ("Reward", {"reward": "total"}, None),
    ("Loss", {"loss": "loss"}, None),
    ("Gradient norm, before clipping", {"grad_norm": "gradient norm"}, None),
    ("Tokens of a completion", {"completions/mean_length": "mean", "completions/max_length": "longest"}, None),
    ("Groups that teach something", {"informative_share": "share of the groups"}, (0, 1)),
    ("Cut at the token limit", {"truncated_share": "share of the completions"}, (0, 1)),
    ("Wasted", {"wasted_share": "seconds on groups that teach nothing", "padding_share": "padding in updates"}, (0, 1)),
    ("Tokens of an update", {"tokens_generated": "generated", "tokens_updated": "learnt from"}, None),
    ("Entropy", {"entropy": "nats a token", "updated_rows/entropy": "nats a token, rows that are updated"}, None),
    ("KL to the starting weights", {"kl": "nats a token"}, None),
    ("Engine against trainer", {"sampling/sampling_logp_difference/mean": "nats a token"}, None),
    ("Learning rate", {"learning_rate": "learning rate"}, None),
    ("Tokens a second", {"tokens_per_second": "tokens/s"}, None),
)


def write_report(run: Run, other: Run | None = None, target: Path | None = None) -> Path:
    """Write the page of a run, or of two, and return its path (the run's report.html unless `target` is given)."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined)
    facts = _facts(run)
    page = environment.get_template("page.html").render(
        run=facts,
        other=_facts(other) if other else None,
        differences=_differences(run, other) if other else None,
        charts=_charts([facts, *([_facts(other)] if other else [])]),
        phases=_phases(facts["rows"]),
        time_line=_time_line(facts["rows"], facts["findings"]),
        style=Markup((HERE / "page.css").read_text(encoding="utf-8")),
        script=Markup((HERE / "page.js").read_text(encoding="utf-8")),
        rollouts=as_script(facts["groups"]),
        p_value=p_value,
        share=share,
        names=NAMES,
    )
    target = target or run.report
    write_text(target, page)
    return target


def as_script(data: Any) -> Markup:
    """JSON that may stand inside a <script> element whatever the texts in it say: no `<` is left to close it."""
    text = json.dumps(data, ensure_ascii=False).encode("utf-8", "replace").decode()
    return Markup(text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029"))


def _facts(run: Run) -> dict[str, Any]:
    """What stands in a run's folder, as far as the run has come."""
    config, rows = run.config(), list(read_jsonl(run.metrics))
    for row in rows:
        if row.get("frac_reward_zero_std") is not None:
            row.setdefault("informative_share", 1 - row["frac_reward_zero_std"])
    before, after, summary = (read_json(path) for path in (run.before, run.after, run.summary))
    groups, total = shown_groups(run, config.rewards)
    return {
        "name": config.run.name,
        "folder": str(run.folder),
        "model": config.model.name,
        "task": config.task.name,
        "rows": rows,
        "checks": list(read_jsonl(run.validation)),
        "before": before,
        "after": after,
        "summary": summary,
        "paired": compare(before, after) if before and after else None,
        "changed": _changed(before, after) if before and after else [],
        "diagnoses": diagnose(after or before, rows) if before else [],
        "findings": list(read_jsonl(run.findings)),
        "ended": (summary or {}).get("ended"),
        "prospects": [told["said"] for report in (before, summary) if (told := (report or {}).get("prospects"))],
        "settings": [(path, "null" if value is None else value, origin) for path, value, origin in config.settings()],
        "environment": list(leaves(read_json(run.environment) or {})),
        "troubles": list(islice(read_jsonl(run.reward_troubles), MOST_ITEMS)),
        "groups": groups,
        "groups_in_all": total,
    }


def _charts(runs: Sequence[Mapping[str, Any]]) -> list[Markup]:
    """The curves of one run, or of several over each other."""
    parts = dict.fromkeys(
        key for facts in runs for row in facts["rows"] for key in row
        if key.startswith("rewards/") and key.endswith("/mean")
    )  # fmt: skip
    by_function = {key: key.split("/")[1].removesuffix("_reward_func") for key in parts}
    wanted = [*CHARTS[:2], ("Reward by function, unweighted", by_function, None), *CHARTS[2:]]
    return [figure for figure in (_chart(*each, runs) for each in wanted) if figure]


def _chart(
    title: str, keys: Mapping[str, str], limits: tuple[float, float] | None, runs: Sequence[Mapping[str, Any]]
) -> Markup:
    lines = []
    for facts in runs:
        whose = f"{facts['name']}: " if len(runs) > 1 else ""
        for key, label in keys.items():
            points = [(row["step"], row[key]) for row in facts["rows"] if row.get(key) is not None]
            lines.append(Line(f"{whose}{label}", points))
        if title.startswith("Accuracy"):
            checks = [(check["step"], check["strict_accuracy"]) for check in facts["checks"]]
            lines.append(Line(f"{whose}strict, greedy, validation", checks, dots=True))
    return chart(title, lines, limits)


def _phases(rows: Sequence[Mapping[str, Any]]) -> Markup:
    """Where the seconds of a step go, on average; what is not named is the rest of the step."""
    timed = [row for row in rows if row.get("step_time")]
    if not timed:
        return Markup("")
    names = dict.fromkeys(key for row in timed for key in row if key.startswith("seconds/") and key.count("/") == 1)
    means = {key.removeprefix("seconds/"): sum(row.get(key) or 0.0 for row in timed) / len(timed) for key in names}
    step = sum(row["step_time"] for row in timed) / len(timed)
    rest = step - sum(value for name, value in means.items() if name != "validation")
    parts = [*means.items(), *([("the rest", rest)] if rest > 0.01 * step else [])]
    return bars("Seconds of a step", parts, "s")


def _time_line(rows: Sequence[Mapping[str, Any]], findings: Sequence[Mapping[str, Any]]) -> Markup:
    """The run at the bottom, and above it each finding of the doctor, from its first step to the end."""
    if not rows or not findings:
        return Markup("")
    named = [("the run", 1), *((f"{n}: {found['name']}", found["since"]) for n, found in enumerate(findings, start=1))]
    lines = [Line(name, [(since, n), (rows[-1]["step"], n)]) for n, (name, since) in enumerate(named)]
    return chart("Findings, from their first step on", lines, (0, len(findings) + 1))


def _changed(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The items that were gained and lost, with both texts."""
    old, new = ({item["id"]: item for item in report["items"]} for report in (before, after))
    paired, found = compare(before, after), []
    for kind in ("lost", "gained"):
        names = paired[f"{kind}_items"]
        found.append({"kind": kind, "count": len(names), "items": [(old[n], new[n]) for n in names[:MOST_ITEMS]]})
    return found


def _differences(run: Run, other: Run) -> dict[str, Any]:
    """Where two runs differ: settings, the step at which their numbers part, and the same problems answered by both."""
    mine, theirs = (dict(leaves(each.config().as_dict())) for each in (run, other))
    names = [name for name in {**mine, **theirs} if mine.get(name) != theirs.get(name)]
    rows = zip(read_jsonl(run.metrics), read_jsonl(other.metrics), strict=False)
    parted = next((a["step"] for a, b in rows if any(a.get(key) != b.get(key) for key in ("reward", "loss"))), None)
    ends = read_json(run.after), read_json(other.after)
    paired = None
    if all(ends) and {item["id"] for item in ends[0]["items"]} == {item["id"] for item in ends[1]["items"]}:
        paired = compare(*ends)
    return {
        "settings": [(name, mine.get(name, "-"), theirs.get(name, "-")) for name in names],
        "parted": parted,
        "paired": paired,
        "after": ends,
    }
