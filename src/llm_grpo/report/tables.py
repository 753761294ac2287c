"""What a person sees in the terminal: the table of an evaluation, of a comparison, of a config and its plan."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

from llm_grpo.config.schema import Config
from llm_grpo.evaluation.scoring import SHARES

SHOWN = 1500  # characters of one text; the end is what the answer stands in
NAMES = {"strict_accuracy": "strict accuracy", "lenient_accuracy": "lenient accuracy", "format_rate": "format rate"}


def share(report: Mapping[str, Any], name: str) -> str:
    """`45.2 %  [40.9, 49.6]`"""
    low, high = report[f"{name}_ci95"]
    return f"{report[name]:6.1%}  [{low:.1%}, {high:.1%}]"


def interval(report: Mapping[str, Any], name: str) -> str:
    """`45.2% [40.9%, 49.6%]`, where nothing stands below it."""
    return " ".join(share(report, name).split())


def evaluation_table(report: Mapping[str, Any], title: str) -> Table:
    """One evaluation: shares with 95 % intervals, mean rewards, lengths, sampled estimates where there are any."""
    table = Table(title=title, title_justify="left", show_header=False)
    for name in SHARES:
        table.add_row(NAMES[name], share(report, name))
    for label, value in report["rewards"].items():
        table.add_row(label, "-" if value is None else f"{value:.3f}")
    table.add_row("reward, weighted", "-" if report["reward"] is None else f"{report['reward']:.3f}")
    for name, value in report.get("metrics", {}).get("numbers", {}).items():
        table.add_row(name.replace("_", " "), f"{value:.3f}")
    table.add_row("tokens per answer", "-" if report["mean_tokens"] is None else f"{report['mean_tokens']:.1f}")
    table.add_row("truncated", "-" if report["truncated_share"] is None else f"{report['truncated_share']:.1%}")
    for kind in ("strict", "lenient") if "sampled" in report else ():
        k, values = report["sampled"]["k"], report["sampled"][kind]
        table.add_row(f"{kind}, avg@{k}", share(values, "avg_at_k"))
        table.add_row(f"{kind}, maj@{k}", share(values, "maj_at_k"))
        for number, value in values["pass_at_k"].items():
            passed = {"pass": value, "pass_ci95": values["pass_at_k_ci95"][number]}
            table.add_row(f"{kind}, pass@{number}", share(passed, "pass"))
    return table


def sampled_change(drawn: Mapping[str, Any]) -> str:
    """`+27.8 points [+23.8, +32.0]`, of avg@k."""
    change, low, high = (100 * value for value in (drawn["change"], *drawn["change_ci95"]))
    return f"{change:+.1f} points [{low:+.1f}, {high:+.1f}]"


def comparison_rows(
    before: Mapping[str, Any], after: Mapping[str, Any], paired: Mapping[str, Any]
) -> tuple[list[tuple[str, str, str, str]], list[tuple[str, str, str, str]]]:
    """(name, before, after, change) of the same problems: numbers with 95 % intervals; what changed item by item."""
    numbers = []
    for name in SHARES:
        change = f"{(after[name] - before[name]) * 100:+.1f} points"
        numbers.append((NAMES[name], share(before, name), share(after, name), change))
    if drawn := paired.get("sampled"):
        old, new = (share(report["sampled"]["strict"], "avg_at_k") for report in (before, after))
        numbers.append((f"strict, sampled, avg@{drawn['k']}", old, new, sampled_change(drawn)))
    old, new = (
        {"reward": report.get("reward"), **report.get("metrics", {}).get("numbers", {})} for report in (before, after)
    )
    for name in (name for name in new if None not in (old.get(name), new[name])):
        change = f"{new[name] - old[name]:+.3f}"
        numbers.append((name.replace("_", " "), f"{old[name]:.3f}", f"{new[name]:.3f}", change))
    items = [
        (f"{name}, item by item", f"gained {n['gained']}", f"lost {n['lost']}", f"McNemar p {p_value(n['p_value'])}")
        for name, n in (("strict", paired), ("lenient", paired["lenient"]))
    ]
    newly, unreadable = f"newly right {paired['newly_right']}", f"was right, unreadable {paired['was_unreadable']}"
    return numbers, [*items, ("of the gained", newly, unreadable, "")]


def comparison_table(
    before: Mapping[str, Any], after: Mapping[str, Any], paired: Mapping[str, Any], title: str
) -> Table:
    table = Table("", "before", "after", "change", title=title, title_justify="left")
    for section in comparison_rows(before, after, paired):
        for row in section:
            table.add_row(*row)
        table.add_section()
    return table


def classes_table(report: Mapping[str, Any], title: str) -> Table | None:
    """What a task counts for each of its classes (Task.metrics), one row a class; None where it has none."""
    classes = report.get("metrics", {}).get("classes", {})
    if not classes:
        return None
    names = list(next(iter(classes.values())))
    table = Table("", *names, title=title, title_justify="left")
    for name, row in classes.items():
        table.add_row(name, *(f"{row[key]:.3f}" if isinstance(row[key], float) else str(row[key]) for key in names))
    return table


def changed_items(
    before: Mapping[str, Any], after: Mapping[str, Any], ids: Sequence[str], name: str, shown: int = 5
) -> Table:
    """The first few items that were gained or lost, with both texts."""
    old, new = ({item["id"]: item for item in report["items"]} for report in (before, after))
    more = f", the first {shown}" if len(ids) > shown else ""
    heads, title = ("question", "answer", "before", "after"), f"{name}: {len(ids)}{more}"
    table = Table(*heads, title=title, title_justify="left", show_lines=True)
    for key in ids[:shown]:
        texts = (old[key]["question"], old[key]["answer"], old[key]["completion"], new[key]["completion"])
        table.add_row(*(Text(text.strip()) for text in texts))
    return table


def sample_text(row: Mapping[str, Any], step: int) -> Text:
    """One answer of completions/: question, gold, response, what was extracted, and what it earned, on lines of plain
    text. What a model wrote is data: it neither colours the terminal nor moves its cursor."""
    verdict = "right" if row["strict"] else "right, but not in the format" if row["lenient"] else "wrong"
    earned = ", ".join(f"{name} {'-' if value is None else f'{value:.3g}'}" for name, value in row["rewards"].items())
    extracted = "nothing" if row["extracted"] is None else row["extracted"]
    fields = {"question": row["question"], "gold": row["answer"], "response": row["completion"]}
    fields |= {"extracted": f"{extracted}  ({verdict})", "rewards": earned}
    lines = [f"step {step}, {row['id']}"]
    for name, text in fields.items():
        first, *more = harmless(text).split("\n")
        lines += [f"{name:>11}  {first}", *(f"{'':>11}  {line}" for line in more)]
    return Text("\n".join(lines))


def harmless(text: str) -> str:
    text = "".join(c if c == "\n" or c.isprintable() else c.encode("unicode_escape").decode() for c in text.strip())
    cut = f"\n[... {len(text) - SHOWN} characters ...]\n"
    return text if len(text) <= SHOWN else text[: SHOWN // 2] + cut + text[-SHOWN // 2 :]


def spent_text(summary: Mapping[str, Any]) -> str:
    """What a run cost: hours, money where a price is known, tokens, what taught nothing, memory against its plan. Empty
    for a run whose summary is older than that."""
    spent = summary.get("spent", {})
    if "hours" not in spent:
        return ""
    said, price = f"{spent['hours']:.2f} hours of training on {spent['device']}", spent["price_per_hour"]
    said += f", {spent['hours'] * price:,.2f} at {price:g} an hour" if price else ""
    said += f"; {spent['tokens_generated']:,.0f} tokens drawn, {spent['tokens_updated']:,.0f} learnt from"
    said += f"; {spent['wasted_share']:.0%} of the time went into groups that taught nothing"
    planned, measured = spent["memory_planned_gb"], spent["memory_peak_gb"]
    of_plan = "not known" if planned is None else f"{planned:.2f} GB"
    return said + (f"; memory: planned at most {of_plan}, measured {measured:.2f} GB." if measured else ".")


def p_value(p: float) -> str:
    return f"{p:.3f}" if p >= 0.001 else f"{p:.0e}"


def settings_table(config: Config) -> Table:
    """The effective config with the origin of each value."""
    table = Table("setting", "value", "origin", title="Effective config", title_justify="left")
    for path, value, origin in config.settings():
        style = "dim" if origin == "default" else ""
        table.add_row(path, "null" if value is None else str(value), origin, style=style)
    return table


def plan_table(rows: Sequence[tuple[str, str]]) -> Table:
    table = Table(title="What it will do", title_justify="left", show_header=False)
    for what, how_much in rows:
        table.add_row(what, how_much)
    return table
