"""Real runs of tiny programs: what the ranks get, how the launcher ends, and that nothing outlives it."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from gpu_topology.host.host import read_host

ROOT = Path(__file__).parents[2]

REPORT = """
import json, os, sys
names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "OMP_NUM_THREADS", "TORCHELASTIC_SIGNALS_TO_HANDLE", "TORCH_CPP_LOG_LEVEL")
facts = {"argv": sys.argv[1:], "env": {name: os.environ.get(name) for name in names}}
with open(f"report-{os.environ['RANK']}.json", "w") as file:
    json.dump(facts, file)
os.write(1, f"hello from rank {os.environ['RANK']}\\n".encode())
"""
WAIT = """
import os, pathlib, sys, time
pathlib.Path("ready-" + os.environ["RANK"]).write_text(str(os.getpid()))
time.sleep(120)
"""
ARGUMENTS = ("--help", "--", "--cpu", "a b", "ü€", "", "it's", "$HOME", "$$", "${local_rank}", "*", "\\n")


def reports(launcher: Any) -> list[dict[str, Any]]:
    return [json.loads((launcher.folder / f"report-{rank}.json").read_text()) for rank in (0, 1)]


def test_success_with_arguments_untouched(launcher: Any) -> None:
    script = launcher.script(REPORT, "a folder/program.py")
    done = launcher.run("--cpu", str(script.relative_to(launcher.folder)), *ARGUMENTS)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "hello from rank 0\n"
    for rank, report in enumerate(reports(launcher)):
        assert report["argv"] == list(ARGUMENTS)
        assert report["env"]["RANK"] == report["env"]["LOCAL_RANK"] == str(rank)
        assert report["env"]["WORLD_SIZE"] == "2"
        assert int(report["env"]["OMP_NUM_THREADS"]) == read_host().threads(2)
        assert report["env"]["TORCHELASTIC_SIGNALS_TO_HANDLE"] == "SIGTERM,SIGINT,SIGHUP,SIGQUIT"
        assert report["env"]["TORCH_CPP_LOG_LEVEL"] is None
    assert "2 ranks, gloo" in done.stderr
    assert "W1" not in done.stderr
    assert "Warning" not in done.stderr


def test_users_variables_are_kept(launcher: Any) -> None:
    script = launcher.script(REPORT)
    done = launcher.run("--cpu", str(script), OMP_NUM_THREADS="3", TORCH_CPP_LOG_LEVEL="WARNING")
    assert done.returncode == 0, done.stderr
    assert {report["env"]["OMP_NUM_THREADS"] for report in reports(launcher)} == {"3"}
    assert reports(launcher)[0]["env"]["TORCH_CPP_LOG_LEVEL"] == "WARNING"
    assert "OMP_NUM_THREADS=3 (kept)" in done.stderr


def test_module_log_files_and_tee(launcher: Any) -> None:
    launcher.script(REPORT, "package/program.py")
    launcher.script("", "package/__init__.py")
    done = launcher.run("--cpu", "--tee", "--log-dir", "logs", "-m", "package.program", "-m")
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.splitlines()) == ["[rank 1] hello from rank 1", "hello from rank 0"]
    assert (launcher.folder / "logs/attempt-0/rank-1.stdout.log").read_text() == "hello from rank 1\n"
    assert reports(launcher)[1]["argv"] == ["-m"]


def test_one_visible_device_per_rank(in_process: Any, tmp_path: Path) -> None:
    code = f"""
import os
from pathlib import Path
from ddp_launch.run import agent as elastic
from ddp_launch.plan.command import Job
from ddp_launch.cli.value_types import Tee
os.environ["GONE"] = "1"
worker = ("sh", "-c", 'echo "$RANK $LOCAL_RANK $CUDA_VISIBLE_DEVICES $GONE"')
devices = (("CUDA_VISIBLE_DEVICES", "MIG-a,MIG-b"),)
job = Job(worker=worker, nproc_per_node=2, environment=devices, virtual_local_rank=True, tee=Tee(3), unset=("GONE",))
assert elastic.run(job, Path({str(tmp_path)!r})).status == 0
"""
    assert sorted(in_process(code).splitlines()) == ["0 0 MIG-a ", "[rank 1] 1 0 MIG-b "]


def test_a_rank_that_cannot_be_bound_runs_unbound(in_process: Any, tmp_path: Path) -> None:
    """No mode binds without numactl, nor "exclusive" on a machine without a GPU: torch is asked, and logs that."""
    code = f"""
import logging, os
from pathlib import Path
from ddp_launch.run import agent as elastic
from ddp_launch.plan.command import Job
os.environ["PATH"] = "/nowhere"
lines = []
handler = logging.Handler()
handler.emit = lambda record: lines.append(record.getMessage())
logging.getLogger("torch.numa.binding").addHandler(handler)
job = Job(worker=("/bin/sh", "-c", "echo ran"), nproc_per_node=1, numa_binding="exclusive")
assert elastic.run(job, Path({str(tmp_path)!r})).status == 0
assert "AffinityMode.EXCLUSIVE" in lines[0], lines
"""
    assert in_process(code) == "ran\n"


def test_executable_without_python(launcher: Any) -> None:
    done = launcher.run(
        "--cpu", "--nproc", "1", "--no-python", "sh", "-c", 'echo "$RANK of $WORLD_SIZE: $1"', "sh", "a b"
    )
    assert (done.returncode, done.stdout) == (0, "0 of 1: a b\n")


def test_a_rank_that_fails_between_two_looks_is_the_first_failure(in_process: Any, tmp_path: Path) -> None:
    """The launcher's look finds both at work; by torch's, which comes next, one has failed: it would end the other."""
    code = f"""
from pathlib import Path
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from ddp_launch.run import agent as elastic
from ddp_launch.plan.command import Job
look = LocalElasticAgent._monitor_workers
def late(agent, group):
    for rank, handler in agent.handlers.items():
        if rank == 1:
            handler.proc.wait()
    return look(agent, group)
LocalElasticAgent._monitor_workers = late
worker = ("sh", "-c", '[ "$RANK" = 0 ] && sleep 60; sleep 0.5; exit 7')
outcome = elastic.run(Job(worker=worker, nproc_per_node=2), Path({str(tmp_path)!r}))
assert (outcome.status, outcome.first.rank, outcome.message) == (7, 1, None), outcome
"""
    in_process(code)


def test_first_failure_decides_the_status_and_is_explained(launcher: Any) -> None:
    """Rank 1 fails, rank 0 notices and fails 15 ms later in another way: before a look at the ranks every 50 ms."""
    script = launcher.script(
        """
import os, pathlib, sys, time
gone = pathlib.Path("gone")
if os.environ["RANK"] == "1":
    time.sleep(0.5)
    print("the cause", file=sys.stderr)
    gone.touch()
    os._exit(7)
while not gone.exists():
    time.sleep(0.001)
time.sleep(0.015)
os._exit(3)
"""
    )
    begin = time.monotonic()
    done = launcher.run("--cpu", str(script))
    assert done.returncode == 7
    assert time.monotonic() - begin < 25, "the grace time is not waited for when all ranks are gone"
    summary = done.stderr[done.stderr.index("rank 1 failed") :]
    assert "exit code 7" in summary
    assert "│ the cause" in summary
    log = next(word for word in summary.split() if word.endswith("rank-1.stderr.log"))
    assert Path(log).read_text() == "the cause\n"
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(("name", "status"), [("SIGKILL", 137), ("SIGSEGV", 139)])
def test_killed_rank(launcher: Any, name: str, status: int) -> None:
    script = launcher.script(
        f"import os, signal, time\nif os.environ['RANK'] == '1': os.kill(os.getpid(), signal.{name})\ntime.sleep(120)"
    )
    done = launcher.run("--cpu", str(script))
    assert done.returncode == status
    assert f"{name} (signal {status - 128})" in done.stderr


def test_a_mistake_that_the_program_explains_is_shown_with_rank_and_log(launcher: Any) -> None:
    script = launcher.script(
        "import sys\nprint('error: 0.25 in step 1')\nsys.exit(print('no rows', file=sys.stderr) or 2)"
    )
    done = launcher.run("--cpu", "--nproc", "1", str(script))
    assert done.returncode == 2
    _, _, summary = done.stderr.partition("rank 0 failed first")
    for words in ("exit code 2", "│ no rows", "rank-0.stderr.log"):
        assert words in summary


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_signals(launcher: Any, number: signal.Signals, status: int) -> None:
    process = launcher.start("--cpu", str(launcher.script(WAIT)))
    launcher.wait_for("ready-0", "ready-1")
    process.send_signal(number)
    _, err = process.communicate(timeout=30)
    assert process.returncode == status
    assert "failed" not in err
    assert launcher.alive() == []


SAVE = """
import os, pathlib, signal, time
asked = []
def save(number, frame):
    asked.append(number)
    if len(asked) == 1:
        time.sleep(1.0)
        pathlib.Path("saved-" + os.environ["RANK"]).write_text(str(len(asked)))
        os._exit(0)
signal.signal(signal.SIGTERM, save)
pathlib.Path("ready-" + os.environ["RANK"]).touch()
while not (os.environ["RANK"] == "1" and pathlib.Path("fail-now").exists()):
    time.sleep(0.02)
os._exit(7)
"""


@pytest.mark.parametrize("how", ["signal", "failure"])
def test_ranks_have_time_to_save(launcher: Any, how: str) -> None:
    """Also where the rank is a shell, which ends at once and leaves its child to save."""
    launcher.script(SAVE)
    shell = f"{sys.executable} program.py; exit $?"
    process = launcher.start("--cpu", "--no-python", "sh", "-c", shell)
    launcher.wait_for("ready-0", "ready-1")
    if how == "signal":
        process.terminate()
    else:
        (launcher.folder / "fail-now").touch()
    process.communicate(timeout=60)
    assert process.returncode == (143 if how == "signal" else 7)
    saved = [launcher.folder / f"saved-{rank}" for rank in (0, 1)]
    assert [path.read_text() for path in saved if path.exists()] == ["1"] * (2 if how == "signal" else 1)


def test_signal_before_the_ranks_are_there(launcher: Any) -> None:
    """While torch is being imported."""
    process = launcher.start("--cpu", str(launcher.script(WAIT)))
    assert process.stderr is not None
    assert process.stderr.readline().startswith("machine")
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=30)
    assert process.returncode == 143


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signal_while_the_launcher_itself_is_imported(launcher: Any, number: signal.Signals, status: int) -> None:
    """A module that waits stands in front of the first that the launcher imports."""
    # Many short waits: a signal just before a long one would be handled only after it.
    text = "import pathlib, time\npathlib.Path('importing').touch()\nfor _ in range(300):\n    time.sleep(0.1)\n"
    launcher.script(text, "json.py")
    # Beside launch.py itself PYTHONPATH comes second, and before the standard library.
    process = launcher.start("--version", PYTHONPATH=str(launcher.folder))
    launcher.wait_for("importing")
    process.send_signal(number)
    _, err = process.communicate(timeout=10)
    assert (process.returncode, err) == (status, "")


@pytest.mark.parametrize("closed", [">&-", "<&- >&-", "<&- >&- 2>&-"])
def test_closed_streams(launcher: Any, closed: str) -> None:
    """Of a service without a terminal: nothing else takes their place, in the launcher or in a rank."""
    program = launcher.script(
        "import os, sys\nprint('out'); print('err', file=sys.stderr)\n"
        "names = [os.readlink(f'/proc/self/fd/{n}') for n in (0, 1, 2)]\n"
        "open('streams', 'w').write(' '.join(names))\nsys.exit(7)\n"
    )
    command = f'exec "$@" {closed}'
    launch = [sys.executable, str(ROOT / "launch.py"), "--cpu", "--nproc", "1", "--log-dir", "logs", str(program)]
    done = subprocess.run(
        ["sh", "-c", command, "sh", *launch],
        cwd=launcher.folder,
        env=launcher.env,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 7
    assert (launcher.folder / "logs/attempt-0/rank-0.stdout.log").read_text() == "out\n"
    assert "Traceback" not in done.stderr
    assert (launcher.folder / "streams").read_text().split()[0] == "/dev/null"


def test_two_nodes_on_one_machine(launcher: Any) -> None:
    """Two launchers meet at an endpoint; the ranks count through."""
    script = str(launcher.script(REPORT))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        endpoint = f"127.0.0.1:{free.getsockname()[1]}"
    common = ("--cpu", "--nproc", "1", "--nnodes", "2", "--rdzv-endpoint", endpoint)
    nodes = [launcher.start(*common, "--node-rank", str(rank), script) for rank in (1, 0)]
    outputs = [node.communicate(timeout=60) for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], outputs
    assert [report["env"]["RANK"] for report in reports(launcher)] == ["0", "1"]
    assert {report["env"]["WORLD_SIZE"] for report in reports(launcher)} == {"2"}
