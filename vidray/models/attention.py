"""Softmax attention in the way that suits the device, for networks that only score."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

_MAX_WEIGHTS_BYTES = 64 * 1024**2
"""Of attention weights at a time: all of VideoMAE-B's, a 32nd of those of 64 frames in V-JEPA 2."""


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    scaling: float | None = None,
    softcap: float | None = None,
) -> Tensor:
    """``softmax(query · keyᵀ · scaling) · value``, each (N, heads, L, D); key and value may have another L.

    PyTorch's fused attention has no way to cap the logits, and on CPUs it is slower in bfloat16 than in float32 (by
    8 % with VideoMAE-B's 1568 tokens); two matrix products use the CPU's bfloat16 units, and take 0.6 of its time.

    Args:
        scaling: None: ``1 / √D``.
        softcap: logits stay between -softcap and softcap, as ``softcap · tanh(logits / softcap)``; None: any.
    """
    is_bf16_on_cpu = query.device.type == "cpu" and query.dtype == torch.bfloat16
    if softcap is None and not is_bf16_on_cpu:
        return F.scaled_dot_product_attention(query, key, value, scale=scaling)
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    query, key_NHDL = query * (scaling / (softcap or 1.0)), key.transpose(2, 3)
    num_samples, num_heads, length, _ = query.shape
    bytes_per_row = num_samples * num_heads * key.shape[2] * query.element_size()
    parts = query.split(max(1, min(length, _MAX_WEIGHTS_BYTES // bytes_per_row)), dim=2)
    return torch.cat([_attend(part, key_NHDL, value, softcap=softcap) for part in parts], dim=2)


def _attend(query: Tensor, key_NHDL: Tensor, value: Tensor, *, softcap: float | None) -> Tensor:
    logits_NHLL = torch.matmul(query, key_NHDL)
    if softcap is not None:
        logits_NHLL.tanh_().mul_(softcap)
    return torch.matmul(torch.softmax(logits_NHLL, dim=-1), value)  # softmax computes in float32 inside
