"""The policies as tables: AutoAugment for CIFAR-10, RandAugment, TrivialAugment (Wide).

A table says for each of a policy's operations in turn (its slots) which actions there are, all of them equally
probable. Magnitudes, spaces and sub-policies are those of torchvision's AutoAugment, RandAugment and
TrivialAugmentWide, which take them from the papers' own code.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

__all__ = ["Action", "PolicyName", "PolicyTable", "policy_table"]

PolicyName = Literal["autoaugment", "randaugment", "trivialaugment"]


@dataclass(frozen=True)
class Action:
    """An operation with its magnitude, in torchvision's names and units (0 where it has none)."""

    operation: str
    magnitude: float = 0.0


PolicyTable = tuple[tuple[tuple[Action, ...], ...], ...]
"""[slot][sub-policy][entry]: one sub-policy is drawn for a sample, then an entry for each slot of it."""

_SIGNED = ("ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate", "Brightness", "Color", "Contrast", "Sharpness")
_PLAIN = ("AutoContrast", "Equalize")
_CHANCES = 10
"""AutoAugment's probabilities are tenths: so many entries, of which some do nothing."""

# Ekin Cubuk et al. 2019: (operation, tenths, magnitude bin of 10), twice for each of 25 sub-policies.
_Step = tuple[str, int, int]
_CIFAR10: tuple[tuple[_Step, _Step], ...] = (
    (("Invert", 1, 0), ("Contrast", 2, 6)),
    (("Rotate", 7, 2), ("TranslateX", 3, 9)),
    (("Sharpness", 8, 1), ("Sharpness", 9, 3)),
    (("ShearY", 5, 8), ("TranslateY", 7, 9)),
    (("AutoContrast", 5, 0), ("Equalize", 9, 0)),
    (("ShearY", 2, 7), ("Posterize", 3, 7)),
    (("Color", 4, 3), ("Brightness", 6, 7)),
    (("Sharpness", 3, 9), ("Brightness", 7, 9)),
    (("Equalize", 6, 0), ("Equalize", 5, 0)),
    (("Contrast", 6, 7), ("Sharpness", 6, 5)),
    (("Color", 7, 7), ("TranslateX", 5, 8)),
    (("Equalize", 3, 0), ("AutoContrast", 4, 0)),
    (("TranslateY", 4, 3), ("Sharpness", 2, 6)),
    (("Brightness", 9, 6), ("Color", 2, 8)),
    (("Solarize", 5, 2), ("Invert", 0, 0)),
    (("Equalize", 2, 0), ("AutoContrast", 6, 0)),
    (("Equalize", 2, 0), ("Equalize", 6, 0)),
    (("Color", 9, 9), ("Equalize", 6, 0)),
    (("AutoContrast", 8, 0), ("Solarize", 2, 8)),
    (("Brightness", 1, 3), ("Color", 7, 0)),
    (("Solarize", 4, 5), ("AutoContrast", 9, 0)),
    (("TranslateY", 9, 9), ("TranslateY", 7, 9)),
    (("AutoContrast", 9, 0), ("Solarize", 8, 3)),
    (("Equalize", 8, 0), ("Invert", 1, 0)),
    (("TranslateY", 7, 9), ("AutoContrast", 9, 0)),
)


def policy_table(name: PolicyName, height: int, width: int, *, operations: int = 2, magnitude: int = 9) -> PolicyTable:
    """The table of a policy for images of this size in pixels.

    operations, magnitude (bin 0 to 30): of RandAugment alone.
    """
    if name == "autoaugment":
        narrow = _narrow(10, height, width)
        return tuple(tuple(_chances(steps[slot], narrow) for steps in _CIFAR10) for slot in range(2))
    if name == "randaugment":
        space = _narrow(31, height, width)
        entries = [Action("Identity")] * 2
        for operation in (*_SIGNED, "Posterize", "Solarize", *_PLAIN):
            entries += _both_signs(operation, space[operation][magnitude])
        return ((tuple(entries),),) * operations
    wide = _wide(31)
    every = [Action("Identity")] * (2 * 31)
    for operation in (*_SIGNED, "Posterize", "Solarize", *_PLAIN):
        for value in wide[operation]:
            every += _both_signs(operation, value)
    return ((tuple(every),),)


def _chances(step: _Step, space: dict[str, list[float]]) -> tuple[Action, ...]:
    """Entries of one of AutoAugment's steps: both signs for each tenth of its probability, the rest do nothing."""
    operation, tenths, level = step
    return (
        *_both_signs(operation, space[operation][level]) * tenths,
        *[Action("Identity")] * (2 * (_CHANCES - tenths)),
    )


def _both_signs(operation: str, magnitude: float) -> list[Action]:
    return [Action(operation, magnitude), Action(operation, -magnitude if operation in _SIGNED else magnitude)]


def _narrow(bins: int, height: int, width: int) -> dict[str, list[float]]:
    """Magnitudes by bin, of AutoAugment and RandAugment."""
    return _space(bins, shear=0.3, right=150 / 331 * width, down=150 / 331 * height, turn=30.0, colour=0.9, bits=4)


def _wide(bins: int) -> dict[str, list[float]]:
    """Magnitudes by bin, of TrivialAugment (Wide)."""
    return _space(bins, shear=0.99, right=32.0, down=32.0, turn=135.0, colour=0.99, bits=6)


def _space(
    bins: int, *, shear: float, right: float, down: float, turn: float, colour: float, bits: int
) -> dict[str, list[float]]:
    def up_to(most: float) -> list[float]:
        values: list[float] = torch.linspace(0.0, most, bins).tolist()
        return values

    return {
        "ShearX": up_to(shear),
        "ShearY": up_to(shear),
        "TranslateX": up_to(right),
        "TranslateY": up_to(down),
        "Rotate": up_to(turn),
        **dict.fromkeys(("Brightness", "Color", "Contrast", "Sharpness"), up_to(colour)),
        "Posterize": [8 - round(level / ((bins - 1) / bits)) for level in range(bins)],
        "Solarize": torch.linspace(1.0, 0.0, bins).tolist(),
        **dict.fromkeys((*_PLAIN, "Invert"), [0.0] * bins),
    }
