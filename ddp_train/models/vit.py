"""A small vision transformer: patches of 4x4 pixels, fixed positions, a mean over the tokens in place of a class token.

Sources: Dosovitskiy et al. 2021 (arXiv:2010.11929); the simpler form of Beyer et al. 2022 (arXiv:2205.01580).

Self-attention (Vaswani et al. 2017, arXiv:1706.03762) is torch's scaled_dot_product_attention, which takes a kernel
that never holds all weights where the device has one, or a reference of little memory: exact attention over a few
queries at a time, whose weights are computed again in the backward pass (Rabe and Staats 2021, arXiv:2112.05682).
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from ddp_core.errors import UserError
from ddp_train.models.blocks import ImageShape, Residual

Attention = Literal["sdpa", "chunked"]
PATCH = 4
_HEAD_WIDTH = 64
_CHUNK = 32
"""Queries at a time."""


class VisionTransformer(nn.Module):
    """`n_layers` layers of self-attention and a two-layer perceptron of 4 x `hidden_dim`, normalised before each.

    `n_heads` None: one for each 64 of `hidden_dim`. `dropout`: after the positions and at the end of each branch.
    2.4 million parameters by default, 18.9 with 512 and 6 layers. Positions are sines, so that images may change their
    size. Raises UserError for images whose sides are no multiples of 4, and for a `hidden_dim` that does not divide
    among the heads or by 4.
    """

    def __init__(
        self,
        num_classes: int,
        image_shape: ImageShape = (3, 32, 32),
        *,
        hidden_dim: int = 256,
        n_layers: int = 3,
        n_heads: int | None = None,
        dropout: float = 0.0,
        attention: Attention = "sdpa",
    ) -> None:
        super().__init__()
        channels, height, width = image_shape
        if height % PATCH or width % PATCH:
            raise UserError(f"--model vit cuts images into patches of 4x4: {height}x{width} is no multiple of that")
        numbers = range(max(1, hidden_dim // _HEAD_WIDTH), 0, -1)
        heads = n_heads if n_heads is not None else next(n for n in numbers if hidden_dim % n == 0)
        if hidden_dim % heads or hidden_dim % 4:
            raise UserError(f"--hidden-dim {hidden_dim}: it must be a multiple of 4 and of --n-heads {heads}")
        self.patches = nn.Conv2d(channels, hidden_dim, PATCH, stride=PATCH)
        own = positions(height // PATCH, width // PATCH, hidden_dim)
        self.register_buffer("positions", own, persistent=False)
        self.dropout = nn.Dropout(dropout)
        self.layers = nn.Sequential(*(_layer(hidden_dim, heads, dropout, attention) for _ in range(n_layers)))
        self.norm = nn.LayerNorm(hidden_dim)
        self.head = nn.Linear(hidden_dim, num_classes)
        # Glorot's uniform initialisation, as in arXiv:2010.11929; a near-zero last layer: all classes equally likely.
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        nn.init.normal_(self.head.weight, std=0.01)

    def forward(self, images: Tensor) -> Tensor:
        """images: float [N, C, H, W], H and W multiples of 4; returns logits [N, num_classes]."""
        tokens = self.patches(images).permute(0, 2, 3, 1)  # [N, H / 4, W / 4, hidden_dim]
        where = self.get_buffer("positions")
        if tokens.shape[1:] != where.shape:
            where = positions(*tokens.shape[1:]).to(where)
        tokens = self.dropout((tokens + where).flatten(1, 2))
        return self.head(self.norm(self.layers(tokens)).mean(1))


class SelfAttention(nn.Module):
    """Multi-head self-attention with one projection in and one out. `width` must be a multiple of `heads`."""

    def __init__(self, width: int, heads: int, *, kind: Attention = "sdpa") -> None:
        super().__init__()
        self.heads, self.kind = heads, kind
        self.inward = nn.Linear(width, 3 * width)
        self.outward = nn.Linear(width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        """tokens: float [N, T, width]; returns the same shape."""
        parts = self.inward(tokens).unflatten(-1, (3, self.heads, -1))  # [N, T, 3, heads, width / heads]
        query, key, value = parts.permute(2, 0, 3, 1, 4).unbind(0)
        attend = functional.scaled_dot_product_attention if self.kind == "sdpa" else chunked_attention
        return self.outward(attend(query, key, value).transpose(1, 2).flatten(2))


def chunked_attention(query: Tensor, key: Tensor, value: Tensor, chunk: int = _CHUNK) -> Tensor:
    """softmax(query key' / sqrt(d)) value, `chunk` queries at a time.

    query, key, value: float [..., T, d]; returns the same shape.
    """

    def attend(part: Tensor) -> Tensor:
        """Attention for some of the queries."""
        weights = torch.softmax(part @ key.mT * part.shape[-1] ** -0.5, dim=-1)
        return weights.to(value.dtype) @ value

    def attend_again(part: Tensor) -> Tensor:
        """Like `attend`, with the weights computed again in the backward pass."""
        return checkpoint(attend, part, use_reentrant=False, preserve_rng_state=False)

    run = attend_again if torch.is_grad_enabled() else attend
    return torch.cat([run(part) for part in query.split(chunk, dim=-2)], dim=-2)


def positions(rows: int, columns: int, width: int) -> Tensor:
    """Sines and cosines of the row and of the column, a quarter of `width` each; float [rows, columns, width].

    Frequencies fall from 1 to 1/10,000, as in arXiv:1706.03762.
    """
    quarter = width // 4
    frequencies = 10_000.0 ** -(torch.arange(quarter) / max(1, quarter - 1))
    by_row = torch.arange(rows)[:, None, None] * frequencies
    by_column = torch.arange(columns)[None, :, None] * frequencies
    waves = (by_row.sin(), by_row.cos(), by_column.sin(), by_column.cos())
    return torch.cat([wave.expand(rows, columns, quarter) for wave in waves], dim=2)


def _layer(width: int, heads: int, dropout: float, attention: Attention) -> nn.Sequential:
    """One encoder layer."""
    mixing = nn.Sequential(nn.LayerNorm(width), SelfAttention(width, heads, kind=attention), nn.Dropout(dropout))
    perceptron = nn.Sequential(
        nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width), nn.Dropout(dropout)
    )
    return nn.Sequential(Residual(mixing), Residual(perceptron))
