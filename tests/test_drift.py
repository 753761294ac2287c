"""The gap between who generates and who learns: measured with every engine, and told once when it is too large."""

from __future__ import annotations

import pytest
import torch

from llm_grpo.diagnosis.drift import Drift
from llm_grpo.rollouts.sampled import gap, sampled_logprobs


class TestWhatIsSampled:
    @pytest.fixture(scope="class")
    def model(self):
        from conftest import TINY
        from transformers import AutoModelForCausalLM

        return AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32).eval()

    def test_log_probabilities_are_those_of_the_sampled_tokens(self, model) -> None:
        """Rows of unequal length, one that stops at once: against a forward pass over the finished sequences."""
        prompt = torch.tensor([[5, 9, 30, 41], [7, 7, 50, 11], [99, 3, 8, 120]])
        torch.manual_seed(0)
        with sampled_logprobs(model, temperature=0.7) as sampled:
            drawn = model.generate(
                prompt, attention_mask=torch.ones_like(prompt), do_sample=True, temperature=0.7, top_k=0,
                max_new_tokens=9, eos_token_id=-1, pad_token_id=0,
            )  # fmt: skip
        completions = [row[4:].tolist() for row in drawn]
        completions[1] = completions[1][:3]
        completions[2] = []
        found = sampled.of(completions)
        with torch.no_grad():
            full = (model(drawn).logits[:, 3:-1] / 0.7).log_softmax(-1)
        exact = full.gather(2, drawn[:, 4:, None]).squeeze(2)
        assert [len(row) for row in found] == [9, 3, 0]
        for row, ids in enumerate(completions):
            assert found[row] == pytest.approx(exact[row, : len(ids)].tolist(), abs=1e-4)

    def test_the_models_generate_is_its_own_again(self, model) -> None:
        before = model.generate
        with pytest.raises(KeyError), sampled_logprobs(model, 1.0):
            assert model.generate != before
            raise KeyError
        assert model.generate == before and "generate" not in vars(model)


def test_the_gap_counts_only_what_the_mask_counts() -> None:
    trained, sampled = torch.tensor([[-1.0, -2.0, 9.0]]), torch.tensor([[-1.5, -2.0, 0.0]])
    assert gap(trained, sampled, torch.tensor([[1, 1, 0]])) == pytest.approx(0.25)


@pytest.mark.parametrize(
    ("gaps", "warned_at"),
    [
        ([1e-6] * 20, None),  # float32: rounding
        ([0.01] * 20, None),  # 16-bit: two engines round differently
        ([1e-6] * 5 + [1e-4], None),  # grown, but nothing that matters
        ([None], 0),  # NaN all over the step, as TRL logs it
        ([0.5], 0),  # another model answers: said at once
        ([0.004] * 6 + [0.03], 6),  # stale: five times what it was, and no rounding
        ([0.004] * 5 + [0.019], None),  # grown, still within 16-bit rounding
        ([0.03] * 20, None),  # 4-bit kernels may differ as much from the first step on
    ],
    ids=str,
)
def test_when_it_is_told(gaps: list[float | None], warned_at: int | None) -> None:
    drift = Drift()
    told = [index for index, value in enumerate(gaps) if drift(value)]
    assert told == ([] if warned_at is None else [warned_at])


def test_it_is_told_once_with_causes() -> None:
    drift = Drift()
    said = drift(0.7)
    assert "0.7 nats" in said and "not synced" in said and "top_p" in said
    assert drift(0.9) is None
