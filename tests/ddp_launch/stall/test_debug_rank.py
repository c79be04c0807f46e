"""`--debug-rank`: one rank starts under debugpy. The test replaces debugpy with a module of its own."""

from __future__ import annotations

from typing import Any

DEBUGPY = """
import os, runpy, sys
print("debugpy", os.environ["RANK"], sys.argv[1:4], flush=True)
assert "DDP_LAUNCH_DEBUG" not in os.environ
sys.argv = sys.argv[4:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_one_rank_starts_under_debugpy(launcher: Any) -> None:
    launcher.script(DEBUGPY, "modules/debugpy/__main__.py")
    launcher.script("", "modules/debugpy/__init__.py")
    launcher.script("import os, sys\nprint(os.environ['RANK'], sys.argv, __name__)")
    path = str(launcher.folder / "modules")
    done = launcher.run("--cpu", "--tee", "--debug-rank", "1", "program.py", "a", PYTHONPATH=path)
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.splitlines()) == [
        "0 ['program.py', 'a'] __main__",
        "[rank 1] 1 ['program.py', 'a'] __main__",
        "[rank 1] debugpy 1 ['--listen', '127.0.0.1:5678', '--wait-for-client']",
    ]
    assert "rank 1 starts when a debugger connects to 127.0.0.1:5678" in " ".join(done.stderr.split())


def test_a_shell_program_has_no_debugger(launcher: Any) -> None:
    done = launcher.run("--cpu", "--debug-rank", "0", "--no-python", "sh")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert done.stderr.startswith("error: --debug-rank starts a rank under Python's debugger")
