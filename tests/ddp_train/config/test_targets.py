"""The sizes of the preset speedrun by target."""

from __future__ import annotations

import pytest

from ddp_core.errors import UserError
from ddp_train.config.options import to_dict
from ddp_train.config.parse import parse
from ddp_train.config.recommend import AUTOMATIC, GB, SIZES, Hardware, apply, recommend, recommend_for_data, size_for

CPU = Hardware("cpu", 2, 2, cpus=2)
GPU = Hardware("cuda", 1, 1, 80 * GB, (9, 0), 16)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_the_smallest_size_that_is_for_it(device: str) -> None:
    sizes = SIZES[device]
    aims = sorted(sizes)
    for below, aim in zip([0.0, *aims], aims, strict=False):
        assert size_for(aim, device) == (aim, sizes[aim])
        assert size_for(below + 1e-6, device) == (aim, sizes[aim])
    work = [sizes[aim].width_mult ** 2 * sizes[aim].epochs for aim in aims]
    assert work == sorted(work)
    with pytest.raises(UserError, match=rf"--target 0.99: the largest size for .* is for {aims[-1]:g}"):
        size_for(0.99, device)


@pytest.mark.parametrize(("hardware", "words", "aim"), [(CPU, [], "cpu"), (GPU, [], "cuda"), (CPU, ["0.8"], 0.8)])
def test_a_run_is_sized_by_target_and_device(hardware: Hardware, words: list[str], aim: str | float) -> None:
    wanted = parse(["--preset", "speedrun", *(f"--target={word}" for word in words)])
    expected = AUTOMATIC[hardware.device] if isinstance(aim, str) else aim
    found = apply(wanted, recommend(hardware, wanted))
    found = apply(found, recommend_for_data("cifar10", 50_000, found.data.batch_size or 0, found))
    size = SIZES[hardware.device][expected].settings()
    assert {name: value for name, value in to_dict(found).items() if name in size} == size
    assert (found.run.target, found.optim.lr_scaling) == (expected, "none")


def test_what_is_given_stays() -> None:
    wanted = parse(["--preset", "speedrun", "--target", "0.8", "--epochs", "7", "--batch-size-per-rank", "64"])
    found = {r.name: r.value for r in recommend(CPU, wanted)}
    assert "epochs" not in found and "batch_size" not in found and found["width_mult"] == SIZES["cpu"][0.8].width_mult


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--target", "0.9"], "--target sizes the runs of --preset speedrun alone"),
        (["--preset", "speedrun", "--target", "0.99"], "--target takes a number above 0 and at most 0.96, not 0.99"),
        (["--preset", "speedrun", "--target", "high"], "--target takes a number or auto above 0 and at most 0.96"),
        (["--preset", "speedrun", "--disable-auto"], "--target with --disable-auto"),
    ],
)
def test_targets_that_are_refused(words: list[str], message: str) -> None:
    with pytest.raises(UserError) as caught:
        parse(words)
    assert message in str(caught.value) and "\n" not in str(caught.value)
