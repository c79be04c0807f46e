"""The tests of tests/gpu that need no kernel of their own, on a ghost GPU: so that they are right when one is there."""

from __future__ import annotations

import pytest
import torch

from tests.ghost import Ghost
from tests.gpu import test_memory_and_speed_on_gpu as memory
from tests.gpu import test_on_gpu as steps
from tests.gpu import test_verify_on_gpu as verify


def test_augmentation(ghost: Ghost) -> None:
    steps.test_augmentation_draws_the_same_on_both_devices()
    for policy in ("autoaugment", "randaugment", "trivialaugment"):
        steps.test_further_operations_are_the_same_on_both_devices_and_never_wait(policy)


@pytest.mark.parametrize(("amp", "chosen"), steps.STEPS, ids=str)
def test_steps(amp: str, chosen: dict[str, object], ghost: Ghost) -> None:
    steps.test_a_step_never_waits_for_the_gpu(amp, chosen)
    assert ghost.gpu.queued > 100


def test_attention_and_memory(ghost: Ghost) -> None:
    memory.test_attention_kernels_agree_with_the_reference(torch.float32)
    memory.test_memory_is_given_back_between_trials()


def test_data_of_verify(ghost: Ghost) -> None:
    for turn in (0, 1, 6):
        verify.test_the_data_are_the_same_on_the_gpu(turn)
