"""One base for training, evaluation and merge: the one that is named, with its own end tokens and a pad that is none."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import ROOT, TINY
from transformers import AutoTokenizer, GenerationConfig

from llm_grpo.config.loading import load_config
from llm_grpo.errors import UserError
from llm_grpo.loaders import unsloth as loading
from llm_grpo.planning.plan import check_window
from llm_grpo.policy import load_policy
from llm_grpo.rollouts import choose_engine, refused
from llm_grpo.rollouts.endings import end_as_the_base_says, pad_with_no_end

PAD, END = 0, 2  # <|endoftext|> and <|im_end|> of the shipped tokenizer, as Qwen has them


def model(*ends: int) -> SimpleNamespace:
    return SimpleNamespace(generation_config=GenerationConfig(eos_token_id=list(ends)))


def tokenizer(pad: str | None = None, *more: str) -> Any:
    found = AutoTokenizer.from_pretrained(TINY)
    found.add_special_tokens({"additional_special_tokens": list(more)})
    found.pad_token = pad
    return found


ENDS = [
    ([END, PAD], [PAD, END], "Qwen's two: its own model would lack the second after Unsloth's vLLM"),
    (END, END, "one stays one"),
    (None, END, "the base names none: the tokenizer's"),
    (PAD, [PAD, END], "another than the tokenizer's: both end an answer"),
]


@pytest.mark.parametrize(("said", "found", "why"), ENDS, ids=[row[2] for row in ENDS])
def test_the_ends_are_the_bases(tmp_path: Path, said: Any, found: Any, why: str) -> None:
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": said}))
    learned = model(END)
    end_as_the_base_says(learned, tokenizer(), str(tmp_path), None)
    assert learned.generation_config.eos_token_id == found


def test_a_base_without_a_generation_config(tmp_path: Path) -> None:
    learned = model(END, 5)
    end_as_the_base_says(learned, tokenizer(), str(tmp_path), None)
    assert learned.generation_config.eos_token_id == [END, 5]


PADS = [
    ("<|endoftext|>", (), (END,), "<|endoftext|>", "a pad of its own is left alone"),
    ("<|im_end|>", ("<|vision_pad|>",), (END,), "<|vision_pad|>", "it is the end: a token that pads takes its place"),
    ("<|endoftext|>", ("<|vision_pad|>",), (END, PAD), "<|vision_pad|>", "Qwen pads with its second end"),
    ("<|im_end|>", ("<|reserved_0|>", "<|tool|>"), (END,), "<|reserved_0|>", "one that is there to be taken"),
    (None, ("<unk>",), (END,), "<unk>", "none at all"),
]


@pytest.mark.parametrize(("pad", "more", "ends", "found", "why"), PADS, ids=[row[4] for row in PADS])
def test_no_end_pads(pad: str | None, more: tuple[str, ...], ends: tuple[int, ...], found: str, why: str) -> None:
    words = tokenizer(pad, *more)
    pad_with_no_end(model(*ends), words, required=True)
    assert words.pad_token == found


def test_a_tokenizer_with_nothing_to_pad_with() -> None:
    """GPT-2's: TRL's own trainer counts by position and loses nothing, Unsloth's would lose every end."""
    words = tokenizer("<|im_end|>")
    pad_with_no_end(model(END), words, required=False)
    assert words.pad_token == "<|im_end|>"
    with pytest.raises(UserError, match="ends an answer"):
        pad_with_no_end(model(END), words, required=True)


def test_the_base_that_is_named_is_the_one_that_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """By itself Unsloth takes a 4-bit copy of its own for a model that it knows, and drops the revision (the trap is
    in tests/rehearsal/rewritten_trainer.py: its GPU modules would patch TRL here)."""
    asked: dict[str, Any] = {}

    class Loader:
        @staticmethod
        def from_pretrained(**options: Any) -> None:
            asked.update(options)
            raise NotImplementedError("Fast inference does not yet work with automatic RoPE Scaling.")

    monkeypatch.setattr(loading.unsloth, "FastLanguageModel", Loader)
    config = load_config(ROOT / "configs" / "demo.yaml", ["model.revision=abc"], environment={})
    with pytest.raises(UserError, match="cannot load .*RoPE"):
        load_policy(config)
    assert asked["use_exact_model_name"] is True
    assert (asked["model_name"], asked["revision"]) == (config.model.name, "abc")


REFUSED = [
    ("model.trust_remote_code=true", "a model without code of its own", "Unsloth's fast_inference raises there"),
    ("model.revision=abc", "the newest revision", "its vLLM would load another one, with a warning"),
]


@pytest.mark.parametrize(("setting", "said", "why"), REFUSED, ids=[row[0] for row in REFUSED])
def test_what_unsloths_engine_cannot_do_is_said_before(setting: str, said: str, why: str) -> None:
    config = load_config(ROOT / "configs" / "grpo.yaml", [setting, "logging.report_to=[]"], environment={})
    with pytest.raises(UserError, match=f"unsloth needs .*{said}"):
        choose_engine("unsloth", training=config)
    assert refused("vllm", config) == refused("transformers", config) == [], "the others take it"
    assert said in choose_engine("auto", training=config)[1], "auto goes on to the next, and says why"


def test_a_window_above_the_models() -> None:
    config = load_config(ROOT / "configs" / "grpo.yaml", ["model.max_seq_length=40000"], environment={})
    with pytest.raises(UserError, match="has positions for 32768"):
        check_window(config.model)
