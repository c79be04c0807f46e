"""Augmentation policies: as tables of actions, and as an operation on whole batches.

AutoAugment (Cubuk et al. 2019, arXiv:1805.09501; the policy found for CIFAR-10), RandAugment (Cubuk et al. 2020,
arXiv:1909.13719) and TrivialAugment (Müller and Hutter 2021, arXiv:2103.10158; the Wide space). Magnitudes, spaces and
sub-policies are those of torchvision's classes, which take them from the papers' own code.

A table lists for each of a policy's operations in turn (its slots) the possible actions, all equally probable. Each
sample has its own draws; the samples of a batch that drew the same operation are changed together, each with its own
magnitude.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ddp_train.data.augment import colour, geometry, keyed_random
from ddp_train.data.augment.operations import change_chosen

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
"""AutoAugment's probabilities are in tenths: ten entries for each sign, of which some do nothing."""

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

    operations, magnitude (bin 0 to 30): for RandAugment only.
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
    wide = _space(31, shear=0.99, right=32.0, down=32.0, turn=135.0, colour=0.99, bits=6)
    every = [Action("Identity")] * (2 * 31)
    for operation in (*_SIGNED, "Posterize", "Solarize", *_PLAIN):
        for value in wide[operation]:
            every += _both_signs(operation, value)
    return ((tuple(every),),)


def _chances(step: _Step, space: dict[str, list[float]]) -> tuple[Action, ...]:
    """Entries of one of AutoAugment's steps: both signs for each tenth of its probability, the rest do nothing."""
    operation, tenths, level = step
    idle = [Action("Identity")] * (2 * (_CHANCES - tenths))
    return (*_both_signs(operation, space[operation][level]) * tenths, *idle)


def _both_signs(operation: str, magnitude: float) -> list[Action]:
    """The action in both directions, where the operation has one."""
    return [Action(operation, magnitude), Action(operation, -magnitude if operation in _SIGNED else magnitude)]


def _narrow(bins: int, height: int, width: int) -> dict[str, list[float]]:
    """Magnitudes by bin, of AutoAugment and RandAugment."""
    return _space(bins, shear=0.3, right=150 / 331 * width, down=150 / 331 * height, turn=30.0, colour=0.9, bits=4)


def _space(
    bins: int, *, shear: float, right: float, down: float, turn: float, colour: float, bits: int
) -> dict[str, list[float]]:
    """Operation -> its magnitudes, `bins` of them from none to the most."""

    def up_to(most: float) -> list[float]:
        """Evenly spaced magnitudes from 0 to `most`, one for each bin."""
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


# Kind -> function that changes images by their parameters: float32 [n, 6], of which most kinds use only the first.
_CHANGES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "Map": lambda images, given: geometry.affine(images, given, "nearest"),
    "Brightness": lambda images, given: colour.brightness(images, given[:, 0]),
    "Color": lambda images, given: colour.saturation(images, given[:, 0]),
    "Contrast": lambda images, given: colour.contrast(images, given[:, 0]),
    "Sharpness": lambda images, given: colour.sharpness(images, given[:, 0]),
    "Posterize": lambda images, given: colour.posterize(images, given[:, 0]),
    "Solarize": lambda images, given: colour.solarize(images, given[:, 0]),
    "AutoContrast": lambda images, given: colour.autocontrast(images),
    "Equalize": lambda images, given: colour.equalize(images),
    "Invert": lambda images, given: colour.invert(images),
}
_CODES = {kind: code for code, kind in enumerate(("Identity", *_CHANGES))}


class Policy:
    """The operation of one table for images of (height, width) on a device. See operations.Operation.

    Draws are the numbers of the actions, int16 [n, slots].
    """

    def __init__(self, table: PolicyTable, size: tuple[int, int], device: torch.device) -> None:
        self.words = 1 + len(table)
        self.actions = tuple(dict.fromkeys(action for slot in table for row in slot for action in row))
        numbers = {action: number for number, action in enumerate(self.actions)}
        rows = [[[numbers[action] for action in row] for row in slot] for slot in table]
        self._table = torch.tensor(rows, dtype=torch.int16, device=device)  # [slots, sub-policies, entries]
        changes = [_change(action, *size) for action in self.actions]
        self._code = torch.tensor([_CODES[kind] for kind, _ in changes], dtype=torch.int8, device=device)
        self._parameters = torch.tensor([given for _, given in changes], dtype=torch.float32, device=device)
        used = [{changes[number][0] for row in slot for number in row} for slot in rows]
        self._kinds = [[kind for kind in _CHANGES if kind in kinds] for kinds in used]

    def draw(self, words: Tensor) -> Tensor:
        """The action of each slot for each image, int16 [n, slots]."""
        if not len(self._table):
            return torch.zeros((len(words), 0), dtype=torch.int16, device=words.device)
        row = keyed_random.integers(words[:, 0], self._table.shape[1])
        entry = keyed_random.integers(words[:, 1:], self._table.shape[2])
        return torch.stack([slot[row, entry[:, number]] for number, slot in enumerate(self._table)], 1)

    def apply(self, images: Tensor, drawn: Tensor) -> Tensor:
        """uint8 [n, H, W, C] -> the same, one slot after the other."""
        for slot, kinds in enumerate(self._kinds):
            actions = drawn[:, slot].long()
            codes, parameters = self._code[actions], self._parameters[actions]
            for kind in kinds:
                images = change_chosen(images, codes == _CODES[kind], _CHANGES[kind], parameters)
        return images


def _change(action: Action, height: int, width: int) -> tuple[str, tuple[float, ...]]:
    """The kind of an action's change, and its parameters: a map, or one number and zeros. Units as torchvision's."""
    operation, magnitude = action.operation, action.magnitude
    maps: dict[str, Callable[[], geometry.Map]] = {
        "ShearX": lambda: geometry.shear_x(magnitude, height),
        "ShearY": lambda: geometry.shear_y(magnitude, width),
        "TranslateX": lambda: geometry.translation(int(magnitude), 0),
        "TranslateY": lambda: geometry.translation(0, int(magnitude)),
        "Rotate": lambda: geometry.rotation(magnitude),
    }
    if operation in maps:
        return "Map", maps[operation]()
    if operation in ("Brightness", "Color", "Contrast", "Sharpness"):
        magnitude += 1.0
    elif operation == "Solarize":
        magnitude *= 255.0
    return operation, (magnitude, *[0.0] * 5)
