"""A driver that hangs or crashes costs the child process alone, and is reported by the name of the call."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from gpu_topology.driver import child_process
from gpu_topology.driver.library import NoDevicesError, StuckDriverError

ROOT = Path(__file__).parents[3]
TWO: dict[str, Any] = {"gpus": [{"name": "NVIDIA A10", "memory_mib": 23028, "cc": [8, 6]}] * 2}

# The limits are those of a program; here they are a tenth of a second and half a second.
COMMAND = """
import sys
from gpu_topology import cli
from gpu_topology.driver import child_process
child_process.SLOW_S, child_process.LIMIT_S = 0.1, 0.5
sys.exit(cli.main(sys.argv[1:]))
"""


def run(env: dict[str, str], *arguments: str, program: str = COMMAND) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", program, *arguments]
    return subprocess.run(command, env={**os.environ, **env}, cwd=ROOT, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("arguments", [["report"], ["report", "--json"], ["select"], ["env"], ["draw"], ["snapshot"]])
def test_a_hang_is_one_line_after_a_while_and_then_an_error(fake_driver, arguments):
    env = fake_driver({**TWO, "faults": [{"call": "nvmlDeviceGetName", "gpu": 1, "error": "HANG"}]})
    done = run(env, *arguments)
    assert (done.returncode, done.stdout) == (1, "")
    slow, error = done.stderr.splitlines()
    assert slow.startswith("warning: the NVIDIA driver has not answered nvmlDeviceGetName of GPU 1 for ")
    assert error.startswith("error: the NVIDIA driver hangs: no answer to nvmlDeviceGetName of GPU 1 in ")
    assert "reboot" in error
    assert "--cpu" in error


def test_the_first_call_may_be_the_one_that_hangs(fake_driver):
    env = fake_driver({**TWO, "faults": [{"call": "nvmlInitWithFlags", "error": "HANG"}]})
    assert "hangs: no answer to nvmlInit in" in run(env, "report").stderr


def test_a_crash_is_reported_by_the_name_of_the_call(fake_driver):
    for call, words in (
        ("nvmlInitWithFlags", "in nvmlInit"),
        ("nvmlDeviceGetP2PStatus", "in nvmlDeviceGetP2PStatus of GPU 0 and GPU 1"),
    ):
        env = fake_driver({**TWO, "faults": [{"call": call, "error": "CRASH"}]})
        done = run(env, "report")
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr.startswith(f"error: the NVIDIA driver library crashed (SIGSEGV) {words}; ")
        assert done.stderr.count("\n") == 1


def test_a_slow_driver_is_waited_for(fake_driver):
    program = COMMAND.replace("0.1, 0.5", "1.5, 2.0")  # for one call; all together take longer
    done = run(fake_driver({**TWO, "delay_us": 30_000}), "select", program=program)
    assert (done.returncode, done.stdout, done.stderr) == (0, "0,1\n", "")


def test_the_caller_of_a_program_that_gave_up_does_not_wait_for_the_child(fake_driver):
    """A call that hangs in the kernel cannot even be killed: the child must hold nothing of its parent's."""
    program = COMMAND.replace("sys.exit", "child_process._end = print\nsys.exit")
    env = fake_driver({**TWO, "faults": [{"call": "nvmlInitWithFlags", "error": "HANG"}]})
    started = time.monotonic()
    done = run(env, "report", program=program)
    assert done.returncode == 1
    assert time.monotonic() - started < 30
    (child,) = map(int, done.stdout.split())
    assert _ends(child), "with its parent"


def _ends(pid: int) -> bool:
    deadline = time.monotonic() + 10
    while (lives := _lives(pid)) and time.monotonic() < deadline:
        time.sleep(0.01)
    return not lives


def _lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_ctrl_c_ends_the_child_too(fake_driver):
    env = fake_driver({**TWO, "faults": [{"call": "nvmlInitWithFlags", "error": "HANG"}]})
    command = [sys.executable, "-m", "gpu_topology", "report"]
    process = subprocess.Popen(command, env={**os.environ, **env}, cwd=ROOT, stderr=subprocess.PIPE)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    deadline = time.monotonic() + 30
    while not (found := children.read_text().split()) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)
    assert process.returncode == 130
    assert _ends(int(found[0]))


def answer_of(script: str) -> str:
    """What a program prints that reads in a child."""
    start = """
from gpu_topology.driver.child_process import InChild
def in_child(read):
    with InChild(read) as child:
        return child.result()
"""
    done = run({}, program=f"{start}{script}")
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_child_whose_result_is_not_wanted_is_ended(fake_driver):
    """A mistake on the command line does not wait for a driver that hangs."""
    env = fake_driver({**TWO, "faults": [{"call": "nvmlInitWithFlags", "error": "HANG"}]})
    started = time.monotonic()
    done = run(env, "report", "--no-such-option", program=COMMAND.replace("0.1, 0.5", "60, 60"))
    assert (done.returncode, done.stdout) == (2, "")
    assert time.monotonic() - started < 30


def test_answers_and_errors_come_back_as_they_are():
    assert answer_of("print(in_child(lambda note: {'a': (1, None)}))") == "{'a': (1, None)}\n"
    script = """
import os
from gpu_topology.driver.library import NoDevicesError
def read(note):
    raise NoDevicesError("finds no GPU", "look", ("580", "13.0"))
try:
    in_child(read)
except NoDevicesError as error:
    print(error, error.remedy, error.versions, os.getpid() == parent)
"""
    assert answer_of(f"import os\nparent = os.getpid()\n{script}") == "finds no GPU look ('580', '13.0') True\n"


def test_a_program_with_threads_has_a_fresh_interpreter_read(fake_driver):
    """A fork would take the locks of other threads along."""
    program = """
import os, pathlib, threading
threading.Thread(target=threading.Event().wait, daemon=True).start()
from gpu_topology.driver.library import DriverError
from gpu_topology.driver.read import read_topology
try:
    print([gpu.name for gpu in read_topology().gpus], "pynvml" in __import__("sys").modules, flush=True)
except DriverError as error:
    print(type(error).__name__, error.status, error, flush=True)
os._exit(0)
"""
    assert run(fake_driver(TWO), program=program).stdout == "['NVIDIA A10', 'NVIDIA A10'] False\n"
    env = fake_driver({**TWO, "faults": [{"call": "nvmlDeviceGetName", "gpu": 1, "error": "CRASH"}]})
    words = "the NVIDIA driver library crashed (SIGSEGV) in nvmlDeviceGetName of GPU 1"
    assert run(env, program=program).stdout == f"StuckDriverError 1 {words}\n"


def test_the_errors_of_a_driver_say_whether_the_launch_can_go_on():
    assert (StuckDriverError.status, NoDevicesError.status) == (1, 2)
    assert child_process.SLOW_S == 5
    assert child_process.LIMIT_S <= 30


def test_a_huge_limit_of_open_files_is_no_hang(fake_driver):
    """Where close_range(2) is missing, os.closerange closes one number after the other."""
    program = f"""
import os
os.sysconf = lambda name: 1073741816
def close_each(low, high):
    for number in range(low, high):
        try:
            os.close(number)
        except OSError:
            pass
os.closerange = close_each
{COMMAND}"""
    done = run(fake_driver(TWO), "select", program=program)
    assert (done.returncode, done.stdout, done.stderr) == (0, "0,1\n", "")


def test_the_child_keeps_no_descriptor_but_its_pipe():
    script = """
import os
read = lambda note: sorted(map(int, os.listdir("/proc/self/fd")))
kept = [open(os.devnull) for _ in range(20)]
"""
    found = answer_of(f"{script}print(*in_child(read))")
    numbers = [int(number) for number in found.split()]
    assert numbers[:3] == [0, 1, 2]
    assert len(numbers) == 5, "the pipe, and the folder that is being listed"


IGNORING = "import signal\nsignal.signal(signal.SIGCHLD, signal.SIG_IGN)\n"


def test_an_ignored_sigchld_is_no_error(fake_driver):
    """A supervisor's setting, which exec keeps; the kernel then reaps children by itself."""
    done = run(fake_driver(TWO), "select", program=IGNORING + COMMAND)
    assert (done.returncode, done.stdout, done.stderr) == (0, "0,1\n", "")
    done = run(fake_driver(TWO), "select", "--gpus", "9", program=IGNORING + COMMAND)
    assert done.returncode == 2
    assert done.stderr.startswith("error: unknown GPU '9'")
    failing = "import subprocess, sys\nprint(subprocess.call([sys.executable, '-c', 'raise SystemExit(3)']))"
    wrapped = f"{IGNORING}from ddp_core.cli import exit_status\ndef body():\n    exec({failing!r})\nexit_status(body)"
    assert run({}, program=wrapped).stdout == "3\n"


def test_a_library_user_who_ignores_sigchld_gets_answers_and_errors():
    assert answer_of(f"{IGNORING}print(in_child(lambda note: 7))") == "7\n"
    script = f"""
{IGNORING}
import os
def read(note):
    note("nvmlInit")
    os._exit(5)
try:
    in_child(read)
except Exception as error:
    print(type(error).__name__, error)
"""
    assert "StuckDriverError the NVIDIA driver library ended the process in " in answer_of(script)
