"""Claims on GPUs, between real processes; two launchers at once over the stand-in for the driver."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from ddp_launch.run.gpu_claims import Claims, runtime_folder
from tests.fake_nvml.machine import to_topology

NOBODY = 65_534
ROOT = Path(__file__).parents[3]
HOLD = """
import os, sys
from pathlib import Path
from ddp_launch.run.gpu_claims import Claims
# Only now: another user may not be able to read this Python.
os.setuid(int(os.environ.get("HOLD_AS", os.getuid())))
claims = Claims(Path(sys.argv[1]))
print(dict(claims.take(sys.argv[2:])), flush=True)
sys.stdin.read()
"""


class Other:
    """Another process that claims GPUs and holds them until it ends."""

    def __init__(self, folder: Path, *uuids: str, user: int | None = None) -> None:
        argv = [sys.executable, "-c", HOLD, str(folder), *uuids]
        env = os.environ | ({} if user is None else {"HOLD_AS": str(user)})
        self.process = subprocess.Popen(
            argv, cwd=ROOT, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self.process.stdout is not None
        self.answer = self.process.stdout.readline().strip()

    def end(self, number: int = signal.SIGKILL) -> None:
        self.process.send_signal(number)
        self.process.communicate(timeout=30)


def answer(folder: Path, uuid: str) -> str:
    """What another process is told that wants this GPU."""
    other = Other(folder, uuid)
    other.end()
    return other.answer


def test_a_claim_is_seen_and_goes_with_its_process(tmp_path: Path) -> None:
    folder = tmp_path / "claims"
    other = Other(folder, "GPU-b", "MIG-GPU-a/1/0")
    try:
        words = f"claimed by launcher pid {other.process.pid}"
        with Claims(folder) as claims:
            assert claims.others() == {"GPU-b": words, "MIG-GPU-a/1/0": words}
            assert claims.take(["GPU-c", "GPU-b"]) == {"GPU-b": words}
            assert answer(folder, "GPU-c") == "{}", "all or none"
    finally:
        other.end()
    with Claims(folder) as claims:
        assert claims.take(["GPU-b", "GPU-c"]) == {}
        assert claims.others() == {}, "its own are none of others"
        assert "claimed by" in answer(folder, "GPU-c"), "a look at the claims gives up none"


def test_named_gpus_are_shared(tmp_path: Path) -> None:
    other = Other(tmp_path / "claims", "GPU-b")
    try:
        with Claims(tmp_path / "claims") as claims:
            assert list(claims.take(["GPU-c", "GPU-b"], shared=True)) == ["GPU-b"]
            assert "claimed by" in answer(tmp_path / "claims", "GPU-c")
    finally:
        other.end()


def test_settling_on_what_is_left(tmp_path: Path) -> None:
    """What is lost between the look and the claim is looked for anew, never taken."""
    others = []

    def plan(taken: Any) -> list[str]:
        free = [uuid for uuid in ("a", "b", "c") if uuid not in taken]
        if len(others) < 2:
            others.append(Other(tmp_path / "claims", free[0]))
        return free[:1]

    with Claims(tmp_path / "claims") as claims:
        assert claims.settle(plan, list, shared=False) == ["c"]
    for other in others:
        other.end()


@pytest.mark.parametrize("make", ["link", "open to all", "file"])
def test_a_folder_that_is_not_safe_means_no_claims(tmp_path: Path, make: str) -> None:
    folder = tmp_path / "claims"
    if make == "link":
        (tmp_path / "elsewhere").mkdir()
        folder.symlink_to(tmp_path / "elsewhere")
    elif make == "file":
        folder.touch()
    else:
        folder.mkdir()
        folder.chmod(0o777)
    claims = Claims(folder)
    assert claims.others() == claims.take(["GPU-a"]) == {}
    assert str(folder) in (claims.problem or "")


def test_where_claims_are(tmp_path: Path) -> None:
    assert runtime_folder({"XDG_RUNTIME_DIR": str(tmp_path)}) == tmp_path / "ddp-launch"
    for environ in ({}, {"XDG_RUNTIME_DIR": ""}, {"XDG_RUNTIME_DIR": str(tmp_path / "none")}):
        assert runtime_folder(environ).name in (f"ddp-launch-{os.getuid()}", "ddp-launch")
        assert tmp_path not in runtime_folder(environ).parents


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may be two users")
def test_a_claim_of_another_user(tmp_path: Path) -> None:
    """Whose folder cannot be looked into."""
    theirs = Path(tempfile.mkdtemp())
    theirs.chmod(0o700)
    os.chown(theirs, NOBODY, -1)
    uuids = [f"GPU-{uuid4()}" for _ in range(2)]
    other = Other(theirs / "claims", uuids[0], user=NOBODY)
    try:
        assert other.answer == "{}"
        with Claims(tmp_path / "claims") as claims:
            assert claims.others()[uuids[0]].startswith(f"claimed by launcher pid {other.process.pid} of user ")
            assert list(claims.take(uuids)) == [uuids[0]]
            assert claims.take(uuids, shared=True) == {}
        later = Other(theirs / "claims", uuids[1], user=NOBODY)
        later.end()
        assert later.answer == "{}", "taken back"
    finally:
        other.end()
        shutil.rmtree(theirs)
    assert uuids[0] not in Claims(tmp_path / "claims").others()


PROGRAM = """
import os, pathlib, sys, time
pathlib.Path(sys.argv[1]).write_text(os.environ["CUDA_VISIBLE_DEVICES"])
while not os.path.exists("both"):
    time.sleep(0.02)
"""


def test_two_launchers_at_once(launcher: Any, fake_driver: Callable[..., dict[str, str]]) -> None:
    """Eight GPUs, two launchers that want three each, started together; a third sees both claims in its plan."""
    env = fake_driver("h100_8x_nvswitch")
    script = str(launcher.script(PROGRAM))
    args = ("--nproc", "3", "--no-preflight", script)
    started = [launcher.start(*args, name, **env) for name in ("one", "two")]
    launcher.wait_for("one", "two")
    seen = launcher.run("--auto", "--dry-run", **env)
    (launcher.folder / "both").touch()
    for process in started:
        _, err = process.communicate(timeout=60)
        assert process.returncode == 0, err
    one, two = ({*(launcher.folder / name).read_text().split(",")} for name in ("one", "two"))
    assert len(one) == len(two) == 3
    assert not one & two
    for process in started:
        assert seen.stdout.count(f"busy: claimed by launcher pid {process.pid}") == 3
    assert "x 2" in seen.stdout
    assert "claimed" not in launcher.run("--auto", "--dry-run", **env).stdout


def test_named_gpus_with_a_warning(launcher: Any, fake_driver: Callable[..., dict[str, str]]) -> None:
    uuid = to_topology("h100_8x_nvswitch").gpus[1].uuid or ""
    other = Other(launcher.folder / "tmp" / "ddp-launch", uuid)
    try:
        env = fake_driver("h100_8x_nvswitch")
        done = launcher.run("--gpus", "1", "--no-python", "true", **env)
        assert done.returncode == 0
        assert f"busy: claimed by launcher pid {other.process.pid}" in done.stderr
        done = launcher.run("--nproc", "8", "--no-python", "true", **env)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1)
        assert "claimed by launcher" in done.stderr
    finally:
        other.end()
