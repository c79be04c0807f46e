"""The two variables of torch's memory allocator as one.

torch 2.15 has two parsers: AcceleratorAllocatorConfig takes PYTORCH_ALLOC_CONF before PYTORCH_CUDA_ALLOC_CONF
(c10/core/AllocatorConfig.h), CUDAAllocatorConfig the other way round (c10/cuda/CUDAAllocatorConfig.h). With both set,
each parser sees half of what the user wanted; an empty one counts as set. So one gets all keys, the other is removed.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Merged:
    """`value` for PYTORCH_ALLOC_CONF; `overruled`: the keys to which PYTORCH_CUDA_ALLOC_CONF gave another value."""

    value: str
    overruled: tuple[str, ...] = ()


def merge(general: str, cuda: str) -> Merged | None:
    """Both values merged key by key; the general one takes precedence. None where one is not a list of key:value."""
    first, second = _parse(general), _parse(cuda)
    if first is None or second is None:
        return None
    merged = {**second, **first}
    overruled = tuple(key for key in second if key in first and first[key] != second[key])
    # The general keys come first, in the user's own order.
    order = [*first, *(key for key in second if key not in first)]
    return Merged(",".join(f"{key}:{merged[key]}" for key in order), overruled)


def _parse(text: str) -> dict[str, str] | None:
    """Comma-separated key:value pairs; a value in brackets may hold commas and colons. White space is ignored."""
    pairs: dict[str, str] = {}
    for item in _split("".join(text.split())):
        key, colon, value = item.partition(":")
        if not (key and colon and value) or value.count("[") != value.count("]"):
            return None
        pairs[key] = value
    return pairs


def _split(text: str) -> list[str]:
    """The parts between commas outside brackets."""
    items, depth, start = [], 0, 0
    for at, character in enumerate(text):
        depth += {"[": 1, "]": -1}.get(character, 0)
        if character == "," and depth == 0:
            items.append(text[start:at])
            start = at + 1
    return [item for item in [*items, text[start:]] if item]
