"""report.html: what a run's folder holds is on the page, in a real browser, and a model's words are only text."""

from __future__ import annotations

import io
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from browser import Browser, find_chromium, wait_for
from conftest import run_script
from rich.console import Console

from llm_grpo import runs
from llm_grpo.config.loading import load_config
from llm_grpo.errors import UserError
from llm_grpo.files import write_json
from llm_grpo.report import rollouts
from llm_grpo.report.page import as_script, templates, write_report
from llm_grpo.report.svg import Line, chart
from llm_grpo.report.tables import spent_text
from llm_grpo.runs import Run
from llm_grpo.training.watching import ProgressBar

needs_browser = pytest.mark.skipif(find_chromium() is None, reason="no chromium on the path")
HOSTILE = "</script><script>document.title='taken'</script><img src=x onerror=\"document.title='taken'\"> \u202eright to left\u2028"


def item(name: str, right: bool, text: str) -> dict:
    judged = {"strict": right, "lenient": right, "formatted": True, "tokens": 3, "truncated": False, "extracted": "4"}
    return {
        "id": name,
        "question": f"What is {name}?",
        "answer": "4",
        "completion": text,
        "rewards": {"a": 1.0},
        **judged,
    }


def report_of(rights: list[bool], text: str = "4") -> dict:
    items = [item(f"t/{number}", right, text) for number, right in enumerate(rights)]
    share = sum(rights) / len(rights)
    shares = dict.fromkeys(("strict_accuracy", "lenient_accuracy", "format_rate"), share)
    intervals = {f"{name}_ci95": [0.0, 1.0] for name in shares}
    return {"n": len(items), **shares, **intervals, "reward": share, "truncated_share": 0.0, "mean_tokens": 3.0,
            "rewards": {"a": share}, "items": items}  # fmt: skip


def made_run(
    folder: Path, name: str = "made", *, steps: int = 6, text: str = "4", after: bool = True, **more: str
) -> Run:
    """A run's folder as training leaves it: two groups of two completions a step, the same two prompts in each."""
    overrides = [f"run.name={name}", f"run.output_dir={folder}", *(f"{key}={value}" for key, value in more.items())]
    run = runs.create(load_config("configs/demo.yaml", overrides))
    for step in range(1, steps + 1):
        row = {"step": step, "reward": step / 10, "loss": 0.1, "frac_reward_zero_std": 0.5, "accuracy": 0.5,
               "format_rate": 1.0, "step_time": 2.0, "seconds/generation": 1.2, "seconds/update": 0.6,
               "seconds/other": 0.2}  # fmt: skip
        runs.append_jsonl(run.metrics, [row])
        rows = [
            {"step": step, **item(f"p/{prompt}", bool(answer), text), "advantage": float(answer),
             "rewards": {f"r{i}": float(answer) for i in range(5)}}
            for prompt in range(2) for answer in range(2)
        ]  # fmt: skip
        runs.append_jsonl(run.completions / f"step_{step:06d}.jsonl", rows)
    evidence = {"step": 5, "id": "p/1", "strict": False, "advantage": -0.5, "completion": text}
    found = {"name": "solved", "step": 5, "since": 3, "said": "Solved, from step 3 on: all right.", "change": "task"}
    runs.append_jsonl(run.findings, [{**found, "evidence": [evidence] * 2}])
    write_json(run.before, report_of([True, False, False], text))
    if after:
        write_json(run.after, report_of([False, True, True], text))
    return run


def test_a_run_with_sft_shows_every_stage(tmp_path: Path) -> None:
    """Each evaluation with the one before it and the last with the first; before the end, as far as the run has come."""
    run = made_run(tmp_path, after=False)
    write_json(run.after_sft, report_of([True, True, False]))
    text = write_report(run).read_text()
    heads = '<th scope="col">{}</th><th scope="col">{}</th>'
    assert heads.format("before", "after SFT") in text and "There is no evaluation after GRPO yet." in text
    write_json(run.after, report_of([True, True, True]))
    text = write_report(run).read_text()
    for pair in (("before", "after SFT"), ("after SFT", "after GRPO"), ("before", "after GRPO")):
        assert text.count(heads.format(*pair)) == 1
    assert "There is no evaluation after" not in text


@needs_browser
def test_the_page_in_a_browser(tmp_path: Path) -> None:
    page = write_report(made_run(tmp_path, text=HOSTILE))
    with Browser(page.resolve().as_uri()) as tab:
        wait_for(lambda: "12 groups match" in tab.text())
        assert "12 of 12 groups" in tab.text()
        assert tab.run("document.title").startswith("made"), "a completion ran as a script"
        assert tab.run("document.querySelectorAll('#group pre').length") == 2
        assert HOSTILE[:20] in tab.run("document.querySelector('#group pre').textContent"), "shown as text, all of it"
        assert tab.run("document.images.length") == 0
        tab.run("document.forms[0].elements.first.value = '5'; document.forms[0].dispatchEvent(new Event('input'))")
        assert "4 groups match" in tab.text(), "steps 5 and 6 have two groups each"
        for kind in ("keyDown", "keyUp"):
            tab.call("Input.dispatchKeyEvent", type=kind, key="ArrowRight", code="ArrowRight", windowsVirtualKeyCode=39)
        assert tab.run("document.querySelector('#groups [aria-selected=true]').id") == "group-1"
        assert "The same prompt through training: step 1: 1/2" in tab.text()
        tab.run("document.forms[0].elements.kind.value = 'equal'; document.forms[0].dispatchEvent(new Event('input'))")
        assert "0 groups match" in tab.text(), "in every group one answer earns and one does not"
        fetched = tab.run("performance.getEntriesByType('resource').length")
        assert fetched == 0, "the page asks nobody for anything"


def test_what_stands_on_the_page(tmp_path: Path) -> None:
    page = write_report(made_run(tmp_path)).read_text(encoding="utf-8")
    for expected in ("gained 2", "lost 1", "McNemar p", "Seconds of a step: 2.00 s", "other 0.20 s (10%)",
                     "Groups that teach something", "grpo.learning_rate", "What is t/0?",
                     "1: solved from 1 at step 3 to 1 at step 6", "Change: task.", "p/1, step 5, wrong"):  # fmt: skip
        assert expected in page, expected
    assert "://" not in page, "nothing on the page points outside"


@pytest.mark.parametrize(
    ("gone", "reason"),
    [
        (["metrics"], "a run that stopped before its first step"),
        (["before", "after"], "a run without evaluations"),
        (["completions/step_000001.jsonl"], "completions somebody deleted"),
    ],
    ids=lambda value: str(value),
)
def test_a_page_of_what_there_is(tmp_path: Path, gone: list[str], reason: str) -> None:
    run = made_run(tmp_path)
    for name in gone:
        (getattr(run, name) if "/" not in name else run.folder / name).unlink()
    assert "<h1>made</h1>" in write_report(run).read_text(encoding="utf-8"), reason


def test_a_torn_file_costs_only_itself(tmp_path: Path) -> None:
    run = made_run(tmp_path)
    run.before.write_text(run.before.read_text()[:50])
    assert "There is no evaluation yet" in write_report(run).read_text(encoding="utf-8")


def test_a_long_run_is_thinned_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = made_run(tmp_path, steps=40)
    monkeypatch.setattr(rollouts, "BUDGET_BYTES", 8000)
    groups, total = rollouts.shown_groups(run, run.config().rewards)
    assert total == 80 and 2 <= len(groups) < 40
    assert groups[0]["step"] == 1 and groups[-1]["step"] >= 30, "evenly over the run, not its beginning"
    assert len(json.dumps(groups)) <= 8000
    assert f"{len(groups)} of 80 groups" in write_report(run).read_text(encoding="utf-8")


def test_two_runs(tmp_path: Path) -> None:
    one, two = made_run(tmp_path, "one"), made_run(tmp_path, "two", **{"grpo.learning_rate": "5.0e-5"})
    done = run_script("src/report.py", one.folder, two.folder)
    assert done.returncode == 0, done.stderr
    page = (one.folder / "against_two.html").read_text(encoding="utf-8")
    for expected in ("one against two", "grpo.learning_rate", "5e-05", "one: total", "two: total", "gained 0"):
        assert expected in page, expected
    assert "Their numbers are the same in every step both have." in page


def test_bad_input_is_told(tmp_path: Path) -> None:
    done = run_script("src/report.py", tmp_path / "nothing")
    assert done.returncode == 2 and "no run here" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ([], "no point, no chart"),
        ([(1, float("nan"))], "NaN is no point"),
        ([(1, 0.5)], "one point is a dot"),
        ([(1, 0.5), (2, 0.5)], "a flat line has room above and below"),
        ([(step, step % 7) for step in range(5000)], "a long line is thinned"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_charts(values: list[tuple[float, float]], reason: str) -> None:
    placed = chart("Loss", [Line("a<b", values)])
    drawn = str(templates().get_template("figures.html").module.chart(placed)) if placed else ""
    shown = bool([value for _, value in values if value == value])
    assert bool(drawn) == shown, reason
    if shown:
        assert "a&lt;b" in drawn and "nan" not in drawn and drawn.count(",") < 2000, reason


def test_json_cannot_close_its_element() -> None:
    text = str(as_script([HOSTILE, "\ud800"]))
    assert "<" not in text and json.loads(text)[0] == HOSTILE


def test_hours_become_money(tmp_path: Path) -> None:
    import report as script

    run = made_run(tmp_path)
    with pytest.raises(UserError, match="has no summary"):
        script.main([str(run.folder), "--price_per_hour", "2.5"])
    for price in ("0", "-3", "nan"):
        with pytest.raises(UserError, match="above 0"):
            script.main([str(run.folder), f"--price_per_hour={price}"])
    spent = {"hours": 4.0, "device": "a card", "price_per_hour": None, "tokens_generated": 9e6, "tokens_updated": 3e6,
             "wasted_share": 0.31, "memory_planned_gb": 10.0, "memory_peak_gb": 9.5}  # fmt: skip
    write_json(run.summary, {"spent": spent, "train_seconds": 14400.0, "evaluated": "adapter", "diagnoses": []})
    assert script.main([str(run.folder), "--price_per_hour", "2.5"]) == 0
    said = spent_text(json.loads(run.summary.read_text()))
    for expected in ("4.00 hours of training on a card, 10.00 at 2.5 an hour", "9,000,000 tokens drawn, 3,000,000 learnt",
                     "31% of the time went into groups that taught nothing", "planned at most 10.00 GB, measured 9.50 GB"):  # fmt: skip
        assert expected in said and expected in run.report.read_text()
    assert spent_text({"spent": {"tokens_generated": 1}}) == "", "a run from before"


def test_the_time_left_is_known_where_a_step_takes_long() -> None:
    """rich looks back 30 seconds unless it is told otherwise, and a step on a GPU takes longer."""
    lines = io.StringIO()
    bar, clock = ProgressBar(Console(file=lines, width=200)), [0.0]
    bar.bar.get_time = lambda: clock[0]
    state = SimpleNamespace(max_steps=20, global_step=0)
    bar.on_train_begin(None, state, None)
    for state.global_step in range(1, 11):
        clock[0] += 60.0
        bar.on_log(None, state, None, {"loss": 0.0, "reward": 1.0})
    assert lines.getvalue().splitlines()[-1].endswith("0:10:00 left"), lines.getvalue()
