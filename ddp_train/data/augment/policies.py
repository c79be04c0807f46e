"""A policy of augmentation as an operation on whole batches.

AutoAugment (Cubuk et al. 2019, arXiv:1805.09501; the policy found for CIFAR-10), RandAugment (Cubuk et al. 2020,
arXiv:1909.13719) and TrivialAugment (Müller and Hutter 2021, arXiv:2103.10158; the Wide space). Each sample has draws
of its own; the samples of a batch that drew the same operation are changed together, with a magnitude each.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ddp_train.data.augment import colour, geometry, keyed_random
from ddp_train.data.augment.operation import change_chosen
from ddp_train.data.augment.policy_tables import Action, PolicyTable

__all__ = ["Policy"]

# Operation -> what changes the images, from the parameters of each: float32 [n, 6], of which most take the first.
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
    """The operation of one table for images of (height, width) on a device. See operation.Operation.

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
        """int64 [n, 1 + slots] -> int16 [n, slots]."""
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
    """What an action does, and its parameters: those of a map, or one followed by zeros. Units as torchvision's."""
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
