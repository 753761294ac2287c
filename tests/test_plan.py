"""The batch explained: cases worked by hand."""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT

from llm_grpo.config.loading import load_config
from llm_grpo.errors import UserError
from llm_grpo.planning.batch import explain_batch
from llm_grpo.planning.card import card_bytes, fit, largest, memory_rows
from llm_grpo.planning.duration import Speed, work_of
from llm_grpo.planning.memory import checkpoint_bytes, memory_of, sharded
from llm_grpo.planning.plan import check_window, explain
from llm_grpo.planning.shapes import KNOWN_SHAPES, lora_parameters, model_parameters, model_shape, positions

REFERENCE = ROOT / "configs" / "grpo.yaml"
CASES = [
    # overrides, prompts/generation, completions/update, updates/generation, prompts/update, prompts seen
    ((), 1, 8, 1, 1, 2000),
    (("grpo.per_device_train_batch_size=8",), 8, 64, 1, 8, 16000),
    (("grpo.steps_per_generation=16",), 2, 8, 2, 1, 2000),
    (("grpo.num_iterations=2",), 1, 8, 2, 0.5, 1000),
    (("grpo.generation_batch_size=32",), 4, 8, 4, 1, 2000),
    (("grpo.num_generations=4", "grpo.max_steps=10"), 2, 8, 1, 2, 20),
]


@pytest.mark.parametrize(("overrides", "prompts", "completions", "rounds", "per_update", "seen"), CASES)
def test_batches(overrides, prompts, completions, rounds, per_update, seen) -> None:
    batch = explain_batch(load_config(REFERENCE, overrides, environment={}))
    assert batch.prompts_per_generation == prompts
    assert batch.completions_per_update == completions
    assert batch.updates_per_generation == rounds
    assert batch.prompts_per_update == per_update
    assert batch.prompts_seen == seen
    assert batch.max_tokens_per_update == completions * 2048


def test_epochs_need_the_data() -> None:
    config = load_config(REFERENCE, ["grpo.max_steps=-1", "grpo.num_train_epochs=2.0"], environment={})
    assert explain_batch(config).updates is None
    assert explain_batch(config, train_examples=100).updates == 200


def test_lora_parameters_of_the_reference_model_by_hand() -> None:
    config = load_config(REFERENCE, environment={})
    # Qwen2.5-3B: hidden 2048, 16 heads and 2 key-value heads of 128, inner 11008, 36 layers
    per_layer = 64 * ((2048 + 2048) + 2 * (2048 + 256) + (2048 + 2048) + 3 * (2048 + 11008))
    assert lora_parameters({"hidden_size": 2048, "intermediate_size": 11008, "num_hidden_layers": 36,
                            "num_attention_heads": 16, "num_key_value_heads": 2}, 64, None) == 36 * per_layer  # fmt: skip
    assert checkpoint_bytes(config) == 36 * per_layer * ((4 + 2) * (3 + 1) + 2 * 4)


PUBLISHED = {  # as their safetensors on the Hub count them
    "Qwen/Qwen2.5-3B-Instruct": 3_085_938_688,
    "Qwen/Qwen2.5-1.5B-Instruct": 1_543_714_304,
    "meta-llama/Llama-3.2-1B-Instruct": 1_235_814_400,
    "distilbert/distilgpt2": 81_912_576,
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_all_parameters_are_counted(name: str) -> None:
    assert model_parameters(model_shape(name)) == PUBLISHED[name]


def test_the_parameters_of_a_model_in_memory_are_counted() -> None:
    from transformers import AutoModelForCausalLM

    tiny = AutoModelForCausalLM.from_pretrained(ROOT / "examples" / "tiny_qwen2")
    assert model_parameters(model_shape(str(ROOT / "examples" / "tiny_qwen2"))) == tiny.num_parameters()


MEMORY = [  # bytes per value of what is trained, then of the frozen rest
    (("lora=null",), 1_235_814_400 * (4 + 4 + 8), "float32 weights, gradients, two float32 moments"),
    (("lora=null", "grpo.optim=adamw_8bit"), 1_235_814_400 * (4 + 4 + 2), "the moments in 8 bit"),
    (("lora=null", "grpo.optim=sgd"), 1_235_814_400 * (4 + 4), "no moments"),
    (("lora=null", "grpo.beta=0.1"), 1_235_814_400 * (4 + 4 + 8 + 4), "a KL term needs the starting weights again"),
    (("grpo.beta=0.1",), 45_088_768 * (4 + 4 + 8) + 1_235_814_400 * 2, "a LoRA has them in its base, in 16 bit"),
    (
        ("model.load_in_4bit=true",),
        45_088_768 * 16 + (1_235_814_400 - 973_078_528) * 2 + 973_078_528 * (32 * 256 + 256 + 4) // (64 * 256),
        "projections in 4 bit with their scales, the rest in 16",
    ),
]


@pytest.mark.parametrize(("overrides", "size", "why"), MEMORY, ids=[row[2] for row in MEMORY])
def test_memory_to_train_a_1_b_llama_by_hand(overrides: tuple[str, ...], size: int, why: str) -> None:
    config = load_config(ROOT / "configs" / "qa_llama1b.yaml", overrides, environment={})
    # Llama-3.2-1B: hidden 2048, 32 heads and 8 key-value heads of 64, inner 8192, 16 layers
    per_layer = 2 * 2048 * 2048 + 2 * 2048 * 512 + 3 * 2048 * 8192
    assert 16 * per_layer == 973_078_528 and 45_088_768 == 16 * 64 * (2 * 4096 + 2 * 2560 + 3 * 10240)
    plan = memory_of(config, KNOWN_SHAPES[config.model.name], gpu=True)
    assert plan.base + plan.trained + plan.gradients == size, why


def test_training_all_weights_is_held_against_a_lora() -> None:
    config = load_config(ROOT / "configs" / "qa_llama1b.yaml", ["lora=null"], environment={})
    rows = dict(memory_rows(config, gpu=True))
    said = rows["memory: what is trained"]
    assert said.startswith("19.77 GB: 1,235.8 M of 1,235.8 M values, 4 (weight) + 4 (gradient) + 8 (optimiser)")
    assert said.endswith("a LoRA of rank 64 would take 3.19 GB")


def test_gpt2_is_counted_as_transformers_and_peft_count_it() -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import GPT2Config, GPT2LMHeadModel

    shape = GPT2Config(vocab_size=50, n_positions=40, n_embd=16, n_layer=2, n_head=2)
    model = GPT2LMHeadModel(shape)
    assert model_parameters(from_config(shape)) == model.num_parameters()
    for targets in (["c_attn", "c_proj", "c_fc"], ["c_proj"]):
        lora = get_peft_model(GPT2LMHeadModel(shape), LoraConfig(r=4, target_modules=targets, fan_in_fan_out=True))
        trained = sum(p.numel() for p in lora.parameters() if p.requires_grad)
        assert lora_parameters(from_config(shape), 4, targets) == trained


BUILT = [  # what the architecture has besides the sizes below, and why it is tried
    ("llama", {}, "the pattern of all"),
    ("llama", {"attention_bias": True, "mlp_bias": True}, "biases that config.json asks for"),
    ("mistral", {"head_dim": 24}, "heads that are not hidden / heads wide"),
    ("granite", {}, "as Llama"),
    ("smollm3", {}, "tied where it does not say"),
    ("qwen2", {}, "biases that config.json does not name"),
    ("qwen3", {}, "heads of 128, with a norm each"),
    ("gemma", {}, "tied and with heads of 256 where it does not say"),
    ("gemma2", {}, "four norms"),
    ("gemma3_text", {}, "four norms and head norms"),
    ("phi3", {}, "fused projections"),
    ("gpt2", {}, "learned positions, a bias everywhere"),
    ("mixtral", {"num_local_experts": 4}, "experts"),
    ("qwen2_moe", {"num_experts": 4, "moe_intermediate_size": 24, "shared_expert_intermediate_size": 40}, "a shared expert"),
    ("qwen3_moe", {"num_experts": 4, "moe_intermediate_size": 24, "head_dim": 32}, "Qwen3-30B-A3B's kind"),
]  # fmt: skip


@pytest.mark.parametrize("tied", [None, True, False])
@pytest.mark.parametrize(("kind", "more", "why"), BUILT, ids=[f"{row[0]}-{row[2]}" for row in BUILT])
def test_every_family_is_counted_as_transformers_builds_it(
    kind: str, more: dict, why: str, tied: bool | None, tmp_path: Path
) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from llm_grpo.policy import _block_layers

    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4,
             "num_key_value_heads": 2, "vocab_size": 300, "max_position_embeddings": 128, "pad_token_id": 0}  # fmt: skip
    if kind == "gpt2":
        sizes = {"n_embd": 64, "n_layer": 3, "n_head": 4, "vocab_size": 300, "n_positions": 128}
    said = {} if tied is None else {"tie_word_embeddings": tied}
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **sizes, **more, **said))
    # A config.json of the Hub leaves out what is its class's default; what transformers saves writes some of it out.
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind, **sizes, **more, **said}))
    shape = model_shape(str(tmp_path))
    assert model_parameters(shape) == model_parameters(from_config(model.config)) == model.num_parameters(), why
    if kind != "gpt2":  # its Conv1D are tried with PEFT above
        targets = set(_block_layers(model))
        linear = [m for name, m in model.named_modules() if name.rpartition(".")[2] in targets]
        assert lora_parameters(shape, 4, None) == 4 * sum(m.in_features + m.out_features for m in linear)


def test_a_mixture_of_experts_is_counted_whole(tmp_path: Path) -> None:
    a3b = {"model_type": "qwen3_moe", "hidden_size": 2048, "intermediate_size": 6144, "num_hidden_layers": 48,
           "num_attention_heads": 32, "num_key_value_heads": 4, "head_dim": 128, "vocab_size": 151936,
           "num_experts": 128, "moe_intermediate_size": 768, "tie_word_embeddings": False,
           "decoder_sparse_step": 1, "mlp_only_layers": []}  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(a3b))
    assert model_parameters(model_shape(str(tmp_path))) == 30_532_122_624, "Qwen3-30B-A3B, as its safetensors count it"
    for change, why in (
        ({"mlp_only_layers": [0]}, "some layers are dense: not counted here"),
        ({"model_type": "deepseek_v3"}, "another kind of experts"),
        ({"num_experts": None}, "how many is not said"),
    ):
        (tmp_path / "config.json").write_text(json.dumps(a3b | change))
        assert model_shape(str(tmp_path)) is None, why


def from_config(config: object) -> object:
    """The shape as it is read from the folder such a config was saved in."""
    with tempfile.TemporaryDirectory() as folder:
        config.save_pretrained(folder)
        return model_shape(folder)


POSITIONS = [
    ({"max_position_embeddings": 512}, 512, "most models"),
    ({}, None, "a model without a limit"),
    ({"max_position_embeddings": 512, "rope_scaling": {"type": "yarn", "factor": 4.0}}, None, "stretched"),
    ({"max_position_embeddings": 512, "rope_scaling": None}, 512, "not stretched"),
    ({"max_position_embeddings": 512, "rope_parameters": {"rope_type": "default"}}, 512, "transformers 5 says so"),
]


@pytest.mark.parametrize(("shape", "limit", "why"), POSITIONS)
def test_positions(shape: dict, limit: int | None, why: str) -> None:
    assert positions(shape) == limit, why


WINDOWS = [
    ("distilbert/distilgpt2", 1024, False, "GPT-2's table ends at 1024"),
    ("distilbert/distilgpt2", 1025, True, "one more is an index error in the embedding"),
    (str(ROOT / "examples" / "tiny_qwen2"), 256, False, "a folder"),
    (str(ROOT / "examples" / "tiny_qwen2"), 257, True, "the same for RoPE, one behaviour for all"),
    ("some/other", 10**6, False, "not at hand"),
]


@pytest.mark.parametrize(("name", "window", "refused", "why"), WINDOWS)
def test_a_window_over_the_positions_is_refused_at_the_door(name: str, window: int, refused: bool, why: str) -> None:
    config = load_config(REFERENCE, [f"model.name={name}", f"model.max_seq_length={window}",
                                     "grpo.max_completion_length=64"], environment={})  # fmt: skip
    with pytest.raises(UserError, match=rf"{window} tokens, but .* has positions for") if refused else nullcontext():
        check_window(config.model)


def test_a_person_reads_shares_and_disk() -> None:
    rows = dict(explain(load_config(REFERENCE, environment={}), 7473))
    assert rows["a generation batch"].startswith("1 prompt x 8 generations = 8 completions (few for vLLM: ")
    many = dict(explain(load_config(REFERENCE.with_name("grpo_64.yaml"), environment={}), 7473))
    assert many["a generation batch"] == "8 prompts x 8 generations = 64 completions"
    assert rows["rows that teach nothing"].startswith("on: ")
    assert rows["share of the data seen"] == "27%"
    assert rows["an epoch"] == "7,473 updates over 7,473 training prompts"
    assert "GB" in rows["disk for checkpoints"]
    unknown = dict(explain(load_config(REFERENCE, ["model.name=some/other"], environment={}), None))
    assert "not known" in unknown["disk for checkpoints"] and "share of the data seen" not in unknown


def plan_of(name: str, *overrides: str, gpu: bool = True, card: float | None = None) -> tuple[Any, Any]:
    config = load_config(ROOT / "configs" / f"{name}.yaml", overrides, environment={})
    return config, memory_of(config, model_shape(config.model.name), gpu, card)


def test_a_card_by_hand() -> None:
    """Qwen2.5-3B in bfloat16: 36 layers, 2 key-value heads of 128, hidden 2048, inner 11008, vocabulary 151936."""
    _, plan = plan_of("gpu_80gb")
    assert plan.cache == 64 * 4096 * 36 * 2 * 256 * 2 and plan.copy == 0, "64 sequences, over the policy's weights"
    whole, parts = 16 * 4096, 6 * 2048 + 4 * 2048 + 4 * 11008 + 7 * 64 + 2 * 2048 + 3 * 11008
    assert plan.activations == whole * 2 * (2 * 2048 + parts), (
        "one layer, and the input of two: the host has the others"
    )
    chunk = 512  # 16 x 2,048 answers x 2,048 / 151,936 would be 441, and fewer than 512 are not taken
    assert plan.logits == chunk * 151_936 * 6 + 3 * whole * 2048 * 2, "float32 and its gradient, then the hidden states"
    assert plan.at_most == sum(value for name, value in vars(plan).items() if name not in ("lent", "gpu"))


ENGINES = [  # overrides, what changes
    (
        ["rollouts.engine=vllm"],
        lambda plan, plain: plan.copy == 2 * 3_085_938_688,
        "a 16-bit copy beside a 4-bit policy",
    ),
    (["rollouts.engine=transformers"], lambda plan, plain: plan.generation > plan.cache == plan.engine == 0, "its own"),
    (
        ["rollouts.engine=server", "rollouts.url=http://there:8000"],
        lambda plan, plain: plan.copy == plan.cache == plan.engine == plan.generation == 0 < plan.base == plain.base,
        "nothing of vLLM is on the trainer's card",
    ),
    (["grpo.gradient_checkpointing=false"], lambda plan, plain: plan.activations > 20 * plain.activations, "36 layers"),
    (["rollouts.standby=true"], lambda plan, plain: plan.at_most < plain.at_most, "the cache is lent"),
    (["grpo.optim=paged_adamw_32bit"], lambda plan, plain: plan.trained == plain.trained * 2, "8 bytes in place of 2"),
    (["lora=null", "model.load_in_4bit=false"], lambda plan, plain: plan.base == 0 < plan.gradients, "all are trained"),
]


@pytest.mark.parametrize(("overrides", "holds", "why"), ENGINES, ids=[row[0][0] for row in ENGINES])
def test_what_changes_the_plan(overrides: list[str], holds: Any, why: str) -> None:
    _, plain = plan_of("gpu_16gb", "grpo.per_device_train_batch_size=4", "grpo.gradient_accumulation_steps=16")
    more = ["grpo.per_device_train_batch_size=4", "grpo.gradient_accumulation_steps=16"]
    assert holds(plan_of("gpu_16gb", *more, *overrides)[1], plain), why


def test_the_work_of_a_step_by_hand() -> None:
    config, _ = plan_of("gpu_80gb")
    work = work_of(config, model_shape(config.model.name), gpu=True)
    layers = 36 * (2 * 2048 * 2048 + 2 * 2048 * 256 + 3 * 2048 * 11_008)
    head, attention = 2048 * 151_936, 36 * 4096 * 2048  # 4,096 seen by the last token, half of them on average, twice
    passes = 1 + 1 + 1  # forward, forward again for what checkpointing dropped, back to what went in
    assert work.update == passes * 2 * (64 * 4096 * (layers + attention) + 64 * 2048 * head)
    assert work.prompts == 2 * 8 * 2048 * (layers + attention), "each prompt once"
    assert work.answers == 2 * 64 * 2048 * (layers + head + 2 * attention)
    weights, cache = 2 * 3_085_938_688, 64 * 4096 * 36 * 2 * 256 * 2
    assert work.read == 2048 * (weights + cache)
    assert Speed(1e12, 1e12, 0).generation(work) == (work.prompts + max(work.answers, work.read)) / 1e12


def test_what_is_shared_out_over_cards_by_hand() -> None:
    """Weights, LoRA, gradients and moments in eighths, two of 36 layers whole; the rest is each card's own."""
    config, plan = plan_of("multi_gpu", "rollouts.engine=server", "rollouts.url=http://there:8000")
    own = plan.activations + plan.logits + plan.libraries
    shared = plan.base + plan.trained + plan.gradients
    each = sharded(plan, model_shape(config.model.name), 8)
    assert each == pytest.approx(own + shared / 8 + plan.base / 18) and each < plan.at_most
    assert dict(memory_rows(config, gpu=True, cards=8))["memory, shared out"].startswith(
        f"{each / 1e9:.2f} GB on each of 8"
    )


WORK = [  # overrides, what becomes of an update's work, why
    (["grpo.gradient_checkpointing=false"], 2 / 3, "nothing is done twice"),
    (["lora=null", "model.load_in_4bit=false"], 4 / 3, "weights have a gradient"),
    (["grpo.num_iterations=2"], 1, "an update is an update"),
]


@pytest.mark.parametrize(("overrides", "times", "why"), WORK, ids=[row[0][0] for row in WORK])
def test_what_changes_the_work(overrides: list[str], times: float, why: str) -> None:
    plain, other = (
        work_of(c, model_shape(c.model.name), gpu=True) for c in (plan_of("grpo_64", *o)[0] for o in ([], overrides))
    )
    assert other.update == pytest.approx(times * plain.update), why
    share = 0.5 if "iterations" in overrides[0] else 1
    assert other.answers == share * plain.answers


def test_the_time_is_said_of_this_machine_or_of_cards(tmp_path: Path) -> None:
    here = dict(explain(load_config(ROOT / "configs" / "demo.yaml", environment={}), 4000))["time, about"]
    assert re.match(r"\d+\.\d s a step, .* in all; generation .* update .*tried just now", here)
    if shutil.which("nvidia-smi") is None:
        there = dict(explain(load_config(REFERENCE, environment={}), 7473))["time, about"]
        assert re.search(r"T4: .* a step, .* in all; .*H100: .* \(assumed: ", there)
    unknown = dict(explain(load_config(REFERENCE, ["model.name=some/other"], environment={}), None))
    assert "time, about" not in unknown


def test_a_mixture_of_experts_has_weights_and_no_guess(tmp_path: Path) -> None:
    shape = {"model_type": "mixtral", "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "vocab_size": 99,
             "num_attention_heads": 4, "num_key_value_heads": 2, "num_local_experts": 4}  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(shape))
    config, plan = plan_of("grpo", f"model.name={tmp_path}")
    assert plan.base > 2 * 2 * 4 * 3 * 64 * 96, "the experts stay in 16-bit" and plan.at_most is None
    assert dict(explain(config, None))["memory in all, at most"].startswith("not known")
    with pytest.raises(UserError, match="mixture of experts"):
        fit(config, 24e9)


FITS = [
    ("grpo_64", 12),
    ("grpo_64", 16),
    ("grpo_64", 24),
    ("gpu_80gb", 16),
    ("gpu_80gb", 24),
    ("grpo", 80),
    ("gpu_24gb", 24),
]


def test_what_a_server_needs_is_said_apart() -> None:
    config, _ = plan_of("gpu_16gb", "rollouts.engine=server", "rollouts.url=http://there:8000")
    said = dict(explain(config, 7473))["memory: generation"]
    _, own = plan_of("gpu_16gb", "rollouts.engine=vllm")
    needs = f"{own.base / 1e9:.2f} GB for weights, {own.cache / 1e9:.2f} GB for 64 sequences of"
    assert said.startswith(f"by the server at http://there:8000, nothing of it here; it needs {needs}"), (
        "4-bit there too"
    )


@pytest.mark.parametrize("engine", ["unsloth", "vllm", "server", "transformers"])
@pytest.mark.parametrize(("name", "gigabytes"), FITS)
def test_what_fits_a_card_is_the_same_learning(name: str, gigabytes: int, engine: str) -> None:
    words = [f"rollouts.engine={engine}", *(["rollouts.url=http://there:8000"] if engine == "server" else [])]
    before, _ = plan_of(name, *words)
    try:
        fitted = fit(before, gigabytes * 1e9)
    except UserError as error:
        assert engine == "vllm" and gigabytes < 24 and "does not fit" in str(error)
        return
    config, plan = plan_of(name, *words, *fitted, card=gigabytes * 1e9)
    assert (
        plan.at_most <= gigabytes * 1e9
        and largest(config, model_shape(config.model.name), gigabytes * 1e9)[:7] == "it fits"
    )
    old, new = explain_batch(before), explain_batch(config)
    assert (old.completions_per_update, old.prompts_per_generation) == (
        new.completions_per_update,
        new.prompts_per_generation,
    )
    assert any(word.startswith("model.gpu_memory") for word in fitted) == (
        engine == "vllm" or engine == "unsloth" and name != "gpu_24gb"
    )


@pytest.mark.parametrize("rounds", ["grpo.steps_per_generation=2", "grpo.generation_batch_size=24"])
def test_what_fits_draws_as_many_at_a_time(rounds: str) -> None:
    """Fewer are drawn than an update takes: a micro-batch has to divide them too."""
    before, _ = plan_of("grpo_64", rounds)
    after, _ = plan_of("grpo_64", rounds, *fit(before, 80e9))
    assert explain_batch(after) == explain_batch(before)


def test_what_does_not_fit_is_refused() -> None:
    config = load_config(REFERENCE, environment={})
    with pytest.raises(UserError, match=r"does not fit 4 GB.*max_seq_length"):
        fit(config, card_bytes("4 GB"))
    for wrong in ("many", "0", "24TB"):
        with pytest.raises(UserError, match="such as 24GB"):
            card_bytes(wrong)


@pytest.mark.parametrize("gigabytes", [16, 24, 80])
def test_the_header_of_a_gpu_config_is_the_plan(gigabytes: int) -> None:
    """Where it is not: paste what is expected."""
    file = ROOT / "configs" / f"gpu_{gigabytes}gb.yaml"
    rows = memory_rows(load_config(file, environment={}), gpu=True, card=gigabytes * 1e9)
    assert "".join(f"#   {what}: {said}\n" for what, said in rows) in file.read_text()
    assert rows[-1][1].startswith("it fits")
