"""The run folder: nothing is overwritten unasked, nothing is half-written, no secret is in it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import ROOT

from llm_grpo import runs
from llm_grpo.config.loading import load_config
from llm_grpo.errors import UserError


@pytest.fixture
def config(tmp_path: Path):
    return load_config(ROOT / "configs" / "grpo.yaml", [f"run.output_dir={tmp_path}", "run.name=r"], environment={})


def test_a_new_run_writes_its_effective_config(config) -> None:
    run = runs.create(config)
    assert run.config().as_dict() == config.as_dict()
    assert "run.name: command line" in run.config_file.read_text()


def learned(run: runs.Run, step: int = 2) -> None:
    (run.checkpoints / f"checkpoint-{step}").mkdir()
    (run.checkpoints / f"checkpoint-{step}" / "trainer_state.json").write_text("{}")


def test_a_second_run_of_the_name_is_refused_and_nothing_is_lost(config) -> None:
    run = runs.create(config)
    run.summary.write_text("precious")
    with pytest.raises(UserError, match="Choose another name.*--overwrite"):
        runs.create(config)
    with pytest.raises(UserError, match="no checkpoint"):
        runs.create(config, resume=True)
    learned(run)
    with pytest.raises(UserError, match="--resume.*run.name=NAME.*--overwrite"):
        runs.create(config)
    with pytest.raises(UserError, match="Give one of them"):
        runs.create(config, resume=True, overwrite=True)
    assert run.summary.read_text() == "precious"
    runs.create(config, overwrite=True)
    assert not run.summary.exists()
    assert (run.replaced / "summary.json").read_text() == "precious", "kept until the new run is under way"
    runs.forget_replaced(run)
    assert not run.replaced.exists()


def test_a_run_that_learned_nothing_is_begun_again(config) -> None:
    run = runs.create(config)
    run.before.write_text("{}")
    assert not runs.create(config).before.exists()


def test_a_resume_keeps_what_has_to_stay_comparable_and_records_the_rest(config) -> None:
    run = runs.create(config)
    learned(run)

    def again(*overrides: str):
        return load_config(run.config_file, overrides, environment={})

    for override in (
        "evaluation.limit=6",
        "lora.r=8",
        "run.seed=5",
        "rewards.0.weight=3.0",
        "model.name=a/b",
        "grpo.learning_rate=2e-3",
    ):
        with pytest.raises(UserError, match=override.split("=")[0]):
            runs.create(again(override), resume=True)
    runs.create(again("grpo.max_steps=9"), resume=True)
    assert run.config().grpo["max_steps"] == 9


def test_the_environments_of_earlier_sessions_are_kept(config) -> None:
    run = runs.create(config)
    for number in range(3):
        runs.write_environment(run, {"session": str(number)}, {})
    facts = json.loads(run.environment.read_text())
    assert facts["choices"]["session"] == "2"
    assert [earlier["choices"]["session"] for earlier in facts["earlier_sessions"]] == ["0", "1"]


def test_overwrite_spares_what_is_not_a_run(config, tmp_path: Path) -> None:
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match="not a run of ours"):
        runs.create(config, overwrite=True)
    assert (tmp_path / "r" / "thesis.tex").exists()


def test_only_whole_checkpoints_count_and_by_number(config) -> None:
    run = runs.create(config)
    for step in (2, 10):
        (run.checkpoints / f"checkpoint-{step}").mkdir()
        (run.checkpoints / f"checkpoint-{step}" / "trainer_state.json").write_text("{}")
    (run.checkpoints / "checkpoint-12").mkdir()
    assert run.last_checkpoint().name == "checkpoint-10"


def test_a_resume_forgets_the_steps_that_are_done_again(config) -> None:
    run = runs.create(config)
    runs.append_jsonl(run.metrics, [{"step": step} for step in (1, 2, 3)])
    runs.append_jsonl(run.validation, [{"step": 0}, {"step": 3}])
    for step in (2, 3):
        (run.completions / f"step_{step:06d}.jsonl").write_text("{}")
    runs.forget_after(run, 2)
    assert [row["step"] for row in runs.read_jsonl(run.metrics)] == [1, 2]
    assert [row["step"] for row in runs.read_jsonl(run.validation)] == [0]
    assert [path.name for path in run.completions.iterdir()] == ["step_000002.jsonl"]


def test_a_line_cut_by_a_kill_is_left_out_and_odd_separators_are_not_ends(config) -> None:
    run = runs.create(config)
    runs.append_jsonl(run.metrics, [{"step": 1, "text": "a\u2028b\u0085c\x0b"}, {"step": 2}])
    with run.metrics.open("a") as file:
        file.write('{"step": 3, "rew')
    assert [row["step"] for row in runs.read_jsonl(run.metrics)] == [1, 2]
    assert runs.last_step(run) == 2
    run.metrics.write_text('{"step": 1}\n{"st\n{"step": 3}\n')
    with pytest.raises(UserError, match="metrics.jsonl:2"):
        list(runs.read_jsonl(run.metrics))


def test_a_best_adapter_of_steps_that_are_done_again_goes(config) -> None:
    run = runs.create(config)
    run.adapter_best.mkdir()
    (run.adapter_best / "validation.json").write_text('{"step": 5}')
    runs.forget_after(run, 5)
    assert run.adapter_best.exists()
    runs.forget_after(run, 4)
    assert not run.adapter_best.exists()


def test_find_names_the_runs_that_are_there(config, tmp_path: Path) -> None:
    runs.create(config)
    with pytest.raises(UserError, match=f"There are: {tmp_path}/r"):
        runs.find(tmp_path / "x")
    with pytest.raises(UserError, match="holds no adapter yet"):
        runs.find(tmp_path / "r").chosen_weights()


def test_the_environment_has_versions_and_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret_value")
    monkeypatch.setenv("WANDB_API_KEY", "wandb_secret_value")
    facts = runs.environment({"rollouts.engine": "why"}, {"gpu": None})
    assert facts["versions"]["trl"] and facts["choices"]["rollouts.engine"] == "why"
    assert "secret" not in json.dumps(facts)
