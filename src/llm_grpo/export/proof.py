"""Is the merged model the adapter? Both answer the same held-out prompts, and the difference is written down.

proof.json lies beside the weights it speaks of, names them by their SHA-256, and says by which thresholds it was judged
(`merge.thresholds` in the config). The models are loaded one after the other, without unsloth, as anybody would.
"""

from __future__ import annotations

import gc
import hashlib
import importlib.util
import json
import math
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from llm_grpo.comparison import compare
from llm_grpo.config import Config, ThresholdsSection
from llm_grpo.errors import UserError
from llm_grpo.evaluation import evaluate, without_items
from llm_grpo.export.gaps import Answered, Reading, gaps, read
from llm_grpo.export.source import shown
from llm_grpo.problems import build_rewards, prepare
from llm_grpo.prompts import render
from llm_grpo.records import Problem
from llm_grpo.rollouts.transformers import TransformersEngine, load_engine
from llm_grpo.runs import write_json
from llm_grpo.tasks import build_task

FILE = "proof.json"
NO_EFFECT = 1e-4  # KL per token: below it the adapter hardly moved its base, and a share of that says nothing


def prove(
    config: Config,
    adapter: Path,
    base: str,
    merged: Path,
    limit: int,
    revision: str | None = None,
    on_step: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Compare adapter and merged model on the first `limit` test problems of the run's task; write merged/proof.json.

    Log-probabilities and KL are taken over the adapter's greedy answers, token by token; accuracy over each model's own
    greedy answers. "adapter_effect" is the distance of the base from the adapter: a merge has to be much nearer than
    that. Raises UserError where the data or a model cannot be had; a failed comparison is a result, not an error.
    """
    rewards, task = build_rewards(config.rewards), build_task(config.task.name, config.task.args)
    max_tokens = config.evaluation.max_tokens or config.grpo["max_completion_length"]
    options = {"trust_remote_code": config.model.trust_remote_code, "batch_size": config.evaluation.batch_size}
    template = config.prompt.template

    on_step("the adapter answers")
    engine = load_engine(base, adapter, template, revision=revision, **options)
    problems = prepare(task, "test", config, engine.tokenizer, limit).problems
    if not problems:
        raise UserError(f"The task '{task.name}' has no test problems, so nothing can be proved.")
    of_adapter = evaluate(engine, task, problems, rewards, max_tokens)
    pairs = _answered(engine, problems, of_adapter["items"])
    readings = read(engine.model, pairs)
    with engine.model.disable_adapter():
        effect = gaps(readings, engine.model, pairs)
    computed_in = f"{str(engine.model.dtype).removeprefix('torch.')} on {engine.model.device.type}"
    del engine
    _free()

    four_bit = _gap_to_four_bit(config, adapter, readings, pairs, on_step) if config.model.load_in_4bit else None

    on_step("the merged model answers")
    engine = load_engine(str(merged), None, template, **options)
    same_prompts = [pair.prompt for pair in pairs] == [_prompt_ids(engine, problem) for problem in problems]
    of_merged = evaluate(engine, task, problems, rewards, max_tokens)
    gap = gaps(readings, engine.model, pairs)
    del engine
    _free()

    texts = [[item["completion"] for item in report["items"]] for report in (of_adapter, of_merged)]
    gap["text_agreement"] = sum(a == b for a, b in zip(*texts, strict=True)) / len(problems)
    gap["share_of_effect"] = gap["kl"] / effect["kl"] if effect["kl"] > NO_EFFECT else None
    paired = compare(of_adapter, of_merged)
    proof: dict[str, Any] = {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "task": task.name,
        "split": "test",
        "prompts": len(problems),
        "base": shown(base),
        "weights_dtype": _dtype_of(merged),
        "computed_in": computed_in,
        "same_prompts": same_prompts,
        "merged": gap,
        "adapter_effect": effect,
        **({"four_bit": four_bit} if four_bit else {}),
        "accuracy": {"adapter": without_items(of_adapter), "merged": without_items(of_merged), "paired": paired},
        "thresholds": config.merge.thresholds.model_dump(),
        "weights": fingerprint(merged),
    }
    proof = _finite({"passed": False, "failures": judge(proof, config.merge.thresholds), **proof})
    proof["passed"] = not proof["failures"]
    write_json(merged / FILE, proof)
    return proof


def judge(proof: Mapping[str, Any], thresholds: ThresholdsSection) -> list[str]:
    """What is worse than allowed, each as one sentence with its threshold's name. A value that is no number fails."""
    gap, paired = proof["merged"], proof["accuracy"]["paired"]
    failures = []
    for name in ("mean_logprob_gap", "max_logprob_gap", "kl", "share_of_effect"):
        value, limit = gap[name], getattr(thresholds, name)
        if value is not None and not value <= limit:
            failures.append(f"{name} is {value:.4g}; merge.thresholds.{name} allows {limit:g}")
    for name in ("token_agreement", "text_agreement"):
        if not gap[name] >= getattr(thresholds, name):
            limit = getattr(thresholds, name)
            failures.append(f"{name} is {gap[name]:.4g}; merge.thresholds.{name} asks for {limit:g}")
    if paired["lost"] > paired["gained"] and paired["p_value"] < thresholds.p_value:
        failures.append(
            f"strict accuracy: {paired['lost']} answers lost and {paired['gained']} gained, p {paired['p_value']:.2g}; "
            f"merge.thresholds.p_value is {thresholds.p_value:g}"
        )
    if not proof["same_prompts"]:
        failures.append("the merged folder's tokenizer makes other tokens of the prompts than the base's does")
    return failures


def read_proof(merged: Path) -> dict[str, Any] | None:
    """The proof in that folder, if it is of the weights that lie there now."""
    try:
        proof = json.loads((merged / FILE).read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError):
        return None
    return proof if proof.get("weights") == fingerprint(merged) else None


def fingerprint(folder: Path) -> dict[str, str]:
    """SHA-256 of every weight file, by name."""
    found = {}
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as file:
            digest = hashlib.sha256()
            while piece := file.read(2**22):
                digest.update(piece)
        found[path.name] = digest.hexdigest()
    return found


def _answered(
    engine: TransformersEngine, problems: Sequence[Problem], items: Sequence[Mapping[str, Any]]
) -> list[Answered]:
    """The adapter's answers as tokens; the token that ends an answer is one of them."""
    end = [] if engine.tokenizer.eos_token_id is None else [engine.tokenizer.eos_token_id]
    return [
        Answered(
            _prompt_ids(engine, problem),
            engine.tokenizer(item["completion"], add_special_tokens=False)["input_ids"]
            + ([] if item["truncated"] else end),
        )
        for problem, item in zip(problems, items, strict=True)
    ]


def _prompt_ids(engine: TransformersEngine, problem: Problem) -> list[int]:
    return engine.tokenizer(render(problem.messages, engine.tokenizer), add_special_tokens=False)["input_ids"]


def _gap_to_four_bit(
    config: Config,
    adapter: Path,
    readings: Sequence[Reading],
    pairs: Sequence[Answered],
    on_step: Callable[[str], None],
) -> dict[str, Any]:
    """How far the adapter on the 4-bit base, as it was trained, is from the adapter on the 16-bit base.

    This gap is the price of training in 4-bit, not a fault of the merge; no threshold is laid on it. The base is
    quantized here as QLoRA does it (NF4, double quantization) unless its files are quantized already; Unsloth's own
    copies leave some layers in 16-bit.
    """
    if importlib.util.find_spec("bitsandbytes") is None:
        return {"measured": False, "why": "bitsandbytes is not installed on this machine"}
    on_step("the adapter on the 4-bit base")
    try:
        model = _load_four_bit(config, adapter)
        found = gaps(readings, model, pairs)
    except (ImportError, OSError, RuntimeError, ValueError) as error:
        line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        return {"measured": False, "why": f"the 4-bit base cannot be run on this machine ({line})"}
    finally:
        _free()
    return {"measured": True, **found}


def _load_four_bit(config: Config, adapter: Path) -> Any:
    from peft import PeftModel
    from transformers import AutoConfig, AutoModelForCausalLM, BitsAndBytesConfig

    name, source = config.model.name, {"revision": config.model.revision}
    source["trust_remote_code"] = config.model.trust_remote_code
    dtype = torch.bfloat16 if not torch.cuda.is_available() or torch.cuda.is_bf16_supported() else torch.float16
    if getattr(AutoConfig.from_pretrained(name, **source), "quantization_config", None) is None:
        source["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
        )
    device = {"": 0 if torch.cuda.is_available() else "cpu"}
    model = AutoModelForCausalLM.from_pretrained(name, dtype=dtype, device_map=device, **source)
    if not getattr(model, "is_loaded_in_4bit", False):
        raise ValueError("it was loaded in 16-bit")
    return PeftModel.from_pretrained(model, str(adapter)).eval()


def _dtype_of(merged: Path) -> str | None:
    config = json.loads((merged / "config.json").read_text(encoding="utf-8"))
    return config.get("dtype") or config.get("torch_dtype")


def _free() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _finite(node: Any) -> Any:
    """The same with null where a number is none: JSON has no word for it."""
    if isinstance(node, dict):
        return {key: _finite(value) for key, value in node.items()}
    return None if isinstance(node, float) and not math.isfinite(node) else node
