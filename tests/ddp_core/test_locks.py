"""Locks that name their owner."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from ddp_core.locks import open_lock_file, owner, try_lock
from tests.integration.conftest import ROOT

HOLDER = """
import sys
from pathlib import Path
from ddp_core.locks import open_lock_file, try_lock
file = open_lock_file(Path(sys.argv[1]))
print(try_lock(file), flush=True)
sys.stdin.read()
"""


def test_another_process_is_named_and_its_end_frees_the_lock(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    command = [sys.executable, "-c", HOLDER, str(path)]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == "True\n"
        file = open_lock_file(path)
        assert not try_lock(file)
        assert owner(file) == holder.pid
        holder.kill()
        holder.wait(10)
        assert owner(file) is None
        assert try_lock(file)
        os.close(file)


def test_the_file_is_the_users_alone_and_never_a_link(tmp_path: Path) -> None:
    os.close(open_lock_file(tmp_path / "lock"))
    assert (tmp_path / "lock").stat().st_mode & 0o777 == 0o600
    (tmp_path / "link").symlink_to(tmp_path / "lock")
    try:
        open_lock_file(tmp_path / "link")
    except OSError:
        return
    raise AssertionError("a link was followed")
