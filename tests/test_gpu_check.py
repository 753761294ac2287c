"""benchmarks/gpu_check.py: what a CPU can run of it, how it goes on, and the sums it does on what the parts measured."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from conftest import ROOT, TINY, run_script

from benchmarks import gpu_check, random_model
from benchmarks.gpu_parts import Part, output_of, parts


@pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vllm is not installed")
@pytest.mark.skipif(torch.cuda.is_available(), reason="on a GPU it is run by hand, and takes longer")
def test_the_parts_run_on_a_cpu_and_those_that_need_a_gpu_say_so(tmp_path: Path) -> None:
    how = ["--shape", "tiny", "--steps", "3", "--no-result", "--outputs", tmp_path]
    done = run_script("benchmarks/gpu_check.py", *how, "--only", "contract-unsloth-4bit", "contract-vllm-16bit")
    assert done.returncode == 0, done.stdout + done.stderr
    rows = {row["part"]: row for row in map(json.loads, (tmp_path / "results.jsonl").read_text().splitlines())}
    assert rows["contract-unsloth-4bit"]["skipped"] == "needs an NVIDIA GPU"
    contract = rows["contract-vllm-16bit"]
    assert contract["passed"] and contract["greedy"]["equal"] == 1.0, contract


def command(code: str, to: Path, limit_s: float) -> Part:
    return Part(
        "train-vllm-16bit-3b", 60, "x", lambda name, _: output_of([sys.executable, "-c", code], to / name, limit_s)
    )


FAULTS = [
    (lambda to: command("import sys; sys.exit('no such knob')", to, 60), "failed", "no such knob"),
    (lambda to: command("import time; time.sleep(60)", to, 0.5), "timed_out", "not done"),
    (lambda to: Part("train-vllm-16bit-3b", 60, "x", lambda name, limit_s: {}["seconds"]), "failed", "KeyError"),
]


@pytest.mark.parametrize(("make", "kind", "said"), FAULTS, ids=["an error", "it hangs", "no numbers"])
def test_a_part_that_fails_costs_no_other_and_says_why(tmp_path: Path, make, kind: str, said: str) -> None:
    found = gpu_check.measure(make(tmp_path), 60, Namespace(outputs=tmp_path, gpu=None))
    assert said in found[kind] and not gpu_check.is_proven(found)


def test_it_goes_on_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What has ended is not run again, what ran out of time is; with too little time left nothing is begun."""
    ran: list[str] = []
    known = [Part(name, 60, name, lambda name, limit_s: ran.append(name) or {"passed": True}) for name in "abc"]
    monkeypatch.setattr(gpu_check, "parts", lambda args: known)
    before = [{"part": "a", "failed": "x"}, {"part": "b", "timed_out": "x"}, {"part": "c", "skipped": "no GPU there"}]
    (tmp_path / "results.jsonl").write_text("".join(json.dumps(row) + "\n" for row in before))
    for more, expected in ((["--seconds", "1"], ""), ([], "bc"), ([], "bc"), (["--only", "a"], "bca")):
        monkeypatch.setattr(sys, "argv", ["gpu_check.py", "--outputs", str(tmp_path), "--no-result", *more])
        assert gpu_check.main() == 0
        assert "".join(ran) == expected, more


def test_the_parts_are_in_order_of_value() -> None:
    names = [part.name for part in parts(Namespace(shape=None, outputs=Path(), gpu=None))]
    assert len(names) == len(set(names))
    assert names[:3] == ["contract-transformers-16bit", "contract-unsloth-4bit", "train-unsloth-4bit-0.5b"]
    tiny = [part.name for part in parts(Namespace(shape="tiny", outputs=Path(), gpu=None))]
    assert len(tiny) == len(set(tiny)) == len(names) - 1, "the quick shape of the heart is the full one"


def test_this_process_leaves_the_card_alone() -> None:
    code = "import sys; import benchmarks.gpu_check; print({'torch', 'unsloth', 'transformers'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == "set()", done.stdout + done.stderr


def test_ratios_only_where_both_were_measured() -> None:
    results = {"train-vllm-16bit-3b": {"seconds_per_step": 2.0}, "bare-trl-16bit-3b": {"seconds_per_step": 4.0},
               "train-unsloth-4bit-0.5b": {"seconds_per_step": 1.0}, "bare-unsloth-4bit-3b": {"seconds_per_step": 1.0}}  # fmt: skip
    assert gpu_check.ratios(results) == {"vllm engine over TRL colocate, 16bit, 3b": 0.5}


def test_every_id_of_the_random_model_has_a_text(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    AutoTokenizer.from_pretrained(TINY).save_pretrained(tmp_path)
    random_model.fill_vocabulary(tmp_path / "tokenizer.json", 1000)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer.decode([999]) == "<999>" and len(tokenizer) == 1000
    assert (
        tokenizer("How many pens?")["input_ids"] == AutoTokenizer.from_pretrained(TINY)("How many pens?")["input_ids"]
    )
