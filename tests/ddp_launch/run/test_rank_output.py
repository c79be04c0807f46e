"""A program's output on its way to the screen: nothing changes, nothing is lost, and a copy is kept."""

from __future__ import annotations

import fcntl
import os
import pty
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest

from ddp_launch.cli.value_types import Tee
from ddp_launch.run.rank_logs import RankLogs

ROOT = Path(__file__).parents[3]

# As the engine does it: opens the paths itself, starts the program, and calls finish when the program has ended.
HOST = """
import subprocess, sys
from pathlib import Path
from ddp_launch.run.rank_output import RankOutput
output = RankOutput()
stdout, stderr = output.add(Path("out.log"), Path("err.log"))
output.start()
with open(stdout, "w") as out, open(stderr, "w") as err:
    argv = [sys.executable, "-u", "-c", sys.argv[1]]
    program = subprocess.Popen(argv, stdout=out, stderr=err, start_new_session=True)
    status = program.wait()
    output.finish()
sys.exit(status)
"""


def command(program: str) -> list[str]:
    return [sys.executable, "-c", HOST, program]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT)}


def run(program: str, folder: Path) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(command(program), cwd=folder, env=environment(), capture_output=True, timeout=60)


def test_every_byte_passes_and_is_kept(tmp_path: Path) -> None:
    done = run(
        "import os\nfor n in range(3000): os.write(1, bytes(range(256)) * 4)\nos.write(2, b'\\xff\\r\\n\\x1b[1mend')",
        tmp_path,
    )
    assert done.returncode == 0
    assert done.stdout == bytes(range(256)) * 12_000 == (tmp_path / "out.log").read_bytes()
    assert done.stderr == b"\xff\r\n\x1b[1mend" == (tmp_path / "err.log").read_bytes()


def test_a_child_that_holds_the_output_open_is_not_waited_for(tmp_path: Path) -> None:
    done = run(
        "import subprocess, sys\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(5)'])\n"
        "print('done', child.pid)",
        tmp_path,
    )
    words = done.stdout.decode().split()
    os.kill(int(words[1]), 9)
    assert words[0] == "done"


def test_a_reader_that_goes_away_ends_the_writer(tmp_path: Path) -> None:
    """launch.py program.py | head -1"""
    program = "import os\ntry:\n  while True: os.write(1, b'y' * 1000)\nexcept BrokenPipeError: os._exit(9)"
    process = subprocess.Popen(command(program), cwd=tmp_path, env=environment(), stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.read(10)
    process.stdout.close()
    assert process.wait(timeout=30) == 9


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="/dev/full is missing")
def test_a_full_disk_under_the_screen_ends_nothing(tmp_path: Path) -> None:
    """launch.py program.py > train.log"""
    program = "import os\nfor n in range(100): os.write(1, b'y' * 1000)\nos.write(2, b'end')"
    host = HOST.replace("sys.exit(status)", "print(output.unshown, file=sys.stderr)\nsys.exit(status)")
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            [sys.executable, "-c", host, program],
            cwd=tmp_path, env=environment(), stdout=full, stderr=subprocess.PIPE, timeout=60,
        )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, b"end(100000, 'No space left on device')\n")
    assert (tmp_path / "out.log").read_bytes() == b"y" * 100_000


def test_the_end_says_what_is_not_on_the_screen(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    logs = RankLogs(tmp_path, tee=Tee())
    logs.reify({0: {"RANK": "0"}})
    logs._output._ways[0].unshown, logs._output._ways[0].why = 1234, "No space left on device"  # type: ignore[union-attr]
    logs.finish()
    words = "note: the launcher's output: 1,234 bytes of the ranks' output are not in it (No space left on device)\n"
    assert capfd.readouterr().err == words


def on_terminal(words: list[str], folder: Path) -> bytes:
    """What a terminal of 90 columns gets from a command."""
    child, terminal = pty.fork()
    if child == 0:
        fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 90, 0, 0))
        os.chdir(folder)
        os.execvpe(words[0], words, environment())
    got = b""
    try:
        while data := os.read(terminal, 1 << 16):
            got += data
    except OSError:  # so Linux says that the last process has closed its end
        pass
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    os.close(terminal)
    return got


@pytest.mark.parametrize("before", [[], ["setsid", "--wait"]])
def test_a_terminal_stays_a_terminal(tmp_path: Path, before: list[str]) -> None:
    """But where opening one would make it the launcher's own, to be hung up with it."""
    program = (
        "import os, sys\n"
        "print(sys.stdout.isatty(), sys.stderr.isatty(), sys.stderr.isatty() and os.get_terminal_size(2).columns)"
    )
    got = on_terminal([*before, *command(program)], tmp_path)
    assert got == (b"False False False\r\n" if before else b"True True 90\r\n"), "one carriage return: it came once"
    assert (tmp_path / "out.log").read_bytes() == got.replace(b"\r", b"")
