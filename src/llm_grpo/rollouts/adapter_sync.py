"""vLLM rollouts for a plain TRL GRPOTrainer with a LoRA: the base is loaded once, and a step sends only the adapter.

This file stands alone; copy it into a script of your own:

    llm = open_vllm("Qwen/Qwen2.5-3B-Instruct", max_lora_rank=64, max_model_len=2048)
    trainer = GRPOTrainer(model=peft_model, args=GRPOConfig(use_vllm=False, ...), ...)
    generate_with_vllm(trainer, AdapterSync(peft_model, llm))
    trainer.train()

TRL's own colocate mode merges the LoRA into the base, pushes every tensor to vLLM and takes it out again, which is
wrong for a 4-bit base and slow for any. Here the base in vLLM is never touched, whatever its precision; it has to be
the base that the trainer has (`dequantise` writes that of a 4-bit policy as 16-bit weights). The importance-sampling
correction (`GRPOConfig.vllm_importance_sampling_correction`) works as with TRL's own engine: its own seam is used.

Written for TRL 1.15 and vLLM 0.31, one process (of several: rollouts/server.py); SEAM names what of TRL is relied on.
"""

from __future__ import annotations

import copy
import inspect
import os
import random
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch.compiler import set_stance

# What `GRPOTrainer._generate_single_turn` of TRL 1.15 reads and calls, and this file puts there.
SEAM = ("use_vllm", "_last_loaded_step", "vllm_generation.sync_weights()", "vllm_generation.generate(")
UNSERVED = ("use_dora", "modules_to_save", "lora_bias")  # settings of an adapter that vLLM's LoRA does not know


def open_vllm(model: str, *, max_lora_rank: int | None, max_model_len: int | None = None, **options: Any) -> Any:
    """A vllm.LLM in this process, over a model folder or Hub name, ready for one LoRA of up to that rank (None: none).

    options go to vllm.LLM as they are (dtype, gpu_memory_utilization, seed, quantization, revision ...). On a CPU the
    KV cache gets 1 GiB in blocks of 32 tokens (vLLM's default of 128 computes over what is not filled),
    threads are not bound to cores (the trainer shares them), and nothing is compiled.
    """
    # One process: no second interpreter, no copies, and no worker whose death would leave vLLM waiting for ever.
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    os.environ.setdefault("VLLM_USE_FLASHINFER_SAMPLER", "0")  # it knows no seed of a request's own, which ours have
    if not torch.cuda.is_available():
        # Prompts whole: vLLM 0.31 fails on a CPU where a seeded request is prefilled in chunks (its generator has no
        # offset that could be set back).
        options = {"enforce_eager": True, "kv_cache_memory_bytes": 2**30, "block_size": 32,
                   "enable_chunked_prefill": False, **options}  # fmt: skip
    if max_lora_rank is not None:
        options |= {"enable_lora": True, "max_loras": 1, "max_lora_rank": vllm_rank(max_lora_rank)}
    with torch.random.fork_rng():  # vLLM seeds the generator of the whole process
        from vllm import LLM

        return LLM(
            model=model,
            max_model_len=max_model_len,
            enable_prefix_caching=True,
            logprobs_mode="processed_logprobs",  # after the temperature, as the trainer computes them
            disable_log_stats=True,
            **options,
        )


def served_rank(adapter: Mapping[str, Any]) -> int:
    """The rank to open vLLM with for an adapter, given its config (adapter_config.json, or vars of PEFT's).

    Raises ValueError where vLLM cannot serve such an adapter.
    """
    bias = {} if adapter.get("bias", "none") == "none" else {"bias": adapter["bias"]}
    found = {name: adapter[name] for name in UNSERVED if adapter.get(name)} | bias
    if found:
        raise ValueError(f"vLLM cannot serve an adapter with {', '.join(f'{k}={v!r}' for k, v in found.items())}.")
    return vllm_rank(max([adapter["r"], *(adapter.get("rank_pattern") or {}).values()]))


def vllm_rank(rank: int) -> int:
    """The smallest rank vLLM has buffers for that holds this one. Raises ValueError above its largest."""
    allowed = (8, 16, 32, 64, 128, 256, 320, 512)
    if rank > allowed[-1]:
        raise ValueError(f"vLLM serves LoRA ranks up to {allowed[-1]}; this adapter has {rank}.")
    return next(size for size in allowed if size >= rank)


class AdapterSync:
    """Carries the LoRA of a PEFT model to vLLM: `push()` makes what the model holds now what vLLM answers with.

    A pushed adapter gets a name, an id and a path of its own, since vLLM keeps adapters by id, requests apart by name,
    and the prefix cache by name and path: an old name would answer from the cache of the old weights. The one before
    is taken out of vLLM's memory and its file is deleted. Files lie in memory (/dev/shm) where the machine has that.
    """

    def __init__(self, model: Any, llm: Any, adapter: str = "default") -> None:
        self.model, self.llm, self.adapter, self.pushed, self.request = model, llm, adapter, 0, None
        served_rank(vars(model.peft_config[adapter]))
        self._folder = tempfile.TemporaryDirectory(prefix="adapter-sync-", dir=memory_folder(adapter_bytes(model)))

    def push(self) -> Any:
        """The LoRARequest to generate with: one file written, one load by vLLM."""
        from vllm.lora.request import LoRARequest

        if self.pushed:  # first, so that there is never more than one in memory
            self.llm.llm_engine.remove_lora(self.pushed)
            shutil.rmtree(Path(self._folder.name) / str(self.pushed), ignore_errors=True)
        self.pushed += 1
        folder = Path(self._folder.name) / str(self.pushed)
        write_adapter(adapter_weights(self.model, self.adapter), self.model.peft_config[self.adapter], folder)
        request = LoRARequest(f"policy-{self.pushed}", self.pushed, str(folder))
        self.llm.llm_engine.add_lora(request)  # now, so that a fault is told here and the time is the sync's
        self.request = request
        return request


def adapter_bytes(model: Any) -> int:
    """Of one pushed adapter: 0.48 GB for rank 64 on all projections of a 3 B model in float32."""
    return sum(p.numel() * p.element_size() for name, p in model.named_parameters() if "lora_" in name)


def adapter_weights(model: Any, adapter: str = "default") -> dict[str, torch.Tensor]:
    """A PEFT model's LoRA by its names in a file, whole. Of a sharded model (FSDP2) all processes ask together."""
    from peft import get_peft_model_state_dict

    found = get_peft_model_state_dict(model, adapter_name=adapter, save_embedding_layers=False)
    return {name: (t.full_tensor() if hasattr(t, "full_tensor") else t).detach() for name, t in found.items()}


def write_adapter(weights: Mapping[str, torch.Tensor], settings: Any, folder: Path) -> None:
    """An adapter's two files in a new folder. settings: PEFT's config of it."""
    from safetensors.torch import save_file

    folder.mkdir()
    save_file({name: tensor.contiguous() for name, tensor in weights.items()}, folder / "adapter_model.safetensors")
    settings.save_pretrained(str(folder))


class VLLMRollouts:
    """What a GRPOTrainer calls `vllm_generation`: its two methods, over an AdapterSync."""

    def __init__(self, trainer: Any, sync: AdapterSync, seed: int | None) -> None:
        self.trainer, self.sync, self.llm, self.seed = trainer, sync, sync.llm, seed
        self._turn = (-1, 0)  # optimiser step, and how many batches were generated at it

    def sync_weights(self) -> None:
        """TRL calls this before the first generation after an optimiser step."""
        timed_push(self)

    def generate(
        self, prompts: Sequence[list[int]], images: Any, num_generations: int, profiler: Any
    ) -> tuple[list[list[int]], list[list[int]], list[list[list[float]]], None]:
        """prompts: token ids, each prompt num_generations times. (prompt_ids, completion_ids, logprobs, None), with
        logprobs[completion][token] a list whose first entry is that of the sampled token, in nats."""
        if images is not None:
            raise ValueError("Images are not supported by this engine.")
        requests = [{"prompt_token_ids": list(ids)} for ids in prompts]
        with profiler, isolated():
            outputs = self.llm.generate(
                requests, self._sampling(len(requests)), lora_request=self.sync.request, use_tqdm=False
            )
        answers = [output.outputs[0] for output in outputs]
        tokens = [list(answer.token_ids) for answer in answers]
        logprobs = [
            [[by_token[token].logprob] for token, by_token in zip(answer.token_ids, answer.logprobs, strict=True)]
            for answer in answers
        ]
        return [list(ids) for ids in prompts], tokens, logprobs, None

    def _sampling(self, count: int) -> list[Any]:
        """The trainer's sampling settings for each of the completions, each with a seed of its own: made of the run's
        seed, the step and the batch within it, so that a run repeats itself, after a resume too."""
        from vllm import SamplingParams

        trainer, arguments = self.trainer, self.trainer.args
        settings = {
            "temperature": trainer.temperature,
            "top_p": trainer.top_p,
            "top_k": trainer.top_k,
            "min_p": trainer.min_p or 0.0,
            "repetition_penalty": trainer.repetition_penalty,
            "max_tokens": trainer.max_completion_length,
            "logprobs": 0,
            "detokenize": False,
            **(getattr(arguments, "generation_kwargs", None) or {}),
        }
        first = next_seed(self)
        return [SamplingParams(**settings, seed=first + index) for index in range(count)]


def generate_with_vllm(trainer: Any, sync: AdapterSync, seed: int | None = None) -> None:
    """Let a GRPOTrainer that was built with use_vllm=False generate through vLLM. Call it before trainer.train().

    seed: makes the rollouts repeatable; None draws anew each time. Raises RuntimeError where this TRL has another seam,
    or where there are several processes, which would all draw the same.
    """
    put_into(trainer, VLLMRollouts(trainer, sync, seed))
    if trainer.accelerator.num_processes > 1:
        raise RuntimeError("generate_with_vllm is for one process; several generate through a server.")


def put_into(trainer: Any, rollouts: Any) -> None:
    """Make them what the trainer generates with. Raises RuntimeError where this TRL has another seam."""
    turns = [vars(kind).get("_generate_single_turn") for kind in type(trainer).__mro__]
    source = "".join(inspect.getsource(turn) for turn in turns if turn is not None)
    missing = [name for name in SEAM if f"self.{name}" not in source]
    if missing:
        raise RuntimeError(f"This version of TRL has no self.{', self.'.join(missing)}; TRL 1.15 is the one that fits.")
    trainer.use_vllm, trainer.vllm_generation = True, rollouts
    trainer._last_loaded_step = -1  # so that the first generation syncs


def timed_push(rollouts: Any) -> None:
    """A sync of `rollouts.sync`; its seconds stand among the trainer's metrics of the step."""
    start = time.perf_counter()
    rollouts.sync.push()
    rollouts.trainer._metrics["train"]["seconds/generation/sync"].append(time.perf_counter() - start)


def next_seed(rollouts: Any) -> int:
    """For the first completion of the next generation batch: of the run's seed (None: drawn anew), the optimiser step,
    and how many batches there were at it, which `rollouts._turn` keeps."""
    step = rollouts.trainer.state.global_step
    rollouts._turn = (step, rollouts._turn[1] + 1 if rollouts._turn[0] == step else 0)
    return first_seed(None if rollouts.seed is None else (rollouts.seed, *rollouts._turn))


def first_seed(of: tuple[int, ...] | None) -> int:
    """A seed for the first of several completions, the others count on from it: the same for the same numbers, and a
    new one each time for None. (What vLLM draws without a seed would repeat: `isolated` puts the generator back.)"""
    return random.SystemRandom().getrandbits(48) if of is None else random.Random(repr(of)).getrandbits(48)


def memory_folder(size: int) -> str | None:
    """/dev/shm where it has room for an adapter of so many bytes (a container's may hold only 64 MB), else None."""
    shared = Path("/dev/shm")
    roomy = os.access(shared, os.W_OK) and shutil.disk_usage(shared).free > 2 * size
    return str(shared) if roomy else None


@contextmanager
def isolated() -> Iterator[None]:
    """Around a call of vLLM in this process: it draws from torch's generator even where every request has a seed of its
    own; and on a CPU, without torch.compile, its first call does not wait 20 s for a C++ compiler."""
    with torch.random.fork_rng(), nullcontext() if torch.cuda.is_available() else set_stance("force_eager"):
        yield


def dequantise(model: Any, tokenizer: Any, folder: Path) -> Path:
    """Write the base of a 4-bit PEFT model as a model folder of 16- or 32-bit weights: the values its layers compute
    with, so that vLLM draws from the policy that is trained. Returns the folder. Needs the base in memory once more."""
    from bitsandbytes.functional import dequantize_4bit
    from huggingface_hub import save_torch_state_dict

    base = model.get_base_model()
    weights, seen = {}, set()  # tied weights are written once, under the first of their names
    for name, module in base.named_modules():
        for own, value in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)):
            full = f"{name}.{own}".replace(".base_layer.", ".")
            temporary = own in getattr(module, "_non_persistent_buffers_set", ())
            if ".lora_" in f".{full}" or temporary or value.data_ptr() in seen:
                continue
            seen.add(value.data_ptr())
            state = getattr(value, "quant_state", None)
            weights[full] = (value if state is None else dequantize_4bit(value.data, state)).detach().cpu()
    save_torch_state_dict(weights, folder)
    config = copy.deepcopy(base.config)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    config.save_pretrained(folder)
    base.generation_config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
