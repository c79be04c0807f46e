"""A small vision transformer: patches of 4x4 pixels, fixed positions, a mean over the tokens in place of a class token.

Sources: Dosovitskiy et al. 2021 (arXiv:2010.11929); the simpler form of Beyer et al. 2022 (arXiv:2205.01580).
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from ddp_core.errors import UserError
from ddp_train.models.attention import SelfAttention
from ddp_train.models.blocks import ImageShape, Residual

PATCH = 4
_HEAD_WIDTH = 64


class VisionTransformer(nn.Module):
    """`n_layers` layers of self-attention and a two-layer perceptron of 4 x `hidden_dim`, normalised before each.

    `n_heads` None: one for each 64 of `hidden_dim`. `dropout`: after the positions and at the end of each branch.
    `attention`: see attention.py. 2.4 million parameters by default, 18.9 with 512 and 6 layers. Positions are sines,
    so that images may change their size. Raises UserError for images whose sides are no multiples of 4, and for a
    `hidden_dim` that does not divide among the heads or by 4.
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
        attention: Literal["sdpa", "chunked"] = "sdpa",
    ) -> None:
        super().__init__()
        channels, height, width = image_shape
        if height % PATCH or width % PATCH:
            raise UserError(f"--model vit cuts images into patches of 4x4: {height}x{width} is no multiple of that")
        heads = n_heads if n_heads is not None else _heads(hidden_dim)
        if hidden_dim % heads or hidden_dim % 4:
            raise UserError(f"--hidden-dim {hidden_dim}: it must be a multiple of 4 and of --n-heads {heads}")
        self.patches = nn.Conv2d(channels, hidden_dim, PATCH, stride=PATCH)
        own = positions(height // PATCH, width // PATCH, hidden_dim)
        self.register_buffer("positions", own, persistent=False)
        self.dropout = nn.Dropout(dropout)
        self.layers = nn.Sequential(*(_layer(hidden_dim, heads, dropout, attention) for _ in range(n_layers)))
        self.norm = nn.LayerNorm(hidden_dim)
        self.head = nn.Linear(hidden_dim, num_classes)
        _init_weights(self)

    def forward(self, images: Tensor) -> Tensor:
        """images: float [N, C, H, W], H and W multiples of 4; returns logits [N, num_classes]."""
        tokens = self.patches(images).permute(0, 2, 3, 1)  # [N, H / 4, W / 4, hidden_dim]
        tokens = self.dropout((tokens + self._positions(tokens)).flatten(1, 2))
        logits: Tensor = self.head(self.norm(self.layers(tokens)).mean(1))
        return logits

    def _positions(self, tokens: Tensor) -> Tensor:
        own = self.get_buffer("positions")
        if tokens.shape[1:3] == own.shape[:2]:
            return own
        return positions(tokens.shape[1], tokens.shape[2], own.shape[2]).to(own)


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


def _heads(hidden_dim: int) -> int:
    """The largest number of heads of at least 64 that divide `hidden_dim`."""
    return next(n for n in range(max(1, hidden_dim // _HEAD_WIDTH), 0, -1) if hidden_dim % n == 0)


def _layer(width: int, heads: int, dropout: float, attention: Literal["sdpa", "chunked"]) -> nn.Sequential:
    mixing = nn.Sequential(nn.LayerNorm(width), SelfAttention(width, heads, kind=attention), nn.Dropout(dropout))
    perceptron = nn.Sequential(
        nn.LayerNorm(width),
        nn.Linear(width, 4 * width),
        nn.GELU(),
        nn.Linear(4 * width, width),
        nn.Dropout(dropout),
    )
    return nn.Sequential(Residual(mixing), Residual(perceptron))


def _init_weights(model: VisionTransformer) -> None:
    """Glorot's uniform initialisation, as in arXiv:2010.11929; a near-zero last layer: all classes equally likely."""
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)
    nn.init.normal_(model.head.weight, std=0.01)
