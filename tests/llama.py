"""A Llama of a few thousand random parameters with a tokenizer of its own, made on the fly."""

from __future__ import annotations

from pathlib import Path

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}"
    "{{ eos_token if m['role'] == 'assistant' }}\n{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
)


def make_llama(folder: Path, texts: list[str], **shape: int) -> Path:
    """A model folder with random weights (seed 0); its byte-level BPE is trained on `texts`, digit by digit."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    bpe.decoder = decoders.ByteLevel()
    special = ["<|begin|>", "<|end|>", "<|pad|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=400, special_tokens=special, initial_alphabet=alphabet)
    )
    names = dict(zip(("bos_token", "eos_token", "pad_token"), special, strict=True))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, **names, chat_template=TEMPLATE)
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    sizes |= {"num_key_value_heads": 2, "max_position_embeddings": 1024, "vocab_size": len(tokenizer), **shape}
    ids = {f"{name}_id": getattr(tokenizer, f"{name}_id") for name in names}
    LlamaForCausalLM(LlamaConfig(**sizes, **ids, tie_word_embeddings=True)).save_pretrained(folder)
    return folder
