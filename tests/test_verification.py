"""The real TRL trainer on Unsloth's model against the float64 reference, and the reference against its own mutants."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import ROOT, TINY
from datasets import Dataset
from rich.console import Console
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, Qwen2Config, Qwen2ForCausalLM
from trl import GRPOTrainer

from llm_grpo import runs
from llm_grpo.config.loading import load_config
from llm_grpo.errors import UserError
from llm_grpo.policy import load_policy
from llm_grpo.problems import build_rewards, prepare
from llm_grpo.tasks import build_task
from llm_grpo.training.arguments import grpo_arguments
from llm_grpo.training.trainer import build_trainer
from llm_grpo.training.watching import watch
from llm_grpo.verification import Reference, exact_model, formulas, subject, verify_update

TOKENS = 592  # of the shipped tokenizer; all but the first 20 are never sampled, so that some completions end
BASE = [
    "model.max_seq_length=128",
    "lora.r=8",
    "lora.alpha=12",
    "grpo.per_device_train_batch_size=8",
    "grpo.num_generations=4",
    "grpo.max_completion_length=10",
    "grpo.temperature=0.9",
    f"grpo.generation_kwargs={{suppress_tokens: {[0, 1, *range(20, TOKENS)]}}}",
]
PROMPTS = ["one two", "three and four and five and six", "x", "how many are there"]
GROUPS_OF_8 = ["grpo.per_device_train_batch_size=16", "grpo.num_generations=8"]
ACCUMULATED = ["grpo.per_device_train_batch_size=4", "grpo.gradient_accumulation_steps=2"]


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Qwen2 of two layers, with grouped heads and biases, sharp enough that attention matters."""
    folder = tmp_path_factory.mktemp("random_qwen2")
    torch.manual_seed(0)
    shape = Qwen2Config(
        vocab_size=TOKENS, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, initializer_range=0.1, tie_word_embeddings=True, pad_token_id=0, eos_token_id=2,
    )  # fmt: skip
    Qwen2ForCausalLM(shape).save_pretrained(folder)
    AutoTokenizer.from_pretrained(TINY).save_pretrained(folder)
    return folder


def length(completions: list[str], **_: object) -> list[float | None]:
    return [None if i == 5 else float(len(text) % 5) for i, text in enumerate(completions)]


def unsure(completions: list[str], **_: object) -> list[float | None]:
    """It cannot judge every fifth completion; completion 5 nobody can judge, and the trainer has to leave it out."""
    return [None if i % 5 == 0 else float(i % 3) for i, _ in enumerate(completions)]


def partly_equal(completions: list[str], **_: object) -> list[float]:
    """The first eight earn 4.2, whose mean over eight comes out one rounding away in float32."""
    return [4.2 if i < 8 else float(i % 3) for i, _ in enumerate(completions)]


def disturb(model: torch.nn.Module, seed: int) -> None:
    """B starts at zero, and so does the gradient of A: a LoRA that has learnt something is put in its place."""
    noise = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B.default" in name:
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=noise).to(parameter))


def build(
    tiny: Path, *overrides: str, rewards: tuple[Callable, ...] = (length, unsure), kind: type = GRPOTrainer
) -> GRPOTrainer:
    """TRL's trainer under our settings, on a model that is away from its KL reference."""
    config = load_config(ROOT / "configs" / "demo.yaml", [f"model.name={tiny}", *BASE, *overrides], environment={})
    policy = load_policy(config)
    disturb(policy.model, seed=1)
    trainer = kind(
        model=policy.model,
        processing_class=policy.tokenizer,
        reward_funcs=list(rewards),
        args=grpo_arguments(config, runs.Run(tiny / "run"), [1.0, 0.5][: len(rewards)], "transformers"),
        train_dataset=Dataset.from_dict({"prompt": PROMPTS}),
    )
    disturb(policy.model, seed=2)
    return trainer


LEVELS = {"token": [], "sequence": ["grpo.importance_sampling_level=sequence", "grpo.epsilon=3.0e-2"]}


@pytest.mark.parametrize("off_policy", [False, True], ids=["on-policy", "off-policy"])
@pytest.mark.parametrize("beta", [0.0, 0.1])
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("loss_type", formulas.LOSS_TYPES)
def test_the_update_is_the_formula(tiny: Path, loss_type: str, level: str, beta: float, off_policy: bool) -> None:
    trainer = build(tiny, f"grpo.loss_type={loss_type}", f"grpo.beta={beta}", *LEVELS[level])
    found = verify_update(trainer, off_policy=off_policy)
    assert found.ok, found
    assert (found.settings.loss_type, found.settings.level, found.settings.beta) == (loss_type, level, beta)
    assert {q.name for q in found.quantities} == {"logps", "advantages", "loss", "gradient"} | (
        {"reference_logps"} if beta else set()
    )
    assert found.trainer == "trl.trainer.grpo_trainer.GRPOTrainer.compute_loss", "stock TRL, and it says so"
    assert found.dtype == "float32" and found.gradient_norm > 0.01
    assert (0.2 < found.clipped < 0.8) if off_policy else found.clipped == 0


SETTINGS = [
    ("batch", ["grpo.scale_rewards=batch"], "one deviation for all groups"),
    ("none", ["grpo.scale_rewards=none"], "Dr. GRPO: no deviation at all"),
    ("normalize_then_sum", ["grpo.multi_objective_aggregation=normalize_then_sum"], "each reward on its own scale"),
    ("clip_higher", ["grpo.epsilon_high=0.28"], "DAPO's two bounds"),
    ("plain_kl", ["grpo.beta=0.1", "grpo.use_bias_correction_kl=false"], "the KL of the GRPO paper"),
    ("truncated", ["grpo.mask_truncated_completions=true"], "whole rows are masked, in attention too"),
    ("dropout", ["lora.dropout=0.5"], "switched off while the two are compared"),
    ("iterations", ["grpo.num_iterations=2"], "old log-probabilities come with the batch"),
    *[
        (f"{kind}_accumulated", [*ACCUMULATED, f"grpo.loss_type={kind}", "grpo.beta=0.1"], "two parts, one update")
        for kind in formulas.LOSS_TYPES
    ],
    *[
        (f"{kind}_two_updates", [*ACCUMULATED, f"grpo.loss_type={kind}", "grpo.steps_per_generation=4"], "two updates of two parts")
        for kind in formulas.LOSS_TYPES
    ],
    ("half_an_update", ["grpo.gradient_accumulation_steps=2", "grpo.steps_per_generation=1"], "two batches, one update"),
]  # fmt: skip


@pytest.mark.parametrize(("overrides", "why"), [row[1:] for row in SETTINGS], ids=[row[0] for row in SETTINGS])
def test_settings_that_change_the_update(tiny: Path, overrides: list[str], why: str) -> None:
    found = verify_update(build(tiny, *overrides), off_policy=True)
    assert found.ok, f"{why}\n{found}"


@pytest.mark.parametrize("mode", ["token_truncate", "token_mask", "sequence_truncate", "sequence_mask"])
def test_the_correction_for_another_engine(tiny: Path, mode: str) -> None:
    """As if vLLM had sampled by slightly other probabilities; TRL's weights are computed here as TRL computes them."""
    trainer = build(tiny, f"grpo.vllm_importance_sampling_mode={mode}", "grpo.vllm_importance_sampling_clip_max=1.3",
                    "grpo.vllm_importance_sampling_clip_min=0.8")  # fmt: skip
    batch = subject.generate(trainer)
    old = subject.logps(trainer, batch)
    gap = 0.3 * torch.randn(old.shape, generator=torch.Generator().manual_seed(0)) * batch["completion_mask"]
    weight = (gap.sum(1, keepdim=True) if "sequence" in mode else gap).exp()
    batch |= {
        "old_per_token_logps": old,
        "sampling_per_token_logps": old - gap,
        "importance_sampling_ratio": weight.clamp(0.8, 1.3) if "truncate" in mode
        else torch.where((weight < 0.8) | (weight > 1.3), 0.0, weight),
    }  # fmt: skip
    trainer.use_vllm = True
    for off_policy in (False, True):
        found = verify_update(trainer, dict(batch), off_policy=off_policy)
        assert found.ok, found


@pytest.mark.parametrize("off_policy", [False, True], ids=["on-policy", "off-policy"])
def test_the_trainer_of_the_demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, off_policy: bool) -> None:
    """As train.py builds it: the shipped model, the demo's rewards, our recording subclass, chat prompts."""
    monkeypatch.chdir(ROOT)
    config = load_config(ROOT / "configs" / "demo.yaml", [f"run.output_dir={tmp_path}", *GROUPS_OF_8], environment={})
    run, policy = runs.create(config), load_policy(config)
    task, rewards = build_task(config.task.name, config.task.args), build_rewards(config.rewards)
    problems = prepare(task, "train", config, policy.tokenizer, 16).problems
    silent = watch(config, run, Console(quiet=True), dict, lambda folder: None)
    trainer = build_trainer(config, policy, task, problems, rewards, run, silent)
    disturb(policy.model, seed=1)
    found = verify_update(trainer, off_policy=off_policy)
    assert found.ok, found
    assert found.trainer == "trl.trainer.grpo_trainer.GRPOTrainer.compute_loss", "ours changes nothing of the loss"


def test_four_bits(tiny: Path) -> None:
    """Stock TRL keeps the LoRA of a quantised model in bfloat16, so that is the precision that is verified."""
    trainer = build(tiny, "model.load_in_4bit=true", "grpo.beta=0.1")
    found = verify_update(trainer, off_policy=True)
    assert found.ok and found.dtype == "bfloat16", found
    assert found["reference_logps"].absolute < 1e-5, "the reference adapter is float32: the 4-bit weights are the same"


def test_sixteen_bits(tiny: Path) -> None:
    trainer = build(tiny, "grpo.bf16=true", "grpo.beta=0.1")
    found = verify_update(trainer, off_policy=True)
    assert found.ok, found
    if not trainer.args.bf16:
        pytest.skip("Unsloth turns bf16 off on a CPU without bfloat16; float32 was verified in its place")
    assert found.dtype == "bfloat16", found
    assert found["logps"].absolute > 1e-4, "autocast was on"


def test_a_group_of_equal_rewards(tiny: Path) -> None:
    """TRL's advantages there are rounding noise of float32 over 1e-4; it is told apart, and the rest still agrees."""
    found = verify_update(build(tiny, *GROUPS_OF_8, rewards=(partly_equal,)), off_policy=True)
    assert found.ok, found
    assert found["advantages_rough"].absolute > 1e-4, "exact arithmetic gives 0"
    assert found["advantages"].absolute < 1e-6


def test_one_step_of_sgd_moves_the_weights_by_the_reference_gradient(tiny: Path) -> None:
    """Nothing between the gradient and the optimizer: the whole of trainer.train(), then W0 - W1 = lr * gradient."""
    trainer = build(tiny, *ACCUMULATED, "grpo.beta=0.1", "grpo.optim=sgd", "grpo.learning_rate=1.0", "grpo.max_steps=1",
                    "grpo.max_grad_norm=0.0", "grpo.warmup_steps=0", "grpo.lr_scheduler_type=constant")  # fmt: skip
    batches, generate = [], trainer._generate_and_score_completions
    trainer._generate_and_score_completions = lambda inputs: batches.append(generate(inputs)) or batches[-1]
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters() if p.requires_grad}
    trainer.train()
    with torch.no_grad():
        moved = {name: before[name] - p for name, p in trainer.model.named_parameters() if name in before}
        for name, parameter in trainer.model.named_parameters():
            if name in before:
                parameter.copy_(before[name])
    (batch,) = batches
    rewards = subject.newest_rewards(trainer, batch)
    reference = Reference(trainer, batch, rewards, subject.settings_of(trainer), torch.device("cpu"))
    assert reference.gradients.keys() == moved.keys()
    for name, gradient in reference.gradients.items():
        assert (moved[name] - gradient).abs().max() < 1e-4 * gradient.abs().max(), name


# --- the comparison is able to fail ---------------------------------------------------------------------------------

honest_logps, honest_aggregate, honest_advantages = (
    exact_model.completion_logps,
    formulas.aggregate,
    formulas.advantages,
)


def short_by_one(mask: torch.Tensor) -> torch.Tensor:
    """Without the last token of each completion."""
    return mask * (mask.flip(1).cumsum(1).flip(1) > 1)


def long_by_one(mask: torch.Tensor) -> torch.Tensor:
    """With one token of padding after each completion."""
    return torch.cat([mask[:, :1], mask[:, :-1]], dim=1).clamp(min=mask)


def k1(logps: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    return logps - reference


def logps_one_late(logits: torch.Tensor, ids: torch.Tensor, prompt_tokens: int, temperature: float) -> torch.Tensor:
    return (logits[prompt_tokens:] / temperature).log_softmax(-1).gather(1, ids[prompt_tokens:, None]).squeeze(1)


MUTANTS = [
    ("the sign of the advantages", formulas, "advantages", lambda r, s: -honest_advantages(r, s), "advantages"),
    ("the sign of the loss", formulas, "objective", lambda ratio, a, s: -ratio * a, "gradient"),
    ("population deviation", formulas, "deviation", lambda v: v[~v.isnan()].std(correction=0), "advantages"),
    ("no floor under the deviation", formulas, "STD_FLOOR", 0.0, "advantages"),
    ("no clipping", formulas, "objective", lambda ratio, a, s: ratio * a, "gradient"),
    ("maximum for minimum", formulas, "objective", lambda ratio, a, s: torch.maximum(ratio * a, ratio.clamp(0.8, 1.2) * a), "gradient"),
    ("another KL estimate", formulas, "kl", k1, "gradient"),
    ("logits one position late", exact_model, "completion_logps", logps_one_late, "logps"),
    ("the temperature forgotten", exact_model, "completion_logps", lambda x, i, p, t: honest_logps(x, i, p, 1.0), "logps"),
    ("mask one token short", formulas, "aggregate", lambda x, m, s: honest_aggregate(x, short_by_one(m), s), "gradient"),
    ("mask one token long", formulas, "aggregate", lambda x, m, s: honest_aggregate(x, long_by_one(m), s), "loss"),
    ("twice the loss", formulas, "aggregate", lambda x, m, s: 2 * honest_aggregate(x, m, s), "gradient"),
    ("no KL", formulas, "kl", lambda logps, reference: 0 * logps, "gradient"),
    ("the KL's reference is the base", exact_model.ExactModel, "reference_adapter", lambda self: None, "reference_logps"),
    ("LoRA scale 1", exact_model.Lora, "delta", lambda self: self.b.detach().double() @ self.a.detach().double(), "logps"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("where", "name", "wrong", "quantity"), [row[1:] for row in MUTANTS], ids=[row[0] for row in MUTANTS]
)
def test_a_wrong_reference_disagrees(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, where: object, name: str, wrong: object, quantity: str
) -> None:
    trainer = build(tiny, "grpo.beta=0.1")
    honest = verify_update(trainer, off_policy=True)
    monkeypatch.setattr(where, name, wrong)
    found = verify_update(trainer, off_policy=True)
    assert honest.ok and not found.ok and not found[quantity].ok, found


@pytest.mark.parametrize("wrong", formulas.LOSS_TYPES)
@pytest.mark.parametrize("loss_type", formulas.LOSS_TYPES)
def test_a_wrong_normaliser_disagrees(tiny: Path, monkeypatch: pytest.MonkeyPatch, loss_type: str, wrong: str) -> None:
    trainer = build(tiny, f"grpo.loss_type={loss_type}", *ACCUMULATED)
    monkeypatch.setattr(formulas, "aggregate", lambda x, m, s: honest_aggregate(x, m, replace(s, loss_type=wrong)))
    found = verify_update(trainer, off_policy=True)
    assert found.ok == (loss_type == wrong), found


class Forgetful(GRPOTrainer):
    """A trainer that forgets that two micro-batches make one update."""

    def compute_loss(self, *args: object, **kwargs: object) -> torch.Tensor:
        return super().compute_loss(*args, **kwargs) * self.args.gradient_accumulation_steps


class Shifted(GRPOTrainer):
    """A trainer that scores each token by its neighbour."""

    def _get_per_token_logps_and_entropies(self, *args: object, **kwargs: object) -> tuple:
        logps, *rest = super()._get_per_token_logps_and_entropies(*args, **kwargs)
        return (logps.roll(1, dims=1), *rest)


@pytest.mark.parametrize(("kind", "quantity"), [(Forgetful, "gradient"), (Shifted, "logps")])
def test_a_wrong_trainer_is_found_out(tiny: Path, kind: type, quantity: str) -> None:
    found = verify_update(build(tiny, *ACCUMULATED, kind=kind))
    assert not found.ok and not found[quantity].ok, found
    assert kind is not Forgetful or found.trainer.endswith("Forgetful.compute_loss"), (
        "the report names whose code it was"
    )


def test_nan_is_not_agreement(tiny: Path) -> None:
    trainer = build(tiny)
    batch = subject.generate(trainer)
    batch["advantages"][2] = float("nan")
    found = verify_update(trainer, batch)
    assert not found["advantages"].ok and not found["gradient"].ok, found


# --- what the reference stands on -----------------------------------------------------------------------------------


def test_patches_do_not_reach_the_reference(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unsloth replaces methods of transformers' classes on a GPU; the twin has to be as on disk."""
    from transformers.models.qwen2 import modeling_qwen2 as patched

    trainer = build(tiny)
    device, ids = torch.device("cpu"), torch.arange(3, 15)
    before = exact_model.ExactModel(trainer.model, device).logps(ids, 4, 1.0)
    for name in ("Qwen2Attention", "Qwen2MLP", "Qwen2RMSNorm", "Qwen2ForCausalLM"):
        monkeypatch.setattr(getattr(patched, name), "forward", None)
    after = exact_model.ExactModel(trainer.model, device).logps(ids, 4, 1.0)
    assert torch.equal(before, after) and after.dtype == torch.float64 and after.shape == (8,)


def test_no_float32_is_left_in_the_reference() -> None:
    """A norm or a softmax in float32 would round as the trainer does; the real module keeps its own code."""
    source = "x = x.to(torch.float32).float(); y = torch.float; z = torch.float16"
    assert exact_model.widened(source) == "x = x.to(torch.float64).double(); y = torch.float64; z = torch.float16"
    twin = exact_model.architecture("qwen2")
    norm = twin.__init__.__globals__["Qwen2RMSNorm"](4).double()
    x = torch.tensor([1.0, 1.0 + 1e-12, 2.0, 3.0], dtype=torch.float64)
    assert norm(x)[1] > norm(x)[0], "1e-12 is there in float64 and lost in float32"
    from transformers.models.qwen2.modeling_qwen2 import Qwen2RMSNorm

    assert Qwen2RMSNorm(4).double()(x)[1] == Qwen2RMSNorm(4).double()(x)[0], "transformers' own rounds to float32"


@pytest.mark.parametrize("model_type", ["llama", "qwen3", "gemma2"])
def test_other_architectures_have_a_twin(model_type: str) -> None:
    small = AutoConfig.for_model(
        model_type, vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, pad_token_id=0,
    )  # fmt: skip
    twin, ids = exact_model.float64_twin(small, torch.device("cpu")), torch.arange(1, 9)[None]
    plain = AutoModelForCausalLM.from_config(small, attn_implementation="eager")
    plain.load_state_dict(twin.state_dict())
    with torch.no_grad():
        gap = (twin(input_ids=ids).logits - plain.float().eval()(input_ids=ids).logits).abs().max()
    assert 0 < gap < 1e-5


def test_both_layouts_of_log_probabilities() -> None:
    """TRL's [N, C]; Unsloth's packed [N, M + C]: row 0 has no padding and starts at M, row 1 has two and starts at 0."""
    batch = {"prompt_mask": torch.tensor([[1, 1, 1], [0, 0, 1]]), "completion_ids": torch.zeros(2, 2)}
    plain = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    packed = torch.tensor([[0.0, 0.0, 1.0, 2.0], [3.0, 4.0, 0.0, 0.0]])
    assert subject.aligned(plain, batch).tolist() == subject.aligned(packed, batch).tolist() == plain.tolist()
    moved = subject.shifted(packed, torch.ones(2, 2), batch)
    assert moved.tolist() == [[0.0, 0.0, 2.0, 3.0], [4.0, 5.0, 0.0, 0.0]]


def test_advantages_by_hand() -> None:
    """Two groups of two; the papers' numbers without a trainer: (1 - 2) / std(1, 3) with std = sqrt(2)."""
    settings = formulas.Settings(
        "grpo", "token", 0.0, True, 0.2, 0.2, "group", "sum_then_normalize", (1.0,), 2, 1.0, 8, 1, 1
    )
    rewards = torch.tensor([[1.0], [3.0], [5.0], [5.0]], dtype=torch.float64)
    expected = 1 / (2**0.5 + 1e-4)
    assert formulas.advantages(rewards, settings).tolist() == pytest.approx([-expected, expected, 0, 0])
    plain = replace(settings, scale_rewards="none")
    assert formulas.advantages(rewards, plain).tolist() == [-1, 1, 0, 0]


def test_the_trainer_is_left_as_it_was(tiny: Path) -> None:
    trainer = build(tiny, "lora.dropout=0.1")
    weights = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    verify_update(trainer)
    assert all(torch.equal(value, weights[name]) for name, value in trainer.model.state_dict().items())
    assert trainer._step == 0 and not trainer._metrics["train"]
    assert all(parameter.grad is None for parameter in trainer.model.parameters())
    assert "_prepare_inputs" not in vars(trainer)
    assert {m.p for m in trainer.model.modules() if isinstance(m, torch.nn.Dropout)} == {0.1}


REFUSED = [
    (["grpo.loss_type=cispo"], "loss_type='cispo'", "no reference written"),
    (["grpo.top_entropy_quantile=0.5"], "top_entropy_quantile", "it would change the loss unseen"),
    (["grpo.delta=2.0"], "delta", "two-sided clipping"),
]


@pytest.mark.parametrize(("overrides", "said", "why"), REFUSED, ids=[row[1] for row in REFUSED])
def test_what_has_no_reference_is_refused(tiny: Path, overrides: list[str], said: str, why: str) -> None:
    with pytest.raises(UserError, match=said):
        verify_update(build(tiny, *overrides))


def test_nothing_to_compare_is_no_agreement(tiny: Path) -> None:
    with pytest.raises(UserError, match="Every advantage is zero"):
        verify_update(build(tiny, rewards=(lambda completions, **_: [1.0] * len(completions),)))
