"""What a training run needs that this machine lacks, found in seconds and said in one screen."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

from llm_grpo import command
from llm_grpo.config.schema import Config
from llm_grpo.errors import UserError, first_line, hub_errors
from llm_grpo.loaders import bring_loader, choose_loader
from llm_grpo.rewards import LEARNED
from llm_grpo.rewards.files import may_bring_libraries
from llm_grpo.rollouts import choose_engine


def missing_for_training(config: Config) -> list[str]:
    """One sentence per thing that is missing, with what to do about it; [] where the run can start."""
    if missing := [f"the package {name}: pip install -r requirements.txt on a GPU machine, make demo on any other"
                   for name in _absent(config)]:  # fmt: skip
        return missing
    try:
        choose_engine(config.rollouts.engine, training=config)
        if config.rollouts.engine == "server":
            from llm_grpo.rollouts.server import check_server

            check_server(config)
    except UserError as error:
        missing.append(str(error))
    if config.model.load_in_4bit is True and importlib.util.find_spec("bitsandbytes") is None:
        missing.append("model.load_in_4bit needs bitsandbytes: pip install bitsandbytes, or model.load_in_4bit=false")
    for name in config.logging.report_to:
        if importlib.util.find_spec(name) is None:
            missing.append(f"logging.report_to names {name}, which is not installed: pip install {name}")
    models = [("model.name", config.model.name, config.model.revision)]
    learned = [reward.args for reward in config.rewards if reward.name in LEARNED]
    models += [("the reward model", str(args.get("model")), args.get("revision")) for args in learned]
    # asking the Hub takes long; not where the run cannot start anyway
    return missing or [line for model in models for line in _missing_model(*model)]


def _absent(config: Config) -> list[str]:
    packages = ("unsloth" if choose_loader(config)[0] == "unsloth" else "peft", "trl", "torch", "datasets")
    return [name for name in packages if importlib.util.find_spec(name) is None]


def unsloth_first(config: Config) -> None:
    """A reward file that imports libraries may bring trl, transformers or peft, and Unsloth has to come before them.
    One with workers (`null` is one) is loaded in theirs."""
    here = [reward.name for reward in config.rewards if reward.workers == 0]
    if not _absent(config) and any(map(may_bring_libraries, here)):
        with command.library_output_in(Path(config.run.output_dir) / "libraries.log"):
            bring_loader(config)


def logging_choice(config: Config, folder: Path) -> dict[str, str]:
    """Where metrics go and how to look at them, decided before the run: without a W&B key it is logged offline.

    Sets the variables by which W&B, TensorBoard and Trackio are told to write into the run's folder.
    """
    os.environ.setdefault("TENSORBOARD_LOGGING_DIR", str(folder / "tensorboard"))
    os.environ.setdefault("TRACKIO_DIR", str(folder / "trackio"))
    here = {
        "tensorboard": f"tensorboard --logdir {os.environ['TENSORBOARD_LOGGING_DIR']}",
        "trackio": f"TRACKIO_DIR={os.environ['TRACKIO_DIR']} trackio show --project {config.grpo['project']}",
    }
    return {name: here[name] if name in here else _wandb(folder) for name in config.logging.report_to}


def _wandb(folder: Path) -> str:
    """Whether W&B is online, as W&B itself sees it: its environment, its settings files, its login."""
    os.environ.setdefault("WANDB_DIR", str(folder))
    os.environ.setdefault("WANDB_PROJECT", "llm-grpo")
    os.environ.setdefault("WANDB_SILENT", "true")
    # Its own are 90 s for a server that is not there, and for ever for what is not uploaded at the end.
    os.environ.setdefault("WANDB_INIT_TIMEOUT", "20")
    os.environ.setdefault("WANDB_FINISH_TIMEOUT", "120")
    import wandb
    from wandb.sdk import wandb_setup
    from wandb.sdk.lib import wbauth

    try:
        settings = wandb_setup.singleton().settings
        if settings.mode != "online":
            return f"{settings.mode}: WANDB_MODE or `wandb offline` says so"
        host = settings.base_url
        auth = wbauth.authenticate_session(host=host, source="llm-grpo", prompt=False, update_session=False)
        missing = "no WANDB_API_KEY in the environment or .env, no `wandb login`"
    except (wandb.Error, ValueError) as error:
        auth, missing = None, first_line(error)
    finally:
        wandb.teardown()  # what it has read of the environment may change below
    if auth:
        return "online: a key was found"
    os.environ["WANDB_MODE"] = "offline"
    return f"offline: {missing}; upload later with `wandb sync`"


def standby_choice(config: Config) -> dict[str, str]:
    """Unsloth's standby, which it reads from the environment while it is imported: to be called before that."""
    if config.rollouts.engine == "server" and "model.gpu_memory_utilization" in config.origins:
        return {"model.gpu_memory_utilization": "not used here: the server's own is said where it is started"}
    if not config.rollouts.standby:
        return {}
    os.environ["UNSLOTH_VLLM_STANDBY"] = "1"
    return {"rollouts.standby": "on: Unsloth sets vLLM's share of the memory, model.gpu_memory_utilization is not used"}


def _missing_model(what: str, name: str, revision: str | None) -> list[str]:
    """A local folder has to hold a config.json; a Hub name has to be in the cache or reachable."""
    folder = Path(name)
    if folder.exists():
        return [] if (folder / "config.json").is_file() else [f"{what}: the folder {name} holds no config.json"]
    if name.count("/") != 1 or name.startswith((".", "/")):
        return [f"{what}: there is no folder {name}, and it is not a Hub name of the form owner/model"]
    from huggingface_hub import hf_hub_download

    try:
        hf_hub_download(name, "config.json", revision=revision)
    except hub_errors() as error:  # offline without a cache is one of them
        why = f"({type(error).__name__}: {first_line(error)})"
        return [f"the model {name}: no folder here, not in the local cache, nor to be had from the Hub {why}"]
    return []
