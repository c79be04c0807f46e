"""What fits into /dev/shm."""

from pathlib import Path

import pytest

from ddp_train.data.pipeline.shm_budget import Handover, fit, free_bytes

MB = 1_000_000
WANTED = Handover(workers=4, prefetch=4, train_batch=10 * MB, test_batch=20 * MB)


@pytest.mark.parametrize(
    ("free", "ranks", "expected"),
    [
        (None, 8, (4, 4)),
        (300 * MB, 1, (4, 4)),
        (300 * MB, 2, (4, 2)),
        (120 * MB, 2, (2, 1)),
        (80 * MB, 1, (4, 1)),
        (51 * MB, 1, (2, 1)),
        (45 * MB, 1, (0, 4)),
        (0, 1, (0, 4)),
    ],
)
def test_less_is_prepared_ahead_before_there_are_fewer_workers(
    free: int | None, ranks: int, expected: tuple[int, int]
) -> None:
    found, line = fit(WANTED, free, ranks)
    assert (found.workers, found.prefetch) == expected
    assert (line is None) == (found == WANTED)
    assert free is None or found.workers == 0 or found.needed * ranks <= 0.8 * free
    assert line is None or ("/dev/shm has" in line and "\n" not in line)


def test_without_workers_nothing_is_needed() -> None:
    assert Handover(0, 4, MB, MB).needed == 0
    assert fit(Handover(0, 4, MB, MB), 0, 8)[1] is None


def test_what_is_free(tmp_path: Path) -> None:
    assert free_bytes(tmp_path / "nowhere") == 0
    found = free_bytes(tmp_path)
    assert found is None or found > 0
