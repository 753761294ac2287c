"""report.html: one run (or two, against each other) as one file that opens anywhere, without a server or a network.

Jinja fills report/page.html with what stands in the run's folder; a model's words are data and are shown as text.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from llm_grpo.config.dotted import leaves
from llm_grpo.diagnosis.diagnoses import diagnose
from llm_grpo.evaluation.comparison import compare, pairs_of, stages
from llm_grpo.files import read_json, read_jsonl, write_text
from llm_grpo.report.curves import charts, logged
from llm_grpo.report.rollouts import shown_groups
from llm_grpo.report.svg import Line, bars, chart
from llm_grpo.report.tables import comparison_rows, share, spent_text
from llm_grpo.runs import Run

HERE = Path(__file__).parent
MOST_ITEMS = 40  # items gained and lost that are shown, each; and completions a reward failed on or was slow with


def write_report(run: Run, other: Run | None = None, target: Path | None = None) -> Path:
    """Write the page of a run, or of two, and return its path (the run's report.html unless `target` is given)."""
    facts = _facts(run)
    drawn = [chart(*each) for each in charts([logged(each) for each in (run, other) if each])]
    page = templates().get_template("page.html")
    text = page.render(
        run=facts,
        other=_facts(other) if other else None,
        differences=_differences(run, other) if other else None,
        charts=[each for each in drawn if each],
        phases=_phases(facts["rows"]),
        time_line=_time_line(facts["rows"], facts["findings"]),
        style=Markup((HERE / "page.css").read_text(encoding="utf-8")),
        script=Markup((HERE / "page.js").read_text(encoding="utf-8")),
        rollouts=as_script(facts["groups"]),
        share=share,
        spent=spent_text(facts["summary"]) if facts["summary"] else "",
    )
    target = target or run.report
    write_text(target, text)
    return target


def templates() -> Environment:
    return Environment(loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined)


def as_script(data: Any) -> Markup:
    """JSON that may stand inside a <script> element whatever the texts in it say: no `<` is left to close it."""
    text = json.dumps(data, ensure_ascii=False).encode("utf-8", "replace").decode()
    return Markup(text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029"))


def _facts(run: Run) -> dict[str, Any]:
    """What stands in a run's folder, as far as the run has come."""
    config, rows = run.config(), run.steps()
    before, after, summary = (read_json(path) for path in (run.before, run.after, run.summary))
    groups, total = shown_groups(run, config.rewards)
    return {
        "name": config.run.name,
        "folder": str(run.folder),
        "model": config.model.name,
        "task": config.task.name,
        "rows": rows,
        "before": before,
        "after": after,
        "summary": summary,
        "paired": _compared(before, after) if before and after else None,
        "stages": _stages(before, read_json(run.after_sft), after),
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


def _phases(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """Where the seconds of a step go, on average."""
    timed = [row for row in rows if row.get("step_time")]
    if not timed:
        return None
    names = dict.fromkeys(key for row in timed for key in row if key.startswith("seconds/") and key.count("/") == 1)
    means = [(key.removeprefix("seconds/"), sum(row.get(key) or 0.0 for row in timed) / len(timed)) for key in names]
    return bars("Seconds of a step", means, "s")


def _time_line(rows: Sequence[Mapping[str, Any]], findings: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """The run at the bottom, and above it each finding of the doctor, from its first step to the end."""
    if not rows or not findings:
        return None
    named = [("the run", 1), *((f"{n}: {found['name']}", found["since"]) for n, found in enumerate(findings, start=1))]
    lines = [Line(name, [(since, n), (rows[-1]["step"], n)]) for n, (name, since) in enumerate(named)]
    return chart("Findings, from their first step on", lines, (0, len(findings) + 1))


def _stages(before: Any, after_sft: Any, after: Any) -> list[tuple[str, str, dict[str, Any]]]:
    """(left, right, their table) of a run's evaluations, each with the one before it; the last with the first too."""
    return [(a, b, _compared(old, new)) for (a, old), (b, new) in pairs_of(stages(before, after_sft, after))]


def _compared(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    """Two evaluations of the same problems: the rows of their table, and the items that changed, with both texts."""
    paired = compare(before, after)
    numbers, items = comparison_rows(before, after, paired)
    old, new = ({item["id"]: item for item in report["items"]} for report in (before, after))
    changed = {kind: [(old[name], new[name]) for name in paired[f"{kind}_items"]] for kind in ("lost", "gained")}
    return {"n": paired["n"], "rows": numbers + items, "changed": changed, "shown": MOST_ITEMS}


def _differences(run: Run, other: Run) -> dict[str, Any]:
    """Where two runs differ: settings, the step at which their numbers part, and the same problems answered by both."""
    mine, theirs = (dict(leaves(each.config().as_dict())) for each in (run, other))
    names = [name for name in {**mine, **theirs} if mine.get(name) != theirs.get(name)]
    rows = zip(read_jsonl(run.metrics), read_jsonl(other.metrics), strict=False)
    parted = next((a["step"] for a, b in rows if any(a.get(key) != b.get(key) for key in ("reward", "loss"))), None)
    ends = read_json(run.after), read_json(other.after)
    paired = None
    if all(ends) and {item["id"] for item in ends[0]["items"]} == {item["id"] for item in ends[1]["items"]}:
        paired = _compared(*ends)
    return {
        "settings": [(name, mine.get(name, "-"), theirs.get(name, "-")) for name in names],
        "parted": parted,
        "paired": paired,
    }
