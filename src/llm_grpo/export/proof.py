"""Is the merged model the adapter? Both answer the same held-out prompts, and the difference is written down.

proof.json lies beside the weights it speaks of, names them by their SHA-256, and says by which thresholds it was judged
(`merge.thresholds` in the config). The models are loaded one after the other, without unsloth, as anybody would.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from llm_grpo.config.schema import Config, ThresholdsSection
from llm_grpo.evaluation.comparison import compare
from llm_grpo.evaluation.scoring import evaluate, without_items
from llm_grpo.export.gaps import Answered, gap_to_four_bit, gaps, opened, read
from llm_grpo.export.source import shown
from llm_grpo.files import read_json, sha256, write_json
from llm_grpo.problems import build_rewards, prepare
from llm_grpo.prompts import render
from llm_grpo.records import Problem
from llm_grpo.rollouts import choose_four_bit
from llm_grpo.rollouts.transformers import TransformersEngine
from llm_grpo.tasks import build_task

FILE = "proof.json"
Watch = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]
ROUNDING = 1e-4  # KL per token that 16-bit weights cost anyway; below it, its share of a small effect says nothing


def prove(
    config: Config,
    adapter: Path,
    base: str,
    merged: Path,
    limit: int,
    revision: str | None = None,
    watch: Watch = lambda what, total: nullcontext(lambda count: None),
) -> dict[str, Any]:
    """Compare adapter and merged model on the first `limit` test problems of the run's task; write merged/proof.json.

    adapter: what the run learned; a whole model stands for itself, and the base is what it was trained from.
    Log-probabilities and KL are taken over the adapter's greedy answers, token by token; accuracy over each model's own
    greedy answers. "adapter_effect" is the distance of the base from the adapter: a merge has to be much nearer than
    that. watch: entered with what comes next and how many answers it takes, yields what to call as they are done.
    Raises UserError where the data or a model cannot be had; a failed comparison is a result, not an error.
    """
    rewards, task = build_rewards(config.rewards), build_task(config.task.name, config.task.args)
    with opened(config, base, adapter, revision=revision) as engine:
        problems = prepare(task, "test", config, engine.tokenizer, limit).problems
        with watch("what was trained answers", 2 * len(problems)) as on_done:
            of_adapter = evaluate(engine, task, problems, rewards, config.answer_tokens(), on_done=on_done)
            pairs = _answered(engine, problems, of_adapter["items"])
            readings = read(engine.model, pairs, on_done)
        computed_in = f"{str(engine.model.dtype).removeprefix('torch.')} on {engine.model.device.type}"
    # By itself: what was learned need not be an adapter on it.
    with opened(config, base, revision=revision) as engine, watch("the base reads it", len(pairs)) as on_done:
        effect = gaps(readings, engine.model, pairs, on_done)
    four_bit = {}
    if choose_four_bit(config.model.load_in_4bit)[0]:
        with watch("the adapter on the 4-bit base reads it", len(pairs)) as on_done:
            four_bit = {"four_bit": gap_to_four_bit(config, adapter, readings, pairs, on_done)}
    with opened(config, str(merged)) as engine, watch("the merged model answers", 2 * len(pairs)) as on_done:
        same_prompts = [pair.prompt for pair in pairs] == [_prompt_ids(engine, problem) for problem in problems]
        of_merged = evaluate(engine, task, problems, rewards, config.answer_tokens(), on_done=on_done)
        gap: dict[str, Any] = gaps(readings, engine.model, pairs, on_done)
    texts = zip(*([item["completion"] for item in report["items"]] for report in (of_adapter, of_merged)), strict=True)
    gap["text_agreement"] = sum(a == b for a, b in texts) / len(problems)
    gap["share_of_effect"] = gap["kl"] / effect["kl"] if effect["kl"] else None
    settings = read_json(merged / "config.json")
    paired = compare(of_adapter, of_merged)
    proof: dict[str, Any] = {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "task": config.task.name,
        "split": "test",
        "prompts": len(problems),
        "limit": limit,
        "base": shown(base),
        "weights_dtype": settings.get("dtype") or settings.get("torch_dtype"),
        "computed_in": computed_in,
        "same_prompts": same_prompts,
        "merged": gap,
        "adapter_effect": effect,
        **four_bit,
        "accuracy": {"adapter": without_items(of_adapter), "merged": without_items(of_merged), "paired": paired},
        "weights": fingerprint(merged),
    }
    return judged(_finite(proof), config.merge.thresholds, merged)


def judged(proof: Mapping[str, Any], thresholds: ThresholdsSection, merged: Path) -> dict[str, Any]:
    """The same measurements under these thresholds, written to merged/proof.json."""
    failures = judge(proof, thresholds)
    verdict = {"passed": not failures, "failures": failures, "thresholds": thresholds.model_dump()}
    proof = {**verdict, **{key: value for key, value in proof.items() if key not in verdict}}
    write_json(merged / FILE, proof)
    return proof


def judge(proof: Mapping[str, Any], thresholds: ThresholdsSection) -> list[str]:
    """What is worse than allowed, each as one sentence with its threshold's name. A value that is no number fails."""
    gap, paired = proof["merged"], proof["accuracy"]["paired"]
    failures = []
    for name in ("mean_logprob_gap", "max_logprob_gap", "kl", "share_of_effect"):
        value, limit = gap[name], getattr(thresholds, name)
        if value is None and name != "share_of_effect":
            failures.append(f"{name} is no number: the model's output is broken")
        elif value is not None and value > limit and not (name == "share_of_effect" and gap["kl"] <= ROUNDING):
            failures.append(f"{name} is {value:.4g}; merge.thresholds.{name} allows {limit:g}")
    for name in ("token_agreement", "text_agreement"):
        limit = getattr(thresholds, name)
        if gap[name] < limit:
            failures.append(f"{name} is {gap[name]:.4g}; merge.thresholds.{name} asks for {limit:g}")
    if paired["lost"] > paired["gained"] and paired["p_value"] < thresholds.p_value:
        failures.append(
            f"strict accuracy: {paired['lost']} answers lost and {paired['gained']} gained, p {paired['p_value']:.2g}; "
            f"merge.thresholds.p_value is {thresholds.p_value:g}"
        )
    if not proof["same_prompts"]:
        failures.append("the merged folder's tokenizer makes other tokens of the prompts than the base's does")
    return failures


def lines(proof: Mapping[str, Any]) -> list[str]:
    """The result for a person, in three lines."""
    gap, effect, accuracy = proof["merged"], proof["adapter_effect"], proof["accuracy"]
    paired = accuracy["paired"]
    said = [
        f"Proof {'passed' if proof['passed'] else 'FAILED'} on {proof['prompts']} held-out prompts: log-probability "
        f"gap {_short(gap['mean_logprob_gap'])} mean, {_short(gap['max_logprob_gap'])} largest; KL {_short(gap['kl'])} "
        f"(the base: {_short(effect['kl'])}).",
        f"Same next token {gap['token_agreement']:.2%}, same answer {gap['text_agreement']:.1%}; strict accuracy "
        f"{accuracy['adapter']['strict_accuracy']:.1%} as trained, {accuracy['merged']['strict_accuracy']:.1%} "
        f"merged ({paired['gained']} gained, {paired['lost']} lost, p {paired['p_value']:.2g}).",
    ]
    four_bit = proof.get("four_bit")
    if four_bit and four_bit["measured"]:
        said.append(
            f"The 4-bit base it was trained on: KL {_short(four_bit['kl'])} from the 16-bit base, both adapted."
        )
    elif four_bit:
        said.append(f"The gap to the 4-bit base it was trained on was not measured: {four_bit['why']}.")
    return said


def _short(value: float | None) -> str:
    return "no number" if value is None else f"{value:.2g}"


def read_proof(merged: Path) -> dict[str, Any] | None:
    """The proof in that folder, if it is of the weights that lie there now."""
    proof = read_json(merged / FILE)
    return proof if proof and proof.get("weights") == fingerprint(merged) else None


def fingerprint(folder: Path) -> dict[str, str]:
    """SHA-256 of every weight file, by name."""
    return {path.name: sha256(path) for path in sorted(folder.glob("*.safetensors"))}


def _answered(
    engine: TransformersEngine, problems: Sequence[Problem], items: Sequence[Mapping[str, Any]]
) -> list[Answered]:
    """The adapter's answers as tokens; the token that ends an answer is one of them."""
    end = [] if engine.tokenizer.eos_token_id is None else [engine.tokenizer.eos_token_id]
    texts = [item["completion"].removeprefix(engine.reader.begun) for item in items]  # that stands in the prompt
    return [
        Answered(
            _prompt_ids(engine, problem),
            engine.tokenizer(text, add_special_tokens=False)["input_ids"] + ([] if item["truncated"] else end),
        )
        for problem, item, text in zip(problems, items, texts, strict=True)
    ]


def _prompt_ids(engine: TransformersEngine, problem: Problem) -> list[int]:
    return engine.tokenizer(render(problem.messages, engine.tokenizer), add_special_tokens=False)["input_ids"]


def _finite(node: Any) -> Any:
    """The same with null where a number is none: JSON has no word for it."""
    if isinstance(node, dict):
        return {key: _finite(value) for key, value in node.items()}
    return None if isinstance(node, float) and not math.isfinite(node) else node
