"""On a GPU Unsloth replaces TRL's trainer by one that it generates. That one runs on a CPU too: our trainer over it.

It patches TRL for the whole process, so the tests stand in tests/rehearsal/rewritten_trainer.py and run in one of their
own: the update against float64, every seam that we override, src/train.py from YAML to merged model, --resume, and
what Unsloth would change in silence.
"""

from __future__ import annotations

import pytest
import torch
from conftest import run_script


@pytest.mark.skipif(torch.cuda.is_available(), reason="on a GPU the other tests run over it")
def test_our_trainer_over_the_one_that_unsloth_generates() -> None:
    how = ["-q", "--no-header", "-p", "no:cacheprovider", "-p", "no:xdist"]
    done = run_script("-m", "pytest", *how, "tests/rehearsal/rewritten_trainer.py", UNSLOTH_ALLOW_CPU="1")
    assert done.returncode == 0, done.stdout[-10_000:] + done.stderr[-2000:]
    assert " passed" in done.stdout and "skipped" not in done.stdout, done.stdout
