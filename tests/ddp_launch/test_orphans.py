"""However the launcher ends, nothing that it or its ranks have started stays alive."""

from __future__ import annotations

import re
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

WITHIN_S = 5.0
STUBBORN = """
import os, pathlib, signal, subprocess, sys, time

ENDLESS = '''
import os, pathlib, signal, sys, time
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
    signal.signal(number, signal.SIG_IGN)
pathlib.Path(sys.argv[1]).write_text(str(os.getpid()))
time.sleep(120)
'''

def child(name, **options):
    command = [sys.executable, "-S", "-c", ENDLESS, f"pid-{name}-{os.environ['RANK']}"]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **options)

for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, signal.SIG_IGN)
child("child")
child("own-session", start_new_session=True)
child("bare", env={})
if os.fork() == 0:
    child("daemon", start_new_session=True)
    os._exit(0)
pathlib.Path("pid-rank-" + os.environ["RANK"]).write_text(str(os.getpid()))
if sys.argv[1:] == ["fail"] and os.environ["RANK"] == "1":
    while not pathlib.Path("fail-now").exists():
        time.sleep(0.02)
    os._exit(7)
if sys.argv[1:] == ["succeed"]:
    os._exit(0)
time.sleep(120)
"""
KINDS = ("rank", "child", "own-session", "bare", "daemon")
FILES = tuple(f"pid-{kind}-{rank}" for kind in KINDS for rank in (0, 1))


def script(launcher: Any) -> str:
    return str(launcher.script(STUBBORN))


def started(launcher: Any) -> list[psutil.Process]:
    """The launcher's ranks and what they have started, once all is there."""
    launcher.wait_for(*FILES)
    deadline = time.monotonic() + 10
    while not all(texts := [(launcher.folder / name).read_text() for name in FILES]):
        assert time.monotonic() < deadline
    return [psutil.Process(int(text)) for text in texts]


def left(processes: list[psutil.Process]) -> list[psutil.Process]:
    return [one for one in processes if one.is_running() and one.status() != psutil.STATUS_ZOMBIE]


def assert_all_gone(launcher: Any, processes: list[psutil.Process], within_s: float) -> None:
    deadline = time.monotonic() + within_s
    while left(processes) or launcher.alive():
        assert time.monotonic() < deadline, (left(processes), launcher.alive())
        time.sleep(0.05)


@pytest.fixture
def stubborn(launcher: Any) -> tuple[subprocess.Popen[str], list[psutil.Process]]:
    """A launcher whose two ranks ignore every polite signal, as do their children."""
    process = launcher.start("--cpu", "--grace", "1", script(launcher))
    return process, started(launcher)


def test_the_kernel_kills_the_launcher(launcher: Any, stubborn: Any) -> None:
    process, processes = stubborn
    process.kill()
    assert_all_gone(launcher, processes, WITHIN_S)
    assert process.wait() == -signal.SIGKILL


def test_launcher_and_guardian_are_killed(launcher: Any, stubborn: Any) -> None:
    """Then the ranks at least are gone, and with them the GPUs are free."""
    process, processes = stubborn
    guardian = next(one for one in psutil.Process(process.pid).children() if "reaper.py" in " ".join(one.cmdline()))
    guardian.kill()
    process.kill()
    ranks = [one for one, name in zip(processes, FILES, strict=True) if "rank" in name]
    _, alive = psutil.wait_procs(ranks, timeout=WITHIN_S)
    assert not alive
    for one in left(processes):
        one.kill()
    psutil.wait_procs(processes, timeout=WITHIN_S)
    process.wait()


def test_sigterm_then_the_grace_time(launcher: Any, stubborn: Any) -> None:
    process, processes = stubborn
    process.terminate()
    process.communicate(timeout=30)
    assert process.returncode == 143
    assert_all_gone(launcher, processes, 0.5)


def test_five_times_ctrl_c_in_two_seconds(launcher: Any) -> None:
    process = launcher.start("--cpu", script(launcher))
    processes = started(launcher)
    begin = time.monotonic()
    for _ in range(5):
        process.send_signal(signal.SIGINT)
        time.sleep(0.4)
    process.communicate(timeout=20)
    assert time.monotonic() - begin < 20, "without the grace time of 30 s"
    assert process.returncode == 130
    assert_all_gone(launcher, processes, 0.5)


@pytest.mark.parametrize(("how", "status"), [("fail", 7), ("succeed", 0)])
def test_ranks_that_end_by_themselves(launcher: Any, how: str, status: int) -> None:
    process = launcher.start("--cpu", "--grace", "1", script(launcher), how)
    processes = started(launcher) if how == "fail" else []
    (launcher.folder / "fail-now").touch()
    _, err = process.communicate(timeout=60)
    assert process.returncode == status
    assert_all_gone(launcher, processes, 0.5)
    # Each rank has put a process in a session of its own, and maybe its daemon; a failure says nothing of them.
    named = re.findall(r"note: the program has ended, and with it what it left in the background: (.*)", err)
    assert [line.count("(process ") in (2, 3) for line in named] == ([True] if how == "succeed" else [])


def test_the_trainers_watchdog_is_not_named_as_left_behind(launcher: Any) -> None:
    launcher.script("import time; time.sleep(60)", "other/ddp_train/watchdog/process.py")
    program = launcher.script(
        "import os, subprocess, sys\nfolder = os.path.dirname(os.path.abspath(__file__))\n"
        "command = [sys.executable, '-I', '-S', folder + '/other/ddp_train/watchdog/process.py']\n"
        "subprocess.Popen(command, stdout=-3, stderr=-3, start_new_session=True)\n"
    )
    done = launcher.run("--cpu", str(program))
    assert done.returncode == 0 and "in the background" not in done.stderr


def test_a_stranger_with_the_id_of_a_rank_that_ended_is_spared(in_process: Any, tmp_path: Path) -> None:
    """The guardian compares start times: the kernel hands out process ids again."""
    code = """
import os, subprocess, sys, time
from ddp_launch.run import reaper as guardian
other = subprocess.Popen(["sleep", "60"], start_new_session=True)
mine = guardian.look(other.pid)
ranks = {other.pid: mine}
print(guardian.members(guardian.everyone(), b"no such mark", ranks) == {other.pid})
mine.start -= 1
print(guardian.members(guardian.everyone(), b"no such mark", ranks))
other.kill()
"""
    assert in_process(code) == "True\nset()\n"


def test_children_from_before_the_run_are_spared(in_process: Any, tmp_path: Path) -> None:
    """As in a job script: something in the background, then `exec python launch.py`."""
    code = f"""
import subprocess
from pathlib import Path
before = subprocess.Popen(["sleep", "60"])
from ddp_launch.run import agent as elastic
from ddp_launch.plan.command import Job
print(elastic.run(Job(worker=("sh", "-c", "sleep 60 & echo $!"), nproc_per_node=1), Path({str(tmp_path)!r})).status)
print(before.poll())
before.kill()
"""
    daemon, status, before = in_process(code).split()
    assert (status, before) == ("0", "None")
    assert not psutil.pid_exists(int(daemon)), "not even as a zombie"
