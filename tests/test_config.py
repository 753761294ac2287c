"""The schema, precedence, and what a person is told who wrote it wrong."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from conftest import ROOT

from llm_grpo.config.dotted import split_override
from llm_grpo.config.grpo_fields import grpo_fields
from llm_grpo.config.loading import load_config
from llm_grpo.config.old_names import GONE, MOVED, OWNED_ELSEWHERE
from llm_grpo.config.schema import GRPO_DEFAULTS
from llm_grpo.errors import UserError, did_you_mean
from llm_grpo.problems import build_rewards
from llm_grpo.tasks import build_task

MINIMAL = "model: {name: m}\ntask: {name: word_problems}\nrewards: [{name: correctness_reward_func}]\n"
SHIPPED = sorted((ROOT / "configs").glob("*.yaml"))


@pytest.fixture
def write(tmp_path: Path):
    def file(text: str) -> Path:
        path = tmp_path / "c.yaml"
        path.write_text(text)
        return path

    return file


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: p.name)
def test_every_shipped_config_loads_with_its_task_and_rewards(path: Path) -> None:
    config = load_config(path, environment={})
    assert build_rewards(config.rewards)
    assert build_task(config.task.name, config.task.args)


def test_precedence_and_origins(write) -> None:
    path = write(MINIMAL + "run: {seed: 1}\ngrpo: {max_steps: 5}\n")
    config = load_config(path, ["grpo.max_steps=7"], environment={"MODEL_NAME": "other", "RUN_NAME": "r2"})
    origin = {key: (value, where) for key, value, where in config.settings()}
    assert origin["run.seed"] == (1, "file")
    assert origin["grpo.max_steps"] == (7, "command line")
    assert origin["model.name"] == ("other", "environment MODEL_NAME")
    assert origin["run.name"] == ("r2", "environment RUN_NAME")
    assert origin["lora.r"] == (64, "default")
    over = load_config(path, ["model.name=third"], environment={"MODEL_NAME": "other"})
    assert over.model.name == "third", "the command line comes after the environment"


def test_a_replaced_section_forgets_the_origins_below(write) -> None:
    config = load_config(
        write(MINIMAL + "task: {name: jsonl, args: {path: a, test_share: 0.2}}\n".replace("task", "prompt: {}\n#")), []
    )
    assert config.task.name == "word_problems"
    config = load_config(write(MINIMAL), ["task={name: jsonl, args: {path: x}}"], environment={})
    origins = {key: where for key, _, where in config.settings()}
    assert origins["task.args.path"] == origins["task.name"] == "command line"


WRONG = [
    ("modle: {name: x}", "modle: unknown key. Did you mean 'model'?", "a section"),
    ("model: {name: x, nmae: y}", "model.nmae: unknown key. Did you mean 'name'?", "a key in a section"),
    ("lora: {rank: 8}", "lora.rank: unknown key.", "a key with no near name lists the allowed ones"),
    ("rewards: [{name: a, wieght: 2}]", "rewards.0.wieght: unknown key. Did you mean 'weight'?", "a key in a list"),
    ("grpo: {lerning_rate: 1}", "grpo.lerning_rate: TRL's GRPOConfig has no such field. Did you mean 'learning_rate'?", "TRL's"),
    ("grpo: {lr: 1}", "Did you mean 'learning_rate'?", "an abbreviation"),
    ("grpo: {seed: 1}", "grpo.seed: belongs to run.seed", "a fact has one owner"),
    ("grpo: {report_to: wandb}", "grpo.report_to: belongs to logging.report_to", "a fact has one owner"),
    ("grpo: {output_dir: x}", "grpo.output_dir: belongs to run.output_dir", "a fact has one owner"),
    ("grpo: {learning_rate: fast}", "grpo.learning_rate: 'fast' given, TRL takes float", "a type TRL would not check"),
    ("grpo: {num_generations: 1}", "at least 2", "GRPO compares answers"),
    ("grpo: {num_generations: 3}", "does not divide the 8 completions", "TRL would say so after loading the model"),
    ("grpo: {learning_rate: -1.0}", "must be above 0", "a rate that unlearns"),
    ("grpo: [1]", "grpo:", "not a mapping"),
    ("run: {name: '../x'}", "run.name", "a name is one folder"),
    ("run: {seed: '3'}", "run.seed: '3' given", "a number in quotes is not a number"),
    ("rollouts: {engine: vlm}", "rollouts.engine: 'vlm' is not allowed. Allowed: 'auto'", "a choice"),
    ("model: {name: m, load_in_4bit: true}\nlora: null", "4-bit ones cannot be trained", "all weights, in 16 bit"),
    ("grpo: {loss_type: gpro}", "grpo.loss_type: 'gpro' given. Allowed: grpo, dr_grpo", "TRL would say so in step 1"),
    ("grpo: {max_steps: 0}", "grpo.max_steps: 0 given", "no training"),
    ("grpo: {max_steps: 5, num_train_epochs: 1.0}", "max_steps is given too", "one of them would be ignored"),
    ("grpo: {max_completion_length: 2048}", "leaves no room for a prompt", "the window is 2048"),
    ("grpo: {multi_objective_aggregation: normalize_then_sum, scale_rewards: none}", "TRL reads it only with", "ignored in silence"),
    ("rewards: []", "rewards", "nothing to learn from"),
    ("logging: {report_to: [mlflow]}", "logging.report_to.0: 'mlflow' is not allowed", "a choice in a list"),
    ("origins: {}", "origins: unknown key", "an internal field is not a setting"),
    ("rewards: [{name: a, weight: .nan}]", "rewards.0.weight: nan given; it must be a finite number", "every total would be NaN"),
    ("grpo: {learning_rate: .nan}", "grpo.learning_rate: nan given", "all weights would be NaN after a step"),
    ("grpo: {learning_rate: 1e999}", "grpo.learning_rate: inf given", "too large for a float"),
    ("merge: {thresholds: {kl: .inf}}", "merge.thresholds.kl: inf given", "JSON has no infinity: it would be saved as null"),
    ("task: {name: jsonl, args: {test_share: .nan}}", "task.args.test_share: nan given", "no comparison with NaN is true"),
    ("grpo: {generation_batch_size: 20}", "must be a multiple of per_device_train_batch_size (8)", "rounds of a part of a batch"),
    ("grpo: {generation_batch_size: 4}", "must be a multiple of per_device_train_batch_size (8)", "a dry run divided by zero"),
    ("grpo: {generation_batch_size: 0}", "grpo.generation_batch_size: 0 given, must be above 0", "no batch"),
    ("grpo: {generation_batch_size: 16, steps_per_generation: 2}", "Give one of them", "TRL takes one"),
    ("grpo: {optim: adamw}", "grpo.optim: 'adamw' given.", "a name transformers no longer has"),
    ("grpo: {lr_scheduler_type: cosin}", "Did you mean 'cosine'?", "a word of transformers"),
    ("grpo: {save_strategy: best}", "grpo.save_strategy: 'best' given. Allowed: steps, epoch, no", "needs TRL's evaluation"),
    ("grpo: {num_generations: null}", "grpo.num_generations: null given", "TRL lets it be null"),
    ("grpo: {max_completion_length: null}", "grpo.max_completion_length: null given", "no end to an answer"),
    ("grpo: {top_p: 1.5}", "grpo.top_p: 1.5 given, must be above 0 and at most 1", "told after the model was loaded"),
    ("grpo: {adam_beta2: 1.0}", "grpo.adam_beta2: 1.0 given", "torch says so when training starts"),
    ("grpo: {min_p: 3.0}", "grpo.min_p: 3.0 given, must be from 0 to 1", "generate says so in step 1"),
    ("grpo: {top_k: -5}", "grpo.top_k: -5 given, must be 0 or above", "generate says so in step 1"),
    ("grpo: {generation_kwargs: {stop_strings: [x]}}", "TRL hands generate no tokenizer", "generate says so in step 1"),
    ("grpo: {generation_kwargs: {temperature: 0.5}}", "write it as grpo.temperature", "evaluation would sample otherwise"),
    ("grpo: {generation_kwargs: {max_new_tokens: 9}}", "Today this is grpo.max_completion_length", "one length"),
    ("lora: true", "lora: True given, it takes keys with values", "in the words of a YAML file, not of pydantic"),
    ("rewards: {a: 1}", "rewards: {'a': 1} given, it takes a list", "keys where a list belongs"),
    ("run: {name: [a]}", "run.name: ['a'] given, it takes a text", "a list where a text belongs"),
    ("model: {name: ''}", "model.name: '' given", "no name would be the current folder"),
    ("grpo: {warmup_steps: -1}", "grpo.warmup_steps: -1 given", "TRL's constructor"),
    ("run: {halt_on: [hopeless]}", "run.halt_on.0: 'hopeless' is not allowed. Allowed: 'no_signal'", "a finding's name"),
    ("evaluation: {patience: 2, every_steps: 0}", "there is nothing to wait for", "no evaluation, no patience"),
    ("sampling: {refill: 0.5}", "need sampling.choose=true", "said before a model is loaded"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "said", "why"), WRONG, ids=[row[2] for row in WRONG])
def test_faults_are_said(write, text: str, said: str, why: str) -> None:
    section = text.split(":")[0]
    kept = "".join(line + "\n" for line in MINIMAL.splitlines() if not line.startswith(section + ":"))
    with pytest.raises(UserError) as error:
        load_config(write(kept + text + "\n"), environment={})
    assert said in str(error.value)


OF_THEN = [
    ("grpo: {max_prompt_length: 256}", "a prompt is never cut", "TRL of 2025 cut prompts"),
    ("grpo: {max_new_tokens: 256}", "Today this is grpo.max_completion_length", "generate's name"),
    ("grpo: {evaluation_strategy: steps}", "Today this is evaluation.every_steps", "transformers 4"),
    ("grpo: {vllm_sampling_params: {min_p: 0.1}}", "Today this is grpo.temperature, top_p, top_k, min_p", "Unsloth's"),
    ("grpo: {warmup_ratio: 0.1}", "Today this is grpo.warmup_steps, which below 1 is a share", "transformers 4"),
    ("grpo: {use_vllm: true}", "grpo.use_vllm: belongs to rollouts.engine", "TRL's, owned here"),
    ("grpo: {vllm_server_base_url: http://there:8000}", "belongs to rollouts.url", "TRL's, owned here"),
    ("grpo: {unsloth_num_chunks: -1}", "Leave it away: Unsloth chooses it", "Unsloth's"),
    ("grpo: {max_seq_length: 1024}", "Today this is model.max_seq_length", "another section's"),
    ("model: {name: m, model_name: x}", "model.model_name: unknown key. Today this is model.name", "FastLanguageModel's"),
    ("model: {name: m, fast_inference: true}", "Today this is rollouts.engine: unsloth", "FastLanguageModel's"),
    ("model: {name: m, max_steps: 5}", "model.max_steps: unknown key. Write it under grpo: as grpo.max_steps", "TRL's own"),
    ("lora: {lora_alpha: 32}", "lora.lora_alpha: unknown key. Today this is lora.alpha", "get_peft_model's"),
    ("lora: {random_state: 3407}", "Today this is run.seed", "get_peft_model's"),
    ("lora: {use_rslora: false}", "Leave it away: only a plain LoRA", "get_peft_model's"),
    ("reward_funcs: [a]", "reward_funcs: unknown key. Today this is rewards, a list", "GRPOTrainer's"),
    ("seed: 1", "seed: unknown key. It belongs to run.seed", "at the top"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "said", "whose"), OF_THEN, ids=[row[0] for row in OF_THEN])
def test_names_of_copied_notebooks_say_what_to_write_today(write, text: str, said: str, whose: str) -> None:
    test_faults_are_said(write, text, said, whose)


def test_no_name_of_then_is_one_of_now() -> None:
    now = [name for name in (*MOVED, *GONE) if name in grpo_fields()]
    assert not now, "TRL has these fields again: they must not be looked up as old ones"


def test_the_home_is_written_with_a_tilde(write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/mia")
    text = "model: {name: ~/m, merge_base: ~/b}\nrun: {output_dir: ~/o}\nprompt: {template: ~/t.jinja, system: ~/s}\n"
    text += "task: {name: jsonl, args: {path: ~/d.jsonl, test_path: ~/t.jsonl, system: ~/s}}\n"
    text += "rewards: [{name: '~/r.py:f', args: {model: ~/rm, note: ~/n}}]\n"
    config = load_config(write(text), environment={})
    places = (config.model.name, config.model.merge_base, config.run.output_dir, config.prompt.template)
    assert places == ("/home/mia/m", "/home/mia/b", "/home/mia/o", "/home/mia/t.jinja")
    assert config.task.args == {"path": "/home/mia/d.jsonl", "test_path": "/home/mia/t.jsonl", "system": "~/s"}
    assert config.rewards[0].name == "/home/mia/r.py:f"
    assert config.rewards[0].args == {"model": "/home/mia/rm", "note": "~/n"} and config.prompt.system == "~/s"
    assert load_config(write(text), ["model.name=~/x"], environment={}).model.name == "/home/mia/x"


def test_whose_key_is_missing_and_who_gave_the_fault(write) -> None:
    whole = "model: {name: x}\ntask: {name: t}\nrewards: [{name: a}]\n"
    said = []
    for text, words in (
        ("task: {name: t}\n", []),
        (whole, ["sft={step: 3}"]),
        (whole, ["sft={steps: 5, warmup_steps: 5}"]),
    ):
        with pytest.raises(UserError) as error:
            load_config(write(text), words, environment={})
        said.append(str(error.value))
    assert "model: missing; every config needs it." in said[0] and "command line" not in said[0]
    assert "sft.steps: missing; sft needs it." in said[1] and "and the command line: 2 faults" in said[1]
    assert "sft.warmup_steps: 5 leave none of the 5 steps." in said[2]


def test_all_faults_at_once(write) -> None:
    with pytest.raises(UserError) as error:
        load_config(
            write("model: {nme: x}\ntask: {name: t}\nrewards: [{name: a}]\ngrpo: {sed: 1, temp: 2}\nlora: {r: 0}\n")
        )
    said = str(error.value)
    assert all(path in said for path in ("model.name", "model.nme", "grpo.sed", "grpo.temp", "lora.r")), said


NUMBERS = [
    ("1e-5", 1e-5),
    ("1E5", 1e5),
    ("1.5e-3", 1.5e-3),
    ("-2e3", -2000.0),
    ("3", 3),
    ("0.1", 0.1),
    ("e5", "e5"),
    ("1e", "1e"),
]


@pytest.mark.parametrize(("text", "value"), NUMBERS)
def test_numbers_are_numbers(text: str, value: object) -> None:
    got = split_override(f"a.b={text}")[1]
    assert got == value and type(got) is type(value)


@pytest.mark.parametrize(
    ("text", "value"), [("no", "no"), ("off", "off"), ("true", True), ("False", False), ("null", None)]
)
def test_only_true_and_false_are_booleans(text: str, value: object) -> None:
    assert split_override(f"a.b={text}")[1] is value or split_override(f"a.b={text}")[1] == value


def test_one_step_without_a_dot_is_a_number_in_a_file(write) -> None:
    assert load_config(write(MINIMAL + "grpo: {learning_rate: 1e-5}\n"), environment={}).grpo["learning_rate"] == 1e-5


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: 1\na: 2\n", "c.yaml:2: not valid YAML (the key 'a' stands twice)"),
        ("a: [1\n", "not valid YAML"),
        ("- 1\n", "not sections with keys"),
        ("", "not sections with keys"),
        ("? [a]\n: 1\n", "not a config"),
        ("a: &x\n  b: *x\n", "c.yaml"),
        ("model: !!python/object/apply:os.system ['true']\n", "not valid YAML"),
    ],
)
def test_broken_files(write, text: str, said: str) -> None:
    with pytest.raises(UserError, match="c.yaml") as error:
        load_config(write(text))
    assert said in str(error.value)


def test_a_missing_file_names_its_neighbours(tmp_path: Path) -> None:
    (tmp_path / "demo.yaml").write_text(MINIMAL)
    with pytest.raises(UserError, match="Did you mean 'demo.yaml'"):
        load_config(tmp_path / "dmeo.yaml")


@pytest.mark.parametrize("text", ["a", "=3", "a..b=3", ".a=3"])
def test_what_is_no_override(text: str) -> None:
    with pytest.raises(UserError, match="section.key=value"):
        split_override(text)


def test_overrides_reach_into_lists(write) -> None:
    assert load_config(write(MINIMAL), ["rewards.0.weight=2.5"], environment={}).rewards[0].weight == 2.5
    with pytest.raises(UserError, match="'1' is not an index of a list with 1 entries"):
        load_config(write(MINIMAL), ["rewards.1.weight=2.5"], environment={})
    with pytest.raises(UserError, match="is a single value"):
        load_config(write(MINIMAL), ["model.name.x=2"], environment={})


def test_epochs_replace_the_default_number_of_steps(write) -> None:
    assert load_config(write(MINIMAL + "grpo: {num_train_epochs: 2.0}\n"), environment={}).grpo["max_steps"] == -1


def test_the_effective_config_loads_again_unchanged(write, tmp_path: Path) -> None:
    from llm_grpo.config.yaml_text import write_yaml

    config = load_config(write(MINIMAL), ["grpo.learning_rate=1e-5", "prompt.system=a: b"], environment={})
    again = tmp_path / "again.yaml"
    again.write_text(write_yaml(config.as_dict(), "a\nb"))
    assert load_config(again, environment={}).as_dict() == config.as_dict()


FOLLOWS = [
    ({}, {"epsilon_high": 0.2, "scale_rewards": "group"}, "TRL's own; on a GPU Unsloth would take 0.28"),
    ({"epsilon": 3e-4}, {"epsilon_high": 3e-4}, "one bound given is both"),
    ({"epsilon_high": 0.28}, {"epsilon": 0.2, "epsilon_high": 0.28}, "DAPO's two"),
    ({"epsilon": 0.1, "epsilon_high": None}, {"epsilon_high": 0.1}, "null is left open"),
    ({"loss_type": "cispo"}, {"epsilon_high": 5.0}, "the cap of the ratio itself: 0.2 would shrink every token"),
    ({"loss_type": "dr_grpo"}, {"scale_rewards": "none"}, "the paper's; on a GPU Unsloth's too"),
    ({"loss_type": "dr_grpo", "scale_rewards": "group"}, {"scale_rewards": "group"}, "who asks for it gets it"),
    ({"loss_type": "dr_grpo", "multi_objective_aggregation": "normalize_then_sum"}, {"scale_rewards": "group"}, "not read there"),
]  # fmt: skip


@pytest.mark.parametrize(("given", "held", "why"), FOLLOWS, ids=[row[2] for row in FOLLOWS])
def test_what_follows_from_another_value_is_stated(write, tmp_path: Path, given: dict, held: dict, why: str) -> None:
    from llm_grpo.config.yaml_text import write_yaml

    config = load_config(write(MINIMAL), [f"grpo={json.dumps(given)}"], environment={})
    assert {name: config.grpo[name] for name in held} == held
    again = tmp_path / "again.yaml"
    again.write_text(write_yaml(config.as_dict(), why))
    assert load_config(again, environment={}).grpo == config.grpo


def test_grpo_fields_are_those_of_the_installed_trl() -> None:
    from trl import GRPOConfig

    assert set(grpo_fields()) == {field.name for field in dataclasses.fields(GRPOConfig)}
    assert set(OWNED_ELSEWHERE) <= set(grpo_fields())
    assert set(GRPO_DEFAULTS) <= set(grpo_fields())


def test_did_you_mean() -> None:
    assert did_you_mean("jsnol", ["jsonl", "csv"]) == " Did you mean 'jsonl'?"
    assert did_you_mean("zzz", ["jsonl", "csv"]) == " Allowed: csv, jsonl."
    assert "the nearest are" in did_you_mean("zzz", [f"name_{i}" for i in range(30)])
