"""What tests share: the repository, the shipped model, scripts run as a user would, one small run of the demo."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from warm import Warm

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # a process of the tests per core, and each starts scripts
os.environ.pop("LLM_GRPO_DATA", None) if not Path(os.environ.get("LLM_GRPO_DATA", ".")).is_dir() else None
for name in ("MODEL_NAME", "OUTPUT_DIR", "RUN_NAME", "WANDB_API_KEY", "HF_TOKEN"):
    os.environ.pop(name, None)

if "WITHOUT_UNSLOTH" not in os.environ:  # tests/rehearsal/plain_loader.py
    import llm_grpo.loaders.unsloth  # noqa: F401  (it has to come before trl, transformers and peft, in this process too)

ROOT = Path(__file__).parent.parent
TINY = ROOT / "examples" / "tiny_qwen2"

# The demo, small enough for a test: the same path with few steps, prompts and problems.
SMALL = (
    "grpo.max_steps=4",
    "grpo.save_steps=2",
    "grpo.per_device_train_batch_size=16",
    "evaluation.limit=24",
    "evaluation.validation_limit=8",
    "evaluation.every_steps=2",
)


def run_script(
    *words: object, timeout_s: float = 540, stdin: str = "", cold: bool = False, **environment: str
) -> subprocess.CompletedProcess[str]:
    """`python src/NAME.py ...` from the repository's root, output captured. Begun in a process that has imported the
    libraries already (warm.py), but where the environment is another, and where it is to be as a user's: cold."""
    if str(words[0]).startswith("src/") and not environment and not cold:
        return warm(words[0] == "src/train.py").run([*map(str, words)], stdin, timeout_s)
    return subprocess.run(
        [sys.executable, *map(str, words)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        input=stdin,
        timeout=timeout_s,
        env={**os.environ, **environment},
    )


@pytest.fixture(autouse=True)
def _environment_ends_with_the_test() -> Iterator[None]:
    """A script's main, run in this process, says in it where its loggers write (preflight.logging_choice)."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


TRAINS = ("llm_grpo.loaders.unsloth", "trl.trainer.grpo_trainer", "trl.trainer.sft_trainer", "matplotlib.pyplot")


@cache
def warm(trains: bool) -> Warm:
    return Warm(*TRAINS) if trains else Warm("torch", "transformers", "peft", "datasets")


@pytest.fixture(scope="session")
def demo_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """(run folder, what was printed) of configs/demo.yaml with few steps."""
    outputs = tmp_path_factory.mktemp("outputs")
    words = ("src/train.py", "--config", "configs/demo.yaml", f"run.output_dir={outputs}", *SMALL)
    done = run_script(*words, cold=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return outputs / "demo", done.stdout + done.stderr


@pytest.fixture(scope="session")
def tokenizer():
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(TINY)
