"""SFT before GRPO, and going on from an adapter: on the tiny model, with the real Unsloth and TRL."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Sequence
from pathlib import Path

import httpx
import pytest
import torch
from conftest import ROOT, SMALL, TINY, run_script
from rich.console import Console
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import train
from llm_grpo import runs
from llm_grpo.config.loading import load_config
from llm_grpo.config.schema import Config
from llm_grpo.errors import UserError
from llm_grpo.export.source import open_base
from llm_grpo.planning.preflight import missing_for_training
from llm_grpo.planning.starting import starting
from llm_grpo.policy import Policy, load_policy
from llm_grpo.problems import check_data, prepare, worked
from llm_grpo.prompts import render
from llm_grpo.tasks import build_task
from llm_grpo.training.sft import _rows, learn_solutions
from llm_grpo.training.sharing import Folded
from llm_grpo.training.stopping import GentleStop
from llm_grpo.training.watching import ProgressBar, Validation

DEMO = ROOT / "configs" / "demo.yaml"
CONSOLE = Console(quiet=True)
SFT = "sft={steps: 6, batch_size: 4, learning_rate: 1e-3}"


@pytest.fixture(autouse=True)
def _in_the_repository(monkeypatch) -> None:
    monkeypatch.chdir(ROOT)


def demo(folder: Path, *words: str) -> Config:
    small = ("lora.r=8", "grpo.save_steps=2", "task.args={train_size: 24, validation_size: 8, test_size: 8}")
    return load_config(DEMO, [f"run.output_dir={folder}", *small, SFT, *words], environment={})


def learn(config: Config, run: runs.Run, policy: Policy | None = None) -> tuple[Policy, int | None]:
    """(the policy afterwards, the number of the signal that ended it)"""
    policy, task = policy or load_policy(config), build_task(config.task.name, config.task.args)
    problems = prepare(task, "train", config, policy.tokenizer).problems
    return policy, learn_solutions(config, policy, task, problems, run, CONSOLE).number


def held(policy: Policy) -> dict[str, bytes]:
    return {n: p.detach().numpy().tobytes() for n, p in policy.model.named_parameters() if p.requires_grad}


def saved(folder: Path) -> dict[str, bytes]:
    return {name: value.numpy().tobytes() for name, value in load_file(folder / "adapter_model.safetensors").items()}


def test_the_loss_is_on_the_worked_answer_alone_behind_the_prompt_that_is_asked(tmp_path: Path, tokenizer) -> None:
    config = demo(tmp_path)
    task = build_task(config.task.name, config.task.args)
    problems = prepare(task, "train", config, tokenizer).problems
    generation = type("", (), {"eos_token_id": tokenizer.eos_token_id})
    policy = Policy(type("", (), {"generation_config": generation}), tokenizer, None, {})
    rows, *left_out = _rows(policy, task, problems, 56)
    assert left_out == [0, 0]
    assert len(rows) == len(problems) == 24
    for row, problem in zip(rows, problems, strict=True):
        learned = [token for token in row["labels"] if token != -100]
        assert row["input_ids"][-len(learned) :] == learned
        assert tokenizer.decode(learned) == worked(problem.example, task) + tokenizer.eos_token
        assert tokenizer.decode(row["input_ids"][: -len(learned)]) == render(problem.messages, tokenizer)
    lengths = sorted(sum(label != -100 for label in row["labels"]) for row in rows)
    most = lengths[12]
    fit = sum(n <= most for n in lengths)
    some, *left_out = _rows(policy, task, problems, most)
    assert len(some) == fit and left_out == [24 - fit, 0], "none longer than an answer, and it is told"


def test_the_first_loss_is_that_of_the_base_on_the_answers(tmp_path: Path) -> None:
    """One update over all rows, against a plain forward of transformers; prompts counted too, it would be another."""
    config = demo(tmp_path, "sft={steps: 1, batch_size: 24}")
    run = runs.create(config)
    policy, _ = learn(config, run)
    task = build_task(config.task.name, config.task.args)
    problems = prepare(task, "train", config, policy.tokenizer).problems
    model = AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32)
    told, tokens, all_told, all_tokens = 0.0, 0, 0.0, 0
    for row in _rows(policy, task, problems, 56)[0]:
        with torch.no_grad():
            found = model(torch.tensor([row["input_ids"]])).logits[0, :-1].log_softmax(-1)
        said = -found.gather(1, torch.tensor(row["input_ids"])[1:, None])[:, 0]
        answer = torch.tensor(row["labels"])[1:] != -100
        told, tokens = told + float(said[answer].sum()), tokens + int(answer.sum())
        all_told, all_tokens = all_told + float(said.sum()), all_tokens + len(said)
    (logged,) = (row["loss"] for row in runs.read_jsonl(run.sft_metrics))
    assert logged == pytest.approx(told / tokens, rel=1e-4)
    assert logged != pytest.approx(all_told / all_tokens, rel=0.1)


def test_what_all_prompts_begin_with_is_read_once(tmp_path: Path, monkeypatch) -> None:
    """The same losses and weights, where layers are not computed again; and it was at work."""
    apart, real = [], Folded.inputs
    monkeypatch.setattr(Folded, "inputs", lambda self, model: apart.append(len(self.beginning)) or real(self, model))
    found = []
    for checkpointing in ("true", "false"):
        words = ("prompt={examples: 2}", f"grpo.gradient_checkpointing={checkpointing}")
        config = demo(tmp_path / checkpointing, *words)
        run = runs.create(config)
        policy, _ = learn(config, run)
        rows = list(runs.read_jsonl(run.sft_metrics))
        weights = torch.cat([p.detach().flatten() for p in policy.model.parameters() if p.requires_grad])
        found.append((weights, [row["loss"] for row in rows], [row["num_tokens"] for row in rows], len(apart)))
    (every, losses, tokens, none), (once, losses_once, tokens_once, all_of_them) = found
    assert none == 0 and all_of_them == 6 and min(apart) > 20, "twice as cheap, and so it is done"
    assert losses_once == pytest.approx(losses, abs=1e-4) and tokens_once == tokens
    assert torch.allclose(once, every, atol=1e-4)


def test_an_sft_that_was_stopped_goes_on_and_one_that_is_done_is_not_repeated(tmp_path: Path, monkeypatch) -> None:
    config = demo(tmp_path)
    whole = runs.create(config)
    policy, number = learn(config, whole)
    assert number is None and saved(whole.warm) == saved(whole.sft / "checkpoint-6")

    stopped = runs.create(demo(tmp_path, "run.name=stopped"))
    shown = ProgressBar.on_log

    def end_it(self, args, state, *rest, **words) -> None:
        shown(self, args, state, *rest, **words)
        if state.global_step == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(ProgressBar, "on_log", end_it)
    _, number = learn(config, stopped)
    assert number == signal.SIGTERM and not stopped.warm.exists()
    assert stopped.last_checkpoint().step == 4 and not stopped.last_checkpoint().of_grpo
    monkeypatch.undo()
    monkeypatch.chdir(ROOT)
    again, number = learn(config, stopped)
    assert number is None and held(again) == held(policy) and saved(stopped.warm) == saved(whole.warm)
    told = [[(r["step"], r["loss"]) for r in runs.read_jsonl(run.sft_metrics)] for run in (whole, stopped)]
    assert told[0] == told[1] and len(told[0]) == 6 and told[0][-1][1] < told[0][0][1]

    monkeypatch.setattr("llm_grpo.training.sft.SFTTrainer", None)  # nobody asks for it
    third, _ = learn(config, stopped)
    assert held(third) == held(policy)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole run with both phases."""
    outputs = tmp_path_factory.mktemp("outputs")
    words = [f"run.output_dir={outputs}", *SMALL, "lora.r=8", "grpo.max_steps=2", SFT]
    done = run_script("src/train.py", "--config", "configs/demo.yaml", *words)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "before and after SFT" in done.stdout and "SFT step 6/6" in done.stdout
    return outputs / "demo"


def test_a_run_shows_base_sft_and_grpo_each_paired_with_the_one_before(run: Path) -> None:
    summary = json.loads((run / "summary.json").read_text())
    strict = {name: summary[name]["strict_accuracy"] for name in ("before", "after_sft", "after")}
    for name, (one, two) in {"sft": ("before", "after_sft"), "grpo": ("after_sft", "after")}.items():
        counts = summary[name]
        assert (counts["gained"] - counts["lost"]) / 24 == pytest.approx(strict[two] - strict[one])
    ids = [[item["id"] for item in json.loads((run / "eval" / f"{n}.json").read_text())["items"]]
           for n in ("before", "after_sft", "after")]  # fmt: skip
    assert ids[0] == ids[1] == ids[2]
    assert saved(run / "adapter_sft") != saved(run / "adapter")


def test_a_run_killed_early_in_grpo_goes_on_behind_its_sft(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, copy := tmp_path / "demo")
    for name in ("checkpoints", "adapter", "adapter_best", "summary.json", "eval/after.json"):
        shutil.rmtree(copy / name) if (copy / name).is_dir() else (copy / name).unlink()
    done = run_script("src/train.py", "--config", copy / "config.yaml", "--resume", f"run.output_dir={tmp_path}")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "SFT step 6 of 6" in done.stdout and "SFT step 6/6" not in done.stdout
    for name in ("metrics.jsonl", "eval/validation.jsonl", "sft/metrics.jsonl"):
        told = [[row["step"] for row in runs.read_jsonl(folder / name)] for folder in (run, copy)]
        assert told[0] == told[1], name
    assert saved(copy / "adapter") == saved(run / "adapter"), "as if it had not been killed"


def test_a_stop_between_sft_and_grpo_says_how_to_go_on(run: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    shutil.copytree(run, copy := tmp_path / "demo")
    for name in ("eval/after_sft.json", "eval/after.json", "summary.json"):
        (copy / name).unlink()
    shutil.rmtree(copy / "checkpoints")

    def stopped(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("llm_grpo.evaluation.scoring.evaluator", lambda *_: stopped)
    with pytest.raises(KeyboardInterrupt):
        train.main(["--config", str(copy / "config.yaml"), "--resume", f"run.output_dir={tmp_path}"])
    assert f"src/train.py --config {copy / 'config.yaml'} --resume" in capsys.readouterr().out
    assert saved(copy / "adapter_sft") == saved(run / "adapter_sft")


def test_what_sft_learned_is_chosen_where_grpo_does_not_better_it(tmp_path: Path) -> None:
    def chosen(
        name: str, *words: str, accuracies: Sequence[float] = (0.5, 0.25, 0.5, 0.0), steps: Sequence[int] = range(9)
    ) -> tuple[int, list[int]]:
        config = load_config(DEMO, [f"run.output_dir={tmp_path}", f"run.name={name}", *words], environment={})
        run, saves, now = runs.create(config), [], []

        def save(folder: Path) -> None:
            folder.mkdir()
            (folder / "adapter_config.json").write_text("{}")
            saves.append(now[0])

        def report() -> dict[str, float]:
            return {"strict_accuracy": now[1], "lenient_accuracy": 0.0, "format_rate": 0.0}

        measured = Validation(config, run, report, save, GentleStop(CONSOLE))
        for now[:] in zip(steps, accuracies, strict=False):
            measured.validate(now[0])
        return run.chosen_step(), saves

    assert chosen("sft", SFT) == (2, [0, 2]), "of two as good the later"
    assert chosen("worse", SFT, accuracies=(0.5, 0.25)) == (0, [0])
    again = chosen("again", SFT, accuracies=(0.25, 0.5, 0.25), steps=(0, 1, 0))
    assert again == (1, [0, 1]), "GRPO begun anew, without a checkpoint: what was measured as better stays"
    assert chosen("adapter", f"lora.from={tmp_path}", accuracies=(0.5, 0.25)) == (0, [0])
    assert chosen("base", accuracies=(0.5, 0.25)) == (1, [1]), "the base has learned nothing that could be kept"


def test_whatever_the_hub_fails_by_is_told(monkeypatch) -> None:
    """A proxy that refuses is an error of httpx, a download that breaks off one of Xet."""
    for error in (httpx.ProxyError("403 Forbidden"), RuntimeError("xet: broken off"), OSError("no route")):

        def fails(*_: object, error: Exception = error, **__: object) -> str:
            raise error

        for name in ("hf_hub_download", "snapshot_download"):
            monkeypatch.setattr(f"huggingface_hub.{name}", fails)
        with pytest.raises(UserError, match=f"owner/adapter cannot be had from the Hub: {error}"):
            starting(load_config(DEMO, ["lora.from=owner/adapter"], environment={}))
        (missing,) = missing_for_training(load_config(DEMO, ["model.name=owner/model"], environment={}))
        assert missing.endswith(f"nor to be had from the Hub ({type(error).__name__}: {error})")
        with pytest.raises(UserError, match=f"The base 'owner/model' .* cannot be had from the Hub .{error}"):
            open_base("owner/model")


def test_a_run_goes_on_where_the_adapter_that_it_began_with_is_gone(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run / "adapter_sft", adapter := tmp_path / "adapter")
    words = [f"lora.from={adapter}", "lora.r=8"]
    there, folder = starting(load_config(DEMO, words, environment={}))
    assert folder == adapter
    shutil.rmtree(adapter)
    words += [f"lora.target_modules={there.lora.target_modules}"]
    config = load_config(DEMO, words, environment={})
    assert starting(config, resumed=True) == (config, None)
    for more, resumed in (([], False), (["grpo.beta=0.1"], True)):  # begun anew; the KL is against it
        with pytest.raises(UserError, match="there is no folder"):
            starting(load_config(DEMO, [*words, *more], environment={}), resumed=resumed)


def test_a_run_goes_on_from_an_adapter_and_begins_where_that_one_was(run: Path, tmp_path: Path) -> None:
    words = [f"run.output_dir={tmp_path}", *SMALL, "lora.r=8", "grpo.max_steps=1", "grpo.beta=0.04"]
    done = run_script("src/train.py", "--config", "configs/demo.yaml", *words, f"lora.from={run / 'adapter_sft'}")
    assert done.returncode == 0, done.stdout + done.stderr
    before = json.loads((tmp_path / "demo/eval/before.json").read_text())
    there = json.loads((run / "eval/after_sft.json").read_text())
    assert [i["completion"] for i in before["items"]] == [i["completion"] for i in there["items"]]
    assert runs.find(tmp_path / "demo").config().lora.from_ == str(run / "adapter_sft")
    assert runs.find(tmp_path / "demo").config().lora.target_modules, "those of the adapter, written down"


def test_what_does_not_fit_is_named_before_a_model_is_loaded(run: Path, tmp_path: Path) -> None:
    rows = [
        (["lora.r=16"], "its rank is 8, lora.r is 16"),
        (["lora.r=8", "lora.alpha=16"], "its alpha is 64, lora.alpha is 16"),
        (["lora.r=8", "lora.target_modules=[q_proj]"], "its targets are .*, lora.target_modules q_proj"),
        (["lora.r=8", "model.name=owner/other"], "its base is examples/tiny_qwen2, model.name is owner/other"),
        (["lora.r=16", "lora.alpha=16"], "its rank is .*; its alpha is "),  # all at once
        ([f"lora.from={TINY}"], "is a whole model, not an adapter. Set model.name="),
        ([f"lora.from={tmp_path}"], "holds no adapter"),
        (["lora.from=./nowhere"], "there is no folder"),
        (["lora.from=owner/adapter"], "cannot be had from the Hub"),  # tests are offline
    ]
    for words, said in rows:
        with pytest.raises(UserError, match=said):
            starting(load_config(DEMO, [f"lora.from={run}", *words], environment={}))
    config = load_config(DEMO, [f"lora.from={run}", "lora.r=8"], environment={})
    assert starting(config)[1] == run / "adapter_best", "a run gives what it chose"
    assert starting(load_config(DEMO, [], environment={}))[1] is None


def test_sft_without_solutions_is_refused_at_the_door(tmp_path: Path) -> None:
    (tmp_path / "d.jsonl").write_text("".join(f'{{"question": "q{i}", "answer": "{i}"}}\n' for i in range(200)))
    data = f"task={{name: jsonl, args: {{path: {tmp_path / 'd.jsonl'}}}}}"
    for words in ([data], ["task={name: lead_qualification, args: {}}"]):
        config = load_config(DEMO, [*words, SFT], environment={})
        with pytest.raises(UserError, match="sft: task .* has no worked solutions .* Set it to null"):
            check_data(config, build_task(config.task.name, config.task.args))
    with pytest.raises(UserError, match="sft.stepps"):
        load_config(DEMO, ["sft={steps: 3, stepps: 4}"], environment={})
