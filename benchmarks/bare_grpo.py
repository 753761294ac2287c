"""GRPO as one would write it by hand: Unsloth + TRL, none of our code. The peer of benchmarks/overhead.py.

python benchmarks/bare_grpo.py SETTINGS.json     (prints the seconds of each step as JSON)
"""

import json
import os
import re
import sys
import time

os.environ["UNSLOTH_COMPILE_DISABLE"] = "1"
from unsloth import FastLanguageModel  # noqa: E402, I001
from datasets import Dataset  # noqa: E402
from transformers import TrainerCallback  # noqa: E402
from trl import GRPOConfig, GRPOTrainer  # noqa: E402
import torch  # noqa: E402

ANSWER = re.compile(r"<answer>([^<]*)</answer>")
WHOLE = re.compile(r"\s*<reasoning>[^<]*</reasoning>\s*<answer>[^<]*</answer>\s*")


def correctness(prompts, completions, answer, **kwargs):
    found = [ANSWER.findall(completion[0]["content"]) for completion in completions]
    return [2.0 if texts and texts[-1].strip() == gold else 0.0 for texts, gold in zip(found, answer, strict=True)]


def form(prompts, completions, **kwargs):
    return [0.5 if WHOLE.fullmatch(completion[0]["content"]) else 0.0 for completion in completions]


class Clock(TrainerCallback):
    def __init__(self):
        self.times = []

    def on_step_end(self, args, state, control, **kwargs):
        self.times.append(time.perf_counter())


def main(path):
    with open(path) as file:  # noqa: PTH123
        settings = json.load(file)
    model, tokenizer = FastLanguageModel.from_pretrained(
        settings["model"], max_seq_length=settings["max_seq_length"], dtype=torch.float32, load_in_4bit=False
    )
    model = FastLanguageModel.get_peft_model(
        model, **settings["lora"], use_gradient_checkpointing=False, random_state=settings["seed"]
    )
    clock = Clock()
    trainer = GRPOTrainer(
        model=model,
        processing_class=tokenizer,
        reward_funcs=[correctness, form],
        args=GRPOConfig(
            **settings["grpo"],
            output_dir=settings["output_dir"],
            seed=settings["seed"],
            use_cpu=True,
            bf16=False,
            report_to="none",
            disable_tqdm=True,
        ),
        train_dataset=Dataset.from_list(settings["rows"]),
        callbacks=[clock],
    )
    trainer.train()
    print("\n" + json.dumps([b - a for a, b in zip(clock.times, clock.times[1:], strict=False)]))


if __name__ == "__main__":
    main(sys.argv[1])
