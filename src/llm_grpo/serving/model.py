"""What a server serves: from --run, --adapter or --model to the words vLLM's server is started with."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llm_grpo.config.schema import Config
from llm_grpo.errors import UserError
from llm_grpo.problems import system_prompt, worked_examples
from llm_grpo.prompts import begun_thought, special_tags, with_system
from llm_grpo.records import Message

# What a client gets that says nothing of sampling, as in src/infer.py: neither the sampling settings nor the repetition
# penalty of a base's generation_config, with which nothing here is trained or measured.
SAMPLING = {"temperature": 0.8, "top_p": 0.95}


@dataclass(frozen=True)
class Served:
    """base: a folder or Hub name. names: what clients call it, the trained model first. template: of chats, in Jinja.

    opening: the messages it was trained to find before a question. choices: what was chosen for the user, and why.
    begun: what of a think block the template opens in the prompt. asks: what a request has to say besides, to be
    answered as the model was trained.
    """

    base: str
    adapter: Path | None
    names: tuple[str, ...]
    template: str
    opening: tuple[Message, ...]
    options: tuple[str, ...]
    choices: Mapping[str, str] = field(default_factory=dict)
    begun: str = ""
    asks: Mapping[str, Any] = field(default_factory=dict)


def served(args: argparse.Namespace, on_gpu: bool) -> Served:
    """What the arguments name, checked. Raises UserError where it is not there, or where vLLM could not serve it."""
    from llm_grpo.rollouts import CPU_LORA
    from llm_grpo.rollouts.loading import config_of, load_tokenizer, which_model

    config = config_of(args)
    base, adapter = which_model(args, config)
    options, choices = _base_options(base, config, on_gpu, of_training=bool(args.base))
    if adapter and not on_gpu:
        options["worker_extension_cls"] = CPU_LORA
    base = options.pop("model")
    trust = {"revision": options.get("revision"), "trust_remote_code": options.get("trust_remote_code", False)}
    tokenizer, said = load_tokenizer(base, adapter, config.prompt if config else None, **trust)
    names = _names(base, adapter, config)
    return Served(
        base,
        adapter,
        names,
        tokenizer.get_chat_template(),
        opening_of(config),
        (*_words(options), *(_lora_words(adapter, names) if adapter else ())),
        {**choices, **said},
        begun_thought(tokenizer),
        {"skip_special_tokens": False} if special_tags(tokenizer) else {},
    )


def for_rollouts(config: Config, on_gpu: bool) -> Served:
    """The base of a training, ready for the adapters it sends (rollouts/server.py). Raises UserError where vLLM could
    not generate for it."""
    from llm_grpo.device import compute_dtype
    from llm_grpo.rollouts import CPU_LORA, choose_four_bit
    from llm_grpo.rollouts.vllm import rank_of

    if config.lora is None:
        raise UserError("lora: null trains all weights, and a server for rollouts is sent adapters alone.")
    if not on_gpu and choose_four_bit(config.model.load_in_4bit)[0]:
        raise UserError(
            "model.load_in_4bit is true, and vLLM has no 4-bit weights on a CPU: it would draw from another base than "
            "the one that learns. Set model.load_in_4bit=false, or rollouts.engine=vllm."
        )
    options, choices = _base_options(config.model.name, config, on_gpu, of_training=True)
    options |= {"enable_lora": True, "max_lora_rank": rank_of({"r": config.lora.r}), "max_loras": 1}
    options |= {"dtype": compute_dtype()[0], "logprobs_mode": "processed_logprobs", "api_server_count": 1}
    if not on_gpu:
        options |= {"worker_extension_cls": CPU_LORA, "block_size": 32}  # as adapter_sync.open_vllm
    base = options.pop("model")  # of chats it knows nothing: it is asked tokens
    return Served(base, None, (base,), "", (), tuple(_words(options)), choices)


def vllm_words(model: Served, template_file: Path, host: str, port: int) -> list[str]:
    """The command line of vLLM's server; later words of the user's replace them."""
    return [
        *("--model", model.base, "--served-model-name", model.names[-1]),
        *("--host", host, "--port", str(port)),
        *(("--chat-template", str(template_file)) if model.template else ()),
        *("--chat-template-content-format", "string"),  # contents whole, as in training, not in parts
        *("--generation-config", "vllm", "--override-generation-config", json.dumps(SAMPLING)),
        *("--middleware", "llm_grpo.serving.access.KeyEverywhere"),
        *("--allowed-origins", "[]"),  # vLLM's default lets every web page that is open here ask this server
        *model.options,
    ]


def opening_of(config: Config | None) -> tuple[Message, ...]:
    """The messages that stood before every question of the training: the system prompt, then worked examples."""
    return tuple(with_system([], system_prompt(config), worked_examples(config))) if config else ()


def _base_options(
    base: str, config: Config | None, on_gpu: bool, *, of_training: bool
) -> tuple[dict[str, Any], dict[str, str]]:
    """(vLLM's options by name, `model` among them; choices with their reasons).

    of_training: this is the base the run was trained on, whatever its name is (--base)."""
    from llm_grpo.rollouts import choose_four_bit

    trained = config.model if config else None
    options: dict[str, Any] = {"model": base}
    choices = {}
    if trained:
        options |= {"max_model_len": trained.max_seq_length, "trust_remote_code": trained.trust_remote_code}
    if trained and (trained.name == base or of_training):
        options["revision"] = trained.revision if trained.name == base else None
        four_bit, reason = choose_four_bit(trained.load_in_4bit)
        if four_bit and on_gpu:
            options["quantization"] = "bitsandbytes"
            choices["weights"] = f"4-bit: {reason}"
        elif four_bit:
            from llm_grpo.export.source import original

            options |= {"model": trained.merge_base or original(base), "revision": None}
            choices["weights"] = "the 16-bit original: vLLM has no 4-bit on a CPU, so answers may differ from training"
    if not on_gpu:
        # Prompts whole: in chunks vLLM 0.31 fails on a CPU for a request with a seed, and the server with it.
        options |= {"dtype": "float32", "enforce_eager": True, "no_enable_chunked_prefill": True}
        choices["dtype"] = "float32, as src/infer.py and eval.py on a CPU; half the memory: -- --dtype bfloat16"
    return options, choices


def _words(options: Mapping[str, Any]) -> list[str]:
    words = []
    for name, value in options.items():
        if value not in (None, False):
            words += [f"--{name.replace('_', '-')}", *([] if value is True else [str(value)])]
    return words


def _lora_words(adapter: Path, names: tuple[str, ...]) -> list[str]:
    """Raises UserError for an adapter that vLLM cannot serve."""
    from llm_grpo.rollouts.adapter_sync import served_rank
    from llm_grpo.rollouts.loading import adapter_settings

    try:
        rank = served_rank(adapter_settings(adapter))
    except ValueError as error:
        raise UserError(
            f"{adapter}: {error} Merge it (src/merge.py) and serve the merged model with --model."
        ) from None
    module = {"name": names[0], "path": str(adapter.resolve()), "base_model_name": names[-1]}
    return ["--enable-lora", "--max-lora-rank", str(rank), "--lora-modules", json.dumps(module)]


def _names(base: str, adapter: Path | None, config: Config | None) -> tuple[str, ...]:
    """The run's name (or the adapter's folder) for what was trained; for a base its Hub name, or its folder's."""
    plain = Path(base).resolve().name if Path(base).is_dir() else base
    if adapter is None:
        return (config.run.name if config else plain,)
    mine = config.run.name if config else adapter.resolve().name
    return mine, plain if plain != mine else f"{plain}-base"
