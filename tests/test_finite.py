"""An update that is no number costs that update; weights that are none are never saved, and the run goes on before them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from conftest import ROOT, SMALL

import train
from llm_grpo import runs
from llm_grpo.training.finite import FiniteUpdates, are_numbers

before, after = FiniteUpdates.on_pre_optimizer_step, FiniteUpdates.on_optimizer_step


def spoiled(watch: FiniteUpdates, *given: object, at: tuple[int, ...], what: str, hook: object, **more: object) -> None:
    """What a hook of the callback sees in step `at`: a gradient, or a weight, that is no number."""
    if given[1].global_step + 1 in at:
        tensor = watch.learned[-1].grad if what == "grad" else watch.learned[-1].data
        tensor[0, 0] = float("nan") if at[0] % 2 else float("inf")
    hook(watch, *given, **more)


def run_it(folder: Path, *more: str) -> int:
    kept = ("grpo.save_steps=1", "grpo.save_total_limit=9")
    words = ["--config", str(ROOT / "configs" / "demo.yaml"), f"run.output_dir={folder}", *SMALL, *kept]
    return train.main([*words, "grpo.max_steps=5", "evaluation.every_steps=0", *more])


@pytest.fixture(autouse=True)
def from_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


@pytest.mark.parametrize("at", [(2,), (3, 4)], ids=["infinite", "NaN, two in a row"])
def test_an_update_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys, at: tuple) -> None:
    spoil = lambda *a, **k: spoiled(*a, at=at, what="grad", hook=before, **k)  # noqa: E731
    monkeypatch.setattr(FiniteUpdates, "on_pre_optimizer_step", spoil)
    assert run_it(tmp_path) == 0
    said = capsys.readouterr().out
    for step in at:
        assert f"step {step}: its gradient is no number (NaN or infinite); this update is left out." in said
    weights = [load(tmp_path / "demo" / "checkpoints" / f"checkpoint-{step}") for step in range(1, 6)]
    for step, (was, now) in enumerate(zip(weights, weights[1:], strict=False), start=2):
        assert torch.equal(was, now) == (step in at) and torch.isfinite(now).all()


def test_three_in_a_row_end_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spoil = lambda *a, **k: spoiled(*a, at=(3, 4, 5), what="grad", hook=before, **k)  # noqa: E731
    monkeypatch.setattr(FiniteUpdates, "on_pre_optimizer_step", spoil)
    with pytest.raises(train.UserError, match="Step 5: its gradient is no number.*neither were the 2 before"):
        run_it(tmp_path)
    assert torch.isfinite(load(tmp_path / "demo" / "adapter")).all(), "what was learned before"


def test_broken_weights_are_not_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spoil = lambda *a, **k: spoiled(*a, at=(3,), what="weight", hook=after, **k)  # noqa: E731
    monkeypatch.setattr(FiniteUpdates, "on_optimizer_step", spoil)
    with pytest.raises(train.UserError, match="Step 3 made weights that are no numbers.*not saved"):
        run_it(tmp_path)
    run = runs.find(tmp_path / "demo")
    assert run.last_checkpoint(hashes=True).step == 2
    monkeypatch.setattr(FiniteUpdates, "on_optimizer_step", after)
    assert train.main(["--config", str(run.config_file), "--resume"]) == 0
    assert [row["step"] for row in runs.read_jsonl(run.metrics)] == [1, 2, 3, 4, 5]


def test_broken_weights_of_sft_are_not_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spoil = lambda *a, **k: spoiled(*a, at=(2,), what="weight", hook=after, **k)  # noqa: E731
    monkeypatch.setattr(FiniteUpdates, "on_optimizer_step", spoil)
    with pytest.raises(train.UserError, match="Step 2 made weights.*goes on from .*checkpoint-1.*lower sft.l"):
        run_it(tmp_path, "sft={steps: 3, batch_size: 4, learning_rate: 1e-3}")
    run = runs.find(tmp_path / "demo")
    assert [folder.name for folder in run.sft.glob("checkpoint-*")] == ["checkpoint-1"] and not run.warm.exists()


def test_what_a_number_is() -> None:
    finite = [torch.ones(2, dtype=torch.float16) * 60_000, torch.zeros(3)]
    assert are_numbers([]) and are_numbers(finite), "a norm that float16 does not hold is one all the same"
    for value in ("nan", "inf", "-inf"):
        assert not are_numbers([*finite, torch.tensor([1.0, float(value)])])


def load(folder: Path) -> torch.Tensor:
    from safetensors.torch import load_file

    (file,) = folder.glob("*.safetensors")
    return torch.cat([value.flatten() for _, value in sorted(load_file(file).items())])
