"""`ddp_launch.launch` from a script, a REPL and a notebook: results by rank, failures, time limits, nothing left."""

from __future__ import annotations

import copy
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import nbformat
import pytest
import torch
from nbclient import NotebookClient

from ddp_core.errors import UserError
from ddp_launch import LaunchError, launch
from ddp_launch.run.pickling import dumps

ROOT = Path(__file__).parents[2]

FUNCTIONS = """
import atexit, os, threading, time
from ddp_launch import LaunchError, launch

class Box:
    def __init__(self, value):
        self.value = value

def total(base, *, scale):
    import torch
    import torch.distributed as dist
    dist.init_process_group("gloo")
    sums = torch.tensor([base + dist.get_rank()])
    dist.all_reduce(sums)
    print("rank", os.environ["RANK"])
    mark = os.path.join(os.environ["TMPDIR"], os.environ["RANK"])
    threading.Thread(target=lambda: (time.sleep(0.3), open(mark + "-thread", "w"))).start()
    atexit.register(lambda: os.replace(mark + "-thread", mark + "-left"))
    globals()["kept"] = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(1, 1))  # which holds the group
    return Box(sums * scale), dist.get_backend()

def fails():
    raise ValueError("boom on rank " + os.environ["RANK"])
"""
CALLS = """
results = launch(total, 10, scale=2, cpu=True, nproc=2)
print([(box.value.tolist(), isinstance(box, Box), backend) for box, backend in results])
try:
    launch(fails, cpu=True, nproc=1)
except LaunchError as error:
    print(error.rank, error.status, "ValueError: boom on rank 0" in error.traceback, str(error).splitlines()[0])
"""
EXPECTED = "[([42], True, 'gloo'), ([42], True, 'gloo')]"
FAILURE = "0 1 True rank 0 failed: ValueError: boom on rank 0"


@pytest.fixture
def env(tmp_path: Path) -> dict[str, str]:
    # A short path: sockets have to fit into it.
    return os.environ | {"PYTHONPATH": str(ROOT), "XDG_RUNTIME_DIR": str(tmp_path), "TMPDIR": str(tmp_path)}


def test_from_a_script(tmp_path: Path, env: dict[str, str]) -> None:
    """Without `if __name__`: the script is not imported again by the ranks."""
    script = tmp_path / "script.py"
    script.write_text(FUNCTIONS + CALLS + "print('once')\n")
    done = subprocess.run([sys.executable, str(script)], env=env, capture_output=True, text=True, timeout=120)
    assert done.stdout.splitlines() == ["rank 0", EXPECTED, FAILURE, "once"], done.stderr
    assert all((tmp_path / f"{rank}-left").exists() for rank in (0, 1)), "threads end, then exit handlers run"
    assert f'File "{script}", line 23, in fails' in done.stderr, "the traceback on the screen names the file"
    (log,) = tmp_path.glob("ddp-launch-????????/attempt-0/rank-0.stderr.log")
    assert "boom on rank 0" in log.read_text(), "what the summary names is still there"
    assert str(log) in "".join(line.partition(" ")[2].strip() for line in done.stderr.splitlines()[-4:])


def test_from_a_repl(env: dict[str, str]) -> None:
    text = FUNCTIONS.replace("\n\n", "\n").replace("\ndef ", "\n\ndef ").replace("\nclass", "\n\nclass")
    typed = text + "\nprint([box.value.tolist() for box, _ in launch(total, 10, scale=2, cpu=True, nproc=2)])\n"
    done = subprocess.run(
        [sys.executable, "-i", "-q"], input=typed, env=env, capture_output=True, text=True, timeout=120
    )
    assert "[[42], [42]]" in done.stdout, done.stderr


def test_from_a_notebook_with_a_process_group(tmp_path: Path, env: dict[str, str], monkeypatch: Any) -> None:
    """The kernel has a process group of its own, with the variables of one rank in its environment."""
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    group = """
import os, torch
os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="0", RANK="0", WORLD_SIZE="1", LOCAL_RANK="0")
torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
"""
    cells = [nbformat.v4.new_code_cell(text) for text in (group, FUNCTIONS, CALLS)]
    book = nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": {"name": "python3", "display_name": "x"}})
    NotebookClient(book, timeout=120, resources={"metadata": {"path": str(tmp_path)}}).execute()
    shown = "".join(
        output.text for output in cells[2].outputs if output.output_type == "stream" and output.name == "stdout"
    )
    assert shown.splitlines() == ["rank 0", EXPECTED, FAILURE]


def test_mistakes_and_results_that_cannot_travel() -> None:
    with pytest.raises(UserError, match="--nproc '0': expected a whole number"):
        launch(os.getpid, cpu=True, nproc=0)
    with pytest.raises(UserError, match="unknown GPU '7'"):
        launch(os.getpid, gpus=[7])
    with pytest.raises(TypeError, match="cannot be sent to the ranks"):
        launch(lambda: generator, cpu=True)
    with pytest.raises(LaunchError, match="the result, generator, cannot be pickled"):
        launch(lambda: (number for number in range(3)), cpu=True, nproc=1)
    with pytest.raises(UserError, match="--cpu and --gpus exclude each other"):
        launch(os.getpid, cpu=True, gpus=[0])
    with pytest.raises(TypeError, match="3 is no function"):
        launch(3, cpu=True)  # type: ignore[arg-type]


def test_a_rank_that_leaves_without_a_result_is_a_failure() -> None:
    def leaves() -> int:
        if os.environ["RANK"] == "1":
            sys.exit(0)
        return 7

    with pytest.raises(LaunchError, match=r"rank 1 ended before .*leaves returned, with exit code 0") as failure:
        launch(leaves, cpu=True, nproc=2)
    sent = copy.copy(failure.value)  # as pickle does it
    assert (str(sent), sent.rank, sent.status) == (str(failure.value), 1, 0)
    assert failure.value.rank == 1 and failure.value.traceback.endswith("SystemExit: 0\n")


def test_a_parameter_on_a_gpu_travels_as_a_parameter() -> None:
    class OnGpu(torch.nn.Parameter):
        device = torch.device("cuda")  # type: ignore[assignment]

    trained, frozen = OnGpu(torch.ones(2)), OnGpu(torch.ones(2), requires_grad=False)
    pair = pickle.loads(dumps((trained, frozen)))  # noqa: S301
    for sent, received in zip((trained, frozen), pair, strict=True):
        assert type(received) is torch.nn.Parameter and received.device.type == "cpu"
        assert received.requires_grad == sent.requires_grad and received.tolist() == [1.0, 1.0]


generator = (number for number in range(3))


def test_time_limit_and_interrupt_leave_nothing(tmp_path: Path, env: dict[str, str]) -> None:
    script = tmp_path / "script.py"
    script.write_text("""
import os, pathlib, sys, time
from ddp_launch import launch
def sleeps():
    pathlib.Path(f"pid-{os.environ['RANK']}").write_text(str(os.getpid()))
    time.sleep(300)
try:
    launch(sleeps, cpu=True, nproc=2, timeout_s=float(sys.argv[1]))
except TimeoutError as error:
    print(error)
""")

    def ranks() -> list[int]:
        return [int(path.read_text() or 0) for path in tmp_path.glob("pid-*")]

    def until_gone() -> None:
        deadline = time.monotonic() + 20
        while any(Path(f"/proc/{pid}").exists() for pid in ranks()):
            assert time.monotonic() < deadline
            time.sleep(0.05)

    command = [sys.executable, str(script)]
    done = subprocess.run([*command, "9"], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120)
    assert done.stdout == "the ranks were still running after 9 s, and were ended\n" and len(ranks()) == 2
    until_gone()
    for number in (signal.SIGINT, signal.SIGKILL):
        for path in tmp_path.glob("pid-*"):
            path.unlink()
        process = subprocess.Popen(
            [*command, "200"], cwd=tmp_path, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        deadline = time.monotonic() + 60
        while len(ranks()) < 2 or 0 in ranks():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(number)
        assert process.wait(60) != 0
        until_gone()


def test_characters_outside_the_callers_encoding(tmp_path: Path, env: dict[str, str]) -> None:
    script = tmp_path / "script.py"
    script.write_text("""
import os
from ddp_launch import launch
def writes():
    os.write(1, b"caf\\xe9 \\xe2\\x82\\xac\\n")
    return 3
print(launch(writes, cpu=True, nproc=1))
""")
    latin = env | {"PYTHONIOENCODING": "iso-8859-1"}
    done = subprocess.run([sys.executable, str(script)], env=latin, capture_output=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout == b"caf\\ufffd \\u20ac\n[3]\n"
