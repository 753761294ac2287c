"""Rows that teach nothing: which they are, that an update without them is the same update, and where it is refused."""

from __future__ import annotations

import inspect
import re
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import ROOT
from datasets import Dataset
from test_verification import ACCUMULATED, LEVELS, TOKENS, build, one_thread, tiny  # noqa: F401
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel, TrainerCallback
from trl import GRPOTrainer

from llm_grpo.config.loading import load_config
from llm_grpo.errors import UserError
from llm_grpo.planning.skipping import LOSS_TYPES, skip_choice
from llm_grpo.policy import Policy
from llm_grpo.records import Completion, Example, Problem
from llm_grpo.training import skipping
from llm_grpo.training.skipping import differing, parts_of
from llm_grpo.training.spending import of_run
from llm_grpo.training.trainer import RecordingTrainer
from llm_grpo.verification import subject, verify_update

nan = float("nan")


class Logged(TrainerCallback):
    """What a trainer logs; its own history is emptied, since metrics.jsonl has it."""

    def __init__(self) -> None:
        self.rows: list[dict] = []

    def on_log(self, args: object, state: Any, control: object, logs: dict | None = None, **_: object) -> None:
        self.rows.append({"step": state.global_step, **(logs or {})})


SIXTEEN = ["grpo.per_device_train_batch_size=16"]


def recording(train_dataset: Dataset, skip: bool = True, **options: object) -> RecordingTrainer:
    """Ours over the prompts of the stock trainer's tests, as messages."""
    asked = [[{"role": "user", "content": prompt}] for prompt in train_dataset["prompt"]]
    examples = [Example(str(number), tuple(messages), "0", {}) for number, messages in enumerate(asked)]
    problems = [Problem(example, tuple(example.prompt)) for example in examples]
    trainer = RecordingTrainer(
        **options, problems=problems, read=lambda ids: [Completion(str(row), len(row), False) for row in ids],
        record=lambda *_: {}, skip=skip, policy=Policy(options["model"], options["processing_class"], None, {}), facts={},
    )  # fmt: skip
    nobody = SimpleNamespace(kept=lambda: None, heed=lambda control: None)  # no validation is due, no stop comes
    trainer.watch = SimpleNamespace(validation=SimpleNamespace(due=False), stop=nobody)
    return trainer


# --- which rows teach -----------------------------------------------------------------------------------------------

GROUPS = [
    ([[1.0], [1.0]], [False], [False], "equal"),
    ([[1.0], [2.0]], [True], [True], "not equal"),
    ([[4.2], [4.2]], [False], [False], "equal, though float32 cannot hold the mean of eight of them"),
    ([[nan], [nan]], [False], [False], "nobody could judge either"),
    ([[nan], [2.0]], [False], [False], "only one was judged, and is its own mean"),
    ([[1.0, 2.0], [2.0, 1.0]], [False], [True], "equal in sum; each by itself teaches something"),
    ([[1.0, nan], [0.0, 1.0]], [False], [True], "equal in sum, one judged by one reward alone"),
    ([[1.0, nan], [1.0, 0.0]], [False], [False], "what cannot be judged counts nothing in the sum"),
    ([[0.1, 0.2], [0.3, 0.0]], [False], [True], "equal in sum but for the last digit"),
    ([[float("inf")], [float("inf")]], [False], [False], "equal"),
]


@pytest.mark.parametrize(("rewards", "summed", "by_objective", "why"), GROUPS, ids=[str(row[0]) for row in GROUPS])
def test_which_groups_teach(rewards: list, summed: list, by_objective: list, why: str) -> None:
    weights = torch.ones(len(rewards[0]))
    for aggregation, expected in (("sum_then_normalize", summed), ("normalize_then_sum", by_objective)):
        assert differing(torch.tensor(rewards), weights, 2, aggregation).tolist() == expected, f"{why}, {aggregation}"


def test_a_reward_without_weight_teaches_nothing() -> None:
    rewards, weights = torch.tensor([[1.0, 0.0], [1.0, 5.0]]), torch.tensor([1.0, 0.0])
    for aggregation in ("sum_then_normalize", "normalize_then_sum"):
        assert differing(rewards, weights, 2, aggregation).tolist() == [False]


# --- what is handed over --------------------------------------------------------------------------------------------


def micro_batch(lengths: list[int], prompts: list[int], teach: list[bool]) -> dict[str, torch.Tensor]:
    """Rows of the given completion and prompt lengths; ids tell row and place, the padding id is 0."""
    longest, widest = max(lengths), max(prompts)
    mask = torch.tensor([[1] * n + [0] * (longest - n) for n in lengths])
    prompt = torch.tensor([[0] * (widest - n) + [1] * n for n in prompts])
    ids = torch.arange(1, len(lengths) + 1)[:, None] * 100
    return {
        "prompt_ids": (ids + torch.arange(widest)) * prompt, "prompt_mask": prompt,
        "completion_ids": (ids + 50 + torch.arange(longest)) * mask, "completion_mask": mask,
        "advantages": torch.tensor([1.0 if t else 0.0 for t in teach]), "informative": torch.tensor(teach),
        "num_items_in_batch": mask.sum(),
    }  # fmt: skip


def test_kept_rows_come_by_length_and_are_cut_to_their_own_longest() -> None:
    batch = micro_batch([5, 1, 3, 9], [2, 4, 1, 7], [True, True, True, False])
    batch["old_per_token_logps"] = torch.arange(4 * 9.0).view(4, 9)  # as TRL lays them
    batch["ref_per_token_logps"] = torch.arange(4 * 13.0).view(4, 13)  # as Unsloth does: 4 columns of left padding more
    short, long = parts_of([batch], 0, "dapo", 2, 0, gather=lambda count: count)
    assert short["completion_ids"][:, 0].tolist() == [350, 250] and long["completion_ids"][:, 0].tolist() == [150]
    assert short["prompt_ids"].shape == (2, 4) and short["completion_ids"].shape == (2, 3)
    assert long["prompt_ids"].tolist() == [[105, 106]] and long["completion_ids"].shape == (1, 5)
    assert short["old_per_token_logps"].shape == (2, 3) and short["ref_per_token_logps"].shape == (2, 13 - 3 - 6)
    assert short["num_items_in_batch"] == 18, "the normaliser was counted before anything was dropped"


def test_every_micro_step_gets_something_and_every_row_goes_once() -> None:
    whole = micro_batch([2, 3, 4, 1], [6, 6, 6, 4], [False, False, True, False])
    whole["old_per_token_logps"] = torch.zeros(4, 4 + 2)  # Unsloth's: two columns of left padding more
    window = [{name: value if value.ndim == 0 else value[rows] for name, value in whole.items()}
              for rows in (slice(0, 2), slice(2, 4))]  # fmt: skip
    first, second = (parts_of(window, place, "grpo", 2, 0, gather=lambda count: count) for place in (0, 1))
    assert len(first) == 1 and first[0]["completion_ids"].tolist() == [[350, 351, 352, 353]]
    (blank,) = second
    assert blank["completion_mask"].tolist() == [[0]] and blank["prompt_mask"].tolist() == [[1]]
    assert blank["prompt_ids"].item() != 0, "Unsloth would take it for padding"
    assert blank["advantages"].item() == 0
    assert first[0]["old_per_token_logps"].shape == (1, 6) and blank["old_per_token_logps"].shape == (1, 1)


def test_processes_agree_on_the_number_of_rows() -> None:
    """Another process has three rows: this one, with one, fills up with blanks, and makes as many parts."""
    batch = micro_batch([2, 3, 4, 5], [1, 1, 1, 1], [False, True, False, False])
    parts = parts_of([batch], 0, "grpo", 2, 0, gather=lambda count: torch.cat([count, count.new_tensor([3])]))
    assert [len(part["advantages"]) for part in parts] == [2, 1]
    assert torch.cat([part["completion_mask"].sum(dim=1) for part in parts]).tolist() == [0, 0, 3]
    assert torch.cat([part["advantages"] for part in parts]).tolist() == [0, 0, 0.25], "a mean over 4 rows, now over 1"


# --- the same update ------------------------------------------------------------------------------------------------


def some_teach(completions: list[str], **_: object) -> list[float | None]:
    """Groups of four: equal (4.2, with rounding noise), different, nobody can judge, different with one unjudged."""
    group = [lambda i: 4.2, lambda i: float(i % 3), lambda i: None, lambda i: None if i % 4 == 1 else float(i % 4)]
    return [group[i // 4 % 4](i) for i in range(len(completions))]


def none_teach(completions: list[str], **_: object) -> list[float]:
    return [4.2] * len(completions)


SETTINGS = [
    ([], "one update"),
    (["grpo.mask_truncated_completions=true"], "whole rows do not count"),
    (["grpo.scale_rewards=none"], "no deviation"),
    (["grpo.multi_objective_aggregation=normalize_then_sum"], "over the whole batch"),
    (LEVELS["sequence"], "GSPO"),
    (["grpo.per_device_train_batch_size=4", "grpo.gradient_accumulation_steps=4"], "four parts, rows move among them"),
    (["grpo.per_device_train_batch_size=4", "grpo.gradient_accumulation_steps=2", "grpo.steps_per_generation=4"],
     "two updates, rows stay in theirs"),
    (["grpo.num_iterations=2"], "old log-probabilities"),
]  # fmt: skip


@pytest.mark.parametrize("loss_type", ["grpo", "dr_grpo", "dapo", "bnpo"])
@pytest.mark.parametrize(("overrides", "why"), SETTINGS, ids=[row[1] for row in SETTINGS])
def test_the_update_is_the_formula_without_the_rows(tiny: Path, loss_type: str, overrides: list, why: str) -> None:  # noqa: F811
    trainer = build(tiny, *SIXTEEN, *overrides, f"grpo.loss_type={loss_type}", rewards=(some_teach,), kind=recording)
    found = verify_update(trainer, off_policy=True)
    assert found.ok, f"{why}\n{found}"


def both_ways(trainer: RecordingTrainer, batch: dict) -> list[tuple[float, dict[str, torch.Tensor]]]:
    """(loss, gradients) of the batch with every row, and without those that teach nothing."""
    settings = SimpleNamespace(
        micro_batches=trainer.args.steps_per_generation, accumulation=trainer.args.gradient_accumulation_steps
    )
    found = []
    for trainer.skip in (False, True):
        with subject.undisturbed(trainer):
            loss, gradients = subject.update(trainer, batch, settings)
            found.append((float(loss), {name: gradient.clone() for name, gradient in gradients.items()}))
    return found


def same(found: list[tuple[float, dict[str, torch.Tensor]]], share: float = 1e-5) -> bool:
    (loss, gradients), (loss_without, gradients_without) = found
    largest = max(float(gradient.abs().max()) for gradient in gradients.values())
    gap = max(float((gradients[name] - gradients_without[name]).abs().max()) for name in gradients)
    return largest > 1e-4 and gap < share * largest and abs(loss - loss_without) < 1e-5


def no_noise(completions: list[str], **_: object) -> list[float | None]:
    """As some_teach, but the equal rewards have a mean that float32 holds."""
    return [4.0 if reward == 4.2 else reward for reward in some_teach(completions)]


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_every_loss_of_trl_is_what_it_was(tiny: Path, loss_type: str) -> None:  # noqa: F811
    """With the correction for another engine and the mask for what is off-policy, both of which are row by row."""
    four = ["grpo.per_device_train_batch_size=4", "grpo.gradient_accumulation_steps=4", "grpo.epsilon_high=2.0"]
    trainer = build(tiny, *four, f"grpo.loss_type={loss_type}", "grpo.off_policy_mask_threshold=0.5",
                    "grpo.vllm_importance_sampling_mode=token_truncate", rewards=(no_noise,), kind=recording)  # fmt: skip
    batch = subject.generate(trainer)
    trainer.use_vllm = True
    noise = 0.1 * torch.randn(batch["completion_ids"].shape, generator=torch.Generator().manual_seed(0))
    noise = noise * batch["completion_mask"]  # as in TRL: VESPO adds up the ratios' logarithms over padding too
    old = subject.logps(trainer, batch) + noise
    batch |= {
        "old_per_token_logps": old,
        "sampling_per_token_logps": old - noise,
        "importance_sampling_ratio": noise.exp(),
    }
    assert same(both_ways(trainer, batch))


@pytest.mark.parametrize(
    "overrides", [["lora=null", "model.load_in_4bit=false"], ["model.load_in_4bit=true"]], ids=["all weights", "4 bits"]
)
def test_whatever_is_trained(tiny: Path, overrides: list[str]) -> None:  # noqa: F811
    trainer = build(tiny, *SIXTEEN, *overrides, rewards=(no_noise,), kind=recording)
    for parameter in trainer.model.parameters():  # as build_trainer does on a CPU
        parameter.data = parameter.data.float() if parameter.requires_grad else parameter.data
    assert same(both_ways(trainer, subject.generate(trainer)))


def test_learned_positions_are_counted_from_the_mask(tmp_path: Path, tiny: Path) -> None:  # noqa: F811
    """GPT-2 has no notion of distance: a prompt with less padding before it must not move."""
    shape = GPT2Config(vocab_size=TOKENS, n_embd=64, n_layer=2, n_head=4, n_positions=128, initializer_range=0.1,
                       resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, pad_token_id=0, eos_token_id=2)  # fmt: skip
    torch.manual_seed(0)
    GPT2LMHeadModel(shape).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(tiny).save_pretrained(tmp_path)
    trainer = build(tmp_path, *SIXTEEN, "lora.target_modules=[c_attn]", rewards=(no_noise,), kind=recording)
    assert same(both_ways(trainer, subject.generate(trainer)))


def test_the_comparison_is_able_to_fail(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    trainer = build(tiny, *SIXTEEN, "grpo.loss_type=grpo", rewards=(no_noise,), kind=recording)
    batch = subject.generate(trainer)
    monkeypatch.setattr(skipping, "MEAN_OVER_ROWS", ())
    assert not same(both_ways(trainer, batch)), "the normaliser of the rows that are left"
    monkeypatch.undo()
    monkeypatch.setattr(skipping, "teaching", lambda batch: batch["informative"] & (batch["advantages"] > 0))
    assert not same(both_ways(trainer, batch)), "a row too few"


def test_an_update_without_rows_is_still_a_step(tiny: Path) -> None:  # noqa: F811
    """Adam's moments and weight decay move on: 1 - lr * decay, whatever the gradient."""
    trainer = build(tiny, *ACCUMULATED, "grpo.max_steps=2", "grpo.weight_decay=0.5", "grpo.learning_rate=0.1",
                    "grpo.lr_scheduler_type=constant", "grpo.optim=adamw_torch", rewards=(none_teach,), kind=recording)  # fmt: skip
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters() if p.requires_grad}
    trainer.add_callback(told := Logged())
    trainer.train()
    assert trainer.state.global_step == 2
    for name, parameter in trainer.model.named_parameters():
        if name in before:
            assert torch.allclose(parameter, before[name] * (1 - 0.1 * 0.5) ** 2, atol=1e-7), name
    logged = told.rows[0]
    assert logged["informative_share"] == 0 and logged["tokens_updated"] == 0 and "updated_rows/entropy" not in logged


def after_training(tiny: Path, skip: bool, turned: bool = False) -> torch.Tensor:  # noqa: F811
    """The LoRA after 20 steps; `turned`: with the rows of every generation batch in the opposite order."""
    kind = partial(recording, skip=skip)
    trainer = build(
        tiny, *SIXTEEN, "grpo.max_steps=20", "grpo.learning_rate=1e-3", "lora.r=4", rewards=(no_noise,), kind=kind
    )
    if turned:
        made = trainer._generate_and_score_completions
        trainer._generate_and_score_completions = lambda inputs: {
            name: value.flip(0) if value.ndim else value for name, value in made(inputs).items()
        }
    trainer.train()
    return torch.cat([p.detach().flatten() for _, p in trainer.model.named_parameters() if p.requires_grad])


def test_twenty_steps_end_where_they_ended(tiny: Path) -> None:  # noqa: F811
    """Within what the same rows in another order change."""
    every, turned, skipped = (
        after_training(tiny, False),
        after_training(tiny, False, turned=True),
        after_training(tiny, True),
    )
    reordered = float((every - turned).abs().max())
    assert 0 < float((every - skipped).abs().max()) < 5 * reordered + 1e-6 < 1e-3, reordered


# --- what is logged, and where it is refused ------------------------------------------------------------------------


def test_what_the_compute_went_into(tiny: Path) -> None:  # noqa: F811
    trainer = build(tiny, *SIXTEEN, "grpo.max_steps=1", rewards=(no_noise,), kind=recording)
    batches, made = [], trainer._generate_and_score_completions
    trainer._generate_and_score_completions = lambda inputs: batches.append(made(inputs)) or batches[-1]
    trainer.add_callback(told := Logged())
    trainer.train()
    (batch,), logged = batches, told.rows[0]
    kept, lengths = skipping.teaching(batch), batch["completion_mask"].sum(dim=1)
    assert logged["informative_share"] == 0.5 and logged["rollouts_per_informative_group"] == 8
    assert logged["tokens_generated"] == lengths.sum() and logged["tokens_updated"] == lengths[kept].sum()
    phases = sum(logged[f"seconds/{name}"] for name in ("generation", "rewards", "update", "other"))
    assert phases == pytest.approx(logged["step_time"])
    assert 0 < logged["padding_share"] < 0.8 and 0 < logged["wasted_share"] < 1
    assert "updated_rows/clip_ratio/region_mean" in logged and "clip_ratio/region_mean" not in logged
    whole = of_run([logged, {**logged, "step": 3}])
    assert whole["tokens_updated"] == 3 * logged["tokens_updated"] and whole["rollouts_per_informative_group"] == 8


ON = [[f"grpo.loss_type={name}"] for name in LOSS_TYPES]
ON += [["grpo.off_policy_mask_threshold=0.5"], ["grpo.num_iterations=2"], ["grpo.mask_truncated_completions=true"]]
ON += [
    ["grpo.importance_sampling_level=sequence"],
    ["grpo.multi_objective_aggregation=normalize_then_sum"],
    ["lora=null"],
]
REFUSED = [
    ("grpo.beta=0.1", "the KL's gradient"),
    ("grpo.entropy_coef=0.01", "the entropy's gradient"),
    ("grpo.use_adaptive_entropy=true", "measured over every row"),
    ("grpo.top_entropy_quantile=0.2", "of the tokens of every row"),
    ("grpo.router_aux_loss_coef=0.001", "the router's gradient"),
    ("grpo.pad_to_multiple_of=8", "their own longest"),
]


def config_with(*overrides: str):
    return load_config(ROOT / "configs" / "demo.yaml", overrides, environment={})


@pytest.mark.parametrize("overrides", ON, ids=[row[0] for row in ON])
def test_where_it_is_on(overrides: list[str]) -> None:
    assert skip_choice(config_with(*overrides))[0]


@pytest.mark.parametrize(("override", "why"), REFUSED, ids=[row[0] for row in REFUSED])
def test_where_it_is_refused(override: str, why: str) -> None:
    on, said = skip_choice(config_with(override))
    assert not on and said.startswith("off: grpo.") and why in said
    with pytest.raises(UserError, match=why):
        skip_choice(config_with(override, "rollouts.skip=true"))
    assert skip_choice(config_with(override, "rollouts.skip=false")) == (False, "off: the config says so")


def test_another_normaliser_of_unsloth_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNSLOTH_GRPO_LOSS_AGGREGATION", "prompt")
    assert skip_choice(config_with())[1] == "off: UNSLOTH_GRPO_LOSS_AGGREGATION is set: it has another normaliser"


def test_every_loss_of_trl_is_known() -> None:
    """A new one has to be read before its rows are dropped."""
    lines = [line for line in inspect.getsource(GRPOTrainer._compute_loss).splitlines() if "self.loss_type " in line]
    assert set(re.findall(r'"([a-z_]+)"', " ".join(lines))) == set(LOSS_TYPES)
