"""Starts the real launcher on tiny programs, and sees to it that nothing of a test lives on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.warm import WarmPopen

ROOT = Path(__file__).parents[2]
MARK = "LAUNCHER_TEST_MARK"
AT_START = ("LD_", "LC_", "LANG", "PYTHONUTF8", "PYTHONIO")
TIMEOUT_S = 60


class Launcher:
    """`launch.py` as a user starts it, in an own folder and with an environment that marks all its processes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.mark = uuid.uuid4().hex
        hidden = ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "LOGLEVEL", "PYTHONPATH")
        self.env = {name: value for name, value in os.environ.items() if name not in hidden}
        self.env |= {MARK: self.mark, "COLUMNS": "200"}
        # With a short name, for sockets have to fit into it; it goes with this object.
        self._temporary = tempfile.TemporaryDirectory(prefix="t-")
        self.env["TMPDIR"] = self.env["XDG_RUNTIME_DIR"] = self._temporary.name
        (folder / "tmp").symlink_to(self._temporary.name)
        self._started: list[subprocess.Popen[str]] = []

    def script(self, text: str, name: str = "program.py") -> Path:
        """A user's program in the folder."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return path

    def start(self, *args: str, cwd: Path | None = None, **env: str) -> subprocess.Popen[str]:
        """Start the launcher, in the folder or in `cwd`; the test waits for it."""
        env = self.env | env
        # Some variables count when a process starts, and so have to be those of the server of `tests.warm`.
        same = all(env.get(name) == os.environ.get(name) for name in {*env, *os.environ} if name.startswith(AT_START))
        warm = same and env.get("PYTHONPATH", str(ROOT)) == str(ROOT)
        process = (WarmPopen if warm else subprocess.Popen)(
            [sys.executable, str(ROOT / "launch.py"), *args],
            cwd=cwd or self.folder,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self._started.append(process)
        return process

    def run(self, *args: str, **env: str) -> subprocess.CompletedProcess[str]:
        """Run the launcher to its end."""
        process = self.start(*args, **env)
        out, err = process.communicate(timeout=TIMEOUT_S)
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    def wait_for(self, *names: str) -> None:
        """Until the program has made these files."""
        deadline = time.monotonic() + TIMEOUT_S
        while not all((self.folder / name).exists() for name in names):
            assert time.monotonic() < deadline, f"{names} did not appear"
            time.sleep(0.02)

    def alive(self) -> list[int]:
        """Process ids of what the test started and still lives."""
        found = [process.pid for process in self._started if process.poll() is None]
        for entry in Path("/proc").iterdir():
            try:
                if entry.name.isdecimal() and self.mark.encode() in (entry / "environ").read_bytes():
                    found.append(int(entry.name))
            except OSError:
                continue
        return sorted({*found} - {os.getpid()})


@pytest.fixture
def launcher(tmp_path: Path) -> Iterator[Launcher]:
    """A launcher in a fresh folder; afterwards nothing that it started may be alive."""
    made = Launcher(tmp_path)
    yield made
    left = made.alive()
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert not left, f"still running: {left}"


@pytest.fixture
def in_process() -> Callable[[str], str]:
    """Run Python code with the packages importable, in a process of its own; its stdout."""

    def run(code: str) -> str:
        done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=TIMEOUT_S)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run
