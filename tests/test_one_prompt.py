"""One prompt everywhere, and one reading: what TRL tokenizes is what is evaluated, measured against the window, served
and proved; what rewards see in training is what they see in an evaluation. Over a template in the shape of Qwen3's."""

from __future__ import annotations

import argparse
import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, TINY
from rich.console import Console
from transformers import AutoTokenizer

import eval as eval_script
from llm_grpo import runs
from llm_grpo.answers.thinking import thought_of
from llm_grpo.config.loading import load_config
from llm_grpo.config.schema import Config, PromptSection
from llm_grpo.errors import UserError
from llm_grpo.evaluation.scoring import evaluate, report_on, score, without_items
from llm_grpo.export import merge
from llm_grpo.export.card import Subject, card
from llm_grpo.export.proof import prove
from llm_grpo.policy import Policy, load_policy, save_weights
from llm_grpo.problems import Prepared, build_rewards, prepare
from llm_grpo.prompts import split_by_length, with_system
from llm_grpo.records import Completion
from llm_grpo.rollouts import Sampling, token_ids
from llm_grpo.rollouts.loading import open_engine
from llm_grpo.rollouts.reading import Reader
from llm_grpo.rollouts.transformers import load_engine
from llm_grpo.serving.model import served
from llm_grpo.tasks import build_task
from llm_grpo.training.optimising import optimise
from llm_grpo.training.trainer import RecordingTrainer, build_trainer
from llm_grpo.training.watching import watch

QWEN3 = """{%- for m in messages %}
    {{- '<|im_start|>' + m.role + '\\n' }}
    {%- if m.role == 'assistant' and '</think>' in m.content %}
        {{- m.content.split('</think>')[-1].lstrip('\\n') }}
    {%- else %}
        {{- m.content }}
    {%- endif %}
    {{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- elif always_thinks is defined and always_thinks %}
        {{- '<think>\\n' }}
    {%- endif %}
{%- endif %}"""
# What transformers takes an answer apart by (its response templates, as TRL knows Qwen3's).
PARSED = {
    "defaults": {"role": "assistant"},
    "start_anchor": "<|im_start|>assistant\n",
    "fields": {
        "reasoning_content": {"open": "<reasoning>", "close_pattern": r"</reasoning>\s*", "content": "text"},
        "content": {"close_pattern": r"<\|im_end\|>|$", "content": "text"},
    },
}


@dataclass
class Trained:
    """A run of a few steps, what TRL tokenized in it, and what was evaluated before it."""

    policy: Policy
    run: runs.Run
    config: Config
    trainer: RecordingTrainer
    data: Prepared
    before: dict[str, Any]
    prompt_ids: list[list[int]] = field(default_factory=list)


def train(folder: Path, *overrides: str) -> Trained:
    base = folder / "thinker"
    shutil.copytree(TINY, base)
    (base / "chat_template.jinja").write_text(QWEN3)
    settings = json.loads((base / "tokenizer_config.json").read_text())
    (base / "tokenizer_config.json").write_text(json.dumps({**settings, "response_template": PARSED}))
    steps = ["grpo.max_steps=2", "grpo.per_device_train_batch_size=16", "evaluation.every_steps=0"]
    given = [f"model.name={base}", f"run.output_dir={folder}", *steps, *overrides]
    config = load_config(ROOT / "configs" / "demo.yaml", given, environment={})
    run, policy = runs.create(config), load_policy(config)
    task, rewards = build_task(config.task.name, config.task.args), build_rewards(config.rewards)
    data = prepare(task, "train", config, policy.tokenizer, 64)
    before = evaluate(policy.engine, task, data.problems[:8], rewards, config.grpo["max_completion_length"])
    watched = watch(config, run, Console(quiet=True), dict, lambda folder: None)
    trainer = build_trainer(config, policy, task, data.problems, rewards, run, watched)
    made = Trained(policy, run, config, trainer, data, before)
    tokenize = trainer._tokenize_prompts
    trainer._tokenize_prompts = lambda prompts: _kept(tokenize(prompts), made.prompt_ids)
    optimise(trainer, watched, run, None)
    save_weights(policy, run.adapter)
    return made


def _kept(tokenized: tuple[Any, ...], into: list[list[int]]) -> tuple[Any, ...]:
    into += tokenized[0]
    return tokenized


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """Qwen3's way not to think: an empty block in the prompt."""
    return train(tmp_path_factory.mktemp("quick"), "prompt.template_args={enable_thinking: false}")


@pytest.fixture(scope="module")
def endless(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """A template that opens the block (DeepSeek-R1, Qwen3-Thinking), answers that are all cut inside of it."""
    cut = ("grpo.max_completion_length=4", "grpo.mask_truncated_completions=true")
    return train(
        tmp_path_factory.mktemp("endless"), "prompt.template_args={always_thinks: true}", "prompt.thinking=apart", *cut
    )


def test_everybody_makes_the_same_prompt(quick: Trained, tmp_path: Path) -> None:
    run, prompt = quick.run, quick.config.prompt
    base, problem = quick.config.model.name, quick.data.problems[0]
    messages = list(problem.messages)
    bare = AutoTokenizer.from_pretrained(base)
    how = {"add_generation_prompt": True, "return_dict": False}
    right = bare.apply_chat_template(messages, enable_thinking=False, **how)
    assert len(right) > len(bare.apply_chat_template(messages, **how)), "the empty block is in it"

    merged = merge(run.adapter, tmp_path / "merged", base).output_dir
    which = {"run": str(run.folder), "adapter": None, "model": None, "base": None}
    named = argparse.Namespace(**which, engine="transformers", dtype=None)
    lone = Path(shutil.copytree(run.adapter, tmp_path / "lone"))  # downloaded, say: no config lies beside it
    engines = {
        "the policy": quick.policy.engine,
        "infer and eval of the run": open_engine(named, quick.config)[0],
        "eval of the base": load_engine(base, None, prompt),
        "the adapter alone": load_engine(base, lone, None),
        "the merged model alone": load_engine(str(merged), None, None),
    }
    asked = with_system(messages[1:], messages[0]["content"], ())
    found = {name: token_ids([asked], e.tokenizer, Sampling(1), e.window)[0] for name, e in engines.items()}
    server = served(argparse.Namespace(**which), False)
    found["the server"] = bare.apply_chat_template(messages, chat_template=server.template, **how)
    found["somebody else"] = AutoTokenizer.from_pretrained(merged).apply_chat_template(messages, **how)
    assert {name: ids for name, ids in found.items() if ids != right} == {}

    assert len(quick.prompt_ids) == 32 and all(ids[-6:] == right[-6:] for ids in quick.prompt_ids), "TRL"
    every = [token_ids([p.messages], quick.policy.tokenizer, Sampling(1), None)[0] for p in quick.data.problems]
    assert all(ids in every for ids in quick.prompt_ids)
    pair = (problem.example, problem.messages)
    assert split_by_length([pair], quick.policy.tokenizer, len(right))[0] == [pair], "the window"
    with pytest.raises(UserError, match=f"the shortest has {len(right)} tokens"):
        split_by_length([pair], quick.policy.tokenizer, len(right) - 1)

    proof = prove(quick.config, run.adapter, base, merged, 2)
    assert proof["same_prompts"] and not proof["failures"]
    said = card(Subject(merged, run.adapter, base, merged, run=run))
    assert "sets `enable_thinking=False`" in said and "</think>" not in said.partition("## Config")[0]


def test_a_qwen3_template_trains_and_evaluates(quick: Trained) -> None:
    metrics = list(runs.read_jsonl(quick.run.metrics))
    assert [row["step"] for row in metrics] == [1, 2] and all(row["tokens_per_second"] > 0 for row in metrics)
    rows = list(runs.read_jsonl(quick.run.completions / "step_000001.jsonl.gz"))
    task, rewards = build_task("word_problems", {}), build_rewards(quick.config.rewards)
    by_id = {problem.example.id: problem for problem in quick.data.problems}
    problems = [by_id[row["id"]] for row in rows]
    completions = [Completion(row["completion"], row["tokens"], row["truncated"]) for row in rows]
    again = report_on(score(task, problems, completions, rewards), rewards, task)
    assert [item["rewards"] for item in again["items"]] == [row["rewards"] for row in rows]
    assert metrics[0]["reward"] == pytest.approx(again["reward"], abs=1e-5)
    assert quick.before["n"] == 8 and without_items(quick.before)["truncated_share"] <= 1


def test_a_block_that_stays_open_has_no_answer(endless: Trained) -> None:
    row = next(runs.read_jsonl(endless.run.metrics))
    rows = list(runs.read_jsonl(endless.run.completions / "step_000001.jsonl.gz"))
    assert row["truncated_share"] == sum(kept["truncated"] for kept in rows) / 16 > 0.5, "masked, and cut all the same"
    assert row["completion_tokens"] == sum(kept["tokens"] for kept in rows) > 16 * 3 and row["tokens_per_second"] > 0
    assert row["accuracy_lenient"] == row["format_rate"] == 0
    texts = [kept["completion"] for kept in [*rows, *endless.before["items"]]]
    assert all(text.startswith("<think>\n") and len(text) > len("<think>\n") for text in texts), "the record keeps all"
    assert {kept["extracted"] for kept in [*rows, *endless.before["items"]]} == {None}
    assert endless.before["truncated_share"] == 1 and endless.before["mean_tokens"] == 4


READ = [
    ("answer", "<think>17?</think>\n\n{}", "<think>17?</think>\n\n{}", "by default a thought is part of the answer"),
    ("apart", "<think>17?</think>\n\n{}", "{}", "apart: what stands behind it"),
    ("apart", "{}", "{}", "who does not think is read as ever"),
]


@pytest.mark.parametrize(("thinking", "written", "read", "why"), READ, ids=[row[3] for row in READ])
def test_training_and_evaluation_read_alike(
    quick: Trained, monkeypatch: pytest.MonkeyPatch, thinking: str, written: str, read: str, why: str
) -> None:
    """TRL hands rewards what the tokenizer's response_template makes of an answer; here both get the text."""
    tokenizer, problem = quick.policy.tokenizer, quick.data.problems[0]
    right = f"<reasoning>\nSo.\n</reasoning>\n<answer>\n{problem.example.answer}\n</answer>"
    ids = tokenizer(written.format(right) + "<|im_end|>")["input_ids"]
    assert tokenizer.response_template == PARSED, "hidden while TRL generates, and there again"
    drawn = lambda self, prompts, *_: ([ids] * len(prompts), None)  # noqa: E731
    monkeypatch.setattr(RecordingTrainer, "_generate_single_turn", drawn)
    monkeypatch.setattr(quick.policy.engine, "reader", Reader(tokenizer, thinking))
    _, _, _, completions, *_ = quick.trainer._generate([list(problem.messages)] * 2)
    assert completions == [[{"role": "assistant", "content": read.format(right)}]] * 2, why
    whole = quick.policy.engine.reader.completion(ids, {tokenizer.eos_token_id})
    assert (whole.text, whole.answer, whole.tokens) == (written.format(right), read.format(right), len(ids))
    task = build_task("word_problems", {})
    judged = score(task, [problem], [whole], build_rewards(quick.config.rewards))[0]
    assert judged.judgement.lenient and judged.judgement.strict == (read == "{}")


def test_completions_made_elsewhere_are_read_alike(tmp_path: Path) -> None:
    task = build_task("word_problems", {})
    example = task.load("test").examples[0]
    right = f"<reasoning>\nSo.\n</reasoning>\n<answer>\n{example.answer}\n</answer>"
    file = tmp_path / "mine.jsonl"
    file.write_text(json.dumps({"id": example.id, "completion": f"<think>\nno\n</think>\n{right}"}) + "\n")
    args = argparse.Namespace(completions=str(file), split="test", limit=1, run=None)
    for thinking, strict in (("apart", 1.0), ("answer", 0.0)):
        config = load_config(ROOT / "configs" / "demo.yaml", [f"prompt.thinking={thinking}"], environment={})
        report = eval_script.score_file(args, config, task, build_rewards(config.rewards))
        assert report["strict_accuracy"] == strict and report["items"][0]["completion"].startswith("<think>")


THOUGHTS = [
    ("42", "42", "no block"),
    ("<think>a</think>\n\n42", "42", "a block and the blank lines behind it"),
    ("a\n</think>\n42", "42", "opened in the prompt"),
    ("<think>a</think> 1 <think>b</think> 42", "42", "the last one counts"),
    ("<think>a</think> 1 <think>b 42", "", "opened again and never closed"),
    ("<think>a 42", "", "never closed"),
    ("<think>\n\n</think>\n\n42", "42", "Qwen3's empty one"),
    ("", "", "nothing"),
    ("<think>a</think>", "", "a thought and no answer"),
    ("</think>" * 50_000, "", "as many as one likes"),
]


@pytest.mark.parametrize(("text", "answer", "why"), THOUGHTS, ids=[row[2] for row in THOUGHTS])
def test_where_the_answer_begins(text: str, answer: str, why: str) -> None:
    thought = thought_of(text)
    assert text.startswith(thought) and text[len(thought) :] == answer, why
    assert thought_of(text, "answer") == ""


def test_tags_that_are_special_tokens_are_kept_and_said(tokenizer) -> None:
    from llm_grpo.prompts import prepare_tokenizer

    own = AutoTokenizer.from_pretrained(TINY)
    own.add_special_tokens({"additional_special_tokens": ["<answer>", "</answer>", "<unused>"]})
    text = "<reasoning>\n6*7\n</reasoning>\n<answer>\n42\n</answer>"
    ids = own(f"{text[:-9]}<unused>{text[-9:]}<|im_end|>")["input_ids"]
    assert "<answer>" not in own.decode(ids, skip_special_tokens=True), "what everybody else reads"
    assert Reader(own).completion(ids, {own.eos_token_id}).text == text
    assert "<answer>, </answer>: special" in prepare_tokenizer(own, PromptSection())["special tokens"]
    assert "special tokens" not in prepare_tokenizer(tokenizer, PromptSection())


def test_what_the_trainer_alone_would_read_is_refused() -> None:
    with pytest.raises(UserError, match=r"grpo\.chat_template_kwargs: belongs to prompt\.template_args"):
        load_config(ROOT / "configs/demo.yaml", ["grpo.chat_template_kwargs={enable_thinking: false}"], environment={})
