"""Checkpoint files under kills, full disks and damage: each is the old one or the new one, or it is refused by name."""

from __future__ import annotations

import json
import os
import random
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from ddp_core.errors import UserError
from ddp_train.checkpoint import format as checkpoint_format
from ddp_train.checkpoint.async_writer import CheckpointWriter
from ddp_train.config.validation import LATEST, PREVIOUS

_ROOT = Path(__file__).parents[2]
_SEED = int(os.environ.get("FAULT_SEED", "20261122"))

Times = Callable[[int, int], int]


def _state(step: int, items: int) -> dict[str, object]:
    """Every part tells its step, so that a mixture of two would show."""
    return {
        "model": {"weight": torch.full((items,), float(step))},
        "optimizer": {"momentum": torch.full((items,), float(step))},
        "progress": {"step": step},
    }


def _step(state: dict[str, object]) -> int:
    step = state["progress"]["step"]  # type: ignore[index]
    for name, part in (("model", "weight"), ("optimizer", "momentum")):
        values = state[name][part]  # type: ignore[index]
        assert torch.equal(values, torch.full_like(values, float(step))), f"{name} is not of step {step}"
    return int(step)


def _left(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir() if entry.name not in (LATEST, PREVIOUS))


# A process that is killed while it writes 40 MB


_WRITER = """
import json, os, random, signal, sys, tempfile, time
from pathlib import Path
import torch
from ddp_train.checkpoint import format as checkpoint
from ddp_train.checkpoint.async_writer import CheckpointWriter
from tests.faults.test_files import _left, _state, _step

torch.set_num_threads(1)  # threads of the parent would be missing in the forked child
folder, kills, draw = Path(sys.argv[1]), int(sys.argv[2]), random.Random(int(sys.argv[3]))
assert os.stat(tempfile.gettempdir()).st_dev != os.stat(folder).st_dev
checkpoint.save(folder / checkpoint.LATEST, _state(0, 5_000_000), step=0)
step, seconds = 0, 0.1

def write_on(step, tell):
    writer = CheckpointWriter(folder / checkpoint.LATEST)
    while True:
        step += 1
        writer.save(_state(step, 5_000_000), step=step)
        os.write(tell, b"s")  # under way
        writer.wait()
        os.write(tell, b"e")

for number in range(kills):
    listen, tell = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(listen)
        try:
            write_on(step, tell)
        except BaseException as error:
            os._exit(130 if isinstance(error, KeyboardInterrupt) else 1)
    os.close(tell)
    marks = os.read(listen, 1)
    started = time.monotonic()
    whole = number % 5 == 0  # let the first be finished now and then, and the second be hit
    while whole and not marks.endswith(b"es"):
        marks += os.read(listen, 1)
        if marks == b"se":
            seconds = time.monotonic() - started
    time.sleep(draw.uniform(0, seconds))
    kind = (signal.SIGTERM, signal.SIGINT, signal.SIGKILL)[number % 3]
    os.kill(child, kind)
    os.waitpid(child, 0)
    while more := os.read(listen, 100):
        marks += more
    os.close(listen)
    finished = step + marks.count(b"e")
    found = checkpoint.newest(folder)
    answer = {"kind": kind.name, "finished": finished, "found": _step(found.state), "notes": found.notes,
              "file": found.path.name, "left": _left(folder), "under way": marks.endswith(b"s")}
    if (folder / checkpoint.PREVIOUS).exists():
        answer["previous"] = _step(checkpoint.load(folder / checkpoint.PREVIOUS))
    print(json.dumps(answer), flush=True)
    step = answer["found"]
checkpoint.save(folder / checkpoint.LATEST, _state(step + 1, 10), step=step + 1, keep=folder / checkpoint.PREVIOUS)
print(json.dumps(_left(folder)))
"""


def test_a_kill_while_40_mb_are_written_leaves_the_old_or_the_new(tmp_path: Path, times: Times) -> None:
    kills = times(6, 50)
    elsewhere = Path("/dev/shm")
    if not elsewhere.is_dir() or elsewhere.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("TMPDIR cannot be on another file system than the checkpoint here")
    command = [sys.executable, "-c", _WRITER, str(tmp_path), str(kills), str(_SEED)]
    environment = {**os.environ, "TMPDIR": str(elsewhere)}
    done = subprocess.run(
        command, cwd=_ROOT, env=environment, capture_output=True, text=True, timeout=40 + 12 * kills, check=False
    )
    assert done.returncode == 0, f"seed {_SEED}: {done.stderr}"
    *answers, left = map(json.loads, done.stdout.splitlines())
    assert len(answers) == kills
    for answer in answers:
        assert answer["found"] in (answer["finished"], answer["finished"] + 1), f"seed {_SEED}: {answer}"
        assert answer["notes"] == [] and answer["file"] == LATEST, f"seed {_SEED}: {answer}"
        assert answer.get("previous", answer["found"]) in (answer["found"], answer["found"] - 1), answer
        assert len(answer["left"]) <= 2, f"seed {_SEED}: {answer}"
    assert sum(answer["under way"] for answer in answers) > kills / 3, "too few kills fell into a write"
    assert any(answer["left"] for answer in answers), "no kill fell into a write"
    assert left == [], "the next write removes what a killed one left"


# A disk that is full


_FULL = """
import sys
from pathlib import Path
import torch
from ddp_train.checkpoint import format as checkpoint
from ddp_train.checkpoint.async_writer import CheckpointWriter
from ddp_core.errors import UserError
from tests.faults.test_files import _left, _state, _step
folder = Path(sys.argv[1])
writer = CheckpointWriter(folder / checkpoint.LATEST)
writer.save(_state(1, 300_000), step=1)  # 2.4 MB of 8
writer.save(_state(2, 300_000), step=2)
writer.wait()
try:
    for step in (3, 4, 5):
        writer.save(_state(step, 600_000), step=step)  # beside two of 2.4 MB there is no room for 4.8
    writer.wait()
except UserError as error:
    print(f"gave up at {step}: {error}", flush=True)
found = checkpoint.newest(folder)
print(_step(found.state), found.notes, _step(checkpoint.load(folder / checkpoint.PREVIOUS)), _left(folder))
(folder / checkpoint.PREVIOUS).unlink()
writer.save(_state(6, 600_000), step=6)
writer.close()
print(_step(checkpoint.newest(folder).state))
"""


def small_disk(folder: Path, size: str) -> list[str]:
    """The words before a command that give it a file system of `size` at `folder`; skips where none can be mounted."""
    inside = f'mount -t tmpfs -o size={size} none "$0" && exec "$@"'
    prefix = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", inside, str(folder)]
    try:
        subprocess.run([*prefix, "true"], capture_output=True, timeout=20, check=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("this machine lets no user mount a small file system")
    return prefix


def test_a_full_disk_keeps_both_old_files_and_ends_the_run_at_the_third_failure(tmp_path: Path) -> None:
    command = [*small_disk(tmp_path, "8m"), sys.executable, "-c", _FULL, str(tmp_path)]
    done = subprocess.run(command, cwd=_ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    gave_up, kept, room = done.stdout.splitlines()
    warnings = done.stderr.splitlines()
    assert [line.split(": cannot")[0] for line in warnings] == [
        "warning: no checkpoint of step 3 (1 of 3 failures in a row)",
        "warning: no checkpoint of step 4 (2 of 3 failures in a row)",
    ]
    for line in (*warnings, gave_up):
        found = re.search(r"the disk is full: ([\d,]+) bytes are needed, ([\d,]+) are free in ", line)
        assert found is not None, line
        needed, free = (int(figure.replace(",", "")) for figure in found.groups())
        assert 4_800_000 < needed < 4_810_000
        assert 3_000_000 < free < 4_000_000  # 8 MiB less twice 2.4 MB
        assert "the previous file is intact" in line
    assert gave_up.startswith("gave up at 5: ")
    assert gave_up.endswith("; given up after 3 failures in a row")
    assert kept == "2 () 1 []"
    assert room == "6", "a disk with room again takes the next one"


# Damage


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Checkpoints of the steps 1 and 2."""
    for step in (1, 2):
        checkpoint_format.save(tmp_path / LATEST, _state(step, 20_000), step=step, keep=tmp_path / PREVIOUS)
    return tmp_path


def _refused(folder: Path, whole: bytes, damaged: bytes) -> None:
    """The damaged latest is named with the expected and the actual hash, and the previous one is used."""
    latest = folder / LATEST
    latest.write_bytes(damaged)
    with pytest.raises(UserError) as caught:
        checkpoint_format.load(latest)
    words = str(caught.value)
    assert str(latest) in words
    if damaged[-64:] == whole[-64:] or os.listxattr(latest):
        actual, expected = re.findall(r"[0-9a-f]{64}", words)
        assert expected != actual
        assert expected == whole[-64:].decode() or damaged[-64:] != whole[-64:]
    found = checkpoint_format.newest(folder)
    assert (found.path.name, _step(found.state)) == (PREVIOUS, 1)
    assert found.notes == (f"{words}; {PREVIOUS} of step 1 is used",)


def test_every_flipped_bit_is_refused_and_the_one_before_used(folder: Path, times: Times) -> None:
    whole, draw = (folder / LATEST).read_bytes(), random.Random(_SEED)
    for _ in range(times(60, 200)):
        at = draw.randrange(len(whole) * 8)
        damaged = bytearray(whole)
        damaged[at // 8] ^= 1 << at % 8
        _refused(folder, whole, bytes(damaged))


def test_every_truncated_file_is_refused_and_the_one_before_used(folder: Path, times: Times) -> None:
    whole, draw = (folder / LATEST).read_bytes(), random.Random(_SEED)
    for length in (0, 1, len(whole) - 1, *(draw.randrange(len(whole)) for _ in range(times(20, 50)))):
        _refused(folder, whole, whole[:length])


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
@pytest.mark.parametrize("part", ["model", "optimizer"])
def test_weights_that_are_lost_are_neither_written_nor_read(folder: Path, value: str, part: str) -> None:
    lost = _state(3, 20_000)
    tensor = next(iter(lost[part].values()))  # type: ignore[attr-defined]
    tensor[17] = float(value)
    writer = CheckpointWriter(folder / LATEST)
    writer.save(lost, step=3)
    with pytest.raises(
        checkpoint_format.NotFinite, match=rf"is not written: \['{part}'\]\['\w+'\] holds 1 values of 20,000"
    ):
        writer.wait()
    assert _step(checkpoint_format.newest(folder).state) == 2
    checkpoint_format._write(folder / LATEST, {"schema": checkpoint_format.SCHEMA, "step": 3, "state": lost})
    with pytest.raises(UserError, match=rf"{LATEST} is refused: \['{part}'\]\['\w+'\] holds 1 values of 20,000 that"):
        checkpoint_format.load(folder / LATEST)
    found = checkpoint_format.newest(folder)
    assert (found.path.name, _step(found.state)) == (PREVIOUS, 1)
    assert len(found.notes) == 1


def test_the_mask_of_an_attention_layer_is_no_lost_weight(tmp_path: Path) -> None:
    mask = torch.full((4, 4), float("-inf")).triu(1)
    checkpoint_format.save(
        tmp_path / LATEST, {"model": {"mask": mask, "bf16": mask.bfloat16(), "none": torch.empty(0)}}
    )
    assert torch.equal(checkpoint_format.load(tmp_path / LATEST)["model"]["mask"], mask)  # type: ignore[index]
