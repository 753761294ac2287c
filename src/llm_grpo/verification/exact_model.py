"""The policy once more in float64, on a path the trainer does not share: plain transformers, LoRA merged, no padding.

The modelling file of transformers is read afresh from disk, so that nothing that was patched in memory (Unsloth does
that) is in it, and its float32 islands (norms, softmax, rotary angles) are widened to float64: left alone they would
round as coarsely as the trainer that is to be judged.
"""

from __future__ import annotations

import copy
import importlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from llm_grpo.errors import UserError

TRAINED, REFERENCE = "default", "ref"  # adapters, as PEFT and TRL name them


@dataclass(frozen=True)
class Lora:
    """One adapted layer: its name in the base model, and the trainer's two matrices with their names."""

    layer: str
    name_a: str
    name_b: str
    a: Tensor  # [r, in]
    b: Tensor  # [out, r]
    scale: float

    def delta(self) -> Tensor:
        return self.scale * self.b.detach().double() @ self.a.detach().double()

    def gradients(self, upstream: Tensor) -> dict[str, Tensor]:
        """By the chain rule from dL/dW, since W = W0 + scale * B @ A."""
        a, b = self.a.detach().to(upstream), self.b.detach().to(upstream)
        return {self.name_a: self.scale * b.T @ upstream, self.name_b: self.scale * upstream @ a.T}


class ExactModel:
    """float64 log-probabilities and LoRA gradients of a PEFT model, one unpadded sequence at a time."""

    def __init__(self, model: Any, device: torch.device) -> None:
        """Raises UserError where the model is no plain LoRA on a transformers architecture."""
        self.base = model.get_base_model()
        self.loras = {name: list(loras_of(model, name)) for name in model.peft_config}
        self.module = float64_twin(self.base.config, device)
        self.use_adapter(TRAINED)

    @torch.no_grad()
    def use_adapter(self, adapter: str | None) -> None:
        """Take the trainer's weights as they are now: base + LoRA, or the base alone."""
        for name, parameter in self.module.named_parameters():
            owner, _, attribute = name.rpartition(".")
            parameter.copy_(plain_weight(self.base.get_submodule(owner), attribute))
            parameter.requires_grad_(False)
        for lora in self.loras[adapter] if adapter else ():
            weight = self.module.get_submodule(lora.layer).weight
            weight += lora.delta().to(weight.device)
            weight.requires_grad_(True)

    def reference_adapter(self) -> str | None:
        """Whose log-probabilities the KL is against: with beta > 0 stock TRL keeps a copy of the adapter it was built
        with; where there is none it is the base. A fresh LoRA changes nothing, so both mean the base then."""
        return REFERENCE if REFERENCE in self.loras else None

    def logps(self, ids: Tensor, prompt_tokens: int, temperature: float) -> Tensor:
        """Log-probabilities of the tokens of `ids` that follow the prompt; [len(ids) - prompt_tokens]."""
        ids = ids.to(self.module.device)
        return completion_logps(
            self.module(input_ids=ids[None], use_cache=False).logits[0], ids, prompt_tokens, temperature
        )

    def gradients(self) -> dict[str, Tensor]:
        """Of every LoRA matrix by the trainer's name, from what was backpropagated since use_adapter(TRAINED)."""
        found: dict[str, Tensor] = {}
        for lora in self.loras[TRAINED]:
            weight = self.module.get_submodule(lora.layer).weight
            found |= lora.gradients(torch.zeros_like(weight) if weight.grad is None else weight.grad)
        return found


def completion_logps(logits: Tensor, ids: Tensor, prompt_tokens: int, temperature: float) -> Tensor:
    """log softmax(logits / temperature) of each token after the prompt; logits t - 1 are about token t."""
    scores = (logits[prompt_tokens - 1 : -1] / temperature).log_softmax(dim=-1)
    return scores.gather(1, ids[prompt_tokens:, None]).squeeze(1)


def loras_of(model: Any, adapter: str) -> Iterator[Lora]:
    """Every layer that an adapter of a PEFT model adapts; it has to be a plain LoRA."""
    config = model.peft_config[adapter]
    odd = [name for name in ("use_dora", "alora_invocation_tokens", "rank_pattern", "alpha_pattern", "modules_to_save")
           if getattr(config, name, None)]  # fmt: skip
    if odd or config.bias != "none":
        raise UserError(f"The LoRA uses {', '.join(odd) or 'bias'}: only plain LoRA has a float64 reference.")
    scale = config.lora_alpha / (config.r**0.5 if config.use_rslora else config.r)
    parameters = dict(model.named_parameters())
    for name_a, a in parameters.items():
        if f".lora_A.{adapter}." in name_a:
            name_b = name_a.replace(".lora_A.", ".lora_B.")
            layer = name_a.partition(".lora_A.")[0].removeprefix("base_model.model.")
            yield Lora(layer, name_a, name_b, a, parameters[name_b], scale)


def plain_weight(module: nn.Module, attribute: str) -> Tensor:
    """A weight of the base model in float64, from under a LoRA and out of 4 bits."""
    module = getattr(module, "base_layer", module)
    weight = getattr(module, attribute)
    state = getattr(weight, "quant_state", None)
    if state is None:
        return weight.detach().double()
    from bitsandbytes import functional

    data = weight.data
    if getattr(state, "packing_format_for_cpu", False):  # how a CPU with AVX-512 keeps them after a forward pass
        data, state = functional._convert_weight_packed_for_cpu_inverse(data, copy.copy(state))
    return functional.dequantize_4bit(data, state).double()


def float64_twin(config: Any, device: torch.device) -> Any:
    """A model of the same shape, its weights still to be filled in, in float64 with plain attention."""
    config = copy.deepcopy(config)
    config._attn_implementation = "eager"
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    with float64_by_default(), torch.device(device):
        return architecture(config.model_type)(config).to(torch.float64).eval()


@contextmanager
def float64_by_default() -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def architecture(model_type: str) -> type:
    """The causal language model of a model type, compiled from transformers' own file in a module of its own."""
    from transformers.models.auto.configuration_auto import model_type_to_module_name
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as CLASSES

    if model_type not in CLASSES:
        raise UserError(f"model_type '{model_type}': transformers itself has no causal language model of this type.")
    folder = model_type_to_module_name(model_type)
    # The real module first: what looks into sys.modules while the other one is made (docstrings, types) finds it there.
    spec = importlib.import_module(f"transformers.models.{folder}.modeling_{folder}").__spec__
    source = Path(spec.origin).read_text(encoding="utf-8")
    module = ModuleType(spec.name)
    module.__package__, module.__file__, module.__spec__ = spec.parent, spec.origin, spec
    # Not by importlib's loader: it would keep the widened code as the real module's .pyc.
    exec(compile(widened(source), spec.origin, "exec"), module.__dict__)
    return getattr(module, CLASSES[model_type])


def widened(source: str) -> str:
    return re.sub(r"\btorch\.float(32)?\b", "torch.float64", source).replace(".float()", ".double()")
