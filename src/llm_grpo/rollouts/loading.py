"""From --run, --adapter or --model to an engine that generates. Nothing here trains."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llm_grpo import runs
from llm_grpo.config.loading import load_config
from llm_grpo.config.schema import Config, PromptSection
from llm_grpo.errors import UserError, first_line
from llm_grpo.prompts import prepare_tokenizer
from llm_grpo.rollouts import STANDALONE, Engine, choose_engine, choose_four_bit

ADAPTER = "adapter_config.json"


def config_of(args: argparse.Namespace, overrides: Sequence[str] = ()) -> Config | None:
    """The config of the run, or of the run that the adapter or merged model lies in, with overrides; None: no run."""
    weights = args.adapter or args.model
    folder = args.run or (Path(weights).parent if weights else None)
    if folder and (args.run or (Path(folder) / "config.yaml").is_file()):
        return load_config(runs.find(folder).config_file, overrides, environment={})
    return None


def which_model(args: argparse.Namespace, config: Config | None) -> tuple[str, Path | None]:
    """(model, adapter on it) that --run, --adapter or --model name; no adapter where a whole model was learned."""
    learned = runs.find(args.run).chosen_weights() if args.run else Path(args.adapter) if args.adapter else None
    if learned is not None and runs.is_whole_model(learned):
        if args.base:
            raise UserError(f"--base: {learned} is a whole model and has none.")
        return str(learned), None
    if args.base and learned is None:
        raise UserError("--base goes with --run or --adapter; a --model is a base itself.")
    base = args.base or args.model or _base_of(learned, config)
    if learned is not None:
        check_adapter(learned)
        if not Path(base).is_dir() and (base.count("/") != 1 or base.startswith((".", "/"))):
            raise UserError(f"{learned}: its base {base} is not there. Say where it is now: --base NAME.")
    return base, learned


def adapter_settings(adapter: Path) -> dict[str, Any]:
    """PEFT's adapter_config.json. Raises UserError naming the file where it is not there or cannot be read."""
    file = adapter / ADAPTER
    if not file.is_file():
        raise UserError(f"{adapter}: holds no adapter and no model (no {ADAPTER}, no config.json).")
    try:
        settings = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: not JSON ({error}). Save the adapter again, or take another folder.") from None
    if not isinstance(settings, dict):
        raise UserError(f"{file}: holds a {type(settings).__name__}, not an adapter's settings by name.")
    return settings


def check_adapter(adapter: Path) -> None:
    """Raises UserError where the weights are missing or cut off, or of another rank than adapter_config.json says.

    (vLLM would serve the last, with another scale than it was trained with.)
    """
    from safetensors import SafetensorError, safe_open

    file = adapter / "adapter_model.safetensors"
    if not file.is_file() and (adapter / "adapter_model.bin").is_file():
        return
    settings = adapter_settings(adapter)
    try:
        said = {settings["r"], *(settings.get("rank_pattern") or {}).values()}
        with safe_open(file, "np") as weights:
            names = [name for name in weights.keys() if name.endswith(".lora_A.weight")]  # noqa: SIM118
            found = {weights.get_slice(name).get_shape()[0] for name in names}
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        what = str(error) or type(error).__name__
        raise UserError(f"{adapter}: not a whole adapter ({what}). Take another folder, or save it again.") from None
    if not found <= said:
        raise UserError(
            f"{adapter}: its weights have rank {', '.join(map(str, sorted(found)))}, its adapter_config.json says "
            f"{', '.join(map(str, sorted(said)))}. One of the two files is from another run."
        )


def open_engine(args: argparse.Namespace, config: Config | None) -> tuple[Engine, str]:
    """(engine, what it is, for a person). Raises UserError where the model or the wished engine cannot be had."""
    name, adapter = which_model(args, config)
    own = config_of(args)
    trained = own.model if own else None
    engine, _ = choose_engine(_wanted(args.engine, own), STANDALONE)
    of_training = trained is not None and name in (trained.name, args.base)  # --base: the same one, elsewhere
    four_bit = of_training and choose_four_bit(trained.load_in_4bit)[0]
    how = f"{' in 4-bit, as it was trained' if four_bit else ''}{f' with {adapter}' if adapter else ''}"
    options: dict[str, Any] = {"dtype": args.dtype} if args.dtype else {}
    if of_training:
        revision = trained.revision if trained.name == name else None
        options |= {"revision": revision, "trust_remote_code": trained.trust_remote_code}
    prompt = config.prompt if config else None
    said = f"{name}{how}, generated by {engine}" + (f" in {args.dtype}" if args.dtype else "")
    if engine == "vllm":
        from llm_grpo.rollouts import vllm

        if trained:
            options |= {"gpu_memory_utilization": trained.gpu_memory_utilization}
        if four_bit:
            options |= {"quantization": "bitsandbytes"}
        return vllm.load_engine(name, adapter, prompt, trained.max_seq_length if trained else None, **options), said
    from llm_grpo.rollouts.transformers import load_engine

    options |= {"load_in_4bit": four_bit} | ({"batch_size": config.evaluation.batch_size} if config else {})
    return load_engine(name, adapter, prompt, **options), said


def load_tokenizer(
    base: str, adapter: Path | None, prompt: PromptSection | None, **options: Any
) -> tuple[Any, dict[str, str]]:
    """(the tokenizer of a model, ready for prompts; what was chosen). It is the one the adapter was saved with, whose
    template is that of its training, else the base's. options: revision, trust_remote_code. Raises UserError."""
    from transformers import AutoTokenizer

    folder = str(adapter) if adapter and (adapter / "tokenizer_config.json").is_file() else base
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, **options)
    except (OSError, ValueError) as error:  # a missing folder, an unknown Hub name, no network
        raise not_there(folder, error) from error
    return tokenizer, prepare_tokenizer(tokenizer, prompt)


def not_there(model: str, error: Exception) -> UserError:
    return UserError(f"{model}: no model there, neither as a folder nor on the Hub ({first_line(error)})")


def _wanted(asked: str, own: Config | None) -> str:
    """A run that was told to generate with transformers is answered by it: vLLM may not be able to (GPT-2's LoRA)."""
    return "transformers" if asked == "auto" and own and own.rollouts.engine == "transformers" else asked


def _base_of(adapter: Path | None, config: Config | None) -> str:
    """The base the adapter names, or the config of the run it lies in; without an adapter the config's model."""
    if adapter is None:
        if config is None:
            raise UserError("Which model? Give --run outputs/NAME, --adapter DIR or --model NAME.")
        return config.model.name
    settings = adapter_settings(adapter)
    if (adapter.parent / "config.yaml").is_file():
        return runs.find(adapter.parent).config().model.name
    base = settings.get("base_model_name_or_path")
    if not base:
        raise UserError(f"{adapter}/{ADAPTER} names no base (base_model_name_or_path). Give it with --base NAME.")
    return base
