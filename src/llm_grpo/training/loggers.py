"""W&B, TensorBoard and Trackio: told of the whole config, and never the end of a training when they fail."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from rich.console import Console
from transformers import TrainerCallback
from transformers.integrations import TensorBoardCallback, TrackioCallback, WandbCallback

from llm_grpo.config.schema import Config
from llm_grpo.config.yaml_text import write_yaml
from llm_grpo.errors import first_line

NAMES = {WandbCallback: "W&B", TensorBoardCallback: "TensorBoard", TrackioCallback: "Trackio"}


class Dispensable:
    """A logger of transformers. Where it raises, that is said once and the training goes on without it; W&B that cannot
    be reached at the start goes on offline."""

    def __init__(self, logger: TrainerCallback, config: Config, console: Console) -> None:
        self.logger, self.config, self.console, self.failed = logger, config, console, False

    def __getattr__(self, event: str) -> Callable[..., None]:
        """on_train_begin, on_log and so on, by which transformers' CallbackHandler calls its callbacks."""
        if not event.startswith("on_"):
            raise AttributeError(event)
        return partial(self._pass_on, event)

    def _pass_on(self, event: str, args: Any, state: Any, control: Any, **words: Any) -> None:
        if self.failed:
            return
        try:
            getattr(self.logger, event)(args, state, control, **words)
            if event == "on_train_begin" and state.is_world_process_zero:
                tell_config(self.logger, self.config.as_dict())
        except Exception as error:  # a service and its client: whatever they raise, the model is not their business
            said = first_line(error)
            if event == "on_train_begin" and _went_offline(self.logger):
                self._say(f"cannot be reached ({said}): logging offline, upload later with `wandb sync`.")
                self._pass_on(event, args, state, control, **words)
            else:
                self.failed = True
                self._say(f"failed ({said}): the training goes on without it, metrics.jsonl has every number.")

    def _say(self, what: str) -> None:
        name = next(name for kind, name in NAMES.items() if isinstance(self.logger, kind))
        self.console.print(f"{name} {what}", style="yellow", markup=False, highlight=False, soft_wrap=True)


def dispensable(callbacks: Sequence[TrainerCallback], config: Config, console: Console) -> list[Any]:
    """A trainer's callbacks with its loggers made dispensable; the others as they are."""
    return [Dispensable(c, config, console) if isinstance(c, tuple(NAMES)) else c for c in callbacks]


def tell_config(logger: TrainerCallback, settings: dict[str, Any]) -> None:
    """The whole effective config; TRL tells its loggers only its own part of it."""
    if isinstance(logger, WandbCallback):
        import wandb

        wandb.config.update({"llm_grpo": settings}, allow_val_change=True)
    elif isinstance(logger, TrackioCallback):
        import trackio

        trackio.config.update({"llm_grpo": settings}, allow_val_change=True)
    elif isinstance(logger, TensorBoardCallback):
        logger.tb_writer.add_text("llm_grpo", f"```yaml\n{write_yaml(settings, 'config.yaml')}```")


def _went_offline(logger: TrainerCallback) -> bool:
    """Whether this is a W&B that was not offline yet and is now, to be begun again."""
    if not isinstance(logger, WandbCallback) or os.environ.get("WANDB_MODE") == "offline":
        return False
    import wandb

    os.environ["WANDB_MODE"] = "offline"
    wandb.teardown()  # it reads the environment once; this lets it read again
    logger._initialized = False
    return True
