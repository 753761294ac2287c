"""The gap between who generates and who learns: measured with every engine, and told once when it is too large."""

from __future__ import annotations

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import LoraLayer
from transformers import GenerationConfig
from transformers.cache_utils import DynamicLayer

from llm_grpo.diagnosis.drift import Drift
from llm_grpo.rollouts import sampled as drawing
from llm_grpo.rollouts.sampled import BEGINNING, ROOM, STAGE, RoomyLayer, beginning_apart, gap, sampled_logprobs

QUESTIONS = ["Mia has 6 boxes with 7 pens in each. How many pens?"] * 2 + ["Tom has 12 pens and gives 5 to Mia."]


def answer_in(ids: list[int], ends: list[int]) -> list[int]:
    """The tokens up to the first that ends an answer."""
    return ids[: next((n for n, token in enumerate(ids) if token in ends), len(ids) - 1) + 1]


class TestWhatIsSampled:
    @pytest.fixture(scope="class")
    def model(self):
        from conftest import TINY
        from transformers import AutoModelForCausalLM

        return AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32).eval()

    @pytest.mark.parametrize("in_stages", [True, False])
    def test_log_probabilities_are_those_of_the_sampled_tokens(self, model, in_stages: bool) -> None:
        """Rows that end at unequal lengths, one prompt asked twice: against a forward pass over the finished rows."""
        prompt = torch.tensor(
            [[5, 9, 30, 41], [0, 7, 50, 11], [99, 3, 8, 120], [99, 3, 8, 120], [7, 7, 7, 7], [4, 5, 6, 8]]
        )
        mask = torch.ones_like(prompt)
        mask[1, 0] = 0
        torch.manual_seed(0)
        settings = GenerationConfig(do_sample=True, temperature=5.0, top_k=0, max_new_tokens=30,
                                    eos_token_id=[*range(0, 592, 13)], pad_token_id=0)  # fmt: skip
        with sampled_logprobs(model, 5.0, in_stages) as sampled:
            drawn = model.generate(input_ids=prompt, attention_mask=mask, generation_config=settings)
        answers = [answer_in(row[4:].tolist(), settings.eos_token_id) for row in drawn]
        found = sampled.of(answers)
        lengths = {len(ids) for ids in answers}
        assert len(lengths) > 1 and max(lengths) == drawn.shape[1] - 4 > STAGE, "rows end in different stages"
        assert answers[2] != answers[3]
        whole = torch.cat([mask, torch.ones_like(drawn[:, 4:])], dim=1)
        with torch.no_grad():
            positions = (whole.cumsum(1) - 1).clamp(min=0)
            full = (model(drawn, attention_mask=whole, position_ids=positions).logits[:, 3:-1] / 5.0).log_softmax(-1)
        exact = full.gather(2, drawn[:, 4:, None]).squeeze(2)
        for row, ids in enumerate(answers):
            assert found[row] == pytest.approx(exact[row, : len(ids)].tolist(), abs=1e-4)

    @pytest.mark.parametrize(
        "beginning", ["", "Solve the problem. Show your work, step by step, and end with the sum. "]
    )
    def test_the_likeliest_answers_are_those_of_one_generate(self, model, tokenizer, beginning: str) -> None:
        """With a LoRA that has learnt something; its base comes back bit for bit, and PEFT knows of nothing. What all
        prompts begin with is read apart."""
        torch.manual_seed(0)
        lora = get_peft_model(
            copy.deepcopy(model), LoraConfig(r=4, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM")
        )
        for name, parameter in lora.named_parameters():
            parameter.data += 0.3 * torch.randn_like(parameter) if "lora_B" in name else 0
        before = {name: value.clone() for name, value in lora.state_dict().items()}
        questions = [beginning + question for question in QUESTIONS]
        asked = dict(tokenizer(questions, padding=True, padding_side="left", return_tensors="pt"))
        asked.pop("token_type_ids", None)
        assert (beginning_apart(asked["input_ids"], asked["attention_mask"])[2] >= BEGINNING) == bool(beginning)
        settings = GenerationConfig(max_new_tokens=20, eos_token_id=[11, 17, 300], pad_token_id=0)
        plain = lora.generate(**asked, generation_config=settings)
        with sampled_logprobs(lora, 1.0) as sampled:
            staged = lora.generate(**asked, generation_config=settings)
        assert plain.tolist() == staged.tolist()
        assert all(torch.equal(value, before[name]) for name, value in lora.state_dict().items())
        assert not any(layer.merged for layer in lora.modules() if isinstance(layer, LoraLayer))
        whole = torch.nn.functional.pad(asked["attention_mask"], (0, 20), value=1)
        words = {"attention_mask": whole, "position_ids": (whole.cumsum(1) - 1).clamp(min=0)}
        with torch.no_grad():
            exact, base = (one(plain, **words).logits[:, -21:-1].log_softmax(-1) for one in (lora, model))
        exact, base = (values.gather(2, plain[:, -20:, None]).squeeze(2) for values in (exact, base))
        assert torch.allclose(sampled.logprobs, exact, atol=1e-3) and not torch.allclose(exact, base, atol=1e-2)

    def test_an_adapter_that_is_no_sum_stays_beside_its_weights(self, model, tokenizer) -> None:
        """DoRA's layer is more than a weight and its delta; a tied output layer's weight is the embedding's too."""
        asked = dict(tokenizer(QUESTIONS, padding=True, padding_side="left", return_tensors="pt"))
        asked.pop("token_type_ids", None)
        settings = GenerationConfig(max_new_tokens=12, eos_token_id=[11, 17, 300], pad_token_id=0)
        for more in ({"use_dora": True}, {"target_modules": ["q_proj", "lm_head"]}, {"lora_bias": True}):
            words = {"r": 4, "target_modules": ["q_proj", "down_proj"], "task_type": "CAUSAL_LM", **more}
            lora = get_peft_model(copy.deepcopy(model), LoraConfig(**words))
            torch.manual_seed(0)
            for name, parameter in lora.named_parameters():
                parameter.data += 0.3 * torch.randn_like(parameter) if "lora_" in name else 0
            plain = lora.generate(**asked, generation_config=settings)
            with sampled_logprobs(lora, 1.0):
                assert lora.generate(**asked, generation_config=settings).tolist() == plain.tolist(), more

    def test_a_model_that_says_no_cache_is_given_one(self, model, tokenizer) -> None:
        other = copy.deepcopy(model)
        other.generation_config.use_cache = False
        asked = dict(tokenizer(QUESTIONS, padding=True, padding_side="left", return_tensors="pt"))
        asked.pop("token_type_ids", None)
        settings = GenerationConfig(max_new_tokens=20, eos_token_id=[11, 17, 300], pad_token_id=0)
        plain = model.generate(**asked, generation_config=settings)
        with sampled_logprobs(other, None):
            assert other.generate(**asked, generation_config=settings).tolist() == plain.tolist()

    def test_a_beginning_that_all_share_stands_in_front(self, monkeypatch: pytest.MonkeyPatch) -> None:
        ids = torch.tensor([[0, 0, 5, 6, 7, 1, 2], [0, 5, 6, 7, 8, 3, 4], [5, 6, 7, 8, 9, 3, 4]])
        mask = (ids > 0).long()
        assert beginning_apart(ids, mask)[2] == 0, "three tokens are not worth it"
        monkeypatch.setattr(drawing, "BEGINNING", 2)
        moved, seen, count = beginning_apart(ids, mask)
        assert count == 3 and moved.tolist() == [[5, 6, 7, 0, 0, 1, 2], [5, 6, 7, 0, 8, 3, 4], [5, 6, 7, 8, 9, 3, 4]]
        assert seen.tolist() == (moved > 0).long().tolist()
        same = torch.tensor([[5, 6, 7, 8]] * 2)
        assert beginning_apart(same, torch.ones_like(same))[2] == 2, "one to read, and the last to write from"
        short = torch.tensor([[0, 0, 5], [5, 6, 7]])
        assert beginning_apart(short, (short > 0).long())[2] == 0

    def test_a_layer_that_the_model_skips_stays_empty(self) -> None:
        layer = RoomyLayer()
        layer.batch_select_indices(torch.tensor([0]))
        layer.batch_repeat_interleave(2)
        assert layer.get_seq_length() == 0

    def test_keys_and_values_with_room_are_those_without(self) -> None:
        """Whatever is appended, and whichever rows are chosen or repeated: the first token of a room, its last, the one
        that does not fit any more, and more than a room at once."""
        torch.manual_seed(0)
        plain, roomy = DynamicLayer(), RoomyLayer()
        rows = 3
        changes = [(1, [0, 2]), (1, 3), (ROOM + 1, [5, 5, 0, 1]), (2, (3, 0)), (1, [1])]
        for tokens, change in [(5, None), *[(1, None)] * ROOM, *changes]:
            new = [torch.randn(rows, 2, tokens, 4) for _ in range(2)]
            said = roomy.update(*new)
            assert all(map(torch.equal, said, plain.update(*new)))
            assert roomy.get_seq_length() == plain.get_seq_length()
            for layer in (plain, roomy) if change else ():
                if isinstance(change, tuple):
                    layer.reorder_cache(torch.tensor(change))
                elif isinstance(change, list):
                    layer.batch_select_indices(torch.tensor(change))
                else:
                    layer.batch_repeat_interleave(change)
            rows = len(plain.keys)
            assert torch.equal(roomy.keys, plain.keys) and torch.equal(roomy.values, plain.values)

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
