"""The proof that a merged model is the adapter: its numbers against plain arithmetic, and merges that are wrong."""

from __future__ import annotations

import gc
import json
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TINY
from safetensors.torch import load_file, save_file
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedModel, Qwen2Config, Qwen2ForCausalLM

from llm_grpo import runs
from llm_grpo.config.loading import load_config
from llm_grpo.config.schema import Config, ThresholdsSection
from llm_grpo.errors import UserError
from llm_grpo.export import gaps, merge
from llm_grpo.export.gaps import Answered
from llm_grpo.export.proof import judge, judged, prove, read_proof

# --- the arithmetic --------------------------------------------------------------------------------------------


def random_model(kind: str, seed: int) -> Any:
    torch.manual_seed(seed)
    size = {"vocab_size": 300, "initializer_range": 0.2}
    if kind == "gpt2":  # learned positions
        return GPT2LMHeadModel(GPT2Config(**size, n_embd=16, n_layer=2, n_head=2, n_positions=80)).eval()
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    return Qwen2ForCausalLM(Qwen2Config(**size, **shape, num_key_value_heads=1)).eval()


def plainly(first: Any, second: Any, pairs: list[Answered]) -> dict[str, float]:
    """The same numbers one sequence at a time, in float64 over the whole vocabulary."""
    gap, kl, same = [], [], []
    for pair in pairs:
        row = torch.tensor([pair.prompt + pair.answer])
        with torch.no_grad():
            p, q = (model(input_ids=row).logits[0].double().log_softmax(-1) for model in (first, second))
        for n, token in enumerate(pair.answer):
            at = len(pair.prompt) + n - 1
            gap.append(abs(p[at, token] - q[at, token]).item())
            kl.append((p[at].exp() * (p[at] - q[at])).sum().item())
            same.append(float(p[at].argmax() == q[at].argmax()))
    mean = lambda values: sum(values) / len(values)  # noqa: E731
    names = ("tokens", "mean_logprob_gap", "max_logprob_gap", "kl", "token_agreement")
    return dict(zip(names, (len(gap), mean(gap), max(gap), mean(kl), mean(same)), strict=True))


PAIRS = [
    Answered([5, 6, 7], [8, 9]),
    Answered([1], [2, 3, 4, 5, 6, 7]),
    Answered(list(range(30)), [299]),
    Answered([9, 9], [0] * 20),
]


BEGUN_ALIKE = [Answered([*range(40, 60), *pair.prompt], pair.answer) for pair in (*PAIRS, Answered([5], [8]))]


@pytest.mark.parametrize("pairs", [PAIRS, BEGUN_ALIKE, BEGUN_ALIKE[:1]], ids=["apart", "begun alike", "one"])
@pytest.mark.parametrize("kind", ["qwen2", "gpt2"])
def test_gaps_are_what_plain_arithmetic_gives(
    kind: str, pairs: list[Answered], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gaps, "TOP", 300)
    first, second = random_model(kind, 0), random_model(kind, 1)
    found = gaps.gaps(gaps.read(first, pairs), second, pairs)
    assert found == pytest.approx(plainly(first, second, pairs), abs=1e-5)
    assert found["kl"] > 0.1 and found["max_logprob_gap"] > 0, "the two models differ"


def test_what_all_prompts_begin_with_is_read_once() -> None:
    model, read = random_model("qwen2", 0), []
    model.register_forward_pre_hook(lambda _, args, given: read.append(given["input_ids"].shape[1]), with_kwargs=True)
    gaps.read(model, BEGUN_ALIKE)
    assert read == [20, *(len(pair.prompt) + len(pair.answer) - 20 for pair in BEGUN_ALIKE)]


def test_a_part_of_the_vocabulary_bounds_the_kl_from_below(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = random_model("qwen2", 0), random_model("qwen2", 1)
    exact, last = plainly(first, second, PAIRS)["kl"], 0.0
    for top in (1, 8, 64, 128, 299):
        monkeypatch.setattr(gaps, "TOP", top)
        found = gaps.gaps(gaps.read(first, PAIRS), second, PAIRS)["kl"]
        assert last <= found <= exact + 1e-6
        last = found
    assert last == pytest.approx(exact, abs=1e-4)


def test_a_model_is_no_distance_from_itself() -> None:
    model = random_model("qwen2", 0)
    found = gaps.gaps(gaps.read(model, PAIRS), model, PAIRS)
    assert (found["max_logprob_gap"], found["token_agreement"], found["tokens"]) == (0, 1, 29) and found["kl"] < 1e-7


# --- what is judged --------------------------------------------------------------------------------------------

GOOD = {
    "mean_logprob_gap": 0.01, "max_logprob_gap": 0.5, "kl": 0.001, "share_of_effect": 0.1, "token_agreement": 1.0,
    "text_agreement": 0.9,
}  # fmt: skip
EVEN = {"gained": 3, "lost": 3, "p_value": 1.0}
VERDICTS = [
    ({}, EVEN, True, None, "all is well"),
    (
        {"mean_logprob_gap": 0.051},
        EVEN,
        True,
        "mean_logprob_gap is 0.051; merge.thresholds.mean_logprob_gap allows 0.05",
        "each by its name",
    ),
    ({"max_logprob_gap": 3.1}, EVEN, True, "max_logprob_gap", "one token far off"),
    ({"kl": 0.02}, EVEN, True, "kl is 0.02", "distributions too far apart"),
    ({"kl": None}, EVEN, True, "kl is no number", "a model that computes NaN does not pass"),
    ({"share_of_effect": 0.9}, EVEN, True, "share_of_effect", "nearer to the base than to the adapter"),
    ({"share_of_effect": 0.9, "kl": 5e-5}, EVEN, True, None, "both next to nothing: rounding"),
    ({"share_of_effect": None}, EVEN, True, None, "an adapter that does nothing has no share"),
    ({"token_agreement": 0.96}, EVEN, True, "token_agreement is 0.96; .* asks for 0.97", "other tokens"),
    ({"text_agreement": 0.4}, EVEN, True, "text_agreement", "other answers"),
    (
        {},
        {"gained": 0, "lost": 9, "p_value": 0.0039},
        True,
        "9 answers lost and 0 gained",
        "accuracy lost, not by chance",
    ),
    ({}, {"gained": 0, "lost": 4, "p_value": 0.125}, True, None, "it may be chance"),
    ({}, {"gained": 9, "lost": 0, "p_value": 0.0039}, True, None, "a gain is no fault of the merge"),
    ({}, EVEN, False, "tokenizer", "another tokenizer"),
]


@pytest.mark.parametrize(("change", "paired", "same_prompts", "said", "why"), VERDICTS)
def test_judge(change: dict, paired: dict, same_prompts: bool, said: str | None, why: str) -> None:
    proof = {"merged": GOOD | change, "accuracy": {"paired": paired}, "same_prompts": same_prompts}
    failures = judge(proof, ThresholdsSection())
    assert len(failures) == (said is not None) and (said is None or re.search(said, failures[0])), failures


def test_thresholds_are_a_section_of_the_config() -> None:
    with pytest.raises(UserError, match=r"merge.thresholds.klx: unknown key. Did you mean 'kl'"):
        load_config("configs/demo.yaml", ["merge.thresholds.klx=1"], environment={})
    with pytest.raises(UserError, match="merge.thresholds.p_value: 2.0 given"):
        load_config("configs/demo.yaml", ["merge.thresholds.p_value=2.0"], environment={})
    assert load_config("configs/demo.yaml", ["merge.thresholds.kl=1"], environment={}).merge.thresholds.kl == 1


# --- real merges -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def strong(demo_run: tuple[Path, str], tmp_path_factory: pytest.TempPathFactory) -> tuple[Config, Path]:
    """(config, adapter): the demo's few steps, made twelve times as strong, so that leaving them out shows."""
    run = runs.find(demo_run[0])
    folder = Path(shutil.copytree(run.chosen_weights(), tmp_path_factory.mktemp("strong") / "adapter"))
    weights = load_file(folder / "adapter_model.safetensors")
    weights = {name: w * 12 if "lora_B" in name else w for name, w in weights.items()}
    save_file(weights, folder / "adapter_model.safetensors")
    return run.config(), folder


def merged_with(adapter: Path, folder: Path, scale: float) -> Path:
    """A merge whose adapter counts `scale` times as much as it should."""
    wrong = Path(shutil.copytree(adapter, folder / "wrong"))
    config = json.loads((wrong / "adapter_config.json").read_text())
    (wrong / "adapter_config.json").write_text(json.dumps(config | {"lora_alpha": config["lora_alpha"] * scale}))
    return merge(wrong, folder / "merged", str(TINY)).output_dir


def test_a_right_merge_is_proved(strong: tuple[Config, Path], tmp_path: Path) -> None:
    config, adapter = strong
    merged = merged_with(adapter, tmp_path, 1)
    steps: list[tuple[int, int]] = []
    done: list[int] = []
    alive = lambda: sum(issubclass(type(thing), PreTrainedModel) for thing in gc.get_objects())  # noqa: E731
    gc.collect()  # what other tests left
    before = alive()

    @contextmanager
    def watch(step: str, total: int) -> Iterator[Callable[[int], None]]:
        steps.append((total, alive() - before))
        yield done.append

    proof = prove(config, adapter, str(TINY), merged, 16, watch=watch)
    assert proof["passed"] and proof["failures"] == [] and proof == json.loads((merged / "proof.json").read_text())
    assert [models for _, models in steps] == [2, 2, 2], "a model, body and head, is gone when the next is loaded"
    assert sum(done) == sum(total for total, _ in steps) == 5 * 16, "a bar ends where it said that it would"
    assert (proof["prompts"], proof["split"], proof["task"]) == (16, "test", "word_problems")
    assert 0 < proof["merged"]["kl"] < proof["adapter_effect"]["kl"] / 10 and proof["adapter_effect"]["kl"] > 1e-3
    assert proof["merged"]["tokens"] == proof["adapter_effect"]["tokens"] > 16 * 10
    reports = proof["accuracy"]
    assert reports["adapter"]["n"] == reports["merged"]["n"] == reports["paired"]["n"] == 16
    assert "four_bit" not in proof and proof["weights"].keys() == {"model.safetensors"}


@pytest.mark.parametrize(
    ("scale", "why"), [(0, "left out"), (-1, "taken away"), (0.4, "too weak"), (2.5, "too strong")]
)
def test_a_wrong_merge_is_not(strong: tuple[Config, Path], tmp_path: Path, scale: float, why: str) -> None:
    config, adapter = strong
    proof = prove(config, adapter, str(TINY), merged_with(adapter, tmp_path, scale), 16)
    share = proof["merged"]["share_of_effect"]
    assert not proof["passed"] and share > 0.2, (scale, proof["merged"], proof["adapter_effect"])


def test_another_tokenizer_is_noticed(strong: tuple[Config, Path], tmp_path: Path) -> None:
    config, adapter = strong
    merged = merged_with(adapter, tmp_path, 1)
    (merged / "chat_template.jinja").write_text((merged / "chat_template.jinja").read_text() + " ")
    proof = prove(config, adapter, str(TINY), merged, 4)
    assert [failure for failure in proof["failures"] if "other tokens of the prompts" in failure]


def test_a_model_that_computes_no_numbers_fails(strong: tuple[Config, Path], tmp_path: Path) -> None:
    config, adapter = strong
    merged = merged_with(adapter, tmp_path, 1)
    weights = load_file(merged / "model.safetensors")
    weights["model.norm.weight"][:] = torch.nan
    save_file(weights, merged / "model.safetensors", {"format": "pt"})
    proof = prove(config, adapter, str(TINY), merged, 4)
    assert not proof["passed"] and proof["merged"]["kl"] is None
    assert "kl is no number: the model's output is broken" in proof["failures"]


def test_a_proof_is_of_the_weights_beside_it(strong: tuple[Config, Path], tmp_path: Path) -> None:
    config, adapter = strong
    merged = merged_with(adapter, tmp_path, 1)
    proof = prove(config, adapter, str(TINY), merged, 4)
    assert read_proof(merged) == proof
    stricter = judged(proof, ThresholdsSection(kl=0.0), merged)
    assert not stricter["passed"] and read_proof(merged) == stricter, "judged anew without asking the models again"
    assert stricter["merged"] == proof["merged"]
    weights = load_file(merged / "model.safetensors")
    weights["model.norm.weight"][0] += 1
    save_file(weights, merged / "model.safetensors", {"format": "pt"})
    assert read_proof(merged) is None
    (merged / "proof.json").write_text("{")
    assert read_proof(merged) is None


def test_the_price_of_a_4bit_base_is_told_apart(
    strong: tuple[Config, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The adapter on the 4-bit base is further off than the merge, and that is no fault of the merge."""
    config, adapter = strong
    config = config.model_copy(update={"model": config.model.model_copy(update={"load_in_4bit": True})})
    merged = merged_with(adapter, tmp_path, 1)
    proof = prove(config, adapter, str(TINY), merged, 8)
    assert proof["passed"] and proof["four_bit"]["measured"]
    assert proof["four_bit"]["kl"] > 5 * proof["merged"]["kl"]
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)  # as where it is not installed
    proof = prove(config, adapter, str(TINY), merged, 2)
    assert proof["four_bit"] == {"measured": False, "why": "bitsandbytes is not installed on this machine"}
