"""The run folder: nothing is overwritten unasked, nothing is half-written, no secret is in it."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import ROOT

from llm_grpo import runs
from llm_grpo.checkpoints import PROGRESS, by_step, fingerprint, forget_old, mark_of_base, seal
from llm_grpo.config.loading import load_config
from llm_grpo.environment import environment, write_environment
from llm_grpo.errors import UserError
from llm_grpo.files import disk_told
from llm_grpo.records import Example, Split


@pytest.fixture
def config(tmp_path: Path):
    return load_config(ROOT / "configs" / "grpo.yaml", [f"run.output_dir={tmp_path}", "run.name=r"], environment={})


def test_a_new_run_writes_its_effective_config(config) -> None:
    run = runs.create(config)
    assert run.config().as_dict() == config.as_dict()
    assert "run.name: command line" in run.config_file.read_text()


DATA = {"train": "1", "validation": "2", "test": "3"}


def learned(run: runs.Run, step: int = 2, **facts: object) -> Path:
    """A whole checkpoint, as far as its files tell."""
    folder = run.checkpoints / f"checkpoint-{step}"
    folder.mkdir()
    for name in ("adapter_model.safetensors", "optimizer.pt", PROGRESS):
        (folder / name).write_text(name * 100)
    seal(folder, step, 2000, {"config": run.config().as_dict(), "data": DATA, **facts})
    return folder


def test_a_second_run_of_the_name_is_refused_and_nothing_is_lost(config) -> None:
    run = runs.create(config)
    run.summary.write_text("precious")
    with pytest.raises(UserError, match="Choose another name.*--overwrite"):
        runs.create(config)
    with pytest.raises(UserError, match="no checkpoint"):
        runs.reopen(config, DATA)
    learned(run)
    with pytest.raises(UserError, match="--resume.*run.name=NAME.*--overwrite"):
        runs.create(config)
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


def test_a_kill_while_a_run_is_laid_out_or_cleared_leaves_one_that_can_be_begun(config, monkeypatch) -> None:
    run = runs.create(config)
    run.before.write_text("{}")

    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    for place in ("shutil.rmtree", "pathlib.Path.mkdir", "os.fsync"):
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(place, killed)
            runs.create(config)
    run.config_file.unlink()
    for path in [path for path in run.folder.iterdir() if not path.name.startswith(".")]:
        path.rmdir()
    assert runs.create(config).config_file.is_file(), "nothing but a draft of the config was there"


REFUSED = [  # an override, and what the refusal names
    ("evaluation.limit=6", "evaluation.limit"),
    ("lora.r=8", "lora.r"),
    ("run.seed=5", "run.seed"),
    ("rewards.0.weight=3.0", "rewards.0.weight"),
    ("model.name=a/b", "model.name"),
    ("grpo.learning_rate=2e-3", "grpo.learning_rate"),
    ("grpo.loss_type=grpo", "grpo.loss_type"),
    ("grpo.beta=0.1", "grpo.beta"),
    ("grpo.num_generations=4", "grpo.num_generations"),
    ("grpo.per_device_train_batch_size=16", "grpo.per_device_train_batch_size"),
    ("grpo.max_steps=1000", "grpo.max_steps was 2000 and cannot become 1000"),
    ("grpo.max_steps=3000", "grpo.max_steps=3000, but the learning rate .'cosine'. was planned over 2000 steps"),
]


@pytest.mark.parametrize(("override", "named"), REFUSED, ids=[row[0] for row in REFUSED])
def test_a_resume_refuses_by_name_what_would_make_another_run_of_it(config, override: str, named: str) -> None:
    run = runs.create(config)
    learned(run)
    before = run.config_file.read_text()
    with pytest.raises(UserError, match=f"--resume: .*{named}"):
        runs.reopen(load_config(run.config_file, [override], environment={}), DATA)
    assert run.config_file.read_text() == before


def test_a_resume_takes_what_may_change(config) -> None:
    run = runs.create(config)
    learned(run)
    news = ["grpo.save_steps=7", "grpo.logging_steps=3", "grpo.save_total_limit=5", "evaluation.every_steps=10",
            "logging.sample_every=1", "model.gpu_memory_utilization=0.4", "merge.push_to=a/b",
            "run.halt_on=[no_signal]", "evaluation.patience=3"]  # fmt: skip
    again, checkpoint = runs.reopen(load_config(run.config_file, news, environment={}), DATA)
    assert checkpoint.step == 2 and again.config().grpo["save_steps"] == 7


@pytest.mark.parametrize(
    ("schedule", "fits"),
    [("constant", True), ("constant_with_warmup", True), ("inverse_sqrt", True), ("linear", False)],
)
def test_more_steps_need_a_rate_that_was_not_planned_over_the_old_number(config, schedule: str, fits: bool) -> None:
    config = load_config(ROOT / "configs" / "grpo.yaml", [f"run.output_dir={config.run.output_dir}", "run.name=s",
                         f"grpo.lr_scheduler_type={schedule}"], environment={})  # fmt: skip
    run = runs.create(config)
    learned(run)
    more = load_config(run.config_file, ["grpo.max_steps=3000"], environment={})
    if fits:
        assert not runs.reopen(more, DATA)[1].finished(more.grpo)
    else:
        with pytest.raises(UserError, match="no end: constant"):
            runs.reopen(more, DATA)


def test_data_that_changed_are_named_by_split(config) -> None:
    learned(runs.create(config))
    with pytest.raises(UserError, match="the train and test data of task gsm8k"):
        runs.reopen(config, {**DATA, "train": "x", "test": "y"})


def test_a_base_that_changed_is_refused(config, tmp_path: Path) -> None:
    """An adapter goes on with the weights it was learned on; their size tells little, samples of them do."""
    base = tmp_path / "base"
    base.mkdir()
    weights = base / "model.safetensors"
    weights.write_bytes(bytes(1_000_000))
    config = load_config(ROOT / "configs" / "grpo.yaml", [f"run.output_dir={tmp_path}", f"model.name={base}"],
                         environment={})  # fmt: skip
    learned(runs.create(config), base=mark_of_base(str(base)))
    runs.reopen(config, DATA)
    weights.write_bytes(bytes(500_000) + b"1" * 500_000)
    with pytest.raises(UserError, match="holds other weights than those that .*checkpoint-2 was trained on"):
        runs.reopen(config, DATA)
    assert mark_of_base("nobody/nothing") is None


def test_a_folder_that_was_moved_is_not_taken_for_the_one_that_took_its_place(config, tmp_path: Path) -> None:
    run = runs.create(config)
    runs.check_place(run.config_file, config)
    moved = run.folder.rename(tmp_path / "old one")
    runs.create(config)
    with pytest.raises(UserError, match=f"add run.output_dir={tmp_path} run.name=old one"):
        runs.check_place(moved / "config.yaml", config)


def test_a_folder_reached_by_a_link_has_one_lock(config, tmp_path: Path) -> None:
    run = runs.create(config)
    (tmp_path / "link").symlink_to(run.folder)
    assert runs.Run(tmp_path / "link").lock == run.lock


def test_the_fingerprint_sees_every_part_of_an_example_and_their_order() -> None:
    def of(*examples: Example) -> str:
        return fingerprint(lambda split: Split(examples if split == "train" else ()))["train"]

    one = Example("1", ({"role": "user", "content": "q"},), "a", {"k": 1})
    two = Example("2", one.prompt, "a", {})
    others = [replace(one, id="3"), replace(one, answer="b"), replace(one, meta={"k": 2}),
              replace(one, prompt=({"role": "user", "content": "p"},))]  # fmt: skip
    assert len({of(one, two), of(two, one), of(one), *(of(other, two) for other in others)}) == 7
    assert of(one, two) == of(one, two)


BROKEN = [  # what happened to the newest checkpoint, and what is said of it
    ("truncated", lambda f: (f / "optimizer.pt").write_text("o"), "optimizer.pt has 1 bytes instead of 1,200"),
    ("one bit", lambda f: (f / "optimizer.pt").write_text("O" + "ptimizer.pt" + "optimizer.pt" * 99),
     "optimizer.pt is not what was written"),
    ("missing", lambda f: (f / "optimizer.pt").unlink(), "optimizer.pt is missing"),
    ("not sealed", lambda f: (f / "manifest.json").unlink(), "has no manifest.json"),
    ("torn seal", lambda f: (f / "manifest.json").write_text('{"step": 4, "fi'), "its manifest.json cannot be read"),
]  # fmt: skip


@pytest.mark.parametrize(("harm", "said"), [row[1:] for row in BROKEN], ids=[row[0] for row in BROKEN])
def test_a_broken_checkpoint_is_passed_over_and_named(config, harm, said: str) -> None:
    run = runs.create(config)
    learned(run, 2)
    harm(learned(run, 4))
    _, checkpoint = runs.reopen(config, DATA)
    assert checkpoint.step == 2
    assert checkpoint.passed_over == (f"checkpoint-4: {said}",) or said in checkpoint.passed_over[0]
    harm(checkpoint.folder)
    with pytest.raises(UserError, match="no whole checkpoint in .*checkpoint-4: .*checkpoint-2: "):
        runs.reopen(config, DATA)


def test_a_model_without_its_optimiser_is_no_checkpoint(config) -> None:
    run = runs.create(config)
    folder = learned(run)
    (folder / PROGRESS).unlink()
    seal(folder, 2, 2000, {})
    with pytest.raises(UserError, match="holds the model alone .grpo.save_only_model"):
        runs.reopen(config, DATA)


def test_old_checkpoints_go_and_broken_ones_do_not_count(config) -> None:
    run = runs.create(config)
    for step in (2, 4, 6):
        learned(run, step)
    (run.checkpoints / "checkpoint-8").mkdir()
    forget_old(run.checkpoints, 2)
    assert [path.name for path in by_step(run.checkpoints)] == ["checkpoint-8", "checkpoint-6", "checkpoint-4"]
    forget_old(run.checkpoints, None)
    assert run.last_checkpoint().step == 6


def test_a_finished_run_is_not_done_again(config) -> None:
    run = runs.create(config)
    learned(run, 2000)
    run.summary.write_text('{"steps": 1000}')
    assert runs.reopen(config, DATA)[1].finished(config.grpo), "the summary is of an earlier end"
    run.summary.write_text('{"steps": 2000}')
    with pytest.raises(UserError, match="is finished .2000 steps."):
        runs.reopen(config, DATA)


def test_a_folder_that_was_being_replaced_comes_back(config) -> None:
    run = runs.create(config)
    learned(run)
    (run.folder / ".adapter_best.old").mkdir()
    runs.reopen(config, DATA)
    assert run.best.is_dir()


def test_a_run_that_is_being_trained_is_left_alone(config, tmp_path: Path) -> None:
    hold = f"import sys, time; sys.path.insert(0, {str(ROOT / 'src')!r}); from pathlib import Path\n"
    hold += f"from llm_grpo.lock import hold; hold(Path({str(tmp_path / '.r.lock')!r})); print('held', flush=True)\n"
    other = subprocess.Popen([sys.executable, "-c", hold + "time.sleep(60)"], stdout=subprocess.PIPE, text=True)
    assert other.stdout.readline() == "held\n"
    with pytest.raises(UserError, match=f"r is being trained now, by process {other.pid}"):
        runs.create(config, overwrite=True)
    other.kill()
    other.wait()
    runs.create(config)
    runs.create(config)


def test_the_environments_of_earlier_sessions_are_kept(config) -> None:
    run = runs.create(config)
    for number in range(3):
        write_environment(run.environment, {"session": str(number)}, {})
    facts = json.loads(run.environment.read_text())
    assert facts["choices"]["session"] == "2"
    assert [earlier["choices"]["session"] for earlier in facts["earlier_sessions"]] == ["0", "1"]


def test_overwrite_spares_what_is_not_a_run(config, tmp_path: Path) -> None:
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match="not a run of ours"):
        runs.create(config, overwrite=True)
    assert (tmp_path / "r" / "thesis.tex").exists()


def test_the_newest_checkpoint_is_that_of_the_highest_number(config) -> None:
    run = runs.create(config)
    for step in (2, 10):
        learned(run, step)
    (run.checkpoints / "checkpoint-12").mkdir()
    assert run.last_checkpoint().step == 10


def test_a_resume_forgets_the_steps_that_are_done_again(config) -> None:
    run = runs.create(config)
    runs.append_jsonl(run.metrics, [{"step": step} for step in (1, 2, 3)])
    runs.append_jsonl(run.validation, [{"step": 0}, {"step": 3}])
    for step in (2, 3):
        runs.append_jsonl(run.completions / f"step_{step:06d}.jsonl.gz", [{"step": step}])
    learned(run, 2)
    runs.forget_after(run, run.last_checkpoint())
    assert [row["step"] for row in runs.read_jsonl(run.metrics)] == [1, 2]
    assert [row["step"] for row in runs.read_jsonl(run.validation)] == [0]
    assert [path.name for path in run.completions.iterdir()] == ["step_000002.jsonl.gz"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux has a file that is always full")
def test_a_full_disk_is_one_line_whoever_writes(tmp_path: Path) -> None:
    for write in (lambda path: path.write_text("a"), lambda path: torch.save(torch.zeros(99), path)):
        with pytest.raises(UserError, match=f"The disk at {tmp_path} is full; nothing"), disk_told(tmp_path):
            write(Path("/dev/full"))
    with pytest.raises(FileNotFoundError), disk_told(tmp_path):
        (tmp_path / "no" / "where").write_text("a")


def test_the_metrics_of_a_long_run_take_no_more_memory(config, monkeypatch) -> None:
    """Steps of one line each, then of two: numbers that stand in some lines, and the last step, stay."""
    monkeypatch.setattr(runs, "MOST_STEPS", 4)
    run = runs.create(config)
    for step in range(1, 8):
        runs.append_jsonl(run.metrics, [{"step": step, "loss": float(step), **({"reward": 1.0} if step % 2 else {})}])
        if step == 3:
            assert [row["loss"] for row in run.steps()] == [1.0, 2.0, 3.0]
    means = [{"step": 2, "loss": 1.5, "reward": 1.0}, {"step": 4, "loss": 3.5, "reward": 1.0}]
    assert run.steps()[:2] == means and [row["step"] for row in run.steps()] == [2, 4, 6, 7]


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


def test_compressed_rows_are_read_as_far_as_they_were_written(config) -> None:
    run = runs.create(config)
    file = run.completions / "step_000001.jsonl.gz"
    for half in range(2):  # an update may generate several batches
        runs.append_jsonl(file, [{"row": half * 500 + i, "text": f"a\u2028b {i * i}"} for i in range(500)])
    rows = list(runs.read_jsonl(file))
    assert [row["row"] for row in rows] == list(range(1000)) and rows[3]["text"] == "a\u2028b 9"
    file.write_bytes(file.read_bytes()[:-2000])
    assert 0 < len(list(runs.read_jsonl(file))) < 1000


def test_best_weights_stay_when_steps_are_done_again(config) -> None:
    """They were measured; what the steps bring the second time has to beat them."""
    run = runs.create(config)
    run.adapter_best.mkdir()
    (run.adapter_best / "validation.json").write_text('{"step": 5}')
    learned(run, 4)
    runs.forget_after(run, run.last_checkpoint())
    assert run.best_validation() == {"step": 5}
    (run.adapter_best / "validation.json").write_text('{"ste')
    assert run.best_validation() == {}
    for folder in (run.adapter_best, run.adapter):
        folder.mkdir(exist_ok=True)
        (folder / "adapter_config.json").write_text("{}")
    assert run.chosen_weights() == run.adapter, "how good the other is, nobody knows any more"


def test_the_steps_are_those_the_trainer_counted(config) -> None:
    run = runs.create(config)
    runs.append_jsonl(run.metrics, [{"step": 5}, {"step": 10}])
    assert runs.last_step(run) == 10, "a run of an older version"
    run.progress.write_text('{"steps": 12}')
    assert runs.last_step(run) == 12


def test_find_names_the_runs_that_are_there(config, tmp_path: Path) -> None:
    runs.create(config)
    with pytest.raises(UserError, match=f"There are: {tmp_path}/r"):
        runs.find(tmp_path / "x")
    with pytest.raises(UserError, match="holds no adapter yet"):
        runs.find(tmp_path / "r").chosen_weights()


def test_the_environment_has_versions_and_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret_value")
    monkeypatch.setenv("WANDB_API_KEY", "wandb_secret_value")
    facts = environment({"rollouts.engine": "why"}, {"gpu": None})
    assert facts["versions"]["trl"] and facts["choices"]["rollouts.engine"] == "why"
    assert "secret" not in json.dumps(facts)
