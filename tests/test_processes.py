"""Several trainer processes, by torchrun and gloo on this machine: one run folder, the records of all, one story told;
and the same update as one process makes of the same batch."""

from __future__ import annotations

import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import pytest
from browser import free_port
from conftest import ROOT, SMALL, TRAINS, run_script, warm
from safetensors.torch import load_file
from warm import Warm

from llm_grpo import checkpoints, processes, runs
from llm_grpo.config.loading import load_config
from llm_grpo.errors import UserError
from llm_grpo.files import read_json, read_jsonl
from llm_grpo.planning.plan import explain
from llm_grpo.rewards import build_reward
from llm_grpo.rollouts.loading import check_adapter
from llm_grpo.tasks import build_task

GIVEN = "tests/rehearsal/given_completions.py"
JUDGE = """
import os

def judge(prompts, completions, trainer_state=None, **columns):
    if trainer_state and os.environ.get("RANK") == "1" and os.environ.get("FAILS"):
        if trainer_state.global_step == 2:
            raise KeyError("no label")
    return [0.0] * len(completions)
"""
PAID = "correctness_reward_func"
ONCE = ("loading examples", "--resume: step 2", "step 4/4", "What was learned", "The merged model answers", "Try next")


def torchrun(*words: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """Two processes, with what they print."""
    start = ("-m", "torch.distributed.run", "--nproc_per_node=2", f"--master_port={free_port()}")
    return run_script(*start, *words, **environment)


@cache
def warm_for_two() -> Warm:
    """Its environment is that of one of several while Unsloth is imported: it takes DDP away from one alone."""
    return Warm(*TRAINS, WORLD_SIZE="2", RANK="0", LOCAL_RANK="0", OMP_NUM_THREADS="1")


def two(*words: object, **environment: str) -> list[subprocess.CompletedProcess[str]]:
    """What torchrun starts, by rank, in forks of a process that has imported the libraries."""
    environment |= {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}

    def one(rank: int) -> subprocess.CompletedProcess[str]:
        mine = {"RANK": str(rank), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
        return warm_for_two().run([*map(str, words)], **environment, **mine)

    with ThreadPoolExecutor() as pool:
        done = list(pool.map(one, range(2)))
    assert [each.returncode for each in done] == [0, 0], [each.stdout + each.stderr for each in done]
    return done


def metrics(run: runs.Run) -> list[dict]:
    return list(read_jsonl(run.metrics))


def test_two_processes_are_one_run(tmp_path: Path, demo_run: tuple[Path, str]) -> None:
    """A reward that fails in the second alone ends both with its message, said once, and the steps before are whole; the
    resume goes on to the end. Prompts are chosen, for which all have to agree."""
    (tmp_path / "judge.py").write_text(JUDGE)
    judge = f"rewards=[{{name: {PAID}}}, {{name: '{tmp_path}/judge.py:judge', workers: 0}}]"
    words = [f"run.output_dir={tmp_path}", *SMALL, judge, "grpo.save_steps=1", "sampling.choose=true"]
    failed = torchrun("src/train.py", "--config", "configs/demo.yaml", *words, FAILS="1")
    said, run = failed.stdout + failed.stderr, runs.find(tmp_path / "demo")
    assert said.count("error: reward 'judge' at step 3, row 0 raised KeyError: 'no label'") == 1, said
    check_adapter(run.last)
    checkpoint = run.last_checkpoint(hashes=True)
    assert checkpoint.step == 2 and (checkpoint.folder / checkpoints.progress_file(1)).is_file()
    with pytest.raises(UserError, match=r"is of 2 process\(es\), and now there are 1"):
        checkpoints.check_unchanged(checkpoint, run.config(), checkpoint.facts["data"])
    assert "earlier_sessions" not in read_json(run.environment)

    first, second = two("src/train.py", "--config", run.config_file, "--resume")
    assert {what: first.stdout.count(what) for what in ONCE} == dict.fromkeys(ONCE, 1)
    assert not second.stdout, "the first alone speaks"
    assert [row["step"] for row in metrics(run)] == [1, 2, 3, 4]
    assert [row["step"] for row in read_jsonl(run.validation)] == [0, 2, 4]
    assert len(read_json(run.environment)["earlier_sessions"]) == 1 and read_json(run.summary)["steps"] == 4
    for line, file in zip(metrics(run), run.completion_files(), strict=True):
        check_records(run, line, list(read_jsonl(file)))
    alone, both = (read_json(file)["items"] for file in (demo_run[0] / "eval" / "before.json", run.before))
    assert [(i["id"], i["completion"], i["strict"]) for i in both] == [
        (i["id"], i["completion"], i["strict"]) for i in alone
    ]


def check_records(run: runs.Run, line: dict, rows: list[dict]) -> None:
    """What a step has written is of all processes, and each completion stands with its own question and rewards."""
    task, pay = build_task("word_problems", run.config().task.args), build_reward(PAID)
    known = {example.id: example for example in task.load("train").examples}
    assert len(rows) == 32 and len({row["id"] for row in rows}) == 4
    for row in rows:
        example = known[row["id"]]
        assert (row["question"], row["answer"]) == (example.question, example.answer)
        assert row["strict"] == task.judge(row["completion"], example.answer).strict
        said = [[{"role": "assistant", "content": row["completion"]}]]
        assert [row["rewards"][PAID]] == pay(prompts=[list(example.prompt)], completions=said, answer=[example.answer])
    assert line["accuracy"] == sum(row["strict"] for row in rows) / 32
    assert line["tokens_generated"] == line["completion_tokens"] == sum(row["tokens"] for row in rows)
    assert line[f"rewards/{PAID}/mean"] == pytest.approx(sum(row["rewards"][PAID] for row in rows) / 32)


def test_two_processes_make_the_update_of_one(tmp_path: Path) -> None:
    """The same completions: 32 in one process, 16 in each of two. In one step those of the second teach nothing. In the
    last a signal comes to the second alone: both end after it, with a checkpoint."""
    alone = warm(trains=True).run([GIVEN, f"{tmp_path / 'one'}", "32"])
    assert alone.returncode == 0, alone.stderr
    two(GIVEN, tmp_path / "two", 16, "grpo.max_steps=9", SIGNAL_IN_STEP="3")
    one, other = (runs.find(tmp_path / name / "demo") for name in ("one", "two"))
    assert other.last_checkpoint(hashes=True).step == 3 and not read_json(other.progress)["finished"]
    assert metrics(one)[1]["informative_share"] == 0.5
    for mine, theirs in zip(metrics(one), metrics(other), strict=True):
        for name in ("loss", "grad_norm", "reward", "accuracy", "informative_share", "tokens_updated"):
            assert theirs[name] == pytest.approx(mine[name], rel=1e-5, abs=1e-7), name
    expected, found = (load_file(run.last / "adapter_model.safetensors") for run in (one, other))
    largest = max(float(value.abs().max()) for value in expected.values())
    assert max(float((found[name] - value).abs().max()) for name, value in expected.items()) < 1e-5 * largest
    for mine, theirs in zip(one.completion_files(), other.completion_files(), strict=True):
        assert list(read_jsonl(mine)) == list(read_jsonl(theirs))


RACE = """
import sys
sys.path.insert(0, "src")
from llm_grpo import processes, runs
from llm_grpo.config.loading import load_config
processes.meet(60)
for trial in range(30):
    config = load_config("configs/demo.yaml", ["run.output_dir=" + sys.argv[1], f"run.name=run{trial}"], environment={})
    for overwrite in (False, True):
        run = processes.from_first(lambda: runs.create(config, overwrite=overwrite))
        assert run.config_file.is_file() and run.completions.is_dir()
        processes.of_all(None)
        processes.from_first(lambda: run.summary.write_text("{}"))
try:
    processes.from_first(lambda: runs.create(config))
except processes.UserError as error:
    sys.stdout.write(type(error).__name__ + "\\n")  # in one piece: both write to one pipe
processes.part()
"""
ENDS = """
import atexit, sys
sys.path.insert(0, "src")
from torch import distributed
from llm_grpo import command, processes

def fails():
    raise processes.UserError("no such run")

def main():
    processes.meet(60)
    atexit.register(lambda: sys.stdout.write("still met\\n" if distributed.is_initialized() else "parted\\n"))
    return processes.from_first(fails if sys.argv[1] == "error" else lambda: 0)

command.run(main)
"""


def test_sft_of_two_processes_and_a_resume_to_the_bit(tmp_path: Path) -> None:
    """The solutions of one step are shared out; and what is done again after a checkpoint ends where it ended."""
    words = ["src/train.py", "--config", "configs/demo.yaml", *SMALL, "evaluation.limit=8", "evaluation.every_steps=0"]
    sft = "sft={{steps: 4, batch_size: {}, learning_rate: 1e-3}}"
    two(*words, sft.format(4), f"run.output_dir={tmp_path}")
    of_one = run_script(*words, sft.format(8), f"run.output_dir={tmp_path / 'one'}", "grpo.max_steps=1")
    assert of_one.returncode == 0, of_one.stdout + of_one.stderr
    run, alone = runs.find(tmp_path / "demo"), runs.find(tmp_path / "one" / "demo")
    losses = [[row["loss"] for row in read_jsonl(each.sft_metrics)] for each in (run, alone)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-4) and len(losses[0]) == 4

    again = runs.Run(Path(shutil.copytree(run.folder, tmp_path / "again" / "demo")))
    assert again.last_checkpoint().step == 4
    shutil.rmtree(again.last_checkpoint().folder)
    for gone in (again.summary, again.progress):
        gone.unlink()
    done, _ = two(*words[:3], "--resume", *words[3:], sft.format(4), f"run.output_dir={tmp_path / 'again'}")
    assert "--resume: step 2" in done.stdout
    (file,) = run.last.glob("*.safetensors")
    first, second = load_file(file), load_file(again.last / file.name)
    assert all(first[name].equal(second[name]) for name in first | second)


def test_one_process_makes_the_folder(tmp_path: Path) -> None:
    (tmp_path / "race.py").write_text(RACE)
    done = torchrun(tmp_path / "race.py", tmp_path)
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.split()) == ["ToldByTheFirst", "UserError"]


@pytest.mark.parametrize(("end", "code", "said"), [("error", 1, "error: no such run"), ("well", 0, "")])
def test_processes_part_before_they_end(end: str, code: int, said: str, tmp_path: Path) -> None:
    """Else gloo's threads may come upon an interpreter that is gone: now and then an exit code of -6 after all is done."""
    (tmp_path / "ends.py").write_text(ENDS)
    done = torchrun(tmp_path / "ends.py", end)
    assert (done.returncode, set(done.stdout.splitlines())) == (code, {"parted"}), done.stderr
    assert said in done.stderr


ALONE = [  # what the environment says, whether one process is all that was meant
    ({}, True, "python src/train.py"),
    ({"WORLD_SIZE": "1", "RANK": "0", "LOCAL_RANK": "0"}, True, "torchrun --nproc_per_node 1"),
    ({"MASTER_ADDR": "somewhere"}, True, "a variable of the cluster's"),
    ({"ACCELERATE_USE_CPU": "True"}, True, "accelerate launch --cpu"),
    ({"ACCELERATE_USE_CPU": "True", "MASTER_ADDR": "127.0.0.1"}, False, "accelerate launch --cpu --num_processes 2"),
    ({"WORLD_SIZE": "2", "RANK": "0"}, False, "a scheduler's, without a launcher"),
]


@pytest.mark.parametrize(("environment", "fine", "what"), ALONE, ids=[row[2] for row in ALONE])
def test_one_process_where_several_were_meant(environment: dict, fine: bool, what: str, monkeypatch) -> None:
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_ADDR", "ACCELERATE_USE_CPU"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert processes.count() == 1 and processes.is_first()
    if fine:
        processes.meet(1)
    else:
        with pytest.raises(UserError, match="torchrun --nproc_per_node"):
            processes.meet(1)


def test_rows_are_not_shared_out_where_nobody_was_met(monkeypatch) -> None:
    """src/eval.py under a launcher: each of its processes does all."""
    for name, value in {"LOCAL_RANK": "0", "RANK": "0", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    assert processes.count() == 2
    assert processes.shared_out(lambda a, b: [x + y for x, y in zip(a, b, strict=True)], [1, 2], [3, 4]) == [4, 6]


def test_a_plan_counts_the_processes(monkeypatch) -> None:
    config = load_config(ROOT / "configs" / "demo.yaml", ["grpo.max_steps=10"], environment={})
    one = dict(explain(config, 4000))
    for name, value in {"WORLD_SIZE": "4", "RANK": "0", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    four = dict(explain(config, 4000))
    assert "8 prompts x 8 generations = 64 completions" in one["a generation batch"]
    assert four["a generation batch"] == "32 prompts x 8 generations = 256 completions, by 4 processes"
    assert "500 updates" in one["an epoch"] and "125 updates" in four["an epoch"]
    assert four["memory in all, at most"] == one["memory in all, at most"], "it is each card's"
