"""Runs that are killed by lot go on; benchmarks/faults.py does it two hundred times."""

from __future__ import annotations

import json
from pathlib import Path

from conftest import run_script


def test_a_run_killed_at_moments_drawn_by_lot_comes_to_the_bits_of_one_left_in_peace(tmp_path: Path) -> None:
    done = run_script("benchmarks/faults.py", "--kills", 4, "--cold", 0, "--folder", tmp_path / "bench")
    assert done.returncode == 0, done.stdout + done.stderr
    told = json.loads((tmp_path / "bench" / "summary.json").read_text(encoding="utf-8"))
    assert told["kills"] == 4 and told["faults"] == []
