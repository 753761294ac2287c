"""The engines' contract on the shipped model, for every engine that runs on this machine (here: transformers)."""

from __future__ import annotations

import pytest
import torch
from conftest import TINY

from llm_grpo.errors import UserError
from llm_grpo.prompts import render
from llm_grpo.rollouts import Sampling, choose_engine
from llm_grpo.rollouts.transformers import TransformersEngine, load_engine

QUESTIONS = [
    "Tom has 5 pens and buys 7 more. How many?",
    "2+3?",
    "Ada has 4 boxes with 8 plums in each. How many plums is that in all?",
]
PROMPTS = [[{"role": "user", "content": question}] for question in QUESTIONS]


@pytest.fixture(scope="module")
def engine() -> TransformersEngine:
    return load_engine(str(TINY), None, None)


def test_greedy_in_a_batch_is_greedy_alone(engine) -> None:
    """Prompts of unequal length are padded in a batch; a step-by-step argmax without padding is the reference."""
    together = engine.generate(PROMPTS, Sampling(max_tokens=12))
    for prompt, group in zip(PROMPTS, together, strict=True):
        ids = engine.tokenizer(render(prompt, engine.tokenizer), add_special_tokens=False)["input_ids"]
        written = []
        with torch.no_grad():
            while len(written) < 12 and not (written and written[-1] in engine._stops()):
                written.append(int(engine.model(torch.tensor([ids + written])).logits[0, -1].argmax()))
        assert group[0].tokens == len(written)
        assert group[0].text == engine.tokenizer.decode(written, skip_special_tokens=True)


def test_the_same_seed_repeats_and_another_does_not(engine) -> None:
    def texts(seed: int) -> list[list[str]]:
        groups = engine.generate(PROMPTS, Sampling(max_tokens=24, temperature=1.5, n=4, seed=seed))
        return [[c.text for c in group] for group in groups]

    assert texts(1) == texts(1) != texts(2)


def test_the_callers_random_state_and_mode_are_left_alone(engine) -> None:
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    engine.model.train()
    engine.generate(PROMPTS[:1], Sampling(max_tokens=4, temperature=1.0, seed=1))
    assert engine.model.training and torch.equal(torch.rand(1), expected)
    engine.model.eval()


def test_n_completions_per_prompt_in_the_order_of_the_prompts(engine) -> None:
    small = TransformersEngine(engine.model, engine.tokenizer, batch_size=2)
    assert [len(group) for group in small.generate(PROMPTS, Sampling(max_tokens=2, temperature=1.0, n=3))] == [3, 3, 3]
    alone = [engine.generate([prompt], Sampling(max_tokens=8))[0][0] for prompt in PROMPTS]
    assert [group[0] for group in small.generate(PROMPTS, Sampling(max_tokens=8))] == alone


def test_truncation_is_seen(engine) -> None:
    cut = engine.generate(PROMPTS[:1], Sampling(max_tokens=3))[0][0]
    assert cut.truncated and cut.tokens == 3
    whole = engine.generate(PROMPTS[:1], Sampling(max_tokens=128))[0][0]
    assert not whole.truncated and "<|im_end|>" not in whole.text


def test_no_prompts_no_completions(engine) -> None:
    assert engine.generate([], Sampling(max_tokens=4)) == []


@pytest.mark.parametrize(
    "values",
    [{"max_tokens": 0}, {"n": 0}, {"temperature": -1.0}, {"top_p": 0.0}, {"top_p": 1.1}, {"n": 2, "temperature": 0.0}],
)
def test_sampling_that_cannot_be(values) -> None:
    with pytest.raises(UserError, match="sampling"):
        Sampling(**values)


@pytest.mark.skipif(torch.cuda.is_available(), reason="on a GPU auto may choose another engine")
def test_auto_says_why_and_an_explicit_wish_is_never_replaced() -> None:
    name, reason = choose_engine("auto")
    assert name == "transformers" and "unsloth needs an NVIDIA GPU" in reason
    with pytest.raises(UserError, match="unsloth needs an NVIDIA GPU"):
        choose_engine("unsloth")


def test_nothing_that_only_generates_imports_unsloth() -> None:
    import subprocess
    import sys

    from conftest import ROOT

    code = (
        "import sys; sys.path.insert(0, 'src'); from llm_grpo.rollouts.transformers import load_engine; "
        f"load_engine({str(TINY)!r}, None, None); print('unsloth' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip().endswith("False"), done.stderr
