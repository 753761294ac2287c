"""The small bases of benchmarks/: what is saved opens again as it was made, for each architecture."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import ROOT
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.learning import SYSTEMS
from benchmarks.learning_word_problems import write
from benchmarks.warm_start import Stage, System, make_base
from llm_grpo.config.loading import load_config

FEW = ("task.args={train_size: 60, validation_size: 5, test_size: 5}",)


@pytest.mark.parametrize("architecture", ["qwen2", "llama", "gpt2"])
def test_a_base_opens_again_as_it_was_made(architecture: str, tmp_path: Path) -> None:
    facts = make_base(System("configs/demo.yaml", architecture, (Stage(write, updates=2),), FEW), tmp_path)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    assert model.config.model_type == architecture and model.num_parameters() == facts["parameters"]
    text = "Tom has 12 pens.\n<reasoning>\n7+8=15\n</reasoning>"
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.decode(ids) == text and max(ids) < facts["vocabulary"]
    assert len(tokenizer("4567")["input_ids"]) == 4, "digits stay apart, whatever class the tokenizer is opened as"
    assert tokenizer.eos_token_id in ([0] if architecture == "gpt2" else [2])
    assert (tokenizer.chat_template is None) == (architecture == "gpt2")
    assert facts["stages"][0]["habits"].startswith("Half give"), "the habits are said in the result"


@pytest.mark.parametrize("name", SYSTEMS)
def test_every_system_has_a_config_and_says_its_habits(name: str) -> None:
    system = SYSTEMS[name]
    assert load_config(ROOT / system.config, system.overrides, environment={})
    assert all(stage.write.__doc__ for stage in system.stages)
