"""Checkpoints: what comes back, what is refused and how it is said, and what a failed or killed write leaves."""

from __future__ import annotations

import errno
import fcntl
import os
import pickle
import random
import signal
import stat
import subprocess
import sys
import time
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import IO

import numpy as np
import pytest
import torch
from torch import nn

from ddp_core import files as atomic
from ddp_core.errors import UserError
from ddp_train.checkpoint import format as checkpoint_format
from ddp_train.checkpoint import integrity

_ROOT = Path(__file__).parents[3]


def _trained() -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 4))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4)
    model(torch.randn(32, 8)).square().sum().backward()
    optimizer.step()
    return model, optimizer


def _state() -> dict[str, object]:
    model, optimizer = _trained()
    return {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "epoch": 3, "best": 0.123456789012345678}


def _same(one: object, other: object) -> bool:
    if isinstance(one, torch.Tensor):
        # Bytes, not values: NaN equals NaN, and -0.0 is not 0.0.
        return (
            isinstance(other, torch.Tensor)
            and one.dtype == other.dtype
            and one.shape == other.shape
            and torch.equal(one.contiguous().view(-1).view(torch.uint8), other.contiguous().view(-1).view(torch.uint8))
        )
    if isinstance(one, dict):
        return isinstance(other, dict) and list(one) == list(other) and all(_same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return type(one) is type(other) and len(one) == len(other) and all(map(_same, one, other))
    return type(one) is type(other) and one == other


def _leftovers(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir() if entry.name.endswith(".tmp"))


def _message(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        checkpoint_format.load(path)
    text = str(caught.value)
    assert str(path) in text
    assert "\n" not in text
    return text


# What comes back


def test_the_state_comes_back_to_the_bit(tmp_path: Path) -> None:
    state = _state() | {
        "values": [None, True, 7, -0.0, "text", b"bytes", (1, 2), torch.Size([3])],
        "bf16": torch.randn(5).bfloat16(),
        "special": torch.tensor([float("nan"), float("inf"), -0.0]),
        "empty": torch.empty(0, 3),
        "channels_last": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
        "ordered": OrderedDict(b=1, a=2),
    }
    path = tmp_path / "checkpoint.pt"
    checkpoint_format.save(path, state)
    loaded = checkpoint_format.load(path)
    assert _same(state, loaded)
    channels_last = loaded["channels_last"]
    assert isinstance(channels_last, torch.Tensor)
    assert channels_last.is_contiguous(memory_format=torch.channels_last)
    assert _leftovers(tmp_path) == []


def test_batch_statistics_and_the_optimizer_go_on_where_they_were(tmp_path: Path) -> None:
    model, optimizer = _trained()
    path = tmp_path / "checkpoint.pt"
    checkpoint_format.save(path, {"model": model.state_dict(), "optimizer": optimizer.state_dict()})
    state = checkpoint_format.load(path)
    other, other_optimizer = _trained()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    other.load_state_dict(state["model"])  # type: ignore[arg-type]
    other_optimizer.load_state_dict(state["optimizer"])  # type: ignore[arg-type]
    torch.manual_seed(1)
    batch = torch.randn(32, 8)
    for network, steps in ((model, optimizer), (other, other_optimizer)):
        steps.zero_grad()
        network(batch).square().sum().backward()
        steps.step()
    assert int(other.state_dict()["1.num_batches_tracked"]) == 2
    assert _same(dict(model.state_dict()), dict(other.state_dict()))


def test_torch_alone_reads_both_files(tmp_path: Path) -> None:
    model, _ = _trained()
    checkpoint_format.save(tmp_path / "checkpoint.pt", {"model": model.state_dict()})
    checkpoint_format.save_state_dict(tmp_path / "best_model.pth", model.state_dict())
    raw = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert raw["schema"] == "ddp-train-checkpoint/1"
    for mmap in (False, True):
        plain = torch.load(tmp_path / "best_model.pth", weights_only=True, mmap=mmap)
        assert _same(dict(model.state_dict()), dict(plain))
    assert zipfile.ZipFile(tmp_path / "best_model.pth").testzip() is None
    assert _same(dict(model.state_dict()), dict(checkpoint_format.load_state_dict(tmp_path / "best_model.pth")))


def test_a_state_dict_of_anybodys_torch_save_loads_too(tmp_path: Path) -> None:
    model, _ = _trained()
    torch.save(model.state_dict(), tmp_path / "foreign.pth")
    assert _same(dict(model.state_dict()), dict(checkpoint_format.load_state_dict(tmp_path / "foreign.pth")))


def test_the_file_has_the_permissions_that_umask_leaves(tmp_path: Path) -> None:
    old = os.umask(0o027)
    try:
        checkpoint_format.save(tmp_path / "checkpoint.pt", {"epoch": 1})
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "checkpoint.pt").stat().st_mode) == 0o640


# What is refused


@pytest.mark.parametrize(
    ("value", "where"),
    [
        (np.float64(0.5), "state['metrics'][1] is a numpy.float64"),
        (np.zeros(3), "state['metrics'][1] is a numpy.ndarray"),
        ({1, 2}, "state['metrics'][1] is a builtins.set"),
        (b"", "state['metrics'][1] is a builtins.bytes"),
        ({2**61: 1}, "a key of state['metrics'][1] is a builtins.int: not a plain value below 2 ** 61"),
        (Path("x"), "state['metrics'][1] is a pathlib"),
        (torch.Generator(), "state['metrics'][1] is a torch._C.Generator"),
    ],
)
def test_what_could_not_be_loaded_is_not_saved(tmp_path: Path, value: object, where: str) -> None:
    path = tmp_path / "checkpoint.pt"
    checkpoint_format.save(path, {"epoch": 1})
    with pytest.raises(TypeError) as caught:
        checkpoint_format.save(path, {"metrics": (0.5, value)})
    assert where in str(caught.value)
    assert checkpoint_format.load(path) == {"epoch": 1}


def test_every_flipped_bit_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    checkpoint_format.save(path, _state())
    whole = path.read_bytes()
    draw = random.Random(0)
    positions = [draw.randrange(len(whole) * 8) for _ in range(150)]
    positions += [
        len(whole) * 8 - 1 - offset for offset in range(0, 8 * 110, 11)
    ]  # the seal, and what stands before it
    for position in positions:
        damaged = bytearray(whole)
        damaged[position // 8] ^= 1 << position % 8
        path.write_bytes(damaged)
        _message(path)


def test_a_changed_weight_is_named_by_both_hashes(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    checkpoint_format.save(path, {"weights": torch.full((1000,), 1.5)})
    whole = bytearray(path.read_bytes())
    expected = whole[-64:].decode()
    whole[whole.index(torch.full((8,), 1.5).numpy().tobytes())] ^= 1
    path.write_bytes(whole)
    assert torch.load(path, weights_only=True)["state"]["weights"][0] != 1.5, "torch itself must not notice"
    message = _message(path)
    assert f"is damaged: its SHA-256 is {integrity._sha256(path.open('rb'), len(whole) - integrity.BYTES)}" in message
    assert f"and {expected} was written" in message


def test_a_truncated_file_is_called_so(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    checkpoint_format.save(path, _state())
    whole = path.read_bytes()
    for length in [0, 1, 3, 4, 100, *range(200, len(whole), len(whole) // 40), len(whole) - 1]:
        path.write_bytes(whole[:length])
        message = _message(path)
        assert "is empty" in message or "not a checkpoint" in message or "truncated or damaged" in message
        if 4 <= length < len(whole) - 100:
            assert f"its end is missing after {length:,} bytes" in message


def test_foreign_files_are_refused_by_name(tmp_path: Path) -> None:
    assert "No such file" in _message(tmp_path / "missing.pt")
    assert "Is a directory" in _message(tmp_path)
    (tmp_path / "text.pt").write_text("not a checkpoint\n")
    assert "not a file of torch.save" in _message(tmp_path / "text.pt")
    torch.save({"schema": "ddp-train-checkpoint/1", "state": {}}, tmp_path / "unsealed.pt")
    assert "not a checkpoint of this trainer" in _message(tmp_path / "unsealed.pt")
    checkpoint_format.save_state_dict(tmp_path / "best_model.pth", {"weight": torch.zeros(2)})
    assert "its schema is not ddp-train-checkpoint/1" in _message(tmp_path / "best_model.pth")
    checkpoint_format._write(tmp_path / "later.pt", {"schema": "ddp-train-checkpoint/2", "state": {}})
    assert "its schema is not ddp-train-checkpoint/1" in _message(tmp_path / "later.pt")
    with zipfile.ZipFile(tmp_path / "archive.pt", "w") as archive:
        archive.writestr("readme", "hello")
    assert "not a checkpoint of this trainer" in _message(tmp_path / "archive.pt")
    with pytest.raises(UserError, match=r"archive\.pt is refused: its records are not under one folder"):
        checkpoint_format.load_state_dict(tmp_path / "archive.pt")
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(UserError, match=r"list\.pth is not a checkpoint: it holds a list"):
        checkpoint_format.load_state_dict(tmp_path / "list.pth")


class _Bomb:
    """An object whose unpickling makes a folder."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.target),)


def test_pickled_code_is_refused_and_not_run_even_under_a_right_seal(tmp_path: Path) -> None:
    path, target = tmp_path / "checkpoint.pt", tmp_path / "executed"
    bomb = {"schema": "ddp-train-checkpoint/1", "state": {"epoch": _Bomb(target)}}
    checkpoint_format._write(path, bomb)  # sealed as anybody could seal it
    assert "holds pickled Python objects, which can run code: refused" in _message(path)
    assert not target.exists()
    torch.load(path, weights_only=False)
    assert target.exists(), "the bomb itself must work"
    (tmp_path / "bare.pt").write_bytes(pickle.dumps(bomb))
    assert "not a file of torch.save" in _message(tmp_path / "bare.pt")


# What a failed or killed write leaves


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot write .*missing/checkpoint\.pt: No such file or directory"):
        checkpoint_format.save(tmp_path / "missing" / "checkpoint.pt", {"epoch": 1})
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cannot write .*: Not a directory"):
        checkpoint_format.save(tmp_path / "file" / "checkpoint.pt", {"epoch": 1})
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match=r"cannot write .*folder: Is a directory"):
        checkpoint_format.save(tmp_path / "folder", {"epoch": 1})
    assert _leftovers(tmp_path) == []


_FILL = """
import sys, torch
from pathlib import Path
from ddp_train.checkpoint import format as checkpoint
from ddp_core.errors import UserError
path = Path(sys.argv[1]) / "checkpoint.pt"
checkpoint.save(path, {"epoch": 1, "weights": torch.ones(50_000)})
limit = sys.argv[2]
if limit == "rlimit":
    import resource, signal
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (600_000, 600_000))
for size in (300_000, 1_000_000):
    try:
        checkpoint.save(path, {"epoch": 2, "weights": torch.ones(size)})
    except UserError as error:
        print(error)
    else:
        raise SystemExit("the write went through")
assert checkpoint.load(path)["epoch"] == 1
print(*sorted(entry.name for entry in path.parent.iterdir()))
"""


def _fill(folder: Path, limit: str, *prefix: str) -> list[str]:
    command = [*prefix, sys.executable, "-c", _FILL, str(folder), limit]
    done = subprocess.run(command, cwd=_ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_a_full_disk_leaves_the_old_file_and_says_what_is_needed(tmp_path: Path) -> None:
    inside = 'mount -t tmpfs -o size=1m none "$0" && exec "$@"'
    prefix = ("unshare", "--user", "--map-root-user", "--mount", "sh", "-c", inside, str(tmp_path))
    try:
        subprocess.run([*prefix, "true"], capture_output=True, timeout=20, check=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("this machine lets no user mount a small file system")
    small, large, files = _fill(tmp_path, "none", *prefix)
    for message, tensor_bytes in ((small, 1_200_000), (large, 4_000_000)):
        assert f"cannot write {tmp_path}/checkpoint.pt: the disk is full: " in message
        needed = int(message.split(" bytes are needed")[0].rsplit(" ", 1)[1].replace(",", ""))
        free = int(message.split(" are free")[0].rsplit(" ", 1)[1].replace(",", ""))
        assert tensor_bytes < needed < tensor_bytes + 5_000
        assert 700_000 < free < 850_000  # 1 MiB less the old file of 200 kB
        assert message.endswith("the previous file is intact")
    assert files == "checkpoint.pt"


def test_a_file_size_limit_is_a_full_disk_too(tmp_path: Path) -> None:
    small, large, files = _fill(tmp_path, "rlimit")
    assert "the disk is full (File too large): 1,20" in small
    assert "the disk is full (File too large): 4,00" in large
    assert files == "checkpoint.pt"


_WRITE_ON = """
import sys, torch
from ddp_train.checkpoint import format as checkpoint
epoch = 0
while True:
    epoch += 1
    checkpoint.save(sys.argv[1], {"epoch": epoch, "weights": torch.full((2_000_000,), float(epoch))})
    print(epoch, flush=True)
"""


def test_a_kill_at_any_moment_leaves_a_whole_checkpoint_and_the_next_write_cleans_up(tmp_path: Path) -> None:
    path, draw, kills, abandoned = tmp_path / "checkpoint.pt", random.Random(0), 0, 0
    while kills < 3 or (abandoned == 0 and kills < 12):
        kills += 1
        command = [sys.executable, "-c", _WRITE_ON, str(path)]
        with subprocess.Popen(command, cwd=_ROOT, stdout=subprocess.PIPE, text=True) as writer:
            assert writer.stdout is not None
            finished = int(writer.stdout.readline())
            time.sleep(draw.uniform(0.0, 0.1))
            writer.send_signal(signal.SIGKILL)
            finished = int(([str(finished), *writer.stdout.read().split()])[-1])
        state = checkpoint_format.load(path)
        assert state["epoch"] in (finished, finished + 1)  # killed between the rename and its report
        weights = state["weights"]
        assert isinstance(weights, torch.Tensor)
        assert torch.equal(weights, torch.full((2_000_000,), float(state["epoch"])))
        abandoned += len(_leftovers(tmp_path))
    assert abandoned > 0, "no kill fell into a write: the test shows nothing"
    checkpoint_format.save(path, {"epoch": 1})
    assert _leftovers(tmp_path) == []


def test_a_write_does_not_disturb_another_that_is_under_way(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    with atomic.replacing(path) as outer:
        outer.write(b"outer")
        checkpoint_format.save(path, {"epoch": 1})
        assert checkpoint_format.load(path) == {"epoch": 1}
    assert path.read_bytes() == b"outer"
    assert _leftovers(tmp_path) == []


def test_a_failing_block_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a[1]*.txt"  # a name that means something else as a pattern
    atomic.write_text(path, "old")
    (tmp_path / ".a[1]*.txt.1-dead.tmp").touch()
    (tmp_path / ".a1b.txt.1-other.tmp").touch()
    with pytest.raises(ZeroDivisionError), atomic.replacing(path) as file:
        assert len(_leftovers(tmp_path)) == 2, "the temporary file lies in the same folder"
        file.write(b"new")
        raise ZeroDivisionError
    assert path.read_text() == "old"
    assert _leftovers(tmp_path) == [".a1b.txt.1-other.tmp"]


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK])
def test_a_file_system_without_locks_can_be_written_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """Lustre without -o flock, NFS without a lock daemon. Whether a writer lives is not known there."""

    def refuse(file: IO[bytes], operation: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    path = tmp_path / "checkpoint.pt"
    (tmp_path / ".checkpoint.pt.1-dead.tmp").touch()
    checkpoint_format.save(path, {"epoch": 1})
    assert checkpoint_format.load(path) == {"epoch": 1}
    assert _leftovers(tmp_path) == [".checkpoint.pt.1-dead.tmp"]


@pytest.mark.usefixtures("locks_as_over_nfs")
def test_abandoned_files_are_removed_where_a_lock_needs_a_writable_descriptor(tmp_path: Path) -> None:
    (tmp_path / ".checkpoint.pt.1-dead.tmp").touch()
    checkpoint_format.save(tmp_path / "checkpoint.pt", {"epoch": 1})
    assert _leftovers(tmp_path) == []
