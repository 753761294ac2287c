"""TRL's vLLM server mode over vLLM's plain OpenAI server: rollouts/server.py in the place of NCCL and merged weights.

TRL 1.15 gathers the prompts of all processes in the first, asks there, and hands each process its answers with their
log-probabilities; its importance-sampling correction is as with its own server. Two of its methods are replaced.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from trl.generation.vllm_client import VLLMClient
from trl.generation.vllm_generation import VLLMGeneration

from llm_grpo.errors import UserError
from llm_grpo.processes import from_first
from llm_grpo.rollouts.adapter_sync import next_seed, put_into, timed_push
from llm_grpo.rollouts.server import ServerEngine, at_once


class Client(VLLMClient):
    """TRL's client without its constructor, which asks a server before it could be told a key. Each prompt is a request
    of its own with its own seed, of which the server counts on for the n answers; its answers end as the trainer's."""

    def __init__(self, rollouts: ServerRollouts) -> None:
        self.rollouts, self.base_url = rollouts, ""
        self.fault: UserError | None = None

    @property
    def model(self) -> str:
        return self.rollouts.sync.name

    def _post(self, url: str, json: dict[str, Any]) -> Any:
        return self.rollouts.sync.server.ask(url, json)

    def generate(
        self, prompts: Sequence[list[int]], *, n: int, generation_kwargs: dict[str, Any], **settings: Any
    ) -> Any:
        """TRL's lists, prompt by prompt."""
        first, ask = next_seed(self.rollouts), super().generate
        given = {"stop_token_ids": sorted(self.rollouts.engine.stops), **generation_kwargs}

        def answers(index: int) -> dict[str, list[Any]]:
            return ask([prompts[index]], n=n, generation_kwargs={**given, "seed": first + index * n}, **settings)

        try:
            found = at_once(answers, len(prompts))
        except UserError as error:
            self.fault = error
            return {"prompt_ids": [], "completion_ids": [], "logprobs": []}
        return {name: [one for part in found for one in part[name]] for name in found[0]}

    def check(self) -> None:
        """Raise what the last call met with."""
        if self.fault:
            raise self.fault


class ServerRollouts(VLLMGeneration):
    """What a GRPOTrainer calls `vllm_generation`, over a ServerEngine and the adapter it pushes (`sync`)."""

    def __init__(self, trainer: Any, engine: ServerEngine, seed: int) -> None:
        self.trainer, self.engine, self.sync, self.seed = trainer, engine, engine.adapter, seed
        self._turn = (-1, 0)  # optimiser step, and how many batches were generated at it
        names = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "max_completion_length")
        super().__init__(
            trainer.model,
            trainer.accelerator,
            trainer.processing_class,
            mode="server",
            structured_outputs_regex=trainer.args.vllm_structured_outputs_regex,
            generation_kwargs=trainer.args.generation_kwargs,
            **{name: getattr(trainer, name) for name in names},
        )

    def _init_vllm(self) -> None:
        self.vllm_client = Client(self)

    def sync_weights(self) -> None:
        timed_push(self)

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """TRL's, in which the first process asks. Where it is not answered all of them end: the others would wait."""
        found = super().generate(*args, **kwargs)
        from_first(self.vllm_client.check)
        return found


def generate_with_server(trainer: Any, engine: ServerEngine, seed: int) -> None:
    """Let a GRPOTrainer that was built with use_vllm=False generate through a server, in any number of processes."""
    put_into(trainer, ServerRollouts(trainer, engine, seed))
