"""Task lead_qualification: its generator, its CSV, what the model is shown, and the gold through the whole path."""

from __future__ import annotations

import csv
import json
import re
import subprocess
import sys
from collections import Counter
from itertools import islice
from pathlib import Path

import pytest
from conftest import ROOT, TINY, run_script

from llm_grpo.answers.labels import LABEL_SETS, LABELS, parse_labels, write_action, write_labels
from llm_grpo.config.loading import load_config
from llm_grpo.errors import UserError
from llm_grpo.evaluation.scoring import report_on, score
from llm_grpo.problems import build_rewards, prepare
from llm_grpo.prompts import ensure_template
from llm_grpo.records import Completion, Example
from llm_grpo.tasks.lead_qualification import COLUMNS, MOST_PER_SPLIT, generated, lead_qualification
from llm_grpo.tasks.sales_calls import CRITERIA, MET, NOT_MET

CONFIG = ROOT / "configs" / "lead_qualification.yaml"
ROLES = ["system", "user", "assistant", "tool", "user"]
SIZES = {"train_size": 640, "validation_size": 160, "test_size": 160}
SPLITS = ("train", "validation", "test")


def everything(**args: object) -> dict[str, tuple[Example, ...]]:
    task = lead_qualification(**{**SIZES, **args})
    return {split: task.load(split).examples for split in SPLITS}


# --- the generator -----------------------------------------------------------------------------------------------


def test_all_16_sets_in_equal_shares_in_every_split() -> None:
    for split, examples in everything().items():
        assert len(examples) == SIZES[f"{split}_size"]
        share = len(examples) // 16
        assert Counter(e.answer for e in examples) == {write_labels(labels): share for labels in LABEL_SETS}


def test_a_prior_is_kept() -> None:
    examples = everything(prior={"None": 3, "Budget, Need": 1}, train_size=2000)["train"]
    counts = Counter(example.answer for example in examples)
    assert set(counts) == {"None", "Budget, Need"} and 0.70 < counts["None"] / 2000 < 0.80


BAD_PRIORS = [
    ({"Price": 1}, "'Price': 1", "no label"),
    ({"Need, Budget": 1}, "in this order", "not in order"),
    ({"Need": -1}, "'Need': -1", "negative"),
    ({"Need": "much"}, "'much'", "no number"),
    ({"Need": 0}, "all weights are 0", "nothing to draw"),
]


@pytest.mark.parametrize(("prior", "said", "why"), BAD_PRIORS, ids=[row[2] for row in BAD_PRIORS])
def test_bad_priors(prior: dict, said: str, why: str) -> None:
    with pytest.raises(UserError, match="prior") as error:
        lead_qualification(prior=prior)
    assert said in str(error.value)


@pytest.mark.parametrize("size", [0, -1, MOST_PER_SPLIT + 1, 2.0, True, "7"])
def test_bad_sizes(size: object) -> None:
    with pytest.raises(UserError, match="validation_size"):
        lead_qualification(validation_size=size)


def test_no_call_stands_twice_whatever_the_seeds() -> None:
    seen: dict[str, str] = {}
    for seed in (0, 1):
        for split, examples in everything(seed=seed).items():
            assert len({e.question for e in examples}) == len({e.id for e in examples}) == len(examples)
            assert all(seen.setdefault(e.question, split) == split for e in examples)


def test_same_seed_same_calls_in_another_process_and_other_seed_others() -> None:
    code = "from llm_grpo.tasks.lead_qualification import generated as g; from itertools import islice; "
    code += "print(list(islice(g('test', 0), 40)))"
    printed = {
        subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": str(ROOT / "src"), "PYTHONHASHSEED": salt},
                       capture_output=True, text=True, check=True).stdout
        for salt in ("1", "2")
    }  # fmt: skip
    assert printed == {f"{list(islice(generated('test', 0), 40))}\n"}
    assert next(generated("test", 1)) != next(generated("test", 0))


def effects() -> list[tuple[re.Pattern[str], str, bool]]:
    """(pattern of a line, the criterion it settles, how), from the phrases alone."""
    found = []
    for label, criterion in CRITERIA.items():
        for name, met in (("yes", True), ("confirmed", True), ("no", False), ("withdrawn", False)):
            for phrase in getattr(criterion, name):
                pattern = re.sub(r"\\\{\w+\\\}", ".+", re.escape(phrase))
                found.append((re.compile(f"(?:.*[:,] )?{pattern}"), label, met))
    return found


def test_labels_follow_from_what_was_said_last() -> None:
    known = effects()
    for example in everything(seed=3)["train"]:
        state = dict.fromkeys(LABELS, False)
        for line in example.question.split("\n")[1:]:
            said = line.removeprefix("Lead: ")
            hits = {(label, met) for pattern, label, met in known if line != said and pattern.fullmatch(said)}
            assert len(hits) <= 1, (line, hits)
            state |= dict(hits)
        assert write_labels(tuple(label for label in LABELS if state[label])) == example.answer, example.question


def test_every_way_of_telling_occurs_and_no_phrase_settles_two_things() -> None:
    assert {field for way in MET + NOT_MET for field in way} == {"yes", "no", "withdrawn", "confirmed", "asides"}
    whole = "\n".join(e.question for e in everything(train_size=4000)["train"])
    for criterion in CRITERIA.values():
        for phrase in (*criterion.yes, *criterion.no, *criterion.withdrawn, *criterion.confirmed, *criterion.asides):
            assert re.search(re.sub(r"\\\{\w+\\\}", ".+", re.escape(phrase)), whole), phrase


def test_words_alone_do_not_tell_the_sets_apart() -> None:
    """The best single word says of no criterion whether it is met in more than 4 of 5 calls."""
    examples = everything(train_size=1600)["train"]
    words = [set(re.findall(r"[a-z]+", e.question.lower())) for e in examples]
    for label in LABELS:
        met = [label in e.answer for e in examples]
        for word in set().union(*words):
            right = sum((word in said) == is_met for said, is_met in zip(words, met, strict=True)) / len(met)
            assert max(right, 1 - right) < 0.8, (label, word)


# --- what the model is shown -------------------------------------------------------------------------------------


def test_five_messages_and_no_gold_among_them(tokenizer) -> None:
    by_answer: dict[str, set[tuple[str, ...]]] = {}
    for example in everything()["train"]:
        assert [message["role"] for message in example.prompt] == ROLES
        system, _, output, tool, ask = (message["content"] for message in example.prompt)
        by_answer.setdefault(example.answer, set()).add((system, ask))
        assert not any(label in tool or label in output for label in (*LABELS, "None", "respond"))
    assert len(by_answer) == 16 and len(set().union(*by_answer.values())) == 1, "the frame is the same for every gold"


def test_the_prompt_does_not_depend_on_the_gold(tmp_path: Path, tokenizer) -> None:
    """The same row with another gold gives the same prompt, to the character."""
    config = load_config(CONFIG, ["model.max_seq_length=4096"], environment={})
    shown = []
    for gold in ("None", "Authority, Need"):
        path = write_csv(tmp_path / "calls.csv", *({**row, "answers": gold} for row in rows(30)))
        task = lead_qualification(path=str(path), validation_share=0, test_share=0)
        problems = prepare(task, "train", config, tokenizer).problems
        assert {p.example.answer for p in problems} == {gold}
        shown.append([p.messages for p in problems])
    assert shown[0] == shown[1]


NO_TOOL = {
    "refuses the role": "{% for m in messages %}{% if m.role == 'tool' %}{{ raise_exception('no tool') }}{% endif %}[{{ m.role }}] {{ m.content }}\n{% endfor %}",
    "leaves it out": "{% for m in messages %}{% if m.role != 'tool' %}[{{ m.role }}] {{ m.content }}\n{% endif %}{% endfor %}",
    "wants turns to alternate": "{% for m in messages if m.role != 'system' %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('alternate') }}{% endif %}[{{ m.role }}] {{ m.content }}\n{% endfor %}",
}  # fmt: skip


@pytest.mark.parametrize("why", NO_TOOL)
def test_a_template_without_a_tool_role_still_shows_the_results(why: str, tokenizer, monkeypatch) -> None:
    monkeypatch.setattr(tokenizer, "chat_template", NO_TOOL[why])
    assert "no tool role" in ensure_template(tokenizer)
    task = lead_qualification(**SIZES)
    problem = prepare(task, "test", load_config(CONFIG, environment={}), tokenizer, 1).problems[0]
    assert [message["role"] for message in problem.messages] == ["system", "user", "assistant", "user"]
    tool, ask = (problem.example.prompt[i]["content"] for i in (3, 4))
    assert tool in problem.messages[-1]["content"] and problem.messages[-1]["content"].endswith(ask)


def test_a_template_with_a_tool_role_is_given_it(tokenizer) -> None:
    assert "tool" not in ensure_template(tokenizer)
    problem = prepare(lead_qualification(**SIZES), "test", load_config(CONFIG, environment={}), tokenizer, 1).problems[
        0
    ]
    assert [message["role"] for message in problem.messages] == ROLES


# --- a CSV -------------------------------------------------------------------------------------------------------


def rows(count: int) -> list[dict[str, str]]:
    """Of every split: a call stays in the split it was made for when it comes back from a file."""
    streams = {split: generated(split, 9) for split in SPLITS}
    return [next(streams[{8: "validation", 9: "test"}.get(n % 10, "train")]) for n in range(count)]


def write_csv(path: Path, *rows: dict[str, str], columns: tuple[str, ...] = COLUMNS) -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
    return path


def test_a_csv_is_read_into_disjoint_splits(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "calls.csv", *rows(300))
    task = lead_qualification(path=str(path))
    by_split = {split: task.load(split).examples for split in SPLITS}
    assert sum(map(len, by_split.values())) == 300
    assert 15 < len(by_split["test"]) < 50 and 15 < len(by_split["validation"]) < 50
    assert len({e.question for examples in by_split.values() for e in examples}) == 300
    first = next(e for examples in by_split.values() for e in examples if e.id == "calls/2")
    row = rows(1)[0]
    assert [m["content"] for m in first.prompt[:4]] == [row[column] for column in COLUMNS[:4]]
    assert first.answer == row["answers"]


FAULTS = [
    ({"answers": "Price"}, "'answers' is 'Price'", "an unknown label"),
    ({"answers": "Budget, Budget"}, "each once", "a duplicate"),
    ({"answers": "None, Budget"}, "not None or some of", "None and another"),
    ({"answers": "budget"}, "'answers' is 'budget'", "lower case"),
    ({"answers": " "}, "'answers' is empty", "no gold"),
    ({"query_results": ""}, "'query_results' is empty", "nothing to read"),
    ({"output": "<respond> Need </respond>"}, "'output' holds a <respond> action", "the answer is shown"),
    ({"query_results": "Note: <respond>Need</respond>"}, "would show the model the answer", "the answer is in the results"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "said", "why"), FAULTS, ids=[row[2] for row in FAULTS])
def test_a_bad_row_is_named_by_file_and_line(tmp_path: Path, change: dict, said: str, why: str) -> None:
    good = [{**row, "query_results": row["query_results"].replace("\n", " ")} for row in rows(40)]
    path = write_csv(tmp_path / "calls.csv", *good[:2], {**good[2], **change}, *good[3:])
    (bad,) = lead_qualification(path=str(path), max_bad_share=0.1).load("train").bad_rows
    assert (bad.file, bad.line) == (str(path), 4) and said in bad.reason, why
    with pytest.raises(UserError, match=r"calls\.csv:4"):
        lead_qualification(path=str(path)).load("train")


GOLDS = [("Need", "Need"), ("Need, Budget", "Budget, Need"), ("<respond> Need </respond>", "Need"), ("None", "None"),
         ("<respond> None </respond>", "None"), ("Budget,Need", "Budget, Need")]  # fmt: skip


@pytest.mark.parametrize(("given", "gold"), GOLDS)
def test_golds_are_put_in_order(tmp_path: Path, given: str, gold: str) -> None:
    path = write_csv(tmp_path / "calls.csv", {**rows(1)[0], "answers": given})
    assert lead_qualification(path=str(path), validation_share=0, test_share=0).load("train").examples[0].answer == gold


def test_faults_of_the_file(tmp_path: Path) -> None:
    write_csv(tmp_path / "calls.csv", *rows(3))
    with pytest.raises(UserError, match=r"Did you mean 'calls\.csv'"):
        lead_qualification(path=str(tmp_path / "cals.csv")).load("train")
    path = write_csv(tmp_path / "short.csv", *rows(3), columns=COLUMNS[:4])
    with pytest.raises(UserError, match="no column 'answers'"):
        lead_qualification(path=str(path)).load("train")
    with pytest.raises(UserError, match="falls into the test split"):
        lead_qualification(path=str(write_csv(tmp_path / "one.csv", *rows(1))), test_share=1e-9).load("test")
    with pytest.raises(UserError, match="test_share=0.6"):
        lead_qualification(path=str(tmp_path / "calls.csv"), test_share=0.6, validation_share=0.5).load("test")
    with pytest.raises(UserError, match="no split 'dev'"):
        lead_qualification().load("dev")


# --- the whole path ----------------------------------------------------------------------------------------------


def test_the_gold_earns_full_marks_and_a_wrong_set_does_not(tokenizer) -> None:
    config = load_config(CONFIG, environment={})
    task, rewards = lead_qualification(**SIZES), build_rewards(config.rewards)
    problems = prepare(task, "test", config, tokenizer, 32).problems
    golds = [parse_labels(p.example.answer) for p in problems]
    right = report_on(score(task, problems, [Completion(write_action(g), 9) for g in golds], rewards), rewards, task)
    assert right["strict_accuracy"] == right["format_rate"] == right["metrics"]["numbers"]["exact_match"] == 1
    assert right["reward"] == 2.0
    others = [LABEL_SETS[(LABEL_SETS.index(gold) + 1) % 16] for gold in golds]
    wrong = report_on(score(task, problems, [Completion(write_action(g), 9) for g in others], rewards), rewards, task)
    assert wrong["strict_accuracy"] == wrong["lenient_accuracy"] == 0 and wrong["format_rate"] == 1
    assert wrong["reward"] == 0.5
    assert all("Call with" in item["question"] for item in right["items"]), "a person is shown the call"


@pytest.fixture(scope="module")
def small_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Qwen2 of a few ten thousand weights with the shipped model's tokenizer and a longer window."""
    from transformers import AutoTokenizer, Qwen2Config, Qwen2ForCausalLM

    folder, known = tmp_path_factory.mktemp("base"), AutoTokenizer.from_pretrained(TINY)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = Qwen2Config(vocab_size=len(known), num_key_value_heads=2, max_position_embeddings=1024,
                         eos_token_id=known.eos_token_id, pad_token_id=known.pad_token_id, **shape)  # fmt: skip
    Qwen2ForCausalLM(config).save_pretrained(folder)
    known.save_pretrained(folder)
    return folder


def test_from_the_command_line_alone(small_base: Path, tmp_path: Path) -> None:
    """Data, base and place are said on the command line: data -> train -> evaluate -> merge -> infer."""
    calls, run = tmp_path / "calls.csv", tmp_path / "outputs" / "leads"
    assert run_script("examples/write_sales_calls.py", "--rows", 240, "--output", calls).returncode == 0
    words = [f"task.args.path={calls}", f"model.name={small_base}", f"run.output_dir={tmp_path / 'outputs'}"]
    few = ["run.name=leads", "model.merge_base=null", "model.max_seq_length=1024", "grpo.max_steps=2",
           "grpo.gradient_accumulation_steps=1", "grpo.per_device_train_batch_size=12", "evaluation.limit=12",
           "evaluation.validation_limit=4", "evaluation.every_steps=2"]  # fmt: skip
    done = run_script("src/train.py", "--config", CONFIG, *words, *few)
    assert done.returncode == 0, done.stdout + done.stderr
    printed = " ".join(done.stdout.split())
    assert "model.load_in_4bit: false: auto: a CPU" in printed and "dtype: float32" in printed
    assert "invalid format rate" in printed and "precision" in printed
    summary = json.loads((run / "summary.json").read_text())
    assert summary["after"]["metrics"]["numbers"]["invalid_format_rate"] == 1.0
    assert set(summary["after"]["metrics"]["classes"]) == set(LABELS)
    assert any(said.startswith("No signal, from step 1 on: in 100%") for said in summary["diagnoses"]), summary[
        "diagnoses"
    ]
    assert "No signal, from step 1 on: in 100% of the groups" in printed, (
        "a model that only fails is told to have no signal"
    )
    assert (run / "eval" / "confusion.png").stat().st_size > 20_000

    done = run_script("src/eval.py", "--run", run, "--split", "validation", "--limit", 4)
    assert done.returncode == 0 and (run / "eval" / "validation-1.png").is_file(), done.stdout + done.stderr
    done = run_script("src/merge.py", "--run", run, "--overwrite", "--proof-limit", 4)
    assert done.returncode == 0 and (run / "merged" / "proof.json").is_file(), done.stdout + done.stderr
    card = (run / "merged" / "README.md").read_text()
    assert "| invalid format rate | 1.000 | 1.000 |" in card and "By class, after training" in card
    done = run_script("src/infer.py", "--model", run / "merged", "--prompt", "Is it a lead?", "--max_tokens", 8)
    assert done.returncode == 0, done.stdout + done.stderr


# --- model.load_in_4bit: auto ------------------------------------------------------------------------------------

AUTO = [
    ("auto", True, True, True, (True, "auto: a GPU"), "a GPU that can"),
    ("auto", False, True, True, (False, "auto: a CPU"), "a CPU"),
    ("auto", True, False, True, (False, "auto: bitsandbytes is not installed"), "a GPU without the package"),
    ("auto", True, True, False, (False, "auto: all weights are trained"), "no LoRA"),
    (True, False, False, True, (True, "asks for it"), "true is the user's word"),
    (False, True, True, True, (False, "asks for it"), "and so is false"),
]


@pytest.mark.parametrize(("wanted", "gpu", "package", "lora", "expected", "why"), AUTO, ids=[row[5] for row in AUTO])
def test_four_bit_by_itself(monkeypatch, wanted, gpu, package, lora, expected, why) -> None:
    import torch

    from llm_grpo import rollouts

    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr(rollouts.importlib.util, "find_spec", lambda name: object() if package else None)
    chosen, reason = rollouts.choose_four_bit(wanted, lora)
    assert chosen == expected[0] and expected[1] in reason, why


def test_four_bit_takes_three_words() -> None:
    with pytest.raises(UserError, match=r"model\.load_in_4bit: 'yes' is not allowed\. Allowed: True, False or 'auto'"):
        load_config(CONFIG, ["model.load_in_4bit=yes"], environment={})
