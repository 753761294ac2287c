"""The batch explained: cases worked by hand."""

from __future__ import annotations

import pytest
from conftest import ROOT

from llm_grpo.config import load_config
from llm_grpo.plan import checkpoint_bytes, explain, explain_batch, lora_parameters

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


def test_a_person_reads_shares_and_disk() -> None:
    rows = dict(explain(load_config(REFERENCE, environment={}), 7473))
    assert rows["a generation batch"] == "1 prompt x 8 generations = 8 completions"
    assert rows["share of the data seen"] == "27%"
    assert rows["an epoch"] == "7,473 updates over 7,473 training prompts"
    assert "GB" in rows["disk for checkpoints"]
    unknown = dict(explain(load_config(REFERENCE, ["model.name=some/other"], environment={}), None))
    assert "not known" in unknown["disk for checkpoints"] and "share of the data seen" not in unknown
