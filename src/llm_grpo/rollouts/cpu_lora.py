"""vLLM's LoRA on a CPU, right and fast: one matrix product for each adapter of a batch.

vLLM 0.31's own functions for a CPU copy the adapter's matrices once for every token. And where a request has no adapter
(index -1) they take the last adapter's: asked in one batch with the trained model, the base answers like the trained
model. vLLM imports this file in its worker (`worker_extension_cls`, its seam for such things), and the functions below
take the place of those.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch


def by_adapter(weights: torch.Tensor, indices: torch.Tensor) -> Iterator[tuple[slice | torch.Tensor, torch.Tensor]]:
    """(the rows of a batch that one adapter answers, its matrix (out, in)), for every adapter in it.

    weights: (adapters, 1, out, in), or without the 1. indices: (rows,), -1 where there is no adapter.
    """
    used = indices.unique().tolist()
    for index in used:
        if index >= 0:
            yield slice(None) if len(used) == 1 else indices == index, weights[index].reshape(weights.shape[-2:])


def bgmv_shrink(
    inputs: torch.Tensor, weights: torch.Tensor, output: torch.Tensor, indices: torch.Tensor, scaling: float = 1.0
) -> None:
    """output (rows, rank) = scaling * inputs (rows, in) @ A^T; rows without an adapter stay as they are."""
    for rows, matrix in by_adapter(weights, indices):
        output[rows, : len(matrix)] = scaling * (inputs[rows].to(output.dtype) @ matrix.to(output.dtype).T)


def bgmv_expand(
    inputs: torch.Tensor, weights: torch.Tensor, output: torch.Tensor, indices: torch.Tensor, add_inputs: bool = True
) -> None:
    """output (rows, out) += inputs (rows, rank) @ B^T, or = without add_inputs; the narrower of both widths counts."""
    bgmv_expand_slice(inputs, weights, output, indices, 0, min(weights.shape[-2], output.shape[1]), add_inputs)


def bgmv_expand_slice(
    inputs: torch.Tensor,
    weights: torch.Tensor,
    output: torch.Tensor,
    indices: torch.Tensor,
    slice_offset: int,
    slice_size: int,
    add_inputs: bool = True,
) -> None:
    """As bgmv_expand, into the columns from slice_offset on: one of the parts of a fused projection."""
    columns = slice(slice_offset, slice_offset + slice_size)
    for rows, matrix in by_adapter(weights, indices):
        product = inputs[rows].to(output.dtype) @ matrix[:slice_size].to(output.dtype).T
        output[rows, columns] = output[rows, columns] + product if add_inputs else product


class OneProductPerAdapter:
    """What vLLM is given as worker_extension_cls. It adds nothing: importing this file is what counts."""


def install() -> None:
    """Put the functions in the place of vLLM's, wherever it has taken them to already."""
    from vllm.lora.ops import torch_ops
    from vllm.lora.punica_wrapper import punica_cpu

    for function in (bgmv_shrink, bgmv_expand, bgmv_expand_slice):
        for module in (torch_ops, torch_ops.lora_ops, punica_cpu):
            assert hasattr(module, function.__name__), f"this vLLM has no {function.__name__} in {module.__name__}"
            setattr(module, function.__name__, function)


install()  # importing this file is all that vLLM's worker does with it
