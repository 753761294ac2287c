"""The model card: what was measured stands in it, what was not does not, and the Hub's client reads its metadata."""

from __future__ import annotations

import ast
import json
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
from conftest import TINY, run_script
from huggingface_hub import ModelCard, constants
from markdown_it import MarkdownIt

from llm_grpo import runs
from llm_grpo.errors import UserError
from llm_grpo.export.card import OURS, Subject, card, licence_of, write_card
from llm_grpo.export.proof import prove
from llm_grpo.problems import worked_examples


@pytest.fixture(scope="module")
def proved(demo_run: tuple[Path, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a proof beside its merged weights."""
    folder = Path(shutil.copytree(demo_run[0], tmp_path_factory.mktemp("proved") / "demo"))
    run = runs.find(folder)
    prove(run.config(), run.chosen_weights(), str(TINY), run.merged, 8)
    return folder


@pytest.fixture
def run(proved: Path, tmp_path: Path) -> runs.Run:
    return runs.find(shutil.copytree(proved, tmp_path / "demo"))


def subject(of: runs.Run, **other: Any) -> Subject:
    given = {"folder": of.merged, "merged": of.merged, "adapter": of.chosen_weights(), "base": str(TINY), "run": of}
    return Subject(**{**given, **other})


def headings(text: str) -> list[str]:
    tokens = MarkdownIt().parse(ModelCard(text).text)
    return [after.content for token, after in zip(tokens, tokens[1:], strict=False) if token.type == "heading_open"]


def code_blocks(text: str) -> list[str]:
    return [token.content for token in MarkdownIt().parse(ModelCard(text).text) if token.type == "fence"]


def change(file: Path, **values: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def test_everything_that_was_measured(run: runs.Run) -> None:
    text = write_card(subject(run, repo="user/name")).read_text()
    report, proof = (json.loads(file.read_text()) for file in (run.after, run.merged / "proof.json"))
    data = ModelCard(text).data
    assert (data.library_name, data.pipeline_tag, data.model_name) == ("transformers", "text-generation", "name")
    assert {"grpo", "lora", "trl", "unsloth", "llm-grpo"} == set(data.tags) and "base_model" not in data.to_dict()
    strict = data.eval_results[0]
    assert (strict.metric_value, strict.dataset_type) == (round(report["strict_accuracy"], 4), "word_problems")
    for title in (
        "Results",
        "Is the merged model the adapter?",
        "Use",
        "Rewards",
        "Training",
        "Sample answers",
        "Config",
        "Licence",
    ):
        assert title in headings(text), title
    low, high = report["strict_accuracy_ci95"]
    assert f"{report['strict_accuracy']:.1%} [{low:.1%}, {high:.1%}]" in text and "24 held-out problems" in text
    assert f"| merged weights | {proof['merged']['mean_logprob_gap']:.2g} |" in text and "Yes: both answered 8" in text
    for spec in run.config().rewards:
        assert f"| `{spec.name}` | {spec.weight:g} |" in text
    assert "CPU cores" in text and "torch 2" in text and "tokens drawn" in text and "hours" in text
    wrong = next(item for item in report["items"] if not item["strict"])
    assert wrong["completion"].strip() in text, "a failure is among the samples"
    assert "learning_rate:" in text and "system" in text


ABSENT = [
    ("eval/before.json", "item by item", "the paired comparison"),
    ("eval/before.json", "| before |", "the numbers before"),
    ("eval/after.json", "## Results", "the numbers after"),
    ("eval/after.json", "## Sample answers", "the answers"),
    ("eval/after.json", "model-index", "nothing for the Hub's tables"),
    ("metrics.jsonl", "| steps |", "how far it went"),
    ("summary.json", "hours of training", "what it cost"),
    ("environment.json", "hardware", "on what"),
    ("merged/proof.json", "Yes: both answered", "the proof"),
]


@pytest.mark.parametrize(("file", "text", "what"), ABSENT)
def test_what_was_not_measured_is_not_in_it(run: runs.Run, file: str, text: str, what: str) -> None:
    assert text in card(subject(run))
    (run.folder / file).unlink()
    rest = card(subject(run))
    assert text not in rest and ModelCard(rest).data.license


def test_sampled_answers_where_both_have_them(run: runs.Run) -> None:
    strict = {"avg_at_k": 0.5, "avg_at_k_ci95": [0.25, 0.75], "maj_at_k": 0.6, "maj_at_k_ci95": [0.3, 0.9]}
    change(run.after, sampled={"k": 4, "strict": strict})
    assert "of sampled answers" not in card(subject(run)), "there is nothing to compare with"
    change(run.before, sampled={"k": 4, "strict": strict | {"avg_at_k": 0.4}})
    assert "| strict, avg@4 of sampled answers | 40.0% [25.0%, 75.0%] | 50.0% [25.0%, 75.0%] |" in card(subject(run))


def test_sft_and_grpo_each_against_what_it_started_from(run: runs.Run) -> None:
    one = card(subject(run))
    assert "|  | before | after |" in one and one.count("item by item") == 1 and "From before to after, item" in one
    report = json.loads(run.before.read_text())
    run.after_sft.write_text(json.dumps(report | {"strict_accuracy": 0.123}))
    text = card(subject(run))
    assert "|  | before | after SFT | after GRPO |" in text and "12.3%" in text
    said = re.findall(r"From (.*?), item by item \(strict\): (\d+) gained", text)
    assert [name for name, _ in said] == ["before to after SFT", "after SFT to after GRPO", "before to after GRPO"]
    assert said[0][1] == "0" and said[1][1] == said[2][1]


@pytest.mark.parametrize(
    ("task", "named", "of_the_hub"),
    [
        ("{name: jsonl, args: {path: /home/me/sums.jsonl}}", "sums.jsonl", None),
        ("{name: hub, args: {path: 'hf://datasets/owner/sums@main'}}", "owner/sums", ["owner/sums"]),
    ],
)
def test_what_it_learned_from(run: runs.Run, task: str, named: str, of_the_hub: list[str] | None) -> None:
    given = run.config_file.read_text()
    run.config_file.write_text(re.sub(r"task:\n.*?prompt:", f"task: {task}\nprompt:", given, flags=re.DOTALL))
    text = card(subject(run))
    data = ModelCard(text).data
    assert f"fine-tuned with GRPO on `{named}`" in text and data.eval_results[0].dataset_name == named
    assert data.get("datasets") == of_the_hub


def test_without_a_run_there_is_little_to_say(run: runs.Run) -> None:
    text = card(subject(run, run=None, merged=None))
    assert headings(text) == ["adapter_best", "Use", "Licence"] and "None" not in text
    (run.merged / "proof.json").unlink()
    assert "were not compared with the adapter's." in card(subject(run, run=None))


def test_numbers_of_another_adapter_are_not_shown(run: runs.Run) -> None:
    assert "## Results" in card(subject(run))
    assert "## Results" not in card(subject(run, adapter=run.adapter)), "adapter_best was evaluated, not this one"
    change(run.adapter_best / "validation.json", step=99)
    assert "## Results" not in card(subject(run)), "training went on after the evaluation"


def test_a_proof_that_failed_or_was_skipped_is_told(run: runs.Run) -> None:
    change(run.merged / "proof.json", passed=False, failures=["kl is 9; merge.thresholds.kl allows 0.01"])
    text = card(subject(run, proof_skipped=True))
    assert "Not within the thresholds" in text and "- Failed: kl is 9" in text and "with `--skip-proof`" in text
    (run.merged / "proof.json").unlink()
    assert "The comparison was skipped with `--skip-proof`." in card(subject(run, proof_skipped=True))
    change(run.environment, versions={})
    assert "The conversion to GGUF was not measured." in card(subject(run, method="gguf"))


def test_the_4bit_gap(run: runs.Run) -> None:
    gap = {"mean_logprob_gap": 0.1, "max_logprob_gap": None, "kl": 0.2, "token_agreement": 0.9, "measured": True}
    change(run.merged / "proof.json", four_bit=gap)
    assert "| adapter on the 4-bit base, as trained | 0.1 | - | 0.2 | 90.00% |" in card(subject(run))
    change(run.merged / "proof.json", four_bit={"measured": False, "why": "bitsandbytes is missing"})
    assert "was not measured: bitsandbytes is missing." in card(subject(run))


HOSTILE = [
    "```\n# Not a heading\n```",
    "````\n---\nlicense: stolen\n---\n~~~",
    "</details>\n\n# Not a heading\n| a | b |",
    "line\r\n# Not a heading\x00 \u2028 end",
]


@pytest.mark.parametrize("completion", HOSTILE)
def test_what_a_model_wrote_changes_nothing_around_it(run: runs.Run, completion: str) -> None:
    calm = headings(card(subject(run)))
    hostile = {"completion": completion, "question": completion, "answer": "`a`\n# Not a heading", "strict": True}
    for file in (run.before, run.after):
        first, *rest = json.loads(file.read_text())["items"]
        change(file, items=[first | hostile, *rest])
    text = card(subject(run))
    assert headings(text) == calm and ModelCard(text).data.license != "stolen"
    normal = completion.replace("\r\n", "\n").replace("\x00", "\ufffd").strip() + "\n"
    assert code_blocks(text).count(normal) == 2


def test_no_folder_of_this_machine_is_in_it(run: runs.Run, tmp_path: Path) -> None:
    config = run.config_file.read_text().replace("name: xmlcount_reward_func", f"name: {tmp_path}/mine.py:reward")
    (tmp_path / "mine.py").write_text("def reward(completions, **_): return [0.0] * len(completions)")
    run.config_file.write_text(config.replace("name: examples/tiny_qwen2", f"name: {tmp_path}/secret/base"))
    text = card(subject(run, base=str(TINY.resolve())))
    assert str(tmp_path) not in text and str(TINY.parent.resolve()) not in text
    assert "`mine.py:reward`" in text and "name: base" in text and "`tiny_qwen2`" in text


def test_worked_examples_stand_in_the_code(run: runs.Run) -> None:
    assert "worked examples" not in card(subject(run))
    run.config_file.write_text(run.config_file.read_text().replace("examples: 0", "examples: 2"))
    for method in ("merged_16bit", "gguf"):
        assert "worked examples stood before the question" in card(subject(run, method=method))
    shots = worked_examples(run.config())
    listed = code_blocks(card(subject(run)))[0].partition("messages = ")[2].partition("\n]\n")[0] + "]"
    told = ast.literal_eval(listed)
    assert [m["role"] for m in told] == ["system", "user", "assistant", "user", "assistant", "user"]
    assert told[1:-1] == list(shots) and told[-1]["content"] == "QUESTION"


def test_names_on_the_hub_become_metadata(run: runs.Run) -> None:
    config = re.sub(
        r"task:\n  name: word_problems\n  args:.*?prompt:",
        "task: {name: gsm8k, args: {}}\nprompt:",
        run.config_file.read_text(),
        flags=re.DOTALL,
    )
    run.config_file.write_text(config)
    data = ModelCard(card(subject(run, base="Qwen/Qwen2.5-3B-Instruct"))).data
    assert (data.base_model, data.base_model_relation, data.datasets) == (
        "Qwen/Qwen2.5-3B-Instruct",
        "finetune",
        ["openai/gsm8k"],
    )
    assert data.eval_results[0].dataset_type == "openai/gsm8k"
    text = card(subject(run, base="Qwen/Qwen2.5-3B-Instruct", method="lora", merged=None, folder=run.adapter_best))
    assert (ModelCard(text).data.library_name, ModelCard(text).data.base_model_relation) == ("peft", "adapter")
    assert "vllm serve Qwen/Qwen2.5-3B-Instruct --enable-lora --max-lora-rank 64" in text
    assert "AutoPeftModelForCausalLM" in text and "Is the merged model" not in text


LICENCES = [
    ("license: apache-2.0", {"license": "apache-2.0"}, "`apache-2.0`, as the base", "a known one"),
    ("license: other\nlicense_name: qwen-research\nlicense_link: LICENSE", {"license": "other", "license_name": "qwen-research", "license_link": "LICENSE"}, "`qwen-research`", "one with a name; its file is copied"),
    ("tags: [a]", {"license": "unknown"}, "does not say", "metadata without a licence"),
    (None, {"license": "unknown"}, "find it out", "no metadata at all"),
]  # fmt: skip


@pytest.mark.parametrize(("metadata", "fields", "said", "why"), LICENCES)
def test_the_licence_is_handed_on(tmp_path: Path, metadata: str | None, fields: dict, said: str, why: str) -> None:
    (tmp_path / "README.md").write_text(f"---\n{metadata}\n---\n# Base" if metadata else "# Base\n\nMIT, they say.")
    assert licence_of(str(tmp_path))[0] == fields and said in licence_of(str(tmp_path))[1]
    (tmp_path / "README.md").unlink()
    assert licence_of(str(tmp_path))[0] == {"license": "unknown"}


def test_the_licence_of_a_base_from_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    assert licence_of("some/base")[0] == {"license": "unknown"}, "not in the cache"
    repository = tmp_path / "models--some--base"
    (repository / "snapshots/01").mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs/main").write_text("01")
    said = "---\nlicense: other\nlicense_name: theirs\nlicense_link: LICENSE\n---\n"
    (repository / "snapshots/01/README.md").write_text(said)
    assert licence_of("some/base")[0]["license_link"] == "https://huggingface.co/some/base/blob/main/LICENSE"


def test_a_card_of_your_own_stays(run: runs.Run) -> None:
    file = write_card(subject(run))
    file.write_text(file.read_text().replace("# demo", "# Demo, edited"))
    assert "edited" not in write_card(subject(run)).read_text(), "written anew"
    file.write_text(file.read_text().replace(OURS, "").replace("# demo", "# Demo, edited"))
    assert "edited" in write_card(subject(run)).read_text(), "the mark is gone, so it is the user's"
    assert "[More Information Needed]" in (run.adapter_best / "README.md").read_text(), "PEFT's empty card"
    text = write_card(subject(run, folder=run.adapter_best, merged=None, method="lora")).read_text()
    assert "[More Information Needed]" not in text and "## Results" in text


def test_a_broken_file_of_the_run_is_named(run: runs.Run) -> None:
    run.summary.write_text("{")
    with pytest.raises(UserError, match="summary.json is broken"):
        card(subject(run))


def test_the_code_in_the_card_runs(
    run: runs.Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """As it stands, in the folder above the weights; greedy, so that our own command says the same."""
    text = card(subject(run))
    python, vllm, ours = code_blocks(text)[:3]
    monkeypatch.chdir(run.folder)
    question = "Tom has 5 pens and buys 7 more. How many has he now?"
    exec(compile(python.replace("QUESTION", question), "card", "exec"), {})
    said = capsys.readouterr().out.strip()
    assert "<reasoning>" in said and vllm.strip() == "vllm serve merged"
    words = shlex.split(ours.replace("QUESTION", shlex.quote(question)))
    words[words.index("merged")] = str(run.merged)
    done = run_script(*words[1:])
    assert done.returncode == 0, done.stderr
    assert said.splitlines()[1] in done.stdout
