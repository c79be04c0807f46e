"""How the process of a loop of the user's own ends: its exit handlers run, its status is right, no thread is left."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ddp_train.assemble.resolve_options import set_threads
from ddp_train.distributed.process_group import Ranks
from tests.ranks import ROOT, run_ranks
from tests.warm import WarmPopen

PROGRAM = Path(__file__).with_name("program.py")
HANDLED = "exit handler"


def end_of(folder: Path, how: str, ranks: int) -> tuple[str, list[str]]:
    """What the failure says of the ranks' statuses, empty after a success; what each rank has printed."""
    failure = ""
    try:
        run_ranks(ranks, PROGRAM, str(folder / "run"), how, folder=folder)
    except AssertionError as error:
        failure = str(error)
    return failure, [(folder / f"output-of-rank-{rank}.txt").read_text() for rank in range(ranks)]


def test_after_the_block_no_thread_of_the_group_is_left_that_could_abort_the_process(tmp_path: Path) -> None:
    failure, printed = end_of(tmp_path, "well", 2)
    assert not failure and all(HANDLED in one for one in printed)


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("error", "ValueError: of the user's own"),
        ("mistake", "run.keep() comes before run.epochs(...)"),
        ("caught", "caught"),
    ],
)
def test_a_rank_that_fails_alone_runs_its_exit_handlers(tmp_path: Path, how: str, words: str) -> None:
    _, printed = end_of(tmp_path, how, 2)
    assert words in printed[1] and HANDLED in printed[1] and "terminate called" not in printed[1]


def test_alone_the_status_is_the_programs_own(tmp_path: Path) -> None:
    for how, status in {"status": 5, "signal": 143, "mistake": 2, "error": 1}.items():
        command = [sys.executable, str(PROGRAM), str(tmp_path / how), how]
        env = {**os.environ, "PYTHONPATH": str(ROOT)}
        streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        process = WarmPopen(command, cwd=ROOT, env=env, **streams)
        output, errors = process.communicate(timeout=240)
        assert process.returncode == status, (how, errors)
        assert HANDLED in str(output), how


def test_the_launchers_stall_report_names_a_rank_of_a_loop_that_hangs(
    tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    if not request.config.getoption("--whole"):
        pytest.skip("seconds of waiting; any program's stall is tested with the launcher: --whole")
    options = ["--cpu", "--nproc", "2", "--stall-report", "4", "--stall-kill", "8"]
    command = [sys.executable, str(ROOT / "launch.py"), *options, str(PROGRAM), str(tmp_path / "run"), "hang"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert "rank 1 hung" in done.stderr and "program.py:" in done.stderr and done.returncode == 137, done.stderr


def test_threads_that_the_program_has_set_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    before, own = torch.get_num_threads(), 2 * (os.cpu_count() or 1) + 1
    try:
        torch.set_num_threads(own)
        set_threads(Ranks(local_world_size=2), torch.device("cpu"))
        assert torch.get_num_threads() == own
        torch.set_num_threads(os.cpu_count() or 1)
        set_threads(Ranks(local_world_size=1000), torch.device("cpu"))
        assert torch.get_num_threads() == 1, "what torch itself sets is not the program's"
    finally:
        torch.set_num_threads(before)
