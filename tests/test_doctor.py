"""src/doctor.py: what would stop a run is found before it, with what to do; what is well is said in a line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import run_script

from llm_grpo.config.loading import load_config
from llm_grpo.planning.doctor import Finding, examine

SLOW = "import time\ndef slow(prompts, completions, **kwargs):\n    time.sleep(0.06 * len(completions))\n    return [1.0] * len(completions)\n"
RAISES = "def broken(prompts, completions, **kwargs):\n    return [len(None)]\n"


FEW = ["task.args.train_size=60", "task.args.validation_size=20", "task.args.test_size=20"]


def found(*overrides: str) -> dict[str, Finding]:
    return {finding.what: finding for finding in examine(load_config("configs/demo.yaml", [*FEW, *overrides]))}


def test_the_demo_is_ready() -> None:
    findings = found()
    assert {finding.state for finding in findings.values()} == {"ok"}, findings
    assert "they fit each other" in findings["versions"].found
    assert findings["data"].found == "60 train, 20 validation, 20 test"
    assert findings["reward correctness_reward_func"].found.endswith("earns 2.0"), "called on a real row"


@pytest.mark.parametrize(
    ("overrides", "what", "state", "says"),
    [
        (["model.name=nowhere"], "model and packages", "fault", "there is no folder nowhere"),
        (["model.max_seq_length=110"], "data", "fault", "leave no room"),
        (["model.max_seq_length=110", "prompt.too_long=leave_out"], "prompts", "look", "left out as too long"),
        (["model.max_seq_length=100000"], "model", "fault", "positions for"),
        (["rollouts.engine=unsloth"], "engine", "fault", "NVIDIA GPU"),
        (["rollouts.engine=server"], "engine", "fault", "rollouts.url"),
        (["rollouts.engine=vllm", "lora.r=600"], "LoRA", "fault", "up to 512"),
        (["run.output_dir=README.md/runs"], "disk", "fault", "cannot be written"),
        (["task.args.train_size=0"], "data", "fault", "train_size"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_faults(overrides: list[str], what: str, state: str, says: str) -> None:
    finding = found(*overrides)[what]
    assert (finding.state, says in finding.found) == (state, True), finding


def test_a_fault_is_told_once() -> None:
    findings = examine(load_config("configs/demo.yaml", [*FEW, "rollouts.engine=unsloth"]))
    assert [finding.what for finding in findings if finding.state == "fault"] == ["engine"]


def test_rewards_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(SLOW + RAISES)
    slow = found(f"rewards.0.name={tmp_path}/mine.py:slow")["reward slow"]
    assert slow.state == "look" and "ms a completion" in slow.found and "waits" in slow.do
    broken = found(f"rewards.0.name={tmp_path}/mine.py:broken")["rewards"]
    assert broken.state == "fault" and "broken" in broken.found


def test_the_command_line(tmp_path: Path) -> None:
    """Versions come from metadata: one that clashes is named; secrets are never shown; exit codes; JSON."""
    (tmp_path / "transformers-99.0.0.dist-info").mkdir()
    metadata = "Metadata-Version: 2.1\nName: transformers\nVersion: 99.0.0\n"
    (tmp_path / "transformers-99.0.0.dist-info" / "METADATA").write_text(metadata)
    environment = {"PYTHONPATH": str(tmp_path), "HF_TOKEN": "hf_secret"}
    done = run_script("src/doctor.py", "--config", "configs/demo.yaml", "--json", **environment)
    assert done.returncode == 1, done.stderr
    findings = {finding["what"]: finding for finding in json.loads(done.stdout)}
    assert findings["versions"]["state"] == "fault" and "99.0.0 is installed" in findings["versions"]["found"]
    assert findings["HF_TOKEN"]["found"].startswith("present") and "hf_secret" not in done.stdout + done.stderr
    shown = run_script("src/doctor.py", "--config", "configs/demo.yaml")
    assert shown.returncode == 0 and "ready" in shown.stdout, shown.stdout + shown.stderr
    wrong = run_script("src/doctor.py", "--config", "configs/nowhere.yaml")
    assert wrong.returncode == 2 and "Traceback" not in wrong.stderr
