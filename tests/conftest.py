"""Fixtures for every test: a stand-in for the NVIDIA driver that the real nvidia-ml-py loads."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, NoReturn

import pytest

from ddp_launch.run.signals import ENDING
from tests.fake_nvml.machine import to_lines

SOURCE = Path(__file__).parent / "fake_nvml" / "nvml.c"

FakeDriver = Callable[[dict[str, Any] | str], dict[str, str]]
Trainer = Callable[..., subprocess.CompletedProcess[str]]


def pytest_addoption(parser: pytest.Parser) -> None:
    """--whole: the fault tests as often as they were specified, not only the few that fit into a usual run."""
    parser.addoption("--whole", action="store_true", help="run the fault tests at their full counts (an hour or so)")


def pytest_configure(config: pytest.Config) -> None:
    """Ctrl-C and a hang-up mean something again where they are ignored, as behind nohup or in a shell's background.

    The processes of a run take over what is ignored, and the launcher keeps to it: tests that interrupt would fail.
    """
    for number, usual in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, usual)


SLOW = (
    "integration/cluster",
    "ddp_train/techniques",
    "faults",
    "integration",
    "ddp_launch",
    "gpu_topology/verify",
    "ddp_train/tune",
)
"""Folders of tests that start processes or train much: one that mostly waits, then the one with the longest file."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The slow folders first: a long file at the end would leave all workers but one idle."""
    here = Path(__file__).parent

    def place(item: pytest.Item) -> int:
        folder = f"{item.path.parent.relative_to(here)}/"
        return next((at for at, name in enumerate(SLOW) if folder.startswith(f"{name}/")), len(SLOW))

    items.sort(key=place)


@pytest.fixture(scope="session", autouse=True)
def a_rank_in_trouble_does_not_end_the_tests() -> Iterator[None]:
    """The trainer leaves its process at once then, without a word of pytest's: here it raises SystemExit instead."""
    here, leave = os.getpid(), os._exit

    def stay(status: int) -> NoReturn:
        if os.getpid() == here:
            raise SystemExit(status)
        leave(status)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "_exit", stay)
        yield


@pytest.fixture(scope="session", autouse=True)
def one_thread_of_torch() -> Iterator[None]:
    """A trainer inside a test would take all cores, and the threads of two workers wait for one another.

    The same bits as those of the processes that tests start with OMP_NUM_THREADS=1.
    """
    if "torch" not in sys.modules:
        yield
        return
    import torch

    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        for module in ("ddp_train.assemble.resolve_options", "ddp_train.evaluate"):
            patch.setattr(f"{module}.set_threads", lambda ranks, device: None)
        yield


@pytest.fixture(autouse=True)
def signal_handlers_restored() -> Iterator[None]:
    """A program's `main` that runs inside a test may leave its own behind."""
    earlier = {number: signal.getsignal(number) for number in ENDING}
    yield
    for number, handler in earlier.items():
        if handler is not None:
            signal.signal(number, handler)


def built(source: Path, folder: Path, name: str) -> Path:
    """The folder with a stand-in for a library of the driver, built by the system's C compiler."""
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        pytest.skip("no C compiler (cc, gcc, clang): the stand-in for the driver cannot be built")
    # Through a hidden name, so that a run in parallel never loads half a library.
    built = folder / ".building.so"
    command = [compiler, "-std=c11", "-shared", "-fPIC", "-Wall", "-Wextra", "-Werror", "-o", str(built), str(source)]
    subprocess.run(command, check=True)
    built.rename(folder / name)
    return folder


@pytest.fixture(scope="session")
def fake_nvml_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the stand-in for NVML, built once per run."""
    return built(SOURCE, tmp_path_factory.mktemp("fake_nvml"), "libnvidia-ml.so.1")


@pytest.fixture(scope="session")
def fake_cuda_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the stand-in for libcuda, built once per run."""
    source = Path(__file__).parent / "fake_cuda" / "cuda.c"
    return built(source, tmp_path_factory.mktemp("fake_cuda"), "libcuda.so.1")


@pytest.fixture
def fake_driver(fake_nvml_library: Path, tmp_path: Path) -> FakeDriver:
    """`fake_driver(machine)` -> environment variables for a subprocess in which the driver finds that machine.

    A machine is a dict, or the name of a file in tests/fake_nvml (see machine.py): "a100_a5000_t400",
    "rtx3090_2x_nvlink", "h100_8x_nvswitch", "no_devices". Use it as `env={**os.environ, **fake_driver(...)}`.
    """

    def install(machine: dict[str, Any] | str) -> dict[str, str]:
        number = len(list(tmp_path.glob("machine-*.txt")))
        description = tmp_path / f"machine-{number}.txt"
        description.write_text(to_lines(machine))
        search = [str(fake_nvml_library), *filter(None, [os.environ.get("LD_LIBRARY_PATH")])]
        return {"LD_LIBRARY_PATH": ":".join(search), "FAKE_NVML_MACHINE": str(description)}

    return install


@pytest.fixture
def trainer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Trainer:
    """`trainer(*options, cwd=...)`: the trainer on one rank in this process, which has torch already; in an empty
    folder unless `cwd` says otherwise; both streams as text."""
    from ddp_train.main import main

    def run(*options: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
        cwd = cwd or tmp_path / "cwd"
        cwd.mkdir(exist_ok=True)
        monkeypatch.chdir(cwd)
        capfd.readouterr()
        try:
            status = main(options)
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else 1
        return subprocess.CompletedProcess(options, status, *capfd.readouterr())

    for name in ("CUDA_VISIBLE_DEVICES", "RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    # As tests/integration starts it in processes of its own, so that the results are the same bits.
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return run


@pytest.fixture
def locks_as_over_nfs(monkeypatch: pytest.MonkeyPatch) -> None:
    """flock(2), "NFS details": LOCK_EX needs a file that is open for writing."""
    lock = fcntl.flock

    def lock_over_nfs(file: IO[Any], operation: int) -> None:
        if fcntl.fcntl(file, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        lock(file, operation)

    monkeypatch.setattr(fcntl, "flock", lock_over_nfs)
