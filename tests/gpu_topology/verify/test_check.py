"""verify with real torchrun jobs: right answers, ranks that go wrong in every way, and nothing that lives on.

The faults are in programs of the tests' own, which verify starts in place of its rank.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from gpu_topology.host.host import Host
from gpu_topology.select.select import SelectionRequest, select
from gpu_topology.topology import Topology
from gpu_topology.verify.check import check, usual_limit_s
from gpu_topology.verify_cache import Verdict, recall
from tests.fake_nvml.machine import load_machine, to_topology

ROOT = Path(__file__).parents[3]
MARK = "VERIFY_TEST_MARK"
NO_GPU = {"CUDA_VISIBLE_DEVICES": ""}

# The steps of a rank that only writes its journal; tests put a fault between them.
SCRIPTED = """
import os, signal, sys, time
from itertools import permutations
from pathlib import Path
from gpu_topology.verify.journal import FOLDER_VARIABLE, Journal, Step

rank, ranks = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
journal = Journal(Path(os.environ[FOLDER_VARIABLE]), rank)

def fault(step): pass
{fault}

pairs = list(permutations(range(ranks), 2))
steps = [Step("start"), Step("init")]
if rank == 0 and "--copies" in sys.argv:
    steps += [Step("copy", *pair) for pair in pairs]
steps += [Step("send", *pair) for pair in pairs if rank in pair] + [Step("sum"), Step("done")]
for step in steps:
    journal.begin(step)
    journal.end(step, fault(step), 1.0)
"""
# The product's own rank, with a transport of torch's that breaks one byte, and a sum.
CORRUPT = """
import os, sys
import torch.distributed as dist
from gpu_topology.verify import rank as verify_rank

batch, reduce = dist.batch_isend_irecv, dist.all_reduce

def broken_batch(operations):
    requests = batch(operations)
    (operation,) = operations
    if operation.op is dist.irecv and os.environ["RANK"] == "1" and operation.tensor.numel() > 4000:
        for request in requests:
            request.wait()
        operation.tensor[4000] ^= 16
        return []
    return requests

def broken_reduce(tensor, *rest, **more):
    done = reduce(tensor, *rest, **more)
    if tensor.numel() > 1000 and os.environ["RANK"] == "0":
        tensor[1000] += 1
    return done

dist.batch_isend_irecv, dist.all_reduce = broken_batch, broken_reduce
os._exit(verify_rank.main())
"""


@pytest.fixture(autouse=True)
def marked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Callable[[], list[int]]]:
    """Everything that a test starts is found by its environment, and must be gone at its end; so must its files."""
    monkeypatch.setenv(MARK, mark := uuid.uuid4().hex)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (temporary := tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    monkeypatch.setenv("TMPDIR", str(temporary))
    for name in os.environ:
        if name.startswith(("NCCL_", "CUDA_", "GLOO_")):
            monkeypatch.delenv(name)

    def alive() -> list[int]:
        found = []
        for entry in Path("/proc").iterdir():
            try:
                if entry.name.isdecimal() and mark.encode() in (entry / "environ").read_bytes():
                    found.append(int(entry.name))
            except OSError:
                continue
        return [pid for pid in found if pid != os.getpid()]

    yield alive
    left = alive()
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert not left, f"still running: {left}"


@pytest.fixture
def checked(tmp_path: Path, host: Host) -> Callable[..., Verdict]:
    """`checked(program, ...)`: check() with this program as the rank, over two GPUs or on the CPU."""

    def run(program: str, *, gpus: bool = False, time_limit_s: float = 60) -> Verdict:
        script = tmp_path / "rank.py"
        script.write_text(program)
        topology = to_topology("rtx3090_2x_nvlink") if gpus else Topology()
        selection = select(topology, SelectionRequest())
        verdict = check(topology, selection, host, worker=(str(script),), time_limit_s=time_limit_s)
        kept = verdict if gpus and (verdict.ok or verdict.settings) else None
        assert recall(topology, selection.uuids) == kept
        assert not list((tmp_path / "temporary").iterdir())
        return verdict

    return run


def scripted(fault: str = "") -> str:
    return SCRIPTED.replace("{fault}", fault)


def start(*arguments: str, **env: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "gpu_topology", "verify", *arguments],
        cwd=ROOT,
        env={**os.environ, **env},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(*arguments: str, **env: str) -> tuple[int, str, str]:
    process = start(*arguments, **env)
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err


def test_two_ranks_on_the_cpu_are_right() -> None:
    status, out, err = run("--cpu", "--json")
    assert status == 0, err
    verdict = json.loads(out)
    assert (verdict["ok"], verdict["problem"], verdict["settings"], verdict["devices"]) == (True, None, [], [])
    assert [(pair["a"], pair["b"], pair["way"], pair["problem"]) for pair in verdict["pairs"]] == [
        (0, 1, "gloo", None),
        (1, 0, "gloo", None),
    ]
    assert all(pair["gb_s"] > 0 for pair in verdict["pairs"])
    assert verdict["busbw_gb_s"] > 0
    assert err == "verify: 2 ranks on the CPU with gloo, at most 60 s\n"


def test_one_wrong_byte_and_a_wrong_sum_are_found(checked: Callable[..., Verdict]) -> None:
    verdict = checked(CORRUPT)
    assert not verdict.ok
    assert verdict.problem is not None
    assert verdict.problem.startswith("wrong data in send rank 0 -> rank 1 (gloo): byte 4000 is 0x")
    assert verdict.problem.endswith("1 of 4099 bytes are wrong (and in 1 more step)")
    assert [pair.problem is None for pair in verdict.pairs] == [False, True]


def test_a_hang_ends_at_the_limit_and_says_where(checked: Callable[..., Verdict]) -> None:
    fault = """
def fault(step):
    if step == Step("send", 1, 0):
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)
        if os.fork() == 0:
            os.setsid()
        time.sleep(300)
"""
    begin = time.monotonic()
    verdict = checked(scripted(fault), time_limit_s=12)
    assert verdict.problem == "stopped after 12 s in: send rank 1 -> rank 0 (gloo)"
    assert time.monotonic() - begin < 17


@pytest.mark.parametrize(
    ("fault", "problem"),
    [
        (
            'print("no good", file=sys.stderr); os.kill(os.getpid(), signal.SIGSEGV)',
            "rank 1 ended by SIGSEGV in the all-reduce",
        ),
        ('journal._file.write("no good\\n")', "rank 1 wrote what is no result: 'no good'"),
    ],
    ids=["segv", "garbage"],
)
def test_a_rank_that_dies_or_talks_nonsense(checked: Callable[..., Verdict], fault: str, problem: str) -> None:
    verdict = checked(scripted(f"def fault(step):\n if step.kind == 'sum' and rank == 1: {fault}"))
    assert verdict.problem == problem
    assert verdict.words == (("no good",) if "stderr" in fault else ())
    assert verdict.settings == ()


def test_what_peer_access_breaks_is_mended_by_its_variable(checked: Callable[..., Verdict]) -> None:
    fault = """
def fault(step):
    if step == Step("copy", 1, 0):
        return "byte 3 is 0x00 and should be 0x11, 1 of 9 bytes are wrong"
    if step == Step("send", 0, 1) and os.environ.get("NCCL_P2P_DISABLE") != "1":
        os.abort()
"""
    verdict = checked(scripted(fault), gpus=True)
    assert not verdict.ok
    ((name, value, reason),) = verdict.settings
    assert (name, value) == ("NCCL_P2P_DISABLE", "1")
    assert "wrong data in copy GPU 1 -> GPU 0: byte 3" in reason
    assert "ended by SIGABRT in send GPU 0 -> GPU 1 (NCCL)" in reason
    assert verdict.remedy is not None
    assert "ACS" in verdict.remedy
    assert "device_map" in verdict.remedy
    assert [(pair.way, pair.problem is None) for pair in verdict.pairs] == [
        ("copy", True),
        ("copy", False),
        ("nccl", True),
        ("nccl", True),
    ]
    assert verdict.busbw_gb_s == 1.0


def test_a_full_shared_memory_is_told_from_broken_peer_access(checked: Callable[..., Verdict]) -> None:
    fault = """
def fault(step):
    if step == Step("init") and os.environ.get("NCCL_SHM_DISABLE") != "1":
        sys.exit("NCCL WARN Error: failed to extend /dev/shm/nccl-x to 9637892 bytes: No space left on device")
"""
    verdict = checked(scripted(fault), gpus=True)
    assert [setting[:2] for setting in verdict.settings] == [("NCCL_SHM_DISABLE", "1")]
    assert verdict.remedy is not None
    assert "--shm-size" in verdict.remedy


def test_what_no_variable_mends_stays_a_failure(checked: Callable[..., Verdict], tmp_path: Path) -> None:
    counted = f"""
def fault(step):
    if step == Step("init") and rank == 0:
        with open({str(tmp_path / "jobs")!r}, "a") as file:
            print(os.environ.get("NCCL_P2P_DISABLE"), "--copies" in sys.argv, file=file)
    if step.kind == "sum":
        return "sum 0 of 1 is 3 and should be 2"
"""
    verdict = checked(scripted(counted), gpus=True)
    assert (verdict.ok, verdict.settings) == (False, ())
    assert verdict.problem == "wrong data in the all-reduce: sum 0 of 1 is 3 and should be 2"
    assert (tmp_path / "jobs").read_text() == "None True\n1 False\n"


def test_ctrl_c_ends_the_job_at_once(marked: Callable[[], list[int]]) -> None:
    process = start("--cpu")
    while len(marked()) < 4:  # verify, torchrun, two ranks
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=5) == 130
    assert not marked()
    assert process.stderr is not None
    assert "Traceback" not in process.stderr.read()


def test_sigkill_of_verify_leaves_nothing(marked: Callable[[], list[int]], tmp_path: Path) -> None:
    # So many ranks that they would not be done by themselves before the deadline.
    process = start("--cpu", "--nproc", "16")
    while len(marked()) < 10:
        time.sleep(0.05)
    process.kill()
    deadline = time.monotonic() + 3
    while marked() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not marked()


def test_many_pairs_have_more_time() -> None:
    assert [usual_limit_s(ranks) for ranks in (1, 2, 8, 16)] == [60, 60, 60, 120]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--time-limit", "0"], "'0' is not a whole number of seconds from 1 to 3600"),
        (["--time-limit", "1e308"], "'1e308' is not a whole number"),
        (["--time-limit", str(2**63)], "is not a whole number"),
        (["--cpu", "--nproc", "0"], "--nproc 0: on the CPU from 1 to 64"),
        (["--cpu", "--nproc", "65"], "--nproc 65: on the CPU from 1 to 64"),
        (["--nproc", "0"], "count is 0"),
        (["--gpus", "7"], "unknown GPU '7'"),
    ],
)
def test_a_mistake_is_one_line(arguments: list[str], words: str) -> None:
    status, out, err = run(*arguments)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("error: ")
    assert words in err


def test_a_python_without_torch_is_told() -> None:
    code = "import sys; sys.modules['torch'] = None; from gpu_topology.cli import main; sys.exit(main(['verify']))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert done.stderr == f"error: verify needs torch, which is not installed in {sys.executable}\n"


# Runs verify up to the point where it would start its job.
WITHOUT_TORCH = """
import signal, sys
from gpu_topology import cli
from gpu_topology.driver import child_process
sys.modules["torch"] = None
child_process.LIMIT_S = 0.5
signal.signal(signal.SIGHUP, signal.SIG_IGN)
status = cli.main(sys.argv[1:])
print(signal.getsignal(signal.SIGHUP) is signal.SIG_IGN)
sys.exit(status)
"""


def prepare(env: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", WITHOUT_TORCH, "verify", *arguments]
    return subprocess.run(command, cwd=ROOT, env={**os.environ, **env}, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("faults", [[], [{"call": "nvmlInitWithFlags", "error": "HANG"}]], ids=["sound", "stuck"])
def test_the_cpu_needs_no_gpu_and_no_driver(fake_driver: Callable[..., dict[str, str]], faults: list[object]) -> None:
    env = fake_driver({**load_machine("rtx3090_2x_nvlink"), "faults": faults})
    done = prepare(env, "--cpu", "--nproc", "4")
    assert done.stderr == f"error: verify needs torch, which is not installed in {sys.executable}\n"


def test_under_nohup_a_closed_terminal_ends_nothing() -> None:
    assert prepare(NO_GPU, "--cpu").stdout == "True\n"


def test_exclusive_gpus_are_not_opened_by_a_second_rank(tmp_path: Path, host: Host) -> None:
    """In exclusive-process mode rank 0's copies would fail, which says nothing about peer access."""
    script = tmp_path / "rank.py"
    script.write_text(
        scripted("def fault(step):\n if step.kind == 'copy': return 'CUDA-capable device(s) is/are busy'")
    )
    pair = to_topology("rtx3090_2x_nvlink")
    gpus = tuple(replace(gpu, compute_mode="exclusive-process") for gpu in pair.gpus)
    topology = replace(pair, gpus=gpus)
    selection = select(topology, SelectionRequest())
    verdict = check(topology, selection, host, worker=(str(script),), time_limit_s=300, keep=False)
    assert (verdict.problem, verdict.settings) == (None, ())
    assert [pair.way for pair in verdict.pairs] == ["nccl", "nccl"]
