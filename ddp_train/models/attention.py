"""Self-attention, by torch's kernels or by a reference that is written out and needs little memory.

sdpa: `scaled_dot_product_attention`, which takes a kernel that never holds all weights where the device has one.
chunked: exact attention over a few queries at a time, whose weights are computed again in the backward pass; memory
grows with the number of tokens, not with its square (Rabe and Staats 2021, arXiv:2112.05682).
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

CHUNK = 32
"""Queries at a time."""


class SelfAttention(nn.Module):
    """Multi-head self-attention (Vaswani et al. 2017, arXiv:1706.03762) with one projection in and one out.

    `width` must be a multiple of `heads`.
    """

    def __init__(self, width: int, heads: int, *, kind: Literal["sdpa", "chunked"] = "sdpa") -> None:
        super().__init__()
        self.heads, self.kind = heads, kind
        self.inward = nn.Linear(width, 3 * width)
        self.outward = nn.Linear(width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        """tokens: float [N, T, width]; returns the same shape."""
        parts = self.inward(tokens).unflatten(-1, (3, self.heads, -1))  # [N, T, 3, heads, width / heads]
        query, key, value = parts.permute(2, 0, 3, 1, 4).unbind(0)
        attend = functional.scaled_dot_product_attention if self.kind == "sdpa" else chunked_attention
        mixed: Tensor = self.outward(attend(query, key, value).transpose(1, 2).flatten(2))
        return mixed


def chunked_attention(query: Tensor, key: Tensor, value: Tensor, chunk: int = CHUNK) -> Tensor:
    """softmax(query key' / sqrt(d)) value, `chunk` queries at a time.

    query, key, value: float [..., T, d]; returns the same shape.
    """
    parts = query.split(chunk, dim=-2)
    if not torch.is_grad_enabled():
        return torch.cat([_attend(part, key, value) for part in parts], dim=-2)
    return torch.cat([_again(part, key, value) for part in parts], dim=-2)


def _attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    weights = torch.softmax(query @ key.mT * query.shape[-1] ** -0.5, dim=-1)
    return weights.to(value.dtype) @ value


def _again(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """`_attend`, whose weights are not kept for the backward pass."""
    mixed: Tensor = checkpoint(_attend, query, key, value, use_reentrant=False, preserve_rng_state=False)
    return mixed
