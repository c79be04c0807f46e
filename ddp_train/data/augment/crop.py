"""The crop of a batch: one gather of windows from padded images, in three ways with the same result.

A GPU computes the addresses of a gather in 64 bits where the view that is gathered from has 2^31 values or more, even
where its memory has fewer; that costs time. `by_windows`, the fastest on a CPU, gathers from such a view. Which is the
fastest on a GPU is not yet measured: `python -m benchmarks crop --device cuda`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Crop = Callable[[Tensor, Tensor, Tensor | None, int, int], Tensor]
"""padded: uint8 [m, H + 2 pad, W + 2 pad, C], contiguous; rows: int64 [n], which of them; shift: int64 [n], in pixels
of a padded image row by row, None for no shift; height H and width W. Returns uint8 [n, H, W * C]."""


def by_windows(padded: Tensor, rows: Tensor, shift: Tensor | None, height: int, width: int) -> Tensor:
    """Every window of every image is a row of one overlapping view: one gather, of rows of H * W * C values."""
    across, channels = padded.shape[2:]
    windows = padded.numel() // channels - (height - 1) * across - width + 1
    size = (windows, height, width * channels)
    view = padded.as_strided(size, (channels, across * channels, 1))
    return view.index_select(0, _starts(padded, rows, shift))


def by_lines(padded: Tensor, rows: Tensor, shift: Tensor | None, height: int, width: int) -> Tensor:
    """Gather the batch's whole images, then the lines of their windows: two gathers from fewer than 2^31 values."""
    images = padded.index_select(0, rows)
    here = torch.arange(len(rows), device=rows.device)
    across, channels = padded.shape[2:]
    lines = images.numel() // channels - width + 1
    view = images.as_strided((lines, width * channels), (channels, 1))
    down = torch.arange(height, device=rows.device) * across
    return view.index_select(0, (_starts(images, here, shift)[:, None] + down).flatten()).view(len(rows), height, -1)


def by_pixels(padded: Tensor, rows: Tensor, shift: Tensor | None, height: int, width: int) -> Tensor:
    """One gather of single pixels, which needs an index of 8 bytes for each."""
    across, channels = padded.shape[2:]
    down = torch.arange(height, device=rows.device)[:, None] * across
    places = (down + torch.arange(width, device=rows.device)).flatten()
    pixels = (_starts(padded, rows, shift)[:, None] + places).flatten()
    return padded.view(-1, channels).index_select(0, pixels).view(len(rows), height, -1)


def _starts(padded: Tensor, rows: Tensor, shift: Tensor | None) -> Tensor:
    """The first pixel of each window, counted over the whole array: int64 [n]."""
    pixels = padded.shape[1] * padded.shape[2]
    return rows * pixels if shift is None else torch.add(shift, rows, alpha=pixels)


CROPS: dict[str, Crop] = {"windows": by_windows, "lines": by_lines, "pixels": by_pixels}
