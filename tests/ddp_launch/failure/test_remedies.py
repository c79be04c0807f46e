"""The table of known failures: one real message for each row, as the libraries write them."""

from __future__ import annotations

import re
import signal
import sys
from pathlib import Path

import pytest

from ddp_launch.failure.failures import Failure
from ddp_launch.failure.known_failures import TABLE, Batch, Evidence
from ddp_launch.failure.remedies import Remedy, find_remedy

HEAD = 'Traceback (most recent call last):\n  File "train.py", line 3, in <module>\n'
OOM = (
    "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 23.64 GiB of"
    " which 5.06 MiB is free."
)
MESSAGES = [
    ("host-memory", "RuntimeError: DataLoader worker (pid 4242) is killed by signal: Killed. "),
    ("host-memory", "BrokenProcessPool: A process in the process pool was terminated abruptly while the future"),
    (
        "shared-memory",
        "RuntimeError: DataLoader worker (pid 91) is killed by signal: Bus error. It is possible that dataloader's"
        " workers are out of shared memory. Please try to raise your shared memory limit.",
    ),
    ("shared-memory", "RuntimeError: unable to write to file </torch_1234_5>: No space left on device (28)"),
    ("shared-memory", "Error while creating shared memory segment /dev/shm/nccl-a: No space left on device"),
    ("gpu-memory", OOM),
    ("shared-memory", "Error while creating shared memory segment /dev/shm/nccl-qtPFpe (size 9637888)"),
    (
        "open-files",
        "RuntimeError: unable to open shared memory object </torch_299_1> in read-write mode: Too many open files (24)",
    ),
    ("gpu-memory", "RuntimeError: CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    (
        "gpu-memory",
        "ncclUnhandledCudaError: Call to CUDA function failed. Last error:\nCuda failure 2 'out of memory'",
    ),
    ("host-memory", "RuntimeError: [enforce fail at alloc_cpu.cpp:1] DefaultCPUAllocator: can't allocate memory"),
    (
        "collective-timeout",
        "torch.distributed.DistBackendError: [Rank 0] Watchdog caught collective operation timeout: WorkNCCL(SeqNum=7,"
        " OpType=ALLREDUCE, Timeout(ms)=600000) ran for 600021 milliseconds before timing out.",
    ),
    ("collective-timeout", "RuntimeError: [unbound_buffer.cc:78] Timed out waiting 1800000ms for recv operation"),
    (
        "different-shapes",
        "what():  [enforce fail at pair.cc:464] op.preamble.length <= op.nbytes. 4000 vs 3000. Received data size"
        " doesn't match expected size. Is there a distributed collective mismatch in your code?",
    ),
    ("duplicate-gpu", "ncclInvalidUsage: Duplicate GPU detected : rank 1 and rank 0 both on CUDA device 5000"),
    ("device-ordinal", "RuntimeError: CUDA error: invalid device ordinal"),
    ("no-kernel-image", "RuntimeError: CUDA error: no kernel image is available for execution on the device"),
    ("driver-too-old", "RuntimeError: The NVIDIA driver on your system is too old (found version 11040)."),
    ("gpu-fault", "RuntimeError: CUDA error: uncorrectable ECC error encountered"),
    ("device-assert", "RuntimeError: CUDA error: device-side assert triggered"),
    ("illegal-access", "RuntimeError: CUDA error: an illegal memory access was encountered"),
    ("no-cuda", "AssertionError: Torch not compiled with CUDA enabled"),
    ("no-cuda", "ValueError: ProcessGroupNCCL is only supported with GPUs, no GPUs found!"),
    ("forked-cuda", "RuntimeError: Cannot re-initialize CUDA in forked subprocess. To use CUDA with multiprocessing"),
    ("unused-parameters", "RuntimeError: Expected to have finished reduction in the prior iteration before starting"),
    ("ready-twice", "RuntimeError: Expected to mark a variable ready only once. This error is caused by one of"),
    ("no-process-group", "ValueError: Default process group has not been initialized, please make sure to call init"),
    (
        "device-ids-on-cpu",
        "ValueError: DistributedDataParallel device_ids and output_device arguments only work with"
        " single-device/multiple-device GPU modules or CPU modules, but got device_ids [0], output_device 0, and module"
        " parameters {device(type='cpu')}.",
    ),
    ("local-rank-argument", "train.py: error: unrecognized arguments: --local-rank=0"),
    ("local-rank-argument", "train.py: error: the following arguments are required: --data, --local_rank"),
    ("port-in-use", "torch.distributed.DistNetworkError: The server socket has failed to listen on any local network"
     " address. port: 29500, useIpv6: false, code: -98, name: EADDRINUSE, message: address already in use"),
    (
        "no-store",
        "torch.distributed.DistNetworkError: The client socket has timed out after 60000ms while trying to connect to"
        " (10.0.0.1, 29500).",
    ),
    (
        "no-store",
        "torch.distributed.DistNetworkError: The client socket has failed to connect to any network address of (node-1,"
        " 29500). The IPv6 network addresses of (node-1, 29500) cannot be retrieved (gai error: -2).",
    ),
    (
        "late-rank",
        "torch.distributed.DistStoreError: Timed out after 61 seconds waiting for clients. 1/2 clients joined.",
    ),
    (
        "late-rank",
        "torch.distributed.DistStoreError: wait timeout after 600000ms, keys: /default_pg/0//cuda//0/1",
    ),
    ("name-resolution", "socket.gaierror: [Errno -2] Name or service not known"),
    ("socket-interface", "ncclSystemError: System call (e.g. socket, malloc) or external library call failed"),
    ("missing-module", "ModuleNotFoundError: No module named 'sklearn.linear_model'"),
    ("missing-module", "/usr/bin/python3: No module named trainer"),
    ("missing-module", "/usr/bin/python3: No module named my-trainer"),
    ("relative-import", "ImportError: attempted relative import with no known parent package"),
    ("circular-import", "AttributeError: partially initialized module 'a' has no attribute 'b' (most likely due to a"
     " circular import)"),
    ("missing-library", "ImportError: libGL.so.1: cannot open shared object file: No such file or directory"),
    ("version-mismatch", "ImportError: a.so: undefined symbol: _ZN3c105Error"),
    ("open-files", "OSError: [Errno 24] Too many open files: 'x.png'"),
    ("disk-full", "OSError: [Errno 28] No space left on device: 'runs/a/checkpoint.pt'"),
    ("permission", "PermissionError: [Errno 13] Permission denied: '/data/train'"),
    ("missing-file", "FileNotFoundError: [Errno 2] No such file or directory: 'train.csv'"),
    ("wrong-checkpoint", "RuntimeError: Error(s) in loading state_dict for ResNet:"),
    ("two-devices", "RuntimeError: Expected all tensors to be on the same device, but found at least two devices"),
    ("abort-in-leaving", "ValueError: no\nterminate called without an active exception"),
]  # fmt: skip


@pytest.fixture
def remedy(tmp_path: Path):  # type: ignore[no-untyped-def]
    """`remedy(words, code, evidence)`: what is known about a rank with these last words."""

    def find(words: str, code: int = 1, evidence: Evidence | None = None) -> Remedy | None:
        log = tmp_path / "log"
        log.write_text(words)
        return find_remedy(Failure(0, "host", code, (log,)), evidence or Evidence())

    return find


@pytest.mark.parametrize(("name", "message"), MESSAGES)
def test_every_message_finds_its_row(remedy, name: str, message: str) -> None:  # type: ignore[no-untyped-def]
    for words in (HEAD + message, "a line before\n" + message + "\na line behind"):
        found = remedy(words)
        assert found is not None
        assert found.name == name
        assert "{" not in found.meaning + found.advice


def test_every_row_has_a_message() -> None:
    assert {known.name for known in TABLE} - {"syntax-error"} <= {name for name, _ in MESSAGES}


def test_a_plain_error_has_no_remedy(remedy) -> None:  # type: ignore[no-untyped-def]
    assert remedy(HEAD + "ValueError: no") is None
    assert remedy("") is None


def test_the_error_counts_more_than_what_was_said_before(remedy) -> None:  # type: ignore[no-untyped-def]
    assert remedy("warning: Too many open files\n" + HEAD + OOM).name == "gpu-memory"


@pytest.mark.parametrize(
    "words",
    [
        "cache: Permission denied, without it\n" + HEAD + "ValueError: no",
        "2026-11-30 12:00:00 WARNING cache.py: Permission denied\nno rows",
        "/site-packages/a.py:3: UserWarning: No module named 'apex'\n  warnings.warn(\nno rows",
        "[rank1]:[W1130 12:00:00.0 socket.cpp:1] address already in use\nno rows",
    ],
)
def test_what_did_not_end_the_program_is_no_cause(remedy, words: str) -> None:  # type: ignore[no-untyped-def]
    assert remedy(words) is None


def test_syntax_error_without_a_traceback(remedy) -> None:  # type: ignore[no-untyped-def]
    """So says Python of the script itself."""
    assert remedy('  File "a.py", line 1\n    def\n       ^\nSyntaxError: invalid syntax\n').name == "syntax-error"


def test_batches_to_try(remedy) -> None:  # type: ignore[no-untyped-def]
    ours = remedy(HEAD + OOM, evidence=Evidence(batch=Batch(512, ranks=2))).advice
    assert "--accumulate 2 (128 images at a time instead of 256, in the same global batch of 512)" in ours
    assert "--batch-size 256, then --batch-size 128" in ours
    by_rank = Evidence(batch=Batch(512, ranks=2, accumulate=4, by_rank=True))
    assert "--accumulate 8" in remedy(HEAD + OOM, evidence=by_rank).advice
    assert "--batch-size-per-rank 128, then" in remedy(HEAD + OOM, evidence=by_rank).advice
    assert "smaller model" in remedy(HEAD + OOM, evidence=Evidence(batch=Batch(2, ranks=2))).advice
    assert "halve the batch of each rank" in remedy(HEAD + OOM).advice


def test_a_torch_without_cuda_beside_a_gpu(remedy) -> None:  # type: ignore[no-untyped-def]
    words = HEAD + "AssertionError: Torch not compiled with CUDA enabled"
    assert "install a build of torch for CUDA" in remedy(words, evidence=Evidence(on_gpu=True)).advice
    assert "use gloo" in remedy(words, evidence=Evidence(on_gpu=False)).advice
    assert (
        "use gloo" in remedy(HEAD + "RuntimeError: No CUDA GPUs are available", evidence=Evidence(on_gpu=True)).advice
    )


@pytest.mark.parametrize(
    ("line", "port"),
    [
        ("The server socket has failed to listen on any local network address. port: 29500, useIpv6: false, code: -98"
         ", name: EADDRINUSE, message: address already in use", 29500),
        ("RuntimeError: [1] bind failed on [::]:29400 (errno: 98 - Address already in use).", 29400),
        ("OSError: [Errno 98] Address already in use", None),
        ("[W1130 12:00:01.2 socket.cpp:4711] address already in use", None),
    ],
)  # fmt: skip
def test_the_port_is_that_of_the_error(remedy, line: str, port: int | None) -> None:  # type: ignore[no-untyped-def]
    found = remedy(f"2026-11-30 12:34:56 epoch 1:20000\n{HEAD}RuntimeError: {line}\n12:35:10 bye")
    assert ("ss -ltnp" in found.advice) == (port is not None)
    assert port is None or f":{port}'" in found.advice


def test_a_program_that_is_not_on_the_path(remedy) -> None:  # type: ignore[no-untyped-def]
    said = HEAD + "FileNotFoundError: [Errno 2] No such file or directory: "
    assert "not on PATH" in remedy(said + "'nvcc'").advice
    assert "not on PATH" not in remedy(said + "'train.csv'").advice
    assert "not on PATH" not in remedy(said + "'data/train'").advice


def test_a_refused_login_is_no_missing_permission(remedy) -> None:  # type: ignore[no-untyped-def]
    assert remedy(HEAD + "OSError: git@host: Permission denied (publickey).") is None


def test_killed_by_the_kernel_or_not(remedy) -> None:  # type: ignore[no-untyped-def]
    where = "of this job's cgroup"
    assert "killed 2 processes of this job's cgroup" in remedy("", -signal.SIGKILL, Evidence(2, where)).meaning
    assert remedy("", -signal.SIGKILL, Evidence(0, where)).name == "killed"
    assert remedy("", -signal.SIGKILL, Evidence(None)) is None


def test_bus_error_on_a_full_shm(remedy) -> None:  # type: ignore[no-untyped-def]
    full = Evidence(shm_free=0, shm_total=64 * 2**20)
    assert "0 of 64 MiB" in remedy("", -signal.SIGBUS, full).meaning
    assert remedy("", -signal.SIGBUS, Evidence(shm_free=2**36, shm_total=2**37)) is None


def test_a_rank_that_could_not_write(remedy) -> None:  # type: ignore[no-untyped-def]
    full = remedy("step 1", 1, Evidence(logs_free=0))
    assert (full.name, "--log-dir" in full.advice) == ("disk-full", True)
    assert remedy("step 1", 1, Evidence(logs_free=1 << 30)) is None
    assert remedy("ModuleNotFoundError: No module named 'x'", 1, Evidence(logs_free=0)).name == "missing-module"


def missing(remedy, module: str, evidence: Evidence | None = None) -> str:  # type: ignore[no-untyped-def]
    found = remedy(f"{HEAD}ModuleNotFoundError: No module named {module}", evidence=evidence)
    return f"{found.meaning}; {found.advice}"


@pytest.mark.parametrize(
    ("module", "name"),
    [("Bio", "biopython"), ("git", "GitPython"), ("google.cloud.storage", "google-cloud-storage"), ("timm", "timm")],
)
def test_packages_that_pip_knows(remedy, module: str, name: str) -> None:  # type: ignore[no-untyped-def]
    words = f"the package {module} is not installed in this Python; {sys.executable} -m pip install {name}"
    assert missing(remedy, f"'{module}'") == words


@pytest.mark.parametrize(
    ("module", "words"),
    [
        (
            "'trainer_parts'",
            "trainer_parts was not found in this Python, and no file of that name in this folder; is it",
        ),
        ("'apex'", "PyPI's apex is another program"),
        (
            "torch.nn.__main__; 'torch.nn' is a package and cannot be directly executed",
            "-m torch.nn.MODULE names a file",
        ),
        ("'PIL.nothing'", "is installed, and has no PIL.nothing"),
        ("'torch._six'", "is installed, and has no torch._six"),
        ("'_sqlite3'", "Python was built without it"),
        ("'random.nothing'; 'random' is not a package", "random is one file, not a folder of modules"),
    ],
)
def test_modules_that_pip_cannot_get(remedy, module: str, words: str) -> None:  # type: ignore[no-untyped-def]
    said = missing(remedy, module)
    assert words in said
    assert "pip install" not in said


def test_a_module_of_the_users_is_looked_for(remedy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.chdir(tmp_path)
    for name in ("project/tools/train.py", "project/mine/nets.py", "project/tools/lib/deep/losses.py", "here.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    (tmp_path / "project/tools/datasets").mkdir()
    evidence = Evidence(script=tmp_path / "project/tools/train.py")
    assert "PYTHONPATH=project python" in missing(remedy, "'mine.nets'", evidence)
    assert "PYTHONPATH=project/tools/lib/deep python" in missing(remedy, "'losses'", evidence)
    assert "PYTHONPATH=. python" in missing(remedy, "'here'", evidence)
    assert "project/tools/lib is there, and has no nothing" in missing(remedy, "'lib.nothing'", evidence)
    assert "pip install datasets" in missing(remedy, "'datasets'", evidence), "a folder of data is no package"
    (tmp_path / "project/tools/random.py").write_text("")
    hidden = missing(remedy, "'random.x'; 'random' is not a package", evidence)
    assert "project/tools/random.py hides the module that you meant" in hidden


def test_a_file_that_hides_a_module(remedy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.chdir(tmp_path)
    for name in ("queue.py", "rich.py", "mine.py", "train.py", "statistics.py"):
        (tmp_path / name).write_text("")
    evidence = Evidence(script=tmp_path / "train.py")

    def found(text: str) -> tuple[str, str]:
        known = remedy(HEAD + text, evidence=evidence)
        return ("", "") if known is None else (known.meaning, known.advice)

    hides = "queue.py has the name of Python's own module queue, and hides it", "rename queue.py"
    assert found("ImportError: cannot import name 'Queue' from 'queue' (/x/queue.py)") == hides
    assert found("AttributeError: partially initialized module 'queue' has no attribute 'Queue'") == hides
    package = "AttributeError: module 'rich.console' has no attribute 'Console'"
    assert found(package)[1] == "rename rich.py if you meant that package"
    assert "hides" not in found("AttributeError: module 'mine' has no attribute 'x'")[0]
    # A file that fails by itself: only where a library imports it.
    library, own = '  File "/x/lib/site-packages/y.py", line 1, in <module>\n', f'  File "{tmp_path}/statistics.py"'
    script = f'  File "{tmp_path}/train.py", line 1, in <module>\n'
    failed = f"{own}, line 1, in <module>\nKeyError: 'x'"
    assert found(script + library + failed)[1] == "rename statistics.py"
    assert found(script + failed)[0] == ""


def test_names_that_a_module_does_not_have(remedy) -> None:  # type: ignore[no-untyped-def]
    head = HEAD + "ImportError: cannot import name 'x' from "
    assert "incompatible versions" in remedy(head + "'torch.nn' (/usr/lib/site-packages/torch/nn/__init__.py)").meaning
    assert remedy(head + "'mine' (/home/me/mine.py)").meaning == "/home/me/mine.py has no x"
    assert remedy(head + "'collections' (/usr/lib/python3.13/collections/__init__.py)").meaning.startswith(
        "collections"
    )


def test_remedies_name_options_of_the_tool_that_ran(remedy) -> None:  # type: ignore[no-untyped-def]
    full = "OSError: [Errno 28] No space left on device: 'a'"
    bus = "RuntimeError: DataLoader worker (pid 91) is killed by signal: Bus error"
    late = "RuntimeError: Timed out waiting 1800000ms for recv operation"
    ours, theirs = Evidence(trainer=True), Evidence(on_gpu=False)
    assert "--out-dir" in remedy(HEAD + full, evidence=ours).advice
    assert "--out-dir" not in remedy(HEAD + full, evidence=theirs).advice
    assert "--num-workers 0" in remedy(HEAD + bus, evidence=ours).advice
    assert "(num_workers=0)" in remedy(HEAD + bus, evidence=theirs).advice
    assert "gpu_topology verify" in remedy(HEAD + late, evidence=ours).advice
    assert "GPU" not in remedy(HEAD + late, evidence=theirs).meaning + remedy(HEAD + late, evidence=theirs).advice


def test_packages_that_pip_calls_otherwise(remedy) -> None:  # type: ignore[no-untyped-def]
    text = remedy(HEAD + "ModuleNotFoundError: No module named 'yaml'").advice
    assert text == f"{sys.executable} -m pip install PyYAML"


def test_a_module_beside_the_user(remedy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    assert "PYTHONPATH=." in remedy(HEAD + "ModuleNotFoundError: No module named 'mine.parts'").advice


def test_patterns_are_valid() -> None:
    for known in TABLE:
        re.compile(known.pattern)
