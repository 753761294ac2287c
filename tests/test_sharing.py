"""A prompt that goes through the model once for all its answers: the same numbers, the same update, and where not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from test_skipping import SIXTEEN, no_noise, recording, same
from test_verification import GROUPS_OF_8, build, one_thread, tiny  # noqa: F401
from transformers import GPT2Config, GPT2LMHeadModel, MistralConfig, MistralForCausalLM, Qwen2Config, Qwen2ForCausalLM

from llm_grpo.training import sharing
from llm_grpo.training.sharing import Folded, keeps_a_past, why_not
from llm_grpo.verification import subject, verify_update

QWEN = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "vocab_size": 64, "initializer_range": 0.1}  # fmt: skip
STILL = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "vocab_size": 64, "initializer_range": 0.1}


def rows() -> tuple[torch.Tensor, torch.Tensor]:
    """Left-padded prompts of 5, 5, 1, 5 and 3 tokens (the second is the first again), answers of 4, 2, 3, 0 and 1."""
    torch.manual_seed(0)
    ids = torch.randint(1, 64, (5, 9))
    ids[1, :5] = ids[0, :5]
    mask = torch.ones_like(ids)
    for row, (prompt, answer) in enumerate([(5, 4), (5, 2), (1, 3), (5, 0), (3, 1)]):
        mask[row, : 5 - prompt] = mask[row, 5 + answer :] = 0
    return ids * mask, mask


def test_how_answers_are_folded_behind_their_prompt() -> None:
    ids, mask = torch.tensor([[0, 7, 8, 20, 21], [0, 7, 8, 30, 0]]), torch.tensor([[0, 1, 1, 1, 1], [0, 1, 1, 1, 0]])
    folded = Folded.of(ids, mask, 2)
    assert folded.ids.tolist() == [[7, 8, 20, 21, 8, 30]] and folded.positions.tolist() == [[0, 1, 2, 3, 1, 2]]
    assert folded.labels.tolist() == [[-100, -100, 20, 21, -100, 30]]
    seen = [[1, 0, 0, 0, 0, 0], [1, 1, 0, 0, 0, 0], [1, 1, 1, 0, 0, 0], [1, 1, 1, 1, 0, 0], [1, 0, 0, 0, 1, 0],
            [1, 0, 0, 0, 1, 1]]  # fmt: skip
    assert folded.mask[0, 0].int().tolist() == seen
    assert folded.unfold(torch.arange(5.0)[None]).tolist() == [[1, 2], [4, 0]]


@pytest.mark.parametrize(
    "model", [Qwen2ForCausalLM(Qwen2Config(**QWEN)), GPT2LMHeadModel(GPT2Config(**GPT2, **STILL))],
    ids=["relative positions", "learned positions"],
)  # fmt: skip
def test_every_answer_sees_what_it_saw(model: Any) -> None:
    ids, mask = rows()
    folded = Folded.of(ids, mask, 4)
    with torch.no_grad():
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        plain = model(ids, attention_mask=mask, position_ids=positions).logits.log_softmax(-1)[:, 4:-1]
        logits = model(folded.ids, attention_mask=folded.mask, position_ids=folded.positions).logits
    labels = folded.labels[:, 1:].clamp(min=0)
    found = folded.unfold(logits.log_softmax(-1)[:, :-1].gather(2, labels[..., None]).squeeze(2))
    expected = plain.gather(2, ids[:, 5:, None]).squeeze(2) * mask[:, 5:]
    assert len(folded.ids) == 4 and torch.allclose(found, expected, atol=1e-5)


def begun(tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The same rows behind so many tokens that all prompts begin with."""
    ids, mask = rows()
    torch.manual_seed(1)
    common = torch.randint(1, 64, (tokens,))
    padding = (mask[:, :5] == 0).sum(dim=1)
    ids = torch.nn.functional.pad(ids, (tokens, 0))
    for row, pad in enumerate(padding.tolist()):
        ids[row, pad : pad + tokens] = common
        mask_row = torch.cat([torch.zeros(pad, dtype=mask.dtype), torch.ones(tokens + 5 - pad, dtype=mask.dtype)])
        mask = mask if row else torch.nn.functional.pad(mask, (tokens, 0))
        mask[row, : tokens + 5] = mask_row
    return ids * mask, mask


@pytest.mark.parametrize(
    "model", [Qwen2ForCausalLM(Qwen2Config(**QWEN)), GPT2LMHeadModel(GPT2Config(**GPT2, **STILL))],
    ids=["relative positions", "learned positions"],
)  # fmt: skip
def test_what_all_prompts_begin_with_is_read_once(model: Any) -> None:
    """Log-probabilities and gradients of all weights, against rows that read all of their own."""
    ids, mask = begun(20)
    weight = torch.linspace(1, 2, 20).view(5, 4)

    def of_folded(apart: bool) -> tuple[torch.Tensor, list[torch.Tensor]]:
        folded = Folded.of(ids, mask, 4, apart)
        assert len(folded.beginning) == (20 if apart else 0)
        inputs = folded.inputs(model)
        labels = inputs.pop("labels")[:, 1:].clamp(min=0)
        logps = model(**inputs).logits.log_softmax(-1)[:, :-1].gather(2, labels[..., None]).squeeze(2)
        model.zero_grad()
        found = folded.unfold(logps)
        (found * weight).sum().backward()
        return found.detach(), [p.grad.clone() for p in model.parameters()]

    positions = (mask.cumsum(1) - 1).clamp(min=0)
    plain = model(ids, attention_mask=mask, position_ids=positions).logits.log_softmax(-1)[:, 24:-1]
    expected = plain.gather(2, ids[:, 25:, None]).squeeze(2) * mask[:, 25:]
    model.zero_grad()
    (expected * weight).sum().backward()
    gradients = [p.grad.clone() for p in model.parameters()]
    for apart in (False, True):
        found, of_weights = of_folded(apart)
        assert torch.allclose(found, expected, atol=1e-5)
        assert all(torch.allclose(a, b, atol=1e-4) for a, b in zip(of_weights, gradients, strict=True))


def test_where_a_beginning_stays_in_the_rows() -> None:
    """One that is short, of one prompt alone, or where layers are computed again."""
    for ids, mask in (begun(15), (begun(20)[0][:2], begun(20)[1][:2])):
        assert len(Folded.of(ids, mask, 4, apart=True).beginning) == 0
    ids, mask = begun(20)
    alike = Folded.of(ids[[0, 0, 4]], mask[[0, 0, 4]], 4, apart=True)
    assert len(alike.ids) == 2 and alike.ids.shape[1] == 4 + 2 * 5, "two answers behind one rest of a prompt"
    model = Qwen2ForCausalLM(Qwen2Config(**QWEN))
    assert keeps_a_past(model)
    model.gradient_checkpointing_enable()
    assert not keeps_a_past(model)


@pytest.mark.parametrize(
    ("folded", "rows_of", "hidden", "answer", "why"),
    [
        ((8, 260), (64, 90), 128, True, "short answers to a prompt as long as two of them"),
        ((1, 1700), (8, 300), 576, True, "just: long answers, a model of 135 M"),
        ((1, 4200), (8, 600), 576, False, "attention over all answers would cost more than the prompts"),
        ((16, 90), (16, 90), 128, False, "one answer a prompt"),
    ],
)
def test_where_it_pays(folded: tuple, rows_of: tuple, hidden: int, answer: bool, why: str) -> None:
    found = object.__new__(Folded)
    found.ids, found.plain, found.beginning = torch.empty(folded), rows_of, torch.empty(0)
    assert found.pays(hidden) == answer, why


# --- the same update ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "overrides",
    [SIXTEEN, GROUPS_OF_8, [*SIXTEEN, "grpo.gradient_checkpointing=false"], [*SIXTEEN, "grpo.num_iterations=2"],
     [*SIXTEEN, "grpo.mask_truncated_completions=true"], [*SIXTEEN, "grpo.importance_sampling_level=sequence"]],
    ids=["groups of 4", "groups of 8", "no checkpointing", "old log-probabilities", "masked rows", "GSPO"],
)  # fmt: skip
def test_the_update_is_the_formula(tiny: Path, overrides: list[str], monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    shared: list[tuple] = []
    real = Folded.scored_by
    monkeypatch.setattr(Folded, "pays", lambda *_: True)
    monkeypatch.setattr(Folded, "scored_by", lambda self, model: shared.append(self.plain) or real(self, model))
    trainer = build(tiny, *overrides, rewards=(no_noise,), kind=recording)
    found = verify_update(trainer, off_policy=True)
    assert found.ok and shared, found


@pytest.mark.parametrize("checkpointing", ["true", "false"])
def test_the_update_with_and_without(tiny: Path, monkeypatch: pytest.MonkeyPatch, checkpointing: str) -> None:  # noqa: F811
    monkeypatch.setattr(Folded, "pays", lambda *_: True)
    real, apart = Folded.inputs, []
    words = (*SIXTEEN, "grpo.beta=0.0", f"grpo.gradient_checkpointing={checkpointing}")
    monkeypatch.setattr(sharing, "BEGINNING", 1)
    monkeypatch.setattr(Folded, "inputs", lambda self, model: apart.append(len(self.beginning)) or real(self, model))
    trainer = build(tiny, *words, rewards=(no_noise,), kind=recording)
    if checkpointing == "true":  # as trainer.train() does
        trainer.model.gradient_checkpointing_enable({"use_reentrant": False})
    batch, found = subject.generate(trainer), []
    settings = subject.settings_of(trainer)
    for trainer.shares in (True, False):
        with subject.undisturbed(trainer):
            loss, gradients = subject.update(trainer, batch, settings)
            found.append((float(loss), {name: gradient.clone() for name, gradient in gradients.items()}))
    assert trainer.skip and same(found) and any(apart) == (checkpointing == "false")


# --- where prompts are not shared -----------------------------------------------------------------------------------

REFUSED = [
    (MistralForCausalLM(MistralConfig(**QWEN, sliding_window=8)), "do not attend to everything"),
    (GPT2LMHeadModel(GPT2Config(**GPT2)), "dropout"),
    (Qwen2ForCausalLM._from_config(Qwen2Config(**QWEN), attn_implementation="eager"), "eager"),
]


@pytest.mark.parametrize(("model", "why"), REFUSED, ids=[row[1] for row in REFUSED])
def test_where_prompts_are_not_shared(model: Any, why: str) -> None:
    assert why in why_not(model)


def test_where_they_are() -> None:
    assert why_not(Qwen2ForCausalLM(Qwen2Config(**QWEN))) is None
    assert why_not(GPT2LMHeadModel(GPT2Config(**GPT2, **STILL))) is None
