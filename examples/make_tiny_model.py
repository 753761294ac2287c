"""Make the tiny Qwen2 that `make demo` trains: a tokenizer and a model from scratch, on two CPU cores.

    python examples/make_tiny_model.py --output examples/tiny_qwen2 --seed 0

First the model learns sums, then to solve stories of the task `word_problems` (train split only), step by step, in the
format that is asked for. Then it learns a mixture of habits, good ones and bad ones, on purpose: a model fresh from
pre-training can do more than it usually does, and GRPO has something true to learn only where that is so. The README.md
that is written beside the weights says all this, and what the model scores.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from random import Random

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import GenerationConfig, PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

sys.path.insert(
    0, str(Path(__file__).resolve().parent.parent / "src")
)  # this script is run without installing anything
from llm_grpo.records import Example
from llm_grpo.tasks.word_problems import SYSTEM, stories, word_problems

PAD, START, END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# Qwen's own, digits one by one: transformers re-creates it for every model of type qwen2, whatever is saved
SPLIT_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
VOCABULARY, IGNORED, LAYERS = 640, -100, 3

# How often each habit is shown, by the number of steps a story takes. Careful answers are there everywhere; for stories
# of two steps the usual thing is to stop after the first one, for stories of three steps to forget the tags.
HABITS: dict[int, dict[str, float]] = {
    1: {"careful": 0.50, "guess": 0.15, "tagless": 0.20, "unclosed": 0.15},
    2: {"careful": 0.16, "hasty": 0.50, "tagless": 0.16, "unclosed": 0.09, "reversed": 0.09},
    3: {"careful": 0.14, "hasty": 0.14, "tagless": 0.56, "unclosed": 0.08, "reversed": 0.08},
}


def in_format(reasoning: str, answer: str) -> str:
    return f"<reasoning>\n{reasoning}\n</reasoning>\n<answer>\n{answer}\n</answer>"


def written(habit: str, example: Example) -> str:
    """The completion that somebody of that habit writes."""
    steps, first = example.meta["steps"], example.meta["steps"][0]
    first_result, first_operand = first.partition("=")[2], first.partition(first.strip("0123456789=")[0])[0]
    return {
        "careful": in_format("\n".join(steps), example.answer),
        "hasty": in_format(first, first_result),  # stops after the first step
        "guess": in_format(first_operand, first_operand),  # repeats a number of the story
        "tagless": "\n".join(steps) + f"\nThe answer is {example.answer}.",
        "unclosed": "<reasoning>\n" + "\n".join(steps) + f"\n<answer>\n{example.answer}\n</answer>",
        "reversed": f"<answer>\n{first_result}\n</answer>\n<reasoning>\n{first}\n</reasoning>",
    }[habit]


def mixed_habit(rng: Random, example: Example) -> str:
    shares = HABITS[len(example.meta["steps"])]
    return rng.choices(list(shares), weights=list(shares.values()))[0]


def chat(example: Example) -> str:
    messages = ({"role": "system", "content": SYSTEM}, *example.prompt)
    told = "".join(f"{START}{m['role']}\n{m['content']}{END}\n" for m in messages)
    return f"{told}{START}assistant\n"


def make_tokenizer(seed: int) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT_PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    special = [AddedToken(token, special=True, normalized=False) for token in (PAD, START, END)]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=special,
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    rng, some = Random(seed), list(islice(stories("train", seed + 1), 4000))
    tokenizer.train_from_iterator((chat(e) + written(mixed_habit(rng, e), e) + END for e in some), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=END, pad_token=PAD, chat_template=CHAT_TEMPLATE, model_max_length=256
    )


def make_model(tokenizer: PreTrainedTokenizerFast) -> Qwen2ForCausalLM:
    config = Qwen2Config(
        vocab_size=len(tokenizer), hidden_size=128, intermediate_size=512, num_hidden_layers=LAYERS,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=256, tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": 100.0},  # texts are short: positions have to differ soon
        initializer_range=0.06,  # with the usual 0.02 so small a model starts to learn much later
        bos_token_id=None, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    return Qwen2ForCausalLM(config)


Piece = tuple[str, bool]  # text, and whether the model is to learn to write it
Batches = Iterator[tuple[torch.Tensor, torch.Tensor]]


def sums(seed: int) -> Iterator[list[Piece]]:
    """Bare sums, a dozen to a row, of which the results are learned: where arithmetic comes from."""
    steps = (step for example in stories("train", seed) for step in example.meta["steps"])
    while True:
        halves = [step.partition("=") for step in islice(steps, 12)]
        yield [piece for left, _, right in halves for piece in ((f"{left}=", False), (f"{right}\n", True))]


def solved(seed: int) -> Iterator[list[Piece]]:
    """Stories answered in the careful habit alone."""
    return ([(chat(e), False), (written("careful", e) + END, True)] for e in stories("train", seed))


def mixed(seed: int) -> Iterator[list[Piece]]:
    """Stories answered in all habits."""
    rng = Random(seed)
    return ([(chat(e), False), (written(mixed_habit(rng, e), e) + END, True)] for e in stories("train", seed))


def batches(tokenizer: PreTrainedTokenizerFast, rows: Iterator[list[Piece]], size: int) -> Batches:
    """Token ids and labels of `size` rows, padded on the right, where the causal mask hides it."""
    pad = tokenizer.pad_token_id
    while True:
        lot = [[(tokenizer(text)["input_ids"], learn) for text, learn in row] for row in islice(rows, size)]
        ids = [[i for piece, _ in row for i in piece] for row in lot]
        labels = [[i if learn else IGNORED for piece, learn in row for i in piece] for row in lot]
        width = max(map(len, ids))
        yield (
            torch.tensor([row + [pad] * (width - len(row)) for row in ids]),
            torch.tensor([row + [IGNORED] * (width - len(row)) for row in labels]),
        )


def loss_of(model: Qwen2ForCausalLM, ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    learned = labels[:, 1:] != IGNORED
    hidden = model.base_model(input_ids=ids).last_hidden_state[:, :-1]
    return torch.nn.functional.cross_entropy(model.lm_head(hidden[learned]), labels[:, 1:][learned])


def train(model: Qwen2ForCausalLM, name: str, sources: list[Batches], *, updates: int, peak: float) -> None:
    """AdamW; a short warm-up, a constant rate, and a fall to nothing over the last half. The sources take turns."""
    optimizer = torch.optim.AdamW(model.parameters(), peak, betas=(0.9, 0.98), weight_decay=0.01)
    start, losses = time.time(), []
    for update in range(1, updates + 1):
        for group in optimizer.param_groups:
            group["lr"] = peak * min(1.0, update / 30, 2 * (1 - update / (updates + 1)))
        loss = loss_of(model, *next(sources[update % len(sources)]))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        if update % 100 == 0 or update == updates:
            mean, seconds = sum(losses) / len(losses), time.time() - start
            print(f"{name} {update}/{updates}  loss {mean:.3f}  {seconds:.0f} s", flush=True)
            losses.clear()


def warm_start(tokenizer: PreTrainedTokenizerFast, seed: int) -> Qwen2ForCausalLM:
    """Sums, then stories (sums go on beside them), then habits: each stage starts from what the one before learned."""
    model = make_model(tokenizer)
    bare = batches(tokenizer, sums(seed + 2), 16)
    train(model, "sums", [bare], updates=1000, peak=2e-3)
    train(model, "stories", [batches(tokenizer, solved(seed + 3), 24), bare], updates=1400, peak=2e-3)
    train(model, "habits", [batches(tokenizer, mixed(seed + 4), 24)], updates=400, peak=7e-4)
    return model


@torch.no_grad()
def answers(
    model: Qwen2ForCausalLM, tokenizer: PreTrainedTokenizerFast, examples: list[Example], sampled: bool
) -> list[str]:
    texts, how = [], {"do_sample": True, "top_k": 0, "temperature": 1.0} if sampled else {"do_sample": False}
    for start in range(0, len(examples), 250):
        prompts = [chat(example) for example in examples[start : start + 250]]
        told = tokenizer(prompts, return_tensors="pt", padding=True, padding_side="left")
        said = model.generate(**told, max_new_tokens=56, **how)
        texts += tokenizer.batch_decode(said[:, told["input_ids"].shape[1] :], skip_special_tokens=True)
    return texts


def scores(model: Qwen2ForCausalLM, tokenizer: PreTrainedTokenizerFast) -> str:
    """A Markdown table: strict and lenient accuracy, greedy and sampled, on both held-out splits."""
    task = word_problems(validation_size=500, test_size=500)
    lines = ["| split | n | answers | strict | lenient | in the format |", "|---|---|---|---|---|---|"]
    for split in ("validation", "test"):
        examples = list(task.load(split).examples)
        for sampled in (False, True):
            texts = answers(model, tokenizer, examples, sampled)
            judged = [task.judge(text, example.answer) for text, example in zip(texts, examples, strict=True)]
            counts = [sum(getattr(j, name) for j in judged) for name in ("strict", "lenient", "formatted")]
            shares = " | ".join(f"{count / len(judged):.3f}" for count in counts)
            lines.append(f"| {split} | {len(judged)} | {'sampled' if sampled else 'greedy'} | {shares} |")
    return "\n".join(lines)


def save(model: Qwen2ForCausalLM, tokenizer: PreTrainedTokenizerFast, output: Path) -> None:
    """In bfloat16, and with an end that generation knows."""
    model.to(torch.bfloat16)
    model.generation_config = GenerationConfig(eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)
    model.save_pretrained(output)
    (output / "model.safetensors").chmod(0o644)  # like every other file of the folder
    tokenizer.save_pretrained(output)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True, help="a folder, for example examples/tiny_qwen2")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    start = time.time()
    tokenizer = make_tokenizer(args.seed)
    save(warm_start(tokenizer, args.seed), tokenizer, args.output)
    seconds = time.time() - start
    model = Qwen2ForCausalLM.from_pretrained(args.output, dtype=torch.float32).eval()  # scored is what was saved
    table = scores(model, tokenizer)
    print(table)
    (args.output / "README.md").write_text(
        README.format(
            table=table, seed=args.seed, seconds=seconds, threads=args.threads, vocabulary=len(tokenizer),
            parameters=model.num_parameters(), layers=LAYERS, shares=shares_table(),
        ),
        encoding="utf-8",
    )  # fmt: skip


def shares_table() -> str:
    habits = list(dict.fromkeys(habit for shares in HABITS.values() for habit in shares))
    rows = [[habit, *(f"{shares.get(habit, 0):.2f}" for shares in HABITS.values())] for habit in habits]
    head = ["| habit | one step | two steps | three steps |", "|---|---|---|---|"]
    return "\n".join(head + [f"| {' | '.join(row)} |" for row in rows])


README = """---
license: mit
---
# tiny_qwen2

A Qwen2 of {parameters:,} parameters ({layers} layers, hidden size 128, a vocabulary of {vocabulary}) that solves the
stories of the task `word_problems`, and nothing else. `make demo` trains it with GRPO, in minutes on two CPU cores.

Made from scratch, from no other model and from no data but the seeded stories, by

    python examples/make_tiny_model.py --output examples/tiny_qwen2 --seed {seed} --threads {threads}

in {seconds:.0f} seconds. Every story it was trained on belongs to the train split; which split a story belongs to is a
hash of its text, so validation and test were never seen.

## The bad habits are put in on purpose

The warm start has three stages: bare sums, then stories answered step by step in the format that is asked for, then
stories answered in a mixture of habits. In the last stage a completion is written

- *careful*: every step, in the format, right;
- *hasty*: in the format, but it stops after the first step, so the answer is wrong;
- *guess*: in the format, but it only repeats a number of the story;
- *tagless*: every step, right, but without any tag;
- *unclosed*: every step, right, but `</reasoning>` is missing;
- *reversed*: hasty, and the answer before the reasoning;

with these shares, by the number of steps that the story takes:

{shares}

So the model can do more than it usually does, as a model fresh from pre-training can. GRPO sees only rewards, and has
to find out that the careful habit earns most: part of the gain is format, part of it is truly more right answers. What
the demo shows is that this works end to end. It does not show that GRPO teaches arithmetic that a model does not know.

## What it scores, before any GRPO

{table}

Strict: the right answer in exactly the format. Lenient: the right answer, wherever a person would find it. Sampled: at
temperature 1, once per story.
"""


if __name__ == "__main__":
    main()
