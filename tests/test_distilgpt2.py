"""System S3 end to end on a tiny GPT-2: no chat template, no pad token, learned positions, Conv1D, tied embeddings."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from conftest import ROOT, run_script
from rich.console import Console

from llm_grpo import runs
from llm_grpo.config.loading import load_config
from llm_grpo.config.schema import Config
from llm_grpo.diagnosis.drift import METRIC
from llm_grpo.errors import UserError
from llm_grpo.policy import load_policy
from llm_grpo.problems import build_rewards, prepare
from llm_grpo.prompts import PLAIN_TEMPLATE, render
from llm_grpo.rollouts import Sampling
from llm_grpo.rollouts.loading import _wanted
from llm_grpo.rollouts.transformers import load_engine
from llm_grpo.tasks import build_task
from llm_grpo.training.optimising import optimise
from llm_grpo.training.trainer import build_trainer
from llm_grpo.training.watching import watch

POSITIONS = 640
QUESTION = "Tom has 5 pens and buys 7 more. How many pens is that?"
SMALL = (
    "task.name=word_problems",
    "task.args={train_size: 64, validation_size: 8, test_size: 12}",
    f"model.max_seq_length={POSITIONS}",
    "grpo.max_completion_length=24",
    "grpo.max_steps=2",
    "grpo.save_steps=1",
    "grpo.gradient_accumulation_steps=2",
    "grpo.learning_rate=1e-2",
    "evaluation={limit: 12, validation_limit: 4, every_steps: 1}",
    "logging={report_to: [], sample_every: 1}",
)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """GPT-2's classes with random weights: a token per byte, one special token, 45,000 parameters."""
    from tokenizers import pre_tokenizers
    from transformers import GPT2Config, GPT2LMHeadModel, GPT2TokenizerFast

    folder = tmp_path_factory.mktemp("gpt2")
    pieces = [*sorted(pre_tokenizers.ByteLevel.alphabet()), "<|endoftext|>"]
    tokenizer = GPT2TokenizerFast(vocab={piece: number for number, piece in enumerate(pieces)}, merges=[])
    assert tokenizer.pad_token is None and tokenizer.chat_template is None
    torch.manual_seed(0)
    shape = GPT2Config(vocab_size=257, n_positions=POSITIONS, n_embd=32, n_layer=2, n_head=2,
                       bos_token_id=256, eos_token_id=256, initializer_range=0.2)  # fmt: skip
    GPT2LMHeadModel(shape).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


ONE = ("grpo.max_steps=1", "evaluation.every_steps=0")
SEVEN = ("correctness", "soft_format", "strict_format", "int", "conciseness", "repetition", "cot_clarity")


@pytest.fixture(scope="module")
def rewards(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The seven, and one that tells apart what random weights write: none of the seven pays any of it."""
    file = tmp_path_factory.mktemp("rewards") / "mine.py"
    body = "return [sum(map(str.isalpha, c[0]['content'])) / 24 for c in completions]"
    file.write_text(f"def letters(completions, **kwargs):\n    {body}\n")
    return f"rewards=[{', '.join(f'{{name: {name}_reward_func}}' for name in SEVEN)}, {{name: '{file}:letters'}}]"


def config_of(base: Path, *overrides: str) -> Config:
    return load_config(ROOT / "configs" / "distilgpt2.yaml", [f"model.name={base}", *SMALL, *overrides], environment={})


@pytest.fixture(scope="module")
def run(base: Path, rewards: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    outputs = tmp_path_factory.mktemp("outputs")
    words = ("--config", "configs/distilgpt2.yaml", f"model.name={base}", f"run.output_dir={outputs}", "run.name=s3")
    done = run_script("src/train.py", *words, *SMALL, rewards)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "built-in 'plain'" in done.stdout, "the choice of the template is said"
    return outputs / "s3"


def test_it_trains_on_the_seven_rewards(run: Path) -> None:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2]
    assert {f"rewards/{name}_reward_func/mean" for name in SEVEN} <= rows[0].keys()
    assert max(row[METRIC] for row in rows) < 1e-4, "trained is the policy that answered, padded on the left or not"
    adapter = json.loads((run / "adapter" / "adapter_config.json").read_text())
    assert sorted(adapter["target_modules"]) == ["c_attn", "c_fc", "c_proj"], "every linear layer of the blocks"


def test_learned_positions_start_behind_the_padding(base: Path) -> None:
    """As `generate` counts them; without the hook a padded row gets other probabilities than the row alone."""
    from transformers import GPT2LMHeadModel

    from llm_grpo.policy import count_positions_from_mask

    model = GPT2LMHeadModel.from_pretrained(base).eval()
    alone, padding = torch.arange(40, 52)[None], 5
    padded = torch.nn.functional.pad(alone, (padding, 0), value=256)
    mask = (padded != 256).long()
    with torch.no_grad():
        wanted = model(alone).logits
        assert not torch.allclose(model(padded, attention_mask=mask).logits[:, padding:], wanted, atol=1e-2)
        count_positions_from_mask(model)
        assert torch.allclose(model(padded, attention_mask=mask).logits[:, padding:], wanted, atol=1e-4)
        assert torch.equal(model(alone).logits, wanted), "without a mask nothing is padded"
        told = torch.arange(12)[None] + 3
        shifted = model(alone, attention_mask=torch.ones_like(alone), position_ids=told).logits
        assert not torch.allclose(shifted, wanted, atol=1e-2), "who says positions gets them"
        both = model.generate(padded, attention_mask=mask, max_new_tokens=6, do_sample=False, pad_token_id=256)
        one = model.generate(alone, max_new_tokens=6, do_sample=False, pad_token_id=256)
    assert both[0, padding:].tolist() == one[0].tolist(), "with a cache as without"


def test_what_counts_by_itself_is_left_alone() -> None:
    from transformers import (
        GPT2Config,
        GPT2LMHeadModel,
        Qwen2Config,
        Qwen2ForCausalLM,
        RobertaConfig,
        RobertaForCausalLM,
    )

    from llm_grpo.policy import count_positions_from_mask

    small = {"vocab_size": 32, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 2}
    roberta = RobertaForCausalLM(RobertaConfig(**small, **heads, max_position_embeddings=40, is_decoder=True))
    qwen = Qwen2ForCausalLM(Qwen2Config(**small, **heads, num_key_value_heads=2))
    gpt2 = GPT2LMHeadModel(GPT2Config(vocab_size=32, n_embd=16, n_layer=1, n_head=2))
    for model, hooks in ((roberta, 0), (qwen, 0), (gpt2, 1)):
        count_positions_from_mask(model)
        assert len(model.base_model._forward_pre_hooks) == hooks, type(model).__name__


def test_the_kl_term_starts_at_zero(base: Path, rewards: str, tmp_path: Path) -> None:
    """All weights and beta: TRL loads the reference itself, and it has to count positions as the policy does."""
    config = config_of(base, f"run.output_dir={tmp_path}", rewards, "lora=null", "grpo.beta=0.1", *ONE)
    (step,) = trained(config)[2]
    assert abs(step["kl"]) < 1e-6


def test_a_step_of_which_every_answer_is_masked_goes_by(base: Path, rewards: str, tmp_path: Path) -> None:
    short = ("grpo.mask_truncated_completions=true", "grpo.max_completion_length=2", "evaluation.every_steps=0")
    rows = trained(config_of(base, f"run.output_dir={tmp_path}", rewards, *short))[2]
    assert len(rows) == 2 and METRIC not in rows[0]


def trained(config: Config):
    """(trainer, policy, metrics by step) of a training in this process, without evaluation."""
    run, policy = runs.create(config), load_policy(config)
    task, rewards = build_task(config.task.name, config.task.args), build_rewards(config.rewards)
    problems = prepare(task, "train", config, policy.tokenizer, 16).problems
    watched = watch(config, run, Console(quiet=True), dict, lambda folder: None)
    trainer = build_trainer(config, policy, task, problems, rewards, run, watched)
    optimise(trainer, watched, run, None)
    return trainer, policy, list(runs.read_jsonl(run.metrics))


def test_adapter_and_merged_model_carry_the_template_and_open_with_auto_classes(run: Path, base: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    config = config_of(base)
    task = build_task(config.task.name, config.task.args)
    told = {}
    for folder in (run / "adapter", run / "adapter_best", run / "merged"):
        tokenizer = AutoTokenizer.from_pretrained(folder)
        assert tokenizer.chat_template == PLAIN_TEMPLATE and tokenizer.pad_token_id is not None, folder.name
        problem = prepare(task, "test", config, tokenizer, 1).problems[0]
        told[folder.name] = render(problem.messages, tokenizer)
    assert len(set(told.values())) == 1 and told["merged"].endswith("Assistant:\n")
    recorded = next(runs.read_jsonl(run / "completions" / "step_000001.jsonl.gz"))
    assert recorded["completion"], "random weights do not stop at once"

    merged = AutoModelForCausalLM.from_pretrained(run / "merged", dtype=torch.float32)
    assert type(merged).__name__ == "GPT2LMHeadModel"
    assert merged.lm_head.weight is merged.transformer.wte.weight, "still tied"
    plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    adapted = PeftModel.from_pretrained(plain, run / "adapter_best")
    ids = AutoTokenizer.from_pretrained(run / "merged")(told["merged"], return_tensors="pt")["input_ids"]
    with torch.no_grad():
        gap = (merged(ids).logits - adapted(ids).logits).abs().max()
        with adapted.disable_adapter():
            effect = (merged(ids).logits - adapted(ids).logits).abs().max()
    assert 5 * gap < effect and gap < 0.05, "Conv1D lies the other way round; it is merged so"


def test_evaluation_merge_and_inference_ask_alike(run: Path, tmp_path: Path) -> None:
    done = run_script("src/eval.py", "--run", run, "--split", "test", "--output", tmp_path / "eval.json")
    assert done.returncode == 0, done.stderr
    after = json.loads((run / "eval" / "after.json").read_text())
    again = json.loads((tmp_path / "eval.json").read_text())
    assert [item["completion"] for item in again["items"]] == [item["completion"] for item in after["items"]]
    done = run_script("src/merge.py", "--run", run, "--overwrite", "--proof-limit", "8")
    assert done.returncode == 0, done.stdout + done.stderr
    words = ("--run", run, "--prompt", QUESTION, "--temperature", "0", "--max_tokens", "16")
    done = run_script("src/infer.py", *words)
    assert done.returncode == 0 and QUESTION in done.stdout and "tokens/s" in done.stdout, done.stderr


@pytest.mark.parametrize(
    ("asked", "of_the_run", "wanted"),
    [
        ("auto", "transformers", "transformers"),
        ("auto", "vllm", "auto"),
        ("auto", "auto", "auto"),
        ("vllm", "transformers", "vllm"),
    ],
)
def test_a_run_that_could_only_use_transformers_is_answered_by_it(
    base: Path, asked: str, of_the_run: str, wanted: str
) -> None:
    assert _wanted(asked, config_of(base, f"rollouts.engine={of_the_run}")) == wanted
    assert _wanted(asked, None) == asked


def test_a_window_over_the_table_is_refused_before_anything_is_loaded(base: Path, tmp_path: Path) -> None:
    words = ["--config", "configs/distilgpt2.yaml", f"model.name={base}", f"run.output_dir={tmp_path}", *SMALL]
    for more in ([], ["--dry-run"]):
        done = run_script("src/train.py", *words, f"model.max_seq_length={POSITIONS + 1}", *more)
        assert done.returncode == 2 and f"has positions for {POSITIONS}" in done.stderr, done.stdout + done.stderr
        assert "loading" not in done.stdout and not list(tmp_path.iterdir())


def test_the_last_position_is_used_and_none_behind_it(base: Path) -> None:
    engine = load_engine(str(base), None, None)
    prompt = [{"role": "user", "content": "x"}]
    length = len(engine.tokenizer(render(prompt, engine.tokenizer))["input_ids"])
    full = engine.generate([prompt], Sampling(max_tokens=POSITIONS - length))[0][0]
    assert full.tokens <= POSITIONS - length
    with pytest.raises(UserError, match=f"'x'.* has {length} tokens.* over the window of {POSITIONS}"):
        engine.generate([prompt], Sampling(max_tokens=POSITIONS - length + 1))


def test_a_prompt_that_leaves_no_room_is_named(base: Path) -> None:
    config = config_of(base)
    task = build_task(config.task.name, config.task.args)
    tokenizer = load_engine(str(base), None, None).tokenizer
    by_length = {len(tokenizer(render(p.messages, tokenizer))["input_ids"]): p.example.id
                 for p in prepare(task, "train", config, tokenizer).problems}  # fmt: skip
    longest = max(by_length)
    short = config_of(base, f"model.max_seq_length={longest + 24 - 1}")
    with pytest.raises(UserError, match=rf"leave no room .*{by_length[longest]} \({longest} tokens\)"):
        prepare(task, "train", short, tokenizer)
    exact = config_of(base, f"model.max_seq_length={longest + 24}")
    assert len(prepare(task, "train", exact, tokenizer).problems) == 64, "the last position may be used"


def step_of(base: Path, rewards: str, tmp_path: Path, checkpointing: bool) -> dict[str, torch.Tensor]:
    """What one plain step down the gradient makes of the LoRA, B of which begins at zero."""
    word = str(checkpointing).lower()
    config = config_of(base, rewards, f"grpo.gradient_checkpointing={word}", f"run.output_dir={tmp_path}",
                       f"run.name=checkpointing-{word}", *ONE, "grpo.optim=sgd",
                       "grpo.learning_rate=10.0", "grpo.lr_scheduler_type=constant", "grpo.warmup_steps=0")  # fmt: skip
    trainer, policy, _ = trained(config)
    active = [module for module in trainer.model.modules() if getattr(module, "gradient_checkpointing", False)]
    assert bool(active) == checkpointing, "as the config says"
    return {name: p.detach().clone() for name, p in policy.model.named_parameters() if "lora_B" in name}


def test_gradient_checkpointing_changes_no_gradient(base: Path, rewards: str, tmp_path: Path) -> None:
    without, with_it = (step_of(base, rewards, tmp_path, on) for on in (False, True))
    assert len(without) == 8 and all(step.abs().max() > 1e-4 for step in without.values())
    for name, step in without.items():
        assert torch.allclose(step, with_it[name], rtol=1e-3, atol=1e-6), name


def test_lora_targets_are_found_in_other_architectures() -> None:
    """By what the layers are and where they stand, not by what they are called."""
    from transformers import AutoModelForCausalLM, GPTNeoXConfig, LlamaConfig, PhiConfig

    from llm_grpo.policy import _targets

    small = {
        "vocab_size": 16,
        "hidden_size": 8,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    found = {kind: _targets(AutoModelForCausalLM.from_config(kind(**small)), None)
             for kind in (LlamaConfig, GPTNeoXConfig, PhiConfig)}  # fmt: skip
    assert set(found[LlamaConfig]) == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    assert set(found[GPTNeoXConfig]) == {"query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"}
    assert set(found[PhiConfig]) == {"q_proj", "k_proj", "v_proj", "dense", "fc1", "fc2"}
    assert not any("embed" in name or "head" in name for names in found.values() for name in names)
