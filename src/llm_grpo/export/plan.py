"""What a merge will write: each tensor with its source, its new type, and what is added to it.

Nothing is written here: what cannot be merged rightly is refused before the long work.
"""

from __future__ import annotations

from collections.abc import Callable

from llm_grpo.errors import UserError, did_you_mean
from llm_grpo.export.adapter import Adapter, Pair
from llm_grpo.export.source import Base
from llm_grpo.export.tensors import FLOATS, Delta, Planned, Stored

DTYPES = {"float16": "F16", "bfloat16": "BF16", "float32": "F32"}
CONV1D_MODELS = ("gpt2", "openai-gpt", "imagegpt", "decision_transformer")  # their weights lie as (in, out)
INPUT_EMBEDDINGS = ("embed_tokens.weight", "wte.weight")
OUTPUT_EMBEDDING = "lm_head.weight"

Plan = dict[str, list[Planned]]  # by the name of the file


def choose_dtype(base: Base, asked: str) -> tuple[str, str, Callable[[str], str]]:
    """(name of the type, why, what each type of the base becomes).

    auto keeps the types of a 16-bit base. A float32 base becomes float16, not bfloat16: its rounding is 8 times finer,
    and a small model's greedy answers depend on it. Weights beyond float16's range are refused by name while writing.
    """
    sizes: dict[str, int] = {}
    for tensors, _ in base.shards.values():
        for tensor in tensors.values():
            sizes[tensor.dtype] = sizes.get(tensor.dtype, 0) + tensor.size
    floats = [dtype for dtype in sizes if dtype in FLOATS]
    if not floats:
        raise UserError(f"The base '{base.name}' holds no float weights, only {', '.join(sizes)}.")
    main = max(floats, key=sizes.__getitem__)
    if asked == "auto" and main in ("F16", "BF16"):
        name = next(name for name, short in DTYPES.items() if short == main)
        return name, f"{name}, as the base", lambda dtype: dtype
    if asked == "auto":
        asked, reason = "float16", "float16, because the base is float32 (float16 rounds more finely than bfloat16)"
    elif asked in DTYPES:
        reason = f"{asked}, as asked"
    else:
        raise UserError(f"--dtype: there is no '{asked}'.{did_you_mean(asked, ['auto', *DTYPES])}")
    return asked, reason, lambda dtype: DTYPES[asked] if dtype in FLOATS else dtype


def make_plan(base: Base, adapter: Adapter, convert: Callable[[str], str]) -> tuple[Plan, bool]:
    """Every tensor to write, by file, and whether input and output embeddings, tied in the base, are parted."""
    place = {name: file for file, (tensors, _) in base.shards.items() for name in tensors}
    sources = {name: tensor for tensors, _ in base.shards.values() for name, tensor in tensors.items()}
    untied = _untie(base, adapter, sources, place)
    dtypes = {name: convert(source.dtype) for name, source in sources.items()}  # the base's, also for what is replaced
    for name, stored in adapter.replaced.items():
        target = _find(name, sources)
        if sources[target].shape != stored.shape:
            raise UserError(
                f"The adapter replaces '{name}' by {stored.shape}, the base has {sources[target].shape}. "
                "A resized vocabulary cannot be merged; if it was not resized, this is another base."
            )
        sources[target] = stored
    conv1d = adapter.fan_in_fan_out or base.config.get("model_type") in CONV1D_MODELS
    deltas = {}
    for module, pair in adapter.pairs.items():
        target = _find(f"{module}.weight", sources)
        deltas[target] = _delta(module, pair, sources[target], conv1d)
    plan: Plan = {file: [] for file in base.shards}
    for name, source in sources.items():
        plan[place[name]].append(Planned(name, source, dtypes[name], deltas.get(name)))
    return plan, untied


def _find(name: str, tensors: dict[str, Stored]) -> str:
    """The base's name for a tensor of the adapter, which is called as in the model.

    Checkpoints may lack the first part of it (gpt2's `h.0...` is `transformer.h.0...` in the model), or have one more.
    """
    near = [other for other in tensors if other == name.partition(".")[2] or other.partition(".")[2] == name]
    found = [name] if name in tensors else near
    if len(found) > 1:
        raise UserError(f"The adapter's '{name}' may be any of {', '.join(found)} in the base.")
    if not found:
        raise UserError(f"The adapter's '{name}' is not in the base.{did_you_mean(name, tensors)[:200]}")
    return found[0]


def _delta(module: str, pair: Pair, weight: Stored, conv1d: bool) -> Delta:
    """How the pair is laid on the weight. A square one does not show which way it lies; then the kind of model does."""
    straight, turned = weight.shape == pair.shape, weight.shape == pair.shape[::-1]
    if not (turned or (straight and not pair.embedding)) or weight.dtype not in FLOATS:
        raise UserError(
            f"The adapter's module '{module}' needs a weight of shape {pair.shape}; the base has {weight.dtype} "
            f"{weight.shape}. Is this the base it was trained on?"
        )
    transposed = pair.embedding or (turned and (conv1d or not straight))
    return Delta(pair.a, pair.b, pair.scale, transposed)


def _untie(base: Base, adapter: Adapter, sources: dict[str, Stored], place: dict[str, str]) -> bool:
    """Where one tensor serves as input and output embedding and the adapter changes one of the two, write both.

    That is what the adapter computed: LoRA on `embed_tokens` leaves the output layer alone, and the other way round.
    (PEFT's merge_and_unload adds to the shared tensor and so changes both.)
    """
    touched = {f"{module}.weight" for module in adapter.pairs} | set(adapter.replaced)
    inputs = [name for name in sources if name.endswith(INPUT_EMBEDDINGS)]
    tied = base.config.get("tie_word_embeddings", OUTPUT_EMBEDDING not in sources)
    if not tied or not any(name.endswith((*INPUT_EMBEDDINGS, OUTPUT_EMBEDDING)) for name in touched):
        return False
    if len(inputs) != 1:
        raise UserError("The adapter changes tied embeddings, and which tensor of the base they are is not clear.")
    sources[OUTPUT_EMBEDDING] = sources[inputs[0]]
    place.setdefault(OUTPUT_EMBEDDING, place[inputs[0]])
    return True
