"""Merging by streaming against PEFT, on tiny random models made here; and what is refused, interrupted or cut off."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import run_script
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from llm_grpo.errors import UserError
from llm_grpo.export import merge, streaming, tensors
from llm_grpo.export.source import original

ROOT = Path(__file__).parents[1]
ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
GPT2_ALL = ["c_attn", "c_proj", "c_fc"]  # attn.c_proj is square, and lies the other way round


def make_base(folder: Path, kind: str = "qwen2", dtype: str = "float32", tied: bool = False, **save: Any) -> Path:
    torch.manual_seed(0)
    size = {"vocab_size": 96, "tie_word_embeddings": tied}
    wide = {"hidden_size": 32, "intermediate_size": 80, "num_hidden_layers": 2, "num_attention_heads": 4}
    heads = {"num_key_value_heads": 2, "max_position_embeddings": 64}
    model = {
        "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**size, **wide, **heads)),
        "llama": lambda: LlamaForCausalLM(LlamaConfig(**size, **wide, **heads)),
        "gpt2": lambda: GPT2LMHeadModel(GPT2Config(**size, n_embd=32, n_layer=2, n_head=4, n_positions=64)),
    }[kind]()
    model.to(getattr(torch, dtype)).save_pretrained(folder, **save)
    return folder


def make_adapter(folder: Path, base: Path, **lora: Any) -> Path:
    """An adapter with both halves random: a fresh one adds nothing, and every merge of it would be right."""
    settings = {"r": 4, "lora_alpha": 12, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM"} | lora
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), LoraConfig(**settings))
    generator = torch.Generator().manual_seed(1)
    for name, weight in model.named_parameters():
        if "lora_" in name or "modules_to_save" in name:
            weight.data = torch.randn(weight.shape, generator=generator).to(weight.dtype) * 0.1
    model.save_pretrained(folder)
    return folder


def with_peft(base: Path, adapter: Path) -> PeftModel:
    return PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter)


def assert_same_weights(merged: Path, expected: torch.nn.Module) -> None:
    opened = AutoModelForCausalLM.from_pretrained(merged).state_dict()
    assert opened.keys() == expected.state_dict().keys()
    for name, weight in expected.state_dict().items():
        assert opened[name].dtype == weight.dtype and torch.equal(opened[name], weight), name


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(torch.arange(1, 60)[None]).logits


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    """(base, adapter) of the plainest kind, in bfloat16."""
    base = make_base(tmp_path / "base", dtype="bfloat16")
    return base, make_adapter(tmp_path / "adapter", base)


# --- against PEFT ----------------------------------------------------------------------------------------------

BIT_EQUAL = [
    ("qwen2", "float32", {"target_modules": ALL}, "every projection"),
    ("qwen2", "bfloat16", {"target_modules": ALL}, "summed in float32, rounded once"),
    ("llama", "float16", {"target_modules": ALL}, "float16 keeps its type"),
    ("llama", "bfloat16", {"target_modules": "all-linear"}, "target_modules as a word"),
    ("gpt2", "float32", {"target_modules": GPT2_ALL}, "transposed Conv1D, a square one among them"),
    ("gpt2", "bfloat16", {"target_modules": ["c_attn"]}, "fused query, key and value"),
    ("qwen2", "float32", {"use_rslora": True, "r": 8}, "alpha / sqrt(r)"),
    ("qwen2", "float32", {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"v_proj": 3}}, "patterns by suffix"),
    ("qwen2", "float32", {"rank_pattern": {r".*\.0\.self_attn\.v_proj": 7}, "alpha_pattern": {"0.self_attn.q_proj": 1}},
     "patterns for one layer"),
    ("qwen2", "float32", {"alpha_pattern": {"proj": 99, "q_proj": 1}}, "'proj' is no whole name, so it does not fit"),
    ("qwen2", "float32", {"layers_to_transform": [1]}, "some layers only"),
    ("qwen2", "bfloat16", {"modules_to_save": ["lm_head"]}, "a whole layer that was trained"),
    ("llama", "float32", {"modules_to_save": ["embed_tokens", "norm"]}, "embedding and norm that were trained"),
    ("llama", "float32", {"target_modules": ["q_proj", "embed_tokens"]}, "LoRA of an embedding"),
    ("llama", "bfloat16", {"target_modules": ["lm_head"]}, "LoRA of the output layer"),
    ("qwen2", "float32", {"init_lora_weights": "gaussian"}, "another start that leaves the base alone"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "dtype", "lora", "why"), BIT_EQUAL)
def test_bit_equal_with_peft(tmp_path: Path, kind: str, dtype: str, lora: dict[str, Any], why: str) -> None:
    base = make_base(tmp_path / "base", kind, dtype)
    adapter = make_adapter(tmp_path / "adapter", base, **lora)
    merge(adapter, tmp_path / "merged", dtype=dtype if dtype == "float32" else "auto")
    before = AutoModelForCausalLM.from_pretrained(base)
    expected = with_peft(base, adapter).merge_and_unload()
    assert not torch.allclose(logits(before), logits(expected), atol=1e-2), "the adapter changes something"
    assert_same_weights(tmp_path / "merged", expected)


TIED = [
    ("qwen2", {"target_modules": ["q_proj", "embed_tokens"]}, "LoRA of the shared tensor as input only"),
    ("qwen2", {"target_modules": ["q_proj", "lm_head"]}, "and as output only"),
    ("qwen2", {"target_modules": ["embed_tokens", "lm_head"]}, "and as both"),
    ("qwen2", {"modules_to_save": ["lm_head"]}, "an output layer that was trained apart"),
    ("qwen2", {"modules_to_save": ["embed_tokens"]}, "an input embedding that was trained apart"),
    ("gpt2", {"target_modules": ["c_attn", "wte"]}, "the same by GPT-2's names"),
]


@pytest.mark.filterwarnings("ignore:Model .*tie:UserWarning")
@pytest.mark.parametrize(("kind", "lora", "why"), TIED)
def test_tied_embeddings_become_two(tmp_path: Path, kind: str, lora: dict[str, Any], why: str) -> None:
    """Compared with the adapter at work: merge_and_unload would change both ends of the shared tensor."""
    base = make_base(tmp_path / "base", kind, tied=True)
    adapter = make_adapter(tmp_path / "adapter", base, **lora)
    report = merge(adapter, tmp_path / "merged", dtype="float32")
    assert report.untied
    assert json.loads((tmp_path / "merged/config.json").read_text())["tie_word_embeddings"] is False
    torch.testing.assert_close(
        logits(AutoModelForCausalLM.from_pretrained(tmp_path / "merged")),
        logits(with_peft(base, adapter)),
        atol=1e-5,
        rtol=1e-5,
    )


def test_tied_embeddings_that_are_not_touched_stay_one(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base", tied=True)
    adapter = make_adapter(tmp_path / "adapter", base)
    report = merge(adapter, tmp_path / "merged", dtype="float32")
    assert not report.untied and "lm_head.weight" not in load_file(tmp_path / "merged/model.safetensors")
    assert (report.tensors, report.merged_tensors) == (len(load_file(base / "model.safetensors")), 4)
    assert_same_weights(tmp_path / "merged", with_peft(base, adapter).merge_and_unload())


def test_checkpoint_whose_names_lack_the_first_part(tmp_path: Path) -> None:
    """The Hub's gpt2 says `h.0...`, the model and so the adapter `transformer.h.0...`."""
    base = make_base(tmp_path / "base", "gpt2", tied=True)
    adapter = make_adapter(tmp_path / "adapter", base, target_modules=[*GPT2_ALL, "wte"])
    expected = logits(with_peft(base, adapter))
    old = load_file(base / "model.safetensors")
    short = {name.removeprefix("transformer."): weight for name, weight in old.items()}
    assert "h.0.attn.c_attn.weight" in short
    save_file(short, base / "model.safetensors", {"format": "pt"})
    merge(adapter, tmp_path / "merged", dtype="float32")
    torch.testing.assert_close(logits(AutoModelForCausalLM.from_pretrained(tmp_path / "merged")), expected)


def test_pieces_of_a_large_tensor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Matrix products of pieces may differ in the last bit; the bound is one unit in the last place of 1.0."""
    for kind, targets in (("llama", [*ALL, "embed_tokens"]), ("gpt2", GPT2_ALL)):
        base = make_base(tmp_path / kind / "base", kind)
        adapter = make_adapter(tmp_path / kind / "adapter", base, target_modules=targets)
        merge(adapter, tmp_path / kind / "whole", dtype="float32")
        monkeypatch.setattr(tensors, "CHUNK_ELEMENTS", 100)
        merge(adapter, tmp_path / kind / "pieces", dtype="float32")
        monkeypatch.undo()
        whole, pieces = (load_file(tmp_path / kind / name / "model.safetensors") for name in ("whole", "pieces"))
        assert whole.keys() == pieces.keys()
        for name, weight in whole.items():
            torch.testing.assert_close(pieces[name], weight, atol=2**-23, rtol=0)


# --- types, files ----------------------------------------------------------------------------------------------

TYPES = [
    ("bfloat16", "auto", torch.bfloat16, "as the base"),
    ("float16", "auto", torch.float16, "as the base"),
    ("float32", "auto", torch.float16, "float32 becomes the finer 16-bit type"),
    ("float32", "bfloat16", torch.bfloat16, "as asked"),
    ("bfloat16", "float32", torch.float32, "as asked"),
    ("bfloat16", "float16", torch.float16, "as asked"),
]


@pytest.mark.parametrize(("dtype", "asked", "expected", "reason"), TYPES)
def test_types(tmp_path: Path, dtype: str, asked: str, expected: torch.dtype, reason: str) -> None:
    base = make_base(tmp_path / "base", dtype=dtype)
    adapter = make_adapter(tmp_path / "adapter", base, modules_to_save=["lm_head"])
    report = merge(adapter, tmp_path / "merged", dtype=asked)
    merged, old = (load_file(folder / "model.safetensors") for folder in (tmp_path / "merged", base))
    assert {weight.dtype for weight in merged.values()} == {expected}, "what was trained in float32 too"
    assert str(expected) == f"torch.{report.dtype}" and (reason in report.dtype_reason or asked == "auto")
    name = "model.layers.0.self_attn.k_proj.weight"
    assert torch.equal(merged[name], old[name].to(expected)), "what is not touched is rounded once"
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "merged").dtype == expected
    assert json.loads((tmp_path / "merged/config.json").read_text())["dtype"] == report.dtype
    assert report.bytes_written == sum(weight.nbytes for weight in merged.values())


def test_greedy_answers_survive_the_default_type(tmp_path: Path) -> None:
    """auto makes float16 of float32 because it is the finer: its worst log-probability gap is well below bfloat16's."""
    base = make_base(tmp_path / "base", tied=True)
    adapter = make_adapter(tmp_path / "adapter", base, target_modules=ALL)
    exact = logits(with_peft(base, adapter)).log_softmax(-1)
    gaps = {}
    for dtype in ("auto", "bfloat16"):
        merge(adapter, tmp_path / dtype, dtype=dtype)
        opened = AutoModelForCausalLM.from_pretrained(tmp_path / dtype, dtype=torch.float32)
        gaps[dtype] = (logits(opened).log_softmax(-1) - exact).abs().max()
        if dtype == "auto":
            assert torch.equal(logits(opened).argmax(-1), exact.argmax(-1))
    assert gaps["auto"] < gaps["bfloat16"] / 4


def test_mixed_types_and_other_tensors_are_kept(tmp_path: Path) -> None:
    """A 16-bit base may hold float32 and integer tensors; without a wish they stay as they are, byte by byte."""
    base = make_base(tmp_path / "base", dtype="bfloat16")
    adapter = make_adapter(tmp_path / "adapter", base)
    weights = load_file(base / "model.safetensors")
    weights |= {"a.flag": torch.tensor([True]), "b.one": torch.tensor(3), "c.wide": torch.rand(3, 5)}
    weights["d.empty"], weights["e.scalar"] = torch.zeros(0, 4), torch.tensor(1.5, dtype=torch.bfloat16)
    save_file(weights, base / "model.safetensors", {"format": "pt", "note": "kept"})
    merge(adapter, tmp_path / "merged")
    merged = load_file(tmp_path / "merged/model.safetensors")
    untouched = [name for name in weights if "q_proj.weight" not in name and "v_proj.weight" not in name]
    assert len(weights) - len(untouched) == 4
    for name in untouched:
        assert merged[name].dtype == weights[name].dtype and torch.equal(merged[name], weights[name]), name
    merge(adapter, tmp_path / "half", dtype="float16")
    half = load_file(tmp_path / "half/model.safetensors")
    written = (tmp_path / "half/model.safetensors").read_bytes()
    header = json.loads(written[8 : 8 + int.from_bytes(written[:8], "little")])
    for name, tensor in half.items():
        assert header[name]["data_offsets"][0] % tensor.itemsize == 0, f"{name} starts at a multiple of its width"
    assert {half[name].dtype for name in ("c.wide", "d.empty", "e.scalar")} == {torch.float16}
    assert half["a.flag"].dtype == torch.bool and half["b.one"].item() == 3


def test_shards_stay_as_they_are(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base", dtype="bfloat16", tied=True, max_shard_size="20KB")
    adapter = make_adapter(tmp_path / "adapter", base, target_modules=["q_proj", "lm_head"])
    seen: list[tuple[int, int]] = []
    report = merge(adapter, tmp_path / "merged", on_progress=lambda done, total: seen.append((done, total)))
    names = [sorted(file.name for file in folder.glob("*.safetensors")) for folder in (base, tmp_path / "merged")]
    assert names[0] == names[1] and len(names[0]) > 2
    index = json.loads((tmp_path / "merged/model.safetensors.index.json").read_text())
    old = json.loads((base / "model.safetensors.index.json").read_text())
    assert index["weight_map"] == old["weight_map"] | {"lm_head.weight": old["weight_map"]["model.embed_tokens.weight"]}
    assert index["metadata"]["total_size"] == report.bytes_written == seen[-1][0] == seen[-1][1]
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    opened = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    gap = logits(opened).float() - logits(with_peft(base, adapter)).float()
    assert gap.abs().max() < 0.05, "bfloat16 rounding, no more"


def test_the_other_files(pair: tuple[Path, Path], tmp_path: Path) -> None:
    base, adapter = pair
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.json", "LICENSE", "README.md", "optimizer.bin"):
        (base / name).write_text("base")
    (base / "generation_config.json").write_text('{"temperature": 0.7}')
    merge(adapter, tmp_path / "a")
    names = {file.name for file in (tmp_path / "a").iterdir()}
    own = {"config.json", "model.safetensors", "generation_config.json"}
    assert names == own | {"tokenizer.json", "tokenizer_config.json", "vocab.json", "LICENSE"}
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (adapter / name).write_text("adapter")
    merge(adapter, tmp_path / "b")
    assert {f.name: f.read_text() for f in (tmp_path / "b").glob("[tcv]*") if f.name != "config.json"} == {
        "tokenizer.json": "adapter",
        "tokenizer_config.json": "adapter",
        "chat_template.jinja": "adapter",
    }, "the tokenizer that was trained with, none of the base's beside it"


# --- refused by name -------------------------------------------------------------------------------------------

KINDS = [
    ({"use_dora": True}, "use_dora=True"),
    ({"bias": "all"}, "bias='all'"),
    ({"lora_bias": True}, "lora_bias=True"),
    ({"peft_type": "IA3"}, "peft_type='IA3'"),
    ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights='pissa_niter_4'"),
    ({"target_parameters": ["experts.gate_up_proj"]}, "target_parameters"),
    ({"trainable_token_indices": [1, 2]}, "trainable_token_indices"),
    ({"ensure_weight_tying": True}, "ensure_weight_tying=True"),
    ({"use_something_of_tomorrow": {"a": 1}}, "use_something_of_tomorrow"),
]


def rewrite(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


@pytest.mark.parametrize(("changes", "named"), KINDS)
def test_kinds_of_adapter_that_are_refused(pair: tuple[Path, Path], changes: dict[str, Any], named: str) -> None:
    base, adapter = pair
    rewrite(adapter / "adapter_config.json", **changes)
    with pytest.raises(UserError, match=named):
        merge(adapter, base.parent / "merged")
    assert not list(base.parent.glob("merged*")), "nothing is written"


def test_real_dora_is_refused(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base")
    adapter = make_adapter(tmp_path / "adapter", base, use_dora=True)
    with pytest.raises(UserError, match="use_dora=True"):
        merge(adapter, tmp_path / "merged")
    rewrite(adapter / "adapter_config.json", use_dora=False)
    with pytest.raises(UserError, match="lora_magnitude_vector"):
        merge(adapter, tmp_path / "merged")


Q = "base_model.model.model.layers.0.self_attn.q_proj.lora_"
BROKEN_ADAPTERS = [
    (lambda w: w.pop(f"{Q}B.weight"), "q_proj' has only A"),
    (lambda w: w.update({f"{Q}A.weight": torch.zeros(4, 33)}), r"needs a weight of shape \(32, 33\).*\(32, 32\)"),
    (lambda w: w.update({f"{Q}A.weight": torch.zeros(5, 32)}), "only LoRA of linear layers"),
    (lambda w: w.update({f"{Q}A.weight": torch.zeros(4, 32, 3, 3)}), "only LoRA of linear layers"),
    (lambda w: w.update({f"{Q}A.weight": torch.full((4, 32), torch.nan)}), "q_proj.weight' holds values that are no"),
    (lambda w: w.update({"base_model.model.lm_head.weight": torch.zeros(97, 32)}), "resized vocabulary"),
    (lambda w: w.update({"base_model.model.lm_haed.weight": torch.zeros(9)}), "'lm_haed.weight' is not in the base"),
    (lambda w: w.update({"base_model.model.x.lora_C.weight": torch.zeros(9)}), "x.lora_C.weight' is not a tensor"),
    (lambda w: w.clear(), "no LoRA tensors"),
]


@pytest.mark.parametrize(("damage", "said"), BROKEN_ADAPTERS)
def test_adapters_that_do_not_fit(pair: tuple[Path, Path], damage: Any, said: str) -> None:
    base, adapter = pair
    weights = load_file(adapter / "adapter_model.safetensors")
    damage(weights)
    save_file(weights, adapter / "adapter_model.safetensors")
    with pytest.raises(UserError, match=said):
        merge(adapter, base.parent / "merged")
    assert not list(base.parent.glob("merged*"))


def test_folders_that_are_no_adapter_or_no_base(pair: tuple[Path, Path], tmp_path: Path) -> None:
    base, adapter = pair
    target = tmp_path / "merged"
    with pytest.raises(UserError, match="no adapter_config.json"):
        merge(tmp_path, target)
    with pytest.raises(UserError, match="no config.json"):
        merge(adapter, target, str(adapter))
    with pytest.raises(UserError, match="there is no 'fp16'.*float16"):
        merge(adapter, target, dtype="fp16")
    whole = (base / "model.safetensors").read_bytes()
    for kept, said in ((len(whole) - 1, "cut off"), (20, "cut off"), (3, "cut off")):
        (base / "model.safetensors").write_bytes(whole[:kept])
        with pytest.raises(UserError, match=said):
            merge(adapter, target)
    (base / "model.safetensors").rename(base / "pytorch_model.bin")
    with pytest.raises(UserError, match="only safetensors"):
        merge(adapter, target)
    (adapter / "adapter_model.safetensors").unlink()
    with pytest.raises(UserError, match="no adapter_model.safetensors"):
        merge(adapter, target)


def test_a_weight_too_large_for_float16_is_named(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base")
    adapter = make_adapter(tmp_path / "adapter", base)
    weights = load_file(base / "model.safetensors")
    weights["model.norm.weight"][3] = 70_000
    save_file(weights, base / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=r"'model.norm.weight' .*float16.*bfloat16"):
        merge(adapter, tmp_path / "merged")
    assert not list(tmp_path.glob("merged*")), "nor is a part of it left behind"
    merge(adapter, tmp_path / "merged", dtype="bfloat16")


# --- 4-bit bases and the Hub -----------------------------------------------------------------------------------

NAMES = [
    ("unsloth/Qwen2.5-3B-Instruct-bnb-4bit", "unsloth/Qwen2.5-3B-Instruct"),
    ("unsloth/qwen2.5-3b-instruct-unsloth-bnb-4bit", "unsloth/qwen2.5-3b-instruct"),
    ("Qwen/Qwen2.5-3B-Instruct", "Qwen/Qwen2.5-3B-Instruct"),
    ("someone/bnb-4bit-tricks", "someone/bnb-4bit-tricks"),
]


@pytest.mark.parametrize(("name", "of_16_bit"), NAMES)
def test_names_of_4bit_copies(name: str, of_16_bit: str) -> None:
    assert original(name) == of_16_bit


def test_a_quantized_base_is_refused(pair: tuple[Path, Path], tmp_path: Path) -> None:
    base, adapter = pair
    rewrite(base / "config.json", quantization_config={"quant_method": "bitsandbytes"})
    with pytest.raises(UserError, match=r"quantized \(bitsandbytes\).*model\.merge_base"):
        merge(adapter, tmp_path / "merged")


def offline(code: str, cache: Path) -> subprocess.CompletedProcess[str]:
    """In a process of its own: huggingface_hub reads its environment once, when it is imported."""
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(cache), "PYTHONPATH": str(ROOT / "src")}
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)


def test_an_adapter_of_a_4bit_copy_goes_into_the_original(pair: tuple[Path, Path], tmp_path: Path) -> None:
    """The Hub's cache stands in for the Hub; the copy itself is not in it, and is not asked for."""
    base, adapter = pair
    rewrite(adapter / "adapter_config.json", base_model_name_or_path="unsloth/tiny-unsloth-bnb-4bit", revision="abc")
    code = f"from llm_grpo.export import merge; print(merge({str(adapter)!r}, {str(tmp_path / 'merged')!r}).base)"
    done = offline(code, tmp_path / "hub")
    last = done.stderr.strip().splitlines()[-1]
    assert "'unsloth/tiny' is no folder here" in last and "model.merge_base" in last
    repository = tmp_path / "hub/hub/models--unsloth--tiny"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs/main").write_text("0123")
    (repository / "snapshots").mkdir()
    base.rename(repository / "snapshots/0123")
    done = offline(code, tmp_path / "hub")
    assert done.stdout.strip() == "unsloth/tiny", done.stderr
    expected = with_peft(repository / "snapshots/0123", adapter).merge_and_unload()
    assert_same_weights(tmp_path / "merged", expected)


# --- whole or not at all ---------------------------------------------------------------------------------------


def test_nothing_is_overwritten_without_being_told(pair: tuple[Path, Path], tmp_path: Path) -> None:
    base, adapter = pair
    merge(adapter, tmp_path / "merged")
    with pytest.raises(UserError, match="is there already.*--overwrite"):
        merge(adapter, tmp_path / "merged", dtype="float32")
    assert merge(adapter, tmp_path / "merged", dtype="float32", overwrite=True).dtype == "float32"
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "merged").dtype == torch.float32
    for precious in (base, adapter, tmp_path):
        with pytest.raises(UserError, match="is read for the merge"):
            merge(adapter, precious, overwrite=True)
    (tmp_path / "other").mkdir()
    with pytest.raises(UserError, match="no model of ours"):
        merge(adapter, tmp_path / "other", overwrite=True)


def test_what_a_kill_left_behind_is_cleared_or_restored(pair: tuple[Path, Path], tmp_path: Path) -> None:
    _, adapter = pair
    merge(adapter, tmp_path / "merged")
    (tmp_path / "merged.partial").mkdir()
    (tmp_path / "merged").rename(tmp_path / ".merged.old")  # killed between the two renames
    with pytest.raises(UserError, match="is there already"):
        merge(adapter, tmp_path / "merged")
    assert (tmp_path / "merged/config.json").is_file(), "the former model is back"
    merge(adapter, tmp_path / "merged", overwrite=True)
    assert [path.name for path in tmp_path.glob("*merged*")] == ["merged"]


def test_an_interruption_leaves_what_was_there(pair: tuple[Path, Path], tmp_path: Path) -> None:
    _, adapter = pair

    def interrupt(done: int, total: int) -> None:
        if done > total / 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        merge(adapter, tmp_path / "merged", on_progress=interrupt)
    assert not list(tmp_path.glob("merged*"))
    merge(adapter, tmp_path / "merged")
    with pytest.raises(KeyboardInterrupt):
        merge(adapter, tmp_path / "merged", on_progress=interrupt, overwrite=True)
    assert [path.name for path in tmp_path.glob("*merged*")] == ["merged"]
    AutoModelForCausalLM.from_pretrained(tmp_path / "merged")


def test_a_rename_that_fails_brings_the_former_model_back(pair: tuple[Path, Path], tmp_path: Path) -> None:
    merge(pair[1], tmp_path / "merged")
    with pytest.raises(FileNotFoundError), streaming.whole_folder(tmp_path / "merged", 1, overwrite=True) as draft:
        draft.rmdir()
    assert [path.name for path in tmp_path.glob("*merged*")] == ["merged"]
    AutoModelForCausalLM.from_pretrained(tmp_path / "merged")


def test_a_full_disk_is_noticed_before_the_work(tmp_path: Path) -> None:
    with (
        pytest.raises(UserError, match=r"GB free.*needs 1000000000\.0 GB"),
        streaming.whole_folder(tmp_path / "merged", 10**18, overwrite=False),
    ):
        pytest.fail("the work began")
    assert not list(tmp_path.glob("merged*"))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux has a file that is always full")
def test_a_disk_that_fills_up_meanwhile_leaves_nothing_behind(tmp_path: Path) -> None:
    with (
        pytest.raises(UserError, match="is full; nothing that was finished is lost"),
        streaming.whole_folder(tmp_path / "merged", 1, overwrite=False) as draft,
    ):
        (draft / "model.safetensors").write_bytes(b"half")
        Path("/dev/full").write_bytes(b"the other half")
    assert not list(tmp_path.glob("merged*"))


KILLED = """
import os, shutil, sys, time
from pathlib import Path
from llm_grpo.export import merge
adapter, target = map(Path, sys.argv[1:3])
draft = target.with_name("merged.partial")
# The children do the work and use threads of their own; this process only forks, so that torch is imported once.
for number, delay in enumerate(map(float, sys.argv[3:])):
    if number % 2:
        shutil.rmtree(target, ignore_errors=True)  # every other merge has nothing to replace
    if number > 11:
        shutil.rmtree(draft, ignore_errors=True)  # of the one before: see below
    child = os.fork()
    if not child:
        merge(adapter, target, dtype="float32", overwrite=True, on_progress=lambda done, total: time.sleep(0.005))
        os._exit(0)
    while number > 11 and not draft.exists():
        time.sleep(0.001)  # the last ones are timed from the beginning of the writing, however busy the machine is
    if number < 14:
        time.sleep(delay)
        os.kill(child, 9)
    os.waitpid(child, 0)
    print("killed" if draft.exists() else "idle", "whole" if target.exists() else "none", *sorted(p.name for p in target.glob("*")), flush=True)
"""


def test_a_kill_at_any_moment_leaves_no_model_or_a_whole_one(pair: tuple[Path, Path], tmp_path: Path) -> None:
    """About 0.15 s of work per merge, killed at random within 0.3 s: before, in the middle of it, and after."""
    base, adapter = pair
    seed = random.randrange(10**6)
    rng = random.Random(seed)
    delays = [f"{rng.uniform(0, 0.3):.4f}" for _ in range(12)] + ["0.02", "0.02", "0"]
    command = [sys.executable, "-c", KILLED, str(adapter), str(tmp_path / "merged"), *delays]
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": str(ROOT / "src")}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    states = done.stdout.strip().splitlines()
    whole = "whole config.json generation_config.json model.safetensors"
    assert len(states) == 15 and {state.partition(" ")[2] for state in states} <= {"none", whole}, f"seed {seed}"
    assert any(state == "killed none" for state in states), "some were hit in the middle of the work"
    assert states[-1] == f"idle {whole}", "the last one had the time it needs"
    assert_same_weights(tmp_path / "merged", with_peft(base, adapter).float().merge_and_unload())


MEMORY = """
import re, sys
from pathlib import Path
import torch
from llm_grpo.export import merge
torch.ones(64, 64) @ torch.ones(64, 64)  # what the first product costs is not the merge's
# Not getrusage: its maximum is inherited from the process that started this one.
peak = lambda: 1024 * int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
before = peak()
report = merge(Path(sys.argv[1]), Path(sys.argv[2]))
print(report.bytes_written, peak() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="the peak of memory is read from Linux's /proc")
def test_memory_does_not_grow_with_the_file(pair: tuple[Path, Path], tmp_path: Path) -> None:
    """A file of 300 MB with a tensor of 200 MB costs a few pieces of 32 MB where nothing is added to its tensors."""
    base, adapter = pair
    weights = load_file(base / "model.safetensors")
    weights |= {f"extra.{n}": torch.zeros(1024, 10_000, dtype=torch.bfloat16) for n in range(5)}
    weights["extra.large"] = torch.zeros(1024, 100_000, dtype=torch.bfloat16)
    save_file(weights, base / "model.safetensors", {"format": "pt"})
    command = [sys.executable, "-c", MEMORY, str(adapter), str(tmp_path / "merged")]
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": str(ROOT / "src")}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    written, grown = map(int, done.stdout.split())
    assert written > 300e6 and grown < 100e6, done.stdout
    for folder in (base, tmp_path / "merged"):
        (folder / "model.safetensors").unlink()


# --- the script ------------------------------------------------------------------------------------------------


def script(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    with pytest.MonkeyPatch.context() as clean:
        for name in ("HF_TOKEN", "HF_HUB_OFFLINE"):
            clean.delenv(name, raising=False)
        return run_script("src/merge.py", *words, **environment)


@pytest.fixture
def run(pair: tuple[Path, Path], tmp_path: Path) -> Path:
    """A run's folder as far as merging needs one."""
    from llm_grpo.config.loading import load_config
    from llm_grpo.config.yaml_text import write_yaml

    base, adapter = pair
    folder = tmp_path / "run"
    folder.mkdir()
    adapter.rename(folder / "adapter")
    said = f"model: {{name: {base}}}\ntask: {{name: word_problems}}\nrewards: [{{name: correctness_reward_func}}]\n"
    (tmp_path / "config.yaml").write_text(said)
    config = load_config(tmp_path / "config.yaml", environment={})
    (folder / "config.yaml").write_text(write_yaml(config.as_dict(), "A run of the tests."))
    return folder


def test_the_script_merges_a_run_once(run: Path, pair: tuple[Path, Path]) -> None:
    done = script("--run", str(run), "--skip-proof")
    assert done.returncode == 0, done.stderr
    said = " ".join(done.stdout.split())
    assert "4 of 27 tensors changed" in said and "bfloat16, as the base" in said
    assert "AutoModelForCausalLM.from_pretrained(" in said and "merged" in said
    assert_same_weights(run / "merged", with_peft(pair[0], run / "adapter").merge_and_unload())
    again = script("--run", str(run))
    assert again.returncode == 2 and "is there already" in again.stderr and "Traceback" not in again.stderr
    unproved = ("--run", str(run), "--skip-proof")
    assert script(*unproved, "--overwrite", "--dtype", "float32").returncode == 0
    assert script(*unproved, "--output", str(run / "other"), "--base", str(pair[0])).returncode == 0


def test_the_config_names_the_base(run: Path, pair: tuple[Path, Path]) -> None:
    rewrite(run / "adapter/adapter_config.json", base_model_name_or_path="unsloth/nowhere-bnb-4bit")
    assert script("--run", str(run), "--skip-proof").returncode == 0, "model.name wins over what the adapter says"
    text = (run / "config.yaml").read_text().replace("merge_base: null", "merge_base: /no/such/base")
    (run / "config.yaml").write_text(text)
    done = script("--run", str(run), "--overwrite", HF_HUB_OFFLINE="1")
    assert done.returncode == 2 and "/no/such/base" in done.stderr, "model.merge_base wins over both"


def test_push_is_checked_before_the_work(run: Path) -> None:
    done = script("--run", str(run), "--push", "user/repo")
    assert done.returncode == 2 and "set HF_TOKEN" in done.stderr and not (run / "merged").exists()
    dead = {"HF_TOKEN": "hf_secretsecretsecret", "HF_ENDPOINT": "http://127.0.0.1:9"}
    done = script("--run", str(run), "--push", "user/repo", **dead)
    assert done.returncode == 2 and "--push user/repo" in done.stderr and not (run / "merged").exists()
    assert "Traceback" not in done.stderr and "secret" not in done.stdout + done.stderr


def test_the_script_says_what_it_needs() -> None:
    done = script()
    assert done.returncode == 2 and "--run outputs/NAME" in done.stderr
    done = script("--run", "outputs/no-such-run")
    assert done.returncode == 2 and done.stderr.startswith("error: outputs/no-such-run")
