"""Rewards in processes of their own: whatever one does, the trainer, its next batch and its other rewards live on."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import ROOT

from llm_grpo.errors import UserError
from llm_grpo.records import Reward
from llm_grpo.rewards import REWARDS, RewardError, build_reward, process
from llm_grpo.rewards.attack import attack
from llm_grpo.rewards.pool import Pool
from llm_grpo.runs import Run, read_jsonl

HEAD = """
import asyncio, ctypes, json, multiprocessing, os, random, re, resource, signal, subprocess, sys, threading, time

def bad():
    {body}

def reward(completions, **columns):
    return [bad() if c[0]["content"] == "bad" else 1.0 for c in completions]
"""
SOON, AMPLE = 0.5, 60.0  # seconds: what hangs is ended soon; what answers has time, however busy the machine is

# body of bad(), timeout_s, what is said of it (None: it gets its score), why
BAD = {
    "an endless loop": ("while True: pass", SOON, r"took longer than 0.5 s \(timeout_s\) at .*own.py:5 in bad"),
    "a loop that swallows exceptions": ("while True:\n  try: time.sleep(9)\n  except BaseException: pass", SOON, "took longer"),
    "a pattern that holds the GIL": ("re.match('(a+)+$', 'a' * 40 + 'b')", SOON, "took longer.*own.py:5 in bad"),
    "a slow call": ("time.sleep(60)", SOON, "took longer"),
    "a lock that nobody opens": ("lock = threading.Lock(); lock.acquire(); lock.acquire()", SOON, "took longer"),
    "it stops itself": ("os.kill(os.getpid(), signal.SIGSTOP)", SOON, "took longer"),
    "it does not hear SIGTERM and SIGABRT": (
        "for n in (15, 6): signal.signal(n, signal.SIG_IGN)\nwhile True: time.sleep(9)", SOON, "took longer"),
    "a child that never ends, waited for": ("subprocess.run(['sleep', '600'])", SOON, "took longer"),
    "os._exit with success": ("os._exit(0)", AMPLE, r"ended its process \(exit code 0\)"),
    "os._exit with a code": ("os._exit(3)", AMPLE, r"ended its process \(exit code 3\)"),
    "a segfault": ("ctypes.string_at(0)", AMPLE, r"ended its process \(Segmentation fault\) at .*own.py:5 in bad"),
    "an abort": ("os.abort()", AMPLE, r"ended its process \(Aborted\)"),
    "it kills its group": ("os.killpg(0, 9)", AMPLE, r"ended its process \(Killed\)"),
    "an alarm nobody handles": ("signal.alarm(1); time.sleep(60)", AMPLE, r"ended its process \(Alarm clock\)"),
    "an alarm it handles by raising": (
        "def late(*_): raise TimeoutError('late')\nsignal.signal(14, late); signal.setitimer(0, 0.1); time.sleep(60)",
        AMPLE, "raised TimeoutError: late"),
    "an alarm it forgets": ("signal.setitimer(0, 0.3); return 1", AMPLE, None),
    "it closes all files": ("os.closerange(3, 200); return 1", AMPLE, "ended its process"),
    "sys.exit": ("sys.exit()", AMPLE, "raised SystemExit"),
    "KeyboardInterrupt": ("raise KeyboardInterrupt", AMPLE, "raised KeyboardInterrupt"),
    "an exception": ("return {}['x']", AMPLE, r"raised KeyError: 'x' \(.*own.py:5\)"),
    "an endless recursion": ("return bad()", AMPLE, "raised RecursionError"),
    "more memory than it may have": ("return len(bytearray(3 << 30))", AMPLE, "raised MemoryError"),
    "a score that is none": ("return 'high'", AMPLE, "the score is str 'high'"),
    "not a number": ("return float('nan')", AMPLE, "the score is nan"),
    "it reads standard input": ("return len(sys.stdin.read())", AMPLE, None),
    "a fork whose child comes home": ("return float(os.fork() >= 0)", AMPLE, None),
    "a fork whose child hangs": ("if os.fork() == 0: time.sleep(600)\nreturn 1", AMPLE, None),
    "a process pool of its own": ("with multiprocessing.Pool(1) as p: return p.apply(float, ('1',))", AMPLE, None),
    "a daemon thread": ("threading.Thread(target=time.sleep, args=(600,), daemon=True).start(); return 1", AMPLE, None),
    "a thread that never ends": ("threading.Thread(target=time.sleep, args=(600,)).start(); return 1", AMPLE, None),
    "a program left running": ("subprocess.Popen(['sleep', '600']); return 1", AMPLE, None),
    "it prints, and so does its child": ("print('hi'); os.system('echo ho'); return 1", AMPLE, None),
}  # fmt: skip


def chat(*texts: str) -> dict[str, list[Any]]:
    return {"prompts": ["?"] * len(texts), "completions": [[{"role": "assistant", "content": text}] for text in texts]}


@pytest.fixture
def pool(tmp_path: Path) -> Iterator[Callable[..., Pool]]:
    """pool(source, **limits): the reward `reward` of a file with that source."""
    made: list[Pool] = []

    def build(source: str, args: dict[str, Any] | None = None, **limits: Any) -> Pool:
        (tmp_path / "own.py").write_text(source)
        made.append(build_reward(f"{tmp_path}/own.py:reward", args, **limits))
        return made[-1]

    yield build
    for each in made:
        each.close()


def of_body(body: str) -> str:
    return HEAD.replace("{body}", body.replace("\n", "\n    "))


def leader_is_gone(pid: int) -> bool:
    """Also of a zombie, which nobody waits for in some containers."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


@pytest.mark.parametrize("kind", BAD)
def test_it_loses_one_completion_and_no_more(kind: str, pool: Callable[..., Pool]) -> None:
    body, timeout_s, said = BAD[kind]
    reward = pool(of_body(body), per_completion=True, timeout_s=timeout_s, max_failed=0.9, memory_gb=2.0)
    scores = reward(**chat("good", "bad", "good"))
    assert scores[0] == scores[2] == 1.0 and (scores[1] is None) == (said is not None)
    failed = [trouble for trouble in reward.troubles if trouble.kind == "failed"]
    assert [(t.row, t.completion, t.completions) for t in failed] == ([(1, "bad", 1)] if said else [])
    time.sleep(0.4 if "forgets" in kind else 0)
    assert reward(**chat("good", "good")) == [1.0, 1.0], "the next batch is none the worse"
    assert said is None or re.search(said, failed[0].said), failed[0].said


# source, what is paid when the batch goes over whole, and when each completion goes alone, why
CALLS = [
    ("completions, **columns): return [len(completions) for c in completions]", [3.0] * 3, [1.0] * 3, "a batch or a row"),
    ("prompts, completions, answer): return [float(a) for a in answer]", [0.0, 1.0, 2.0], [0.0, 1.0, 2.0], "in order"),
    ("completion_ids, **columns): return [sum(ids) for ids in completion_ids]", [1.0, 5.0, 9.0], [1.0, 5.0, 9.0], "token ids"),
    ("trainer_state, answer, **columns): return [trainer_state.global_step for a in answer]", [7.0] * 3, [7.0] * 3, "the step"),
    ("trainer_state, answer, **columns): return [trainer_state.log_history[0]['loss'] for a in answer]", [0.5] * 3, [0.5] * 3, "the newest log"),
    ("answer, settings, **columns): return [settings['a'] for a in answer]", [4.0] * 3, [4.0] * 3, "one value for all"),
    ("answer, *, pays, **columns): return [pays.get(a, True) for a in answer]", [2.5, None, 1.0], [2.5, None, 1.0], "args, None, a bool"),
]  # fmt: skip


@pytest.mark.parametrize("alone", [False, True], ids=["whole", "alone"])
@pytest.mark.parametrize(("source", "whole_scores", "alone_scores", "why"), CALLS)
def test_it_is_called_as_trl_calls_it(
    source: str, whole_scores: list[Any], alone_scores: list[Any], why: str, alone: bool, pool: Callable[..., Pool]
) -> None:
    args = {"pays": {"0": 2.5, "1": None}} if "pays" in source else {}
    state = SimpleNamespace(global_step=7, log_history=[{"loss": 0.9}, {"loss": 0.5}], best=object())
    columns = {"answer": ["0", "1", "2"]}
    if "**columns" in source:
        columns |= {"completion_ids": [[0, 1], [2, 3], [4, 5]], "settings": {"a": 4}, "trainer_state": state}
    reward = pool(f"def reward({source}", args, per_completion=alone, workers=2 if alone else 1, timeout_s=AMPLE)
    assert reward(**chat("a", "b", "c"), **columns) == (alone_scores if alone else whole_scores), why
    assert reward.__name__ == "reward" and not reward.troubles


def test_a_coroutine_is_awaited(pool: Callable[..., Pool]) -> None:
    assert pool("async def reward(completions, **columns): return [1]")(**chat("a")) == [1.0]


@pytest.mark.parametrize("name", REWARDS)
def test_ours_score_the_same_in_workers(name: str) -> None:
    texts = ["<reasoning>\n6 * 7 = 42\n</reasoning>\n<answer>\n42\n</answer>\n", "42", "", "<respond> Need </respond>",
             "\ud800", "<answer>17</answer>" * 9, "first then so " * 30]  # fmt: skip
    batch = {**chat(*texts), "answer": ["42", "42", "42", "Need", None, "17", "42"]}
    reward = build_reward(name, workers=2, timeout_s=AMPLE)
    try:
        assert reward(**batch) == build_reward(name)(**batch)
        assert reward.__name__ == name and reward.__doc__ == REWARDS[name].__doc__ and isinstance(reward, Pool)
    finally:
        reward.close()


LOGS = """
def reward(completions, log_extra, log_metric, **columns):
    log_extra("length", [len(c[0]["content"]) for c in completions])
    log_metric("mine/longest", max(len(c[0]["content"]) for c in completions))
    return [1.0 for c in completions]
"""


@pytest.mark.parametrize("alone", [False, True], ids=["whole", "alone"])
def test_what_it_logs_reaches_the_trainer_in_order(alone: bool, pool: Callable[..., Pool]) -> None:
    extra, metrics = {}, []
    reward = pool(LOGS, per_completion=alone, workers=2 if alone else 1, timeout_s=AMPLE)
    reward(**chat("a", "bb", "ccc"), log_extra=extra.__setitem__, log_metric=lambda *pair: metrics.append(pair))
    assert extra == {"length": [1, 2, 3]}
    assert sorted(value for name, value in metrics if name == "mine/longest") == ([1, 2, 3] if alone else [3])
    assert [name for name, _ in metrics][-1] == "seconds/reward/reward"


def test_alone_they_are_spread(pool: Callable[..., Pool]) -> None:
    source = "import os\ndef reward(completions, **columns): return [os.getpid() for c in completions]"
    reward = pool(source, per_completion=True, workers=3, timeout_s=AMPLE)
    found = reward(**chat(*"abcdef"))
    assert len(set(found[:3])) == 3 and set(found[3:]) <= set(found[:3]) and os.getpid() not in found
    assert reward(**chat("a")) == found[:1], "they stay warm"


def test_a_batch_that_fails_is_none_until_it_is_too_much(tmp_path: Path, pool: Callable[..., Pool]) -> None:
    run = Run(tmp_path)
    reward = pool(of_body("print('so far'); return {}['x']"), run=run, max_failed=0.3, timeout_s=AMPLE)
    state = SimpleNamespace(global_step=4)
    assert reward(**chat("good", "good", "good")) == [1.0] * 3
    metrics: dict[str, float] = {}
    assert reward(**chat("bad"), log_metric=metrics.__setitem__) == [None], "one mishap is forgiven"
    assert metrics["failed/reward/reward"] == 1.0
    with pytest.raises(RewardError, match=r"reward 'reward' at step 5, row 1 raised KeyError: 'x'") as error:
        reward(**chat("good", "bad"), trainer_state=state)
    assert "3 of the last 6 completions got no score from it, max_failed allows 30%" in str(error.value)
    assert reward(**chat("good", "good")) == [1.0, 1.0], "the evaluation after it is scored"
    rows = list(read_jsonl(run.reward_troubles))
    assert [(r["kind"], r["step"], r["row"], r["completion"]) for r in rows if r["kind"] == "failed"] == [
        ("failed", None, 0, "bad"), ("failed", 5, 1, "bad")]  # fmt: skip
    assert run.reward_output.read_text() == "--- reward\nso far\nso far\n--- reward at step 5\nso far\nso far\n"


def test_what_fails_from_the_first_batch_on_ends_the_run_at_once(pool: Callable[..., Pool]) -> None:
    with pytest.raises(RewardError, match="1 of the last 1 completions got no score"):
        pool(of_body("os._exit(0)"), timeout_s=AMPLE)(**chat("bad"))


def test_a_slow_completion_is_named(pool: Callable[..., Pool]) -> None:
    reward = pool(of_body("time.sleep(1.2); return 1"), per_completion=True, timeout_s=2.0)
    assert reward(**chat("good", "bad", "good")) == [1.0] * 3
    assert [(t.kind, t.row, t.completion) for t in reward.troubles] == [("slow", 1, "bad")]


def test_a_worker_sees_no_secrets_and_no_gpu(pool: Callable[..., Pool], monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("HF_TOKEN", "WANDB_API_KEY", "AWS_SECRET_ACCESS_KEY", "MY_PASSWORD", "OPENAI_API_KEY", "MONKEY", "LANG")
    for name in names:
        monkeypatch.setenv(name, "given")
    source = f"import os, sys\ndef reward(completions, **columns): return [{names}.index(k) for k in {names} if k in os.environ] + [os.environ['CUDA_VISIBLE_DEVICES'] == '', 'torch' in sys.modules]"
    found = pool(source, environment=["OPENAI_API_KEY"], timeout_s=AMPLE)(**chat(*"abcde"))
    assert found == [4.0, 5.0, 6.0, 1.0, 0.0], "what is named, what is no secret; no GPU, and no torch either"
    with pytest.raises(RewardError, match="HF_TOKEN is kept from workers: name it under environment"):
        pool(of_body("return os.environ['HF_TOKEN']"), timeout_s=AMPLE)(**chat("bad"))


AT_START = [
    ("import os; os._exit(7)", r"reward '.*own.py:reward' ended its process while it was loaded \(exit code 7\)"),
    ("import time\ntime.sleep(60)", r"was not loaded within 3 s at .*own.py:2 in <module>"),
    ("import nowhere_to_be_found", "own.py failed at import, line 1: ModuleNotFoundError"),
    ("import ctypes\nctypes.string_at(0)", r"ended its process while it was loaded \(Segmentation fault\) at .*own.py:2"),
    ("x = 1", "own.py has no function 'reward'"),
    ("def reward(completions, *, factor, **columns): return [1]", "own.py:reward: needs factor"),
]  # fmt: skip


@pytest.mark.parametrize(("source", "message"), AT_START)
def test_what_cannot_be_loaded_says_why(
    source: str, message: str, pool: Callable[..., Pool], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "START_S", 3 if "sleep" in source else AMPLE)
    with pytest.raises(UserError, match=message):
        pool(source)


WISHES = [
    ("reward_model", {"workers": 1}, "a learned reward stays with the trainer", "it needs the GPU"),
    ("own.py:reward", {"workers": 3}, "2 would|3 would stand idle. Set per_completion: true", "a batch is one worker's"),
    ("own.py:reward", {"workers": 0, "timeout_s": 3.0}, "timeout_s has no effect without workers", "nothing can end it"),
    ("int_reward_func", {"memory_gb": 1.0}, "memory_gb has no effect without workers; set workers: 1", "ours have none"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "limits", "message", "why"), WISHES)
def test_wishes_that_cannot_be_met_are_refused(name: str, limits: dict[str, Any], message: str, why: str) -> None:
    with pytest.raises(UserError, match=message):
        build_reward(name, **limits)


def test_without_workers_it_stays_in_this_process(pool: Callable[..., Pool]) -> None:
    source = "import os\ndef reward(completions, **columns): return [os.getpid() for c in completions]"
    metrics: dict[str, float] = {}
    (here,) = build_reward(f"{pool(source).spec.name}", workers=0)(**chat("a"), log_metric=metrics.__setitem__)
    assert here == os.getpid() and metrics["seconds/reward/reward"] > 0


def test_the_trainer_does_not_import_the_file(tmp_path: Path, pool: Callable[..., Pool]) -> None:
    pool(
        f"import os, pathlib\npathlib.Path({str(tmp_path / 'who')!r}).write_text(str(os.getpid()))\ndef reward(**columns): pass"
    )
    assert int((tmp_path / "who").read_text()) != os.getpid()


def test_a_file_that_changes_meanwhile_is_not_scored_by(pool: Callable[..., Pool], tmp_path: Path) -> None:
    reward = pool(of_body("os._exit(1)"), max_failed=1.0, timeout_s=AMPLE)
    (tmp_path / "own.py").write_text("def reward(completions, **columns): return [5.0 for c in completions]")
    assert reward(**chat("good")) == [1.0], "what is loaded is loaded"
    assert reward(**chat("bad")) == [None], "the worker ends; another one is started when it is asked next"
    with pytest.raises(RewardError, match="its file changed while the run goes on"):
        reward(**chat("good"))


def test_what_cannot_be_sent_is_said(pool: Callable[..., Pool]) -> None:
    with pytest.raises(RewardError, match=r"cannot be sent to another process .*Set workers: 0"):
        pool(of_body("return 1"))(**chat("good"), environments=[lambda: 0])


def test_lots_are_the_same_in_any_worker(pool: Callable[..., Pool]) -> None:
    source = "import random\ndef reward(completions, **columns): return [random.random() for c in completions]"
    one, three = (pool(source, per_completion=True, workers=n, timeout_s=AMPLE) for n in (1, 3))
    first, second = (SimpleNamespace(global_step=step) for step in (1, 2))
    drawn = one(**chat(*"abcd"), trainer_state=first)
    assert drawn == three(**chat(*"abcd"), trainer_state=first) and len(set(drawn)) == 4
    assert drawn != one(**chat(*"abcd"), trainer_state=second)


WAITING = f"""
import sys; sys.path.insert(0, {str(ROOT / "src")!r})
from llm_grpo.rewards import build_reward
reward = build_reward(sys.argv[1] + ":reward", timeout_s=600)
print(reward.workers[0].process.pid, flush=True)
try: reward(["?"], [[{{"role": "assistant", "content": "bad"}}]])
except KeyboardInterrupt: print("stopped", flush=True)
"""


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL], ids=["Ctrl-C", "kill -9"])
def test_the_end_of_the_trainer_is_the_end_of_its_workers(how: signal.Signals, tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(of_body("re.match('(a+)+$', 'a' * 40 + 'b')"))
    words = [sys.executable, "-c", WAITING, f"{tmp_path}/own.py"]
    trainer = subprocess.Popen(words, stdout=subprocess.PIPE, text=True, start_new_session=True)
    worker = int(trainer.stdout.readline())
    time.sleep(0.5)
    start = time.monotonic()
    os.killpg(trainer.pid, how)  # as a terminal does it: to the whole group, of which no worker is
    said, _ = trainer.communicate(timeout=30)
    assert time.monotonic() - start < 10 and ("stopped" in said) == (how == signal.SIGINT)
    for _ in range(100):
        if leader_is_gone(worker):
            return
        time.sleep(0.1)
    raise AssertionError("a worker outlives its trainer")


def test_what_a_worker_started_ends_with_it(pool: Callable[..., Pool], tmp_path: Path) -> None:
    body = f"child = subprocess.Popen(['sleep', '600'])\nopen({str(tmp_path / 'pid')!r}, 'w').write(str(child.pid))\nos._exit(1)"
    reward = pool(of_body(body), max_failed=1.0, timeout_s=AMPLE)
    assert reward(**chat("bad")) == [None]
    time.sleep(0.1)
    assert leader_is_gone(int((tmp_path / "pid").read_text()))


@pytest.mark.parametrize("alone", [False, True], ids=["whole", "alone"])
def test_an_attack_names_what_hangs(alone: bool, pool: Callable[..., Pool]) -> None:
    source = of_body("while True: pass").replace('== "bad"', '== ""')
    reward = pool(source, timeout_s=SOON / 10, per_completion=alone)
    if alone:
        verdicts, _ = attack([Reward("reward", reward, 1.0)], "xml")
        assert [verdicts[t.row].case.name for t in reward.troubles if t.kind == "failed"] == ["empty"]
    else:
        with pytest.raises(RewardError, match=r"took longer than 0.05 s.*\n.*\(case 'empty'\)"):
            attack([Reward("reward", reward, 1.0)], "xml")
