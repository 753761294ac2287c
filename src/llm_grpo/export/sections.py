"""The sections of a model card, each from its data to Markdown. What a model wrote is data: it ends no fence."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from llm_grpo.config.schema import Config, PromptSection
from llm_grpo.evaluation.scoring import SHARES
from llm_grpo.export.source import shown
from llm_grpo.prompts import with_system
from llm_grpo.records import Message
from llm_grpo.report.tables import NAMES, p_value, share

SHOTS = (
    "In training, and for every number of this card, worked examples stood before the question (`prompt.examples`). "
    "These commands do not show them; where they are wanted, give them as the first messages of the dialogue.\n\n"
)


def results(
    before: Mapping[str, Any] | None, after: Mapping[str, Any], paired: Mapping[str, Any] | None, learned: str
) -> str:
    """The table of held-out problems with 95 % intervals, and what changed item by item. learned: what was measured."""
    columns = [report for report in (before, after) if report]
    rows = [[NAMES[name], *(interval(report, name) for report in columns)] for name in SHARES]
    rows += [["reward, weighted sum", *("-" if r["reward"] is None else f"{r['reward']:.3f}" for r in columns)]]
    rows += [["tokens per answer", *(f"{report['mean_tokens'] or 0:.1f}" for report in columns)]]
    for number in ("avg_at_k", "maj_at_k"):
        if any(f"{number}_ci95" not in report.get("sampled", {}).get("strict", {}) for report in columns):
            continue
        cells = [interval(report["sampled"]["strict"], number) for report in columns]
        rows.append([f"strict, {number.removesuffix('_at_k')}@{after['sampled']['k']} of sampled answers", *cells])
    said = (
        f"## Results\n\n{after['n']} held-out problems of the test split, one greedy answer each, 95 % intervals in "
        f"brackets.{' Before: the base with the same prompts.' if before else ''} Strict reads the answer only from "
        "the format that was asked for, lenient from wherever a person would find it. Measured with the {learned}, "
        f"step {after['step']}.\n\n{table(['', 'before', 'after'] if before else ['', 'after'], rows)}"
    )
    said += _metrics(columns)
    if paired:
        said += (
            f"\n\nItem by item (strict): {paired['gained']} gained, {paired['lost']} lost, exact McNemar test "
            f"p {p_value(paired['p_value'])}. Of the gained, {paired['newly_right']} were wrong before however one "
            f"reads them, {paired['was_unreadable']} were right but not in the format."
        )
    return said


def _metrics(reports: Sequence[Mapping[str, Any]]) -> str:
    """What the task counts besides (Task.metrics): its numbers for each report, and its classes in the last."""
    found = [report.get("metrics") for report in reports]
    if not all(found):
        return ""
    columns = ["before", "after"][-len(found) :]
    rows = [[name.replace("_", " "), *(f"{m['numbers'][name]:.3f}" for m in found)] for name in found[-1]["numbers"]]
    said = f"\n\n{table(['', *columns], rows)}"
    classes = found[-1]["classes"]
    if classes:
        names = list(next(iter(classes.values())))
        numbers = [[name, *(f"{row[key]:.3g}" for key in names)] for name, row in classes.items()]
        said += f"\n\nBy class, after training:\n\n{table(['', *names], numbers)}"
    return said


def proof_section(proof: Mapping[str, Any] | None, skipped: bool, learned: str) -> str:
    """How near the merged weights are to what was learned (adapter, or model); or, plainly, that nobody looked."""
    title = f"## Is the merged model the {learned}?\n\n"
    if proof is None:
        why = " The comparison was skipped with `--skip-proof`." if skipped else ""
        return f"{title}These weights were not compared with the {learned}'s.{why}"
    rows = [_gap_row("merged weights", proof["merged"]), _gap_row("the base", proof["adapter_effect"])]
    four_bit = proof.get("four_bit")
    if four_bit and four_bit["measured"]:
        rows.append(_gap_row("adapter on the 4-bit base, as trained", four_bit))
    head = [f"distance from the {learned}", "mean gap", "largest gap", "KL", "same next token"]
    accuracy = proof["accuracy"]
    paired = accuracy["paired"]
    said = (
        f"{title}{'Yes' if proof['passed'] else 'Not within the thresholds'}: both answered {proof['prompts']} "
        "held-out prompts. Gaps of log-probability and KL are per token (nats), over the "
        f"{proof['merged']['tokens']} tokens of the {learned}'s greedy answers, computed in {proof['computed_in']}.\n\n"
        f"{table(head, rows)}\n\nThe same text for {proof['merged']['text_agreement']:.1%} of the prompts. Strict "
        f"accuracy: {learned} {interval(accuracy['adapter'], 'strict_accuracy')}, merged "
        f"{interval(accuracy['merged'], 'strict_accuracy')}; {paired['gained']} gained, {paired['lost']} lost, "
        f"McNemar p {p_value(paired['p_value'])}. All of it: `proof.json`."
    )
    if four_bit and not four_bit["measured"]:
        said += f"\n\nThe gap to the 4-bit base the adapter was trained on was not measured: {four_bit['why']}."
    if proof["failures"]:
        said += "\n\n" + "\n".join(f"- Failed: {failure}" for failure in proof["failures"])
        said += "\n\nPublished all the same, with `--skip-proof`." if skipped else ""
    return said


def _gap_row(label: str, gap: Mapping[str, Any]) -> list[str]:
    numbers = [gap[name] for name in ("mean_logprob_gap", "max_logprob_gap", "kl")]
    return [label, *("-" if n is None else f"{n:.2g}" for n in numbers), f"{gap['token_agreement']:.2%}"]


def use(
    name: str, method: str, base: str, system: str, max_tokens: int, rank: int, shots: Sequence[Message] = ()
) -> str:
    """Code for transformers, vLLM and this project, with the system prompt and the worked examples of the training."""
    if method == "gguf":
        words = f"-sys {shlex.quote(system)} " if system else ""
        command = fence(f"llama-cli -hf {name} {words}-p QUESTION", "bash")
        return f"## Use\n\n{SHOTS if shots else ''}{command}"
    opening = with_system([], system, shots)
    said = "".join(f"    {message!r},\n" for message in opening)
    kind = "AutoPeftModelForCausalLM" if method == "lora" else "AutoModelForCausalLM"
    package = f"peft import {kind}\nfrom transformers import" if method == "lora" else f"transformers import {kind},"
    code = (
        f"from {package} AutoTokenizer\n\n"
        f'tokenizer = AutoTokenizer.from_pretrained("{name}")\nmodel = {kind}.from_pretrained("{name}")\n'
        f"messages = [\n{said}    {{'role': 'user', 'content': 'QUESTION'}},\n]\n"
        'options = {"add_generation_prompt": True, "return_dict": True, "return_tensors": "pt"}\n'
        "inputs = tokenizer.apply_chat_template(messages, **options)\n"
        f"output = model.generate(**inputs, max_new_tokens={max_tokens}, do_sample=False)\n"
        'print(tokenizer.decode(output[0][inputs["input_ids"].shape[1] :], skip_special_tokens=True))'
    )
    words = f"--prompt QUESTION --temperature 0 --max_tokens {max_tokens} --system {shlex.quote(system)}"
    if method == "lora":
        serve = f"vllm serve {base} --enable-lora --max-lora-rank {rank} --lora-modules mine={name}"
        ours = f"hf download {name} --local-dir mine\npython src/infer.py --adapter mine {words}"
    else:
        serve, ours = f"vllm serve {name}", f"python src/infer.py --model {name} {words}"
    commands = f"vLLM:\n\n{fence(serve, 'bash')}\n\nllm-grpo:\n\n{fence(ours, 'bash')}"
    return f"## Use\n\n{fence(code, 'python')}\n\n{SHOTS if shots else ''}{commands}"


def prompt(asked: PromptSection) -> str:
    """What of the prompt and of the reading is not the tokenizer's own; "" where all is."""
    said = []
    if asked.template or asked.template_args:
        values = ", ".join(f"`{name}={value!r}`" for name, value in asked.template_args.items())
        said.append(
            f"The chat template that lies here is that of the training{f' and sets {values}' if values else ''}. "
            "A server of the base alone has to be given it: `--chat-template chat_template.jinja`."
        )
    if asked.thinking == "apart":
        said.append(
            "What was judged and paid is what stands behind the last `</think>` (`prompt.thinking: apart`); an answer "
            "whose think block stays open counts as empty."
        )
    return "## Prompt\n\n" + "\n\n".join(said) if said else ""


def rewards(config: Config, after: Mapping[str, Any] | None) -> str:
    """Functions, weights and arguments, and what the held-out answers earned after training."""
    args = [json.dumps(_public(reward.args)) if reward.args else "" for reward in config.rewards]
    rows = [[f"`{shown(r.name)}`", f"{r.weight:g}", text] for r, text in zip(config.rewards, args, strict=True)]
    said = f"## Rewards\n\n{table(['function', 'weight', 'arguments'], rows)}"
    if config.grpo["multi_objective_aggregation"] == "normalize_then_sum":
        said += "\n\nEach was normalised within the answers to one prompt before the weighted sum."
    if after:
        means = [[f"`{name}`", f"{value:.3f}"] for name, value in after["rewards"].items() if value is not None]
        said += f"\n\nMean per held-out answer, after training:\n\n{table(['function', 'mean'], means)}"
    return said


def training(environment: Mapping[str, Any], steps: Sequence[Mapping[str, Any]]) -> str:
    """What it took: steps, hours, tokens, machine, versions; "" where nothing of it was written down."""
    rows = []
    if steps:
        rows.append(["steps", str(steps[-1]["step"])])
    for name, key, unit, form in (
        ("hours of training", "step_time", 3600, ".2g"),
        ("tokens generated in training", "completion_tokens", 1, ",.0f"),
    ):
        if counted := [row[key] for row in steps if row.get(key) is not None]:  # a batch that is used again has none
            rows.append([name, f"{sum(counted) / unit:{form}}"])
    if environment:
        memory = f", {environment['gpu_memory_gb']} GB" if environment.get("gpu_memory_gb") else ""
        machine = f"{environment['gpu']}{memory}" if environment.get("gpu") else f"{environment['cpus']} CPU cores"
        found = [f"{name} {version}" for name, version in environment["versions"].items() if version]
        rows += [["hardware", machine], ["commit of llm-grpo", environment.get("commit") or "not known"]]
        rows += [["versions", ", ".join([f"python {environment['python']}", *found])]]
    return f"## Training\n\n{table(['', ''], rows)}" if rows else ""


def samples(items: Sequence[Mapping[str, Any]]) -> str:
    """Two right answers and a wrong one, the first of each kind; where nothing was wrong, that is said."""
    right, wrong = ([item for item in items if item["strict"] == kind] for kind in (True, False))
    said = ["## Sample answers", "Of the held-out problems, the first right answers and the first wrong one."]
    for item in [*right[:2], *wrong[:1]]:
        verdict = "right" if item["strict"] else "right, but not in the format" if item["lenient"] else "wrong"
        gold = str(item["answer"]).replace("`", "'").replace("\n", " ")
        answered = fence(item["completion"].strip())
        said.append(f"**{verdict}** (gold: `{gold}`)\n\n{fence(item['question'])}\n\n{answered}")
    if not wrong:
        said.append(f"None of the {len(items)} was answered wrong.")
    return "\n\n".join(said)


def config_section(config: Config) -> str:
    text = yaml.safe_dump(_public(config.as_dict()), sort_keys=False, allow_unicode=True)
    return f"## Config\n\n<details>\n<summary>the whole of it</summary>\n\n{fence(text.strip(), 'yaml')}\n\n</details>"


def _public(node: Any) -> Any:
    """The same without the folders of the machine that trained."""
    if isinstance(node, Mapping):
        return {key: _public(value) for key, value in node.items()}
    if isinstance(node, list):
        return [_public(value) for value in node]
    return shown(node) if isinstance(node, str) and "\n" not in node else node


def interval(report: Mapping[str, Any], name: str) -> str:
    return " ".join(share(report, name).split())


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def fence(text: str, language: str = "text") -> str:
    """A code block that the text cannot end: its fence is longer than any row of backticks inside."""
    longest = max(map(len, re.findall(r"`+", text)), default=0)
    marks = "`" * max(3, longest + 1)
    return f"{marks}{language}\n{text}\n{marks}"
