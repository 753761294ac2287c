"""Prompts chosen by their pass rate: what is expected of them, that choosing beats taking them in order, what it keeps."""

from __future__ import annotations

import json
import math
import random
from collections import defaultdict
from pathlib import Path

import pytest
import torch
from conftest import ROOT

from llm_grpo.config.loading import load_config
from llm_grpo.config.schema import SamplingSection
from llm_grpo.errors import UserError
from llm_grpo.problems import read_pass_rates
from llm_grpo.records import Example, Problem
from llm_grpo.training.choosing import Choosing, choosing_of, expected_information, replaced

GROUP = 8


@pytest.mark.parametrize(("alpha", "beta"), [(0.5, 0.5), (4.5, 4.5), (8.5, 0.5), (1.0, 30.0)])
def test_what_a_group_is_expected_to_teach(alpha: float, beta: float) -> None:
    def moment(a: float, b: float) -> float:
        """E[p^G] = B(a + G, b) / B(a, b)."""
        return math.exp(math.lgamma(a + GROUP) + math.lgamma(a + b) - math.lgamma(a) - math.lgamma(a + b + GROUP))

    found = expected_information(torch.tensor([alpha]).double(), torch.tensor([beta]).double(), GROUP)
    assert float(found) == pytest.approx(1 - moment(alpha, beta) - moment(beta, alpha), abs=1e-9)


def pool(size: int = 600) -> list[float]:
    """Pass rates like a real task's: a third never, a third always, the others anywhere; 0.26 of the groups differ."""
    drawn = random.Random(0)
    return [drawn.choice([0.0, 1.0, drawn.random()]) for _ in range(size)]


def simulated(sampling: SamplingSection, rates: list[float], batches: int = 60, groups: int = 8) -> tuple[float, dict]:
    """(share of groups that differ, what is known at the end) where the pass rates stay what they are."""
    drawn, choosing = random.Random(1), Choosing(sampling, len(rates), GROUP, seed=0)
    informative = 0
    for _ in range(batches):
        prompts, told = choosing.next(groups)
        assert len(set(prompts)) == groups and told["choosing/revisited"] <= 1 - sampling.explore
        passed = [sum(drawn.random() < rates[prompt] for _ in range(GROUP)) for prompt in prompts]
        differ = [0 < count < GROUP for count in passed]
        choosing.learn(prompts, passed, differ)
        informative += sum(differ)
    return informative / (batches * groups), choosing.state


def test_choosing_beats_taking_them_in_order() -> None:
    """In order the share is known: the mean of 1 - p^G - (1-p)^G."""
    rates = pool()
    known = sum(1 - p**GROUP - (1 - p) ** GROUP for p in rates) / len(rates)
    in_order, _ = simulated(SamplingSection(explore=1.0), rates)
    chosen, state = simulated(SamplingSection(), rates)
    assert in_order == pytest.approx(known, abs=0.06)
    assert chosen > 1.5 * known, (chosen, known)
    assert state["asked"].max() <= SamplingSection().repeats


def test_known_pass_rates_spare_what_cannot_teach() -> None:
    """A static choice: nobody is asked who always or never passed, as long as there are others."""
    rates = pool(100)
    choosing = Choosing(SamplingSection(explore=0.0, forget=0.0), len(rates), GROUP, seed=0)
    choosing.know({n: (round(16 * p), 16) for n, p in enumerate(rates)})
    prompts, told = choosing.next(16)
    assert all(0.05 < rates[prompt] < 0.9 for prompt in prompts), [rates[prompt] for prompt in prompts]
    assert told["choosing/retired"] == sum(round(16 * p) >= 15 for p in rates)


def test_what_passes_is_retired_until_it_is_forgotten() -> None:
    choosing = Choosing(SamplingSection(forget=0.2), 4, GROUP, seed=0)
    choosing.learn([0, 1, 2], [8, 4, 0], [False, True, False])
    prompts, told = choosing.next(3)
    assert told["choosing/retired"] == 1 and 0 not in prompts and prompts[0] == 1
    for _ in range(20):
        choosing.learn([], [], [])
    assert choosing.next(4)[1]["choosing/retired"] == 0


def test_a_small_pool_is_asked_again_and_none_twice_in_a_batch() -> None:
    choosing = Choosing(SamplingSection(), 5, GROUP, seed=0)
    for _ in range(10):
        prompts, _ = choosing.next(5)
        assert sorted(prompts) == [0, 1, 2, 3, 4]
        choosing.learn(prompts, [8] * 5, [False] * 5)
    assert choosing.next(3, besides=(0, 1, 2, 3))[0] == [4], "fewer where there are no others"


def test_a_state_that_is_put_back_goes_on_alike() -> None:
    _, state = simulated(SamplingSection(), pool(), batches=7)
    one, other = (Choosing(SamplingSection(), 600, GROUP, seed=0) for _ in range(2))
    one.state = other.state = state
    one.learn(one.next(8)[0], [4] * 8, [True] * 8)
    other.learn(other.next(8)[0], [4] * 8, [True] * 8)
    assert one.next(8) == other.next(8) and torch.equal(one.state["passed"], other.state["passed"])
    assert not torch.equal(state["passed"], one.state["passed"]), "a snapshot is no view"


def test_uniform_groups_are_refilled_up_to_the_budget() -> None:
    """The first batch teaches nothing, what is asked besides does: 4 groups of 8 are replaced with a budget of a half."""
    calls: list[list[int]] = []

    def make(prompts: list[int]) -> tuple[dict, list[int], list[bool]]:
        calls.append(prompts)
        rows, teaches = len(prompts), len(calls) > 1
        width = 3 if teaches else 2
        ids = torch.tensor(prompts)[:, None].repeat(1, width) + 1
        batch = {"prompt_ids": ids, "prompt_mask": torch.ones_like(ids), "completion_ids": ids,
                 "completion_mask": torch.ones_like(ids), "advantages": torch.full((rows,), float(teaches)),
                 "informative": torch.full((rows,), teaches), "group": torch.arange(rows) // GROUP,
                 "num_items_in_batch": torch.tensor(0)}  # fmt: skip
        return batch, [4 * teaches] * (rows // GROUP), [teaches] * (rows // GROUP)

    choosing = Choosing(SamplingSection(refill=0.5), 100, GROUP, seed=0)
    batch = choosing.generation_batch(8 * GROUP, make, log := defaultdict(list))
    assert [len(prompts) for prompts in calls] == [64, 32] and not {*calls[0]} & {*calls[1]}
    assert log["choosing/refilled"] == [0.5] and batch["informative"].sum() == 32
    assert batch["group"].tolist() == [row // 8 for row in range(64)]
    assert batch["num_items_in_batch"] == 32 * 3 + 32 * 2
    old, new = batch["prompt_mask"][~batch["informative"]], batch["completion_mask"][~batch["informative"]]
    assert old.tolist() == [[0, 1, 1]] * 32 and new.tolist() == [[1, 1, 0]] * 32
    asked = {int(ids[-1]) - 1 for ids in batch["prompt_ids"]}
    assert asked == {*calls[0][32:]} | {*calls[1]}


def test_rows_of_other_groups_stay_as_they_are() -> None:
    batch = {"advantages": torch.arange(6.0), "importance_sampling_ratio": torch.ones(6, 1),
             "completion_mask": torch.ones(6, 2).long()}  # fmt: skip
    fresh = {name: -value for name, value in batch.items()} | {"completion_mask": torch.ones(6, 2).long()}
    found = replaced(batch, fresh, [1], [2], group=2)
    assert found["advantages"].tolist() == [0, 1, -4, -5, 4, 5] and batch["advantages"].tolist() == [0, 1, 2, 3, 4, 5]


# --- a file of pass rates -------------------------------------------------------------------------------------------


def problems(count: int) -> list[Problem]:
    asked = ({"role": "user", "content": "?"},)
    return [Problem(Example(f"train-{n}", asked, "1"), asked) for n in range(count)]


def test_a_report_of_samples_is_read_by_id(tmp_path: Path) -> None:
    report = {"items": [{"id": "train-2"}, {"id": "other"}, {"id": "train-0"}],
              "sampled": {"k": 4, "strict": {"passed": [1, 2, 4]}}}  # fmt: skip
    file = tmp_path / "rates.json"
    file.write_text(json.dumps(report))
    ids = {f"train-{n}" for n in range(3)}
    assert read_pass_rates(file, ids) == {"train-2": (1, 4), "other": (2, 4), "train-0": (4, 4)}
    words = ["sampling.choose=true", f"sampling.pass_rates={file}"]
    known = choosing_of(load_config(ROOT / "configs" / "grpo.yaml", words, environment={}), problems(3))
    assert (known.passed.tolist(), known.failed.tolist()) == ([4, 0, 1], [0, 0, 3])
    for broken, said in (
        ({"items": []}, "eval.py --split train --samples"),
        (report | {"items": [{"id": "other"}] * 3}, "none of"),
    ):
        file.write_text(json.dumps(broken))
        with pytest.raises(UserError, match=said):
            read_pass_rates(file, ids)
    with pytest.raises(UserError, match="is not there"):
        read_pass_rates(tmp_path / "none.json", ids)


def test_off_is_the_reference_and_half_a_wish_is_refused() -> None:
    def config(*words: str):
        return load_config(ROOT / "configs" / "grpo.yaml", words, environment={})

    assert choosing_of(config(), problems(3)) is None
    assert choosing_of(config("sampling.choose=true"), problems(3)).group == 8
    refilled = ("sampling.choose=true", "sampling.refill=0.5")
    for other in ("grpo.scale_rewards=batch", "grpo.multi_objective_aggregation=normalize_then_sum"):
        with pytest.raises(UserError, match="all groups of a batch"):
            choosing_of(config(*refilled, other), problems(3))
    for words in (["sampling.refill=0.5"], ["sampling.pass_rates=x.json"]):
        with pytest.raises(UserError, match=r"need sampling\.choose=true"):
            choosing_of(config(*words), problems(3))
