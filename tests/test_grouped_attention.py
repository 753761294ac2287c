"""Grouped attention on a CPU: the same answers and numbers as with a copy of the keys for every head, where it acts."""

from __future__ import annotations

import pytest
import torch
from conftest import TINY
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.integrations import sdpa_attention

from llm_grpo.rollouts import Sampling
from llm_grpo.rollouts.transformers import TransformersEngine

PROMPTS = [[{"role": "user", "content": "Mia has 6 boxes with 7 pens. " * repeats}] for repeats in (1, 2, 5)]


@pytest.fixture(scope="module")
def engine() -> TransformersEngine:
    model = AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32)
    assert model.config.num_attention_heads > model.config.num_key_value_heads
    return TransformersEngine(model.eval(), AutoTokenizer.from_pretrained(TINY))


def logits(engine: TransformersEngine) -> torch.Tensor:
    """Of two rows, one of them padded on the left, so that there is a mask."""
    mask = torch.ones(2, 12, dtype=torch.long)
    mask[1, :5] = 0
    return engine.model(input_ids=torch.arange(24).view(2, 12) + 20, attention_mask=mask).logits[mask.bool()]


def test_the_same_answers_and_numbers(engine: TransformersEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    sampling = Sampling(48)
    with torch.no_grad():
        grouped, answers = logits(engine), engine.generate(PROMPTS, sampling)
        asked: list[bool] = []
        monkeypatch.setattr(sdpa_attention, "use_gqa_in_sdpa", lambda *_: bool(asked.append(True)))
        copied, before = logits(engine), engine.generate(PROMPTS, sampling)
    assert asked, "transformers still asks there"
    assert answers == before
    assert (grouped - copied).abs().max() < 1e-5


def test_where_it_acts(engine: TransformersEngine) -> None:
    """With a mask too, and not where a gradient is wanted."""
    key, mask = torch.zeros(1, 2, 4, 8), torch.ones(1, 1, 4, 4, dtype=torch.bool)
    assert not sdpa_attention.use_gqa_in_sdpa(mask, key, key)
    with torch.no_grad():
        assert sdpa_attention.use_gqa_in_sdpa(mask, key, key)
