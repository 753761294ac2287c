"""GRPO as one would write it by hand, none of our code: Unsloth + TRL, or TRL and PEFT alone. The peer of
benchmarks/overhead.py and benchmarks/gpu_check.py.

python benchmarks/bare_grpo.py SETTINGS.json     (prints the seconds of each step as JSON)
"""

import json
import os
import re
import sys
import time
import zlib

ANSWER = re.compile(r"<answer>([^<]*)</answer>")
WHOLE = re.compile(r"\s*<reasoning>[^<]*</reasoning>\s*<answer>[^<]*</answer>\s*")


def correctness(prompts, completions, answer, **kwargs):
    found = [ANSWER.findall(completion[0]["content"]) for completion in completions]
    return [2.0 if texts and texts[-1].strip() == gold else 0.0 for texts, gold in zip(found, answer, strict=True)]


def form(prompts, completions, **kwargs):
    return [0.5 if WHOLE.fullmatch(completion[0]["content"]) else 0.0 for completion in completions]


def soft_form(prompts, completions, **kwargs):
    return [0.5 if WHOLE.search(completion[0]["content"]) else 0.0 for completion in completions]


def integer(prompts, completions, **kwargs):
    found = [ANSWER.findall(completion[0]["content"]) for completion in completions]
    return [0.5 if len(texts) == 1 and texts[0].strip().isdigit() else 0.0 for texts in found]


def tags(prompts, completions, **kwargs):
    return [tag_score(completion[0]["content"]) for completion in completions]


def tag_score(text):
    found = WHOLE.search(text)
    outside = len((text[: found.start()] + text[found.end() :]).strip()) if found else 0
    once = sum(text.count(tag) == 1 for tag in ("<reasoning>", "</reasoning>", "<answer>", "</answer>"))
    return max(0.0, 0.125 * once - 0.001 * outside) if "<reasoning>" in text and "<answer>" in text else 0.0


def drawn(prompts, completions, **kwargs):
    """A number of the text's own: what random weights say earns nothing, and a group of equal rewards is no update."""
    return [zlib.crc32(completion[0]["content"].encode()) / 2**32 for completion in completions]


def unsloth_model(settings):
    from unsloth import FastLanguageModel
    import torch  # isort: skip

    load = {**settings["load"], "dtype": torch.float32 if settings["use_cpu"] else half()}
    model, tokenizer = FastLanguageModel.from_pretrained(
        settings["model"], max_seq_length=settings["max_seq_length"], **load
    )
    checkpointing = "unsloth" if settings["grpo"]["gradient_checkpointing"] and not settings["use_cpu"] else False
    return (
        FastLanguageModel.get_peft_model(
            model, **settings["lora"], use_gradient_checkpointing=checkpointing, random_state=settings["seed"]
        ),
        tokenizer,
    )


def half():
    import torch

    return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16  # a T4 has no bfloat16


def plain_model(settings):
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(settings["model"], dtype=half())
    model = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **settings["lora"]))
    return model, AutoTokenizer.from_pretrained(settings["model"])


def main(path):
    with open(path) as file:  # noqa: PTH123
        settings = json.load(file)
    if settings["use_cpu"]:
        os.environ["UNSLOTH_COMPILE_DISABLE"] = "1"
        sys.modules["vllm._C"] = None  # Unsloth would load vLLM's kernels for AVX-512, which end the process elsewhere
    model, tokenizer = (unsloth_model if settings["peer"] == "unsloth" else plain_model)(settings)
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    class Clock(TrainerCallback):
        times = []  # noqa: RUF012

        def on_step_end(self, args, state, control, **kwargs):
            self.times.append(time.perf_counter())

    precision = {"bf16": False} if settings["use_cpu"] else {{"torch.bfloat16": "bf16"}.get(str(half()), "fp16"): True}
    trainer = GRPOTrainer(
        model=model,
        processing_class=tokenizer,
        reward_funcs=[drawn] if settings.get("drawn") else [tags, soft_form, form, integer, correctness],
        args=GRPOConfig(
            **settings["grpo"],
            output_dir=settings["output_dir"],
            seed=settings["seed"],
            use_cpu=settings["use_cpu"],
            **precision,
            report_to="none",
            disable_tqdm=True,
        ),
        train_dataset=Dataset.from_list(settings["rows"]),
        callbacks=[Clock],
    )
    trainer.train()
    print("\n" + json.dumps([b - a for a, b in zip(Clock.times, Clock.times[1:], strict=False)]))


if __name__ == "__main__":
    main(sys.argv[1])
