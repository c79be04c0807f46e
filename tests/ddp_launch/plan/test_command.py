"""The argument lists of a decided run."""

from __future__ import annotations

import argparse
import dataclasses
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from ddp_launch.cli.options import Program
from ddp_launch.cli.value_types import Tee
from ddp_launch.cluster.cluster import Cluster
from ddp_launch.plan.command import Job, shell_line, torchrun, worker_argv

SCRIPT = Program("script", "a.py", ("--x", "1"))


def command(program: Program, **changes: object) -> list[str]:
    job = Job(worker=worker_argv(program), nproc_per_node=2)
    words = torchrun(dataclasses.replace(job, **changes), program)  # type: ignore[arg-type]
    start = next(i for i, word in enumerate(words) if word.startswith("--nproc-per-node"))
    return list(words[start:])


def test_one_node_needs_no_host_name() -> None:
    assert command(SCRIPT) == ["--nproc-per-node=2", "--standalone", "--local-addr=127.0.0.1", "a.py", "--x", "1"]


def test_several_nodes() -> None:
    two = Cluster(nnodes=(2, 2), endpoint="h:1", node_rank=0, first=True, rdzv_timeout_s=60)
    words = command(SCRIPT, cluster=two, max_restarts=3)
    assert words[1:4] == ["--nnodes=2", "--node-rank=0", "--rdzv-backend=c10d"]
    assert words[4:7] == ["--rdzv-endpoint=h:1", "--rdzv-id=ddp-launch", "--rdzv-conf=join_timeout=60,is_host=1"]
    assert "--max-restarts=3" in words
    other = Cluster(nnodes=(1, 4), endpoint="h:1", hosts_store=False, address="10.0.0.2")
    assert {"--nnodes=1:4", "--local-addr=10.0.0.2"} < set(command(SCRIPT, cluster=other))
    assert "--rdzv-conf=join_timeout=600,is_host=0" in command(SCRIPT, cluster=other)
    waits = dataclasses.replace(two, last_call_s=1)
    assert "--rdzv-conf=join_timeout=60,is_host=1,last_call_timeout=1" in command(SCRIPT, cluster=waits)
    unknown = Cluster(nnodes=(2, 2), endpoint="h:1")
    assert "--rdzv-conf=join_timeout=600" in command(SCRIPT, cluster=unknown)


def test_kinds_of_programs() -> None:
    assert command(Program("module", "a.b", ("-x",)))[-3:] == ["-m", "a.b", "-x"]
    assert command(Program("executable", "./a", ()))[-2:] == ["--no-python", "./a"]
    assert worker_argv(Program("module", "a.b", ("-x",))) == (sys.executable, "-u", "-m", "a.b", "-x")
    assert worker_argv(Program("executable", "./a", ("b",))) == ("./a", "b")


def test_trainer_by_a_path_that_works_from_here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    root = Path(__file__).parents[3]
    monkeypatch.chdir(root)
    assert worker_argv(Program("trainer", "", ()))[2] == "ddp_train/main.py"
    monkeypatch.chdir(tmp_path)
    assert worker_argv(Program("trainer", "", ()))[2] == str(root / "ddp_train" / "main.py")


def test_torchs_own_parser_leaves_arguments_alone() -> None:
    """What torchrun makes of the command is what the ranks get from the launcher."""
    from torch.distributed.elastic.utils import macros
    from torch.distributed.run import parse_args

    for args in (("--", "a"), ("a", "--", "b"), ("--help",), ("--nproc-per-node", "9"), ("$$", "${local_rank}", "a b")):
        parsed = parse_args(command(Program("script", "a.py", args)))
        assert parsed.training_script == "a.py"
        assert macros.substitute(parsed.training_script_args, "0") == list(args)


@pytest.mark.parametrize("mode", ["node", "socket", "exclusive", "core-complex"])
def test_torchruns_own_parser_knows_the_numa_modes(mode: str) -> None:
    from torch.distributed.run import parse_args

    assert parse_args(command(SCRIPT, numa_binding=mode)).numa_binding == mode
    assert parse_args(command(SCRIPT)).numa_binding is None


def test_what_the_user_said_about_output_and_grace_time() -> None:
    """In torchrun's spelling, as its own parser reads it."""
    from torch.distributed.run import parse_args

    def parsed(**changes: object) -> argparse.Namespace:
        found: argparse.Namespace = parse_args(command(SCRIPT, **changes))
        return found

    assert parsed(grace=5).shutdown_timeout == 5
    assert (parsed().shutdown_timeout, parsed().tee, parsed().log_dir) == (None, "0", None)
    assert parsed(tee=Tee(3)).tee == "3"
    assert parsed(tee=Tee(0, ((1, 3),))).tee == "0:3,1:3"
    logs = parsed(log_dir="my logs", tee=Tee(0, ((0, 1),)))
    assert (logs.log_dir, logs.redirects, logs.tee) == ("my logs", "3", "0:1")
    shown = parsed(tee=Tee(3, only=frozenset({1, 0}), prefix="<${rank}>"))
    assert (shown.local_ranks_filter, shown.log_line_prefix_template) == ("0,1", "<${rank}>")


def test_an_older_torchrun_is_not_given_what_it_does_not_know(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """torch 2.11's torchrun has no --shutdown-timeout."""
    text = tmp_path / "torch" / "distributed" / "run.py"
    text.parent.mkdir(parents=True)
    (tmp_path / "torch" / "__init__.py").touch()
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    for known, expected in (("--shutdown-timeout", ["--shutdown-timeout=5"]), ("--monitor-interval", [])):
        text.write_text(f'parser.add_argument("{known}")\n')
        assert [word for word in command(SCRIPT, grace=5) if "shutdown" in word] == expected


def test_torchrun_of_this_python(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Not one beside it that another Python's pip has made, as in an environment that was copied."""
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    words = torchrun(Job(worker=worker_argv(SCRIPT), nproc_per_node=1), SCRIPT)
    assert words[:3] == (sys.executable, "-m", "torch.distributed.run")
    beside = tmp_path / "torchrun"
    for python, first in (("/other/bin/python", sys.executable), (sys.executable, str(beside))):
        beside.write_text(f"#!{python}\nimport torch\n")
        beside.chmod(0o755)
        assert torchrun(Job(worker=worker_argv(SCRIPT), nproc_per_node=1), SCRIPT)[0] == first
    monkeypatch.setenv("PATH", str(tmp_path))
    assert torchrun(Job(worker=worker_argv(SCRIPT), nproc_per_node=1), SCRIPT)[0] == "torchrun"


def test_a_shell_takes_variables_away() -> None:
    line = shell_line([("A", "x y")], ["sh", "-c", 'echo "$A:${B-none}:${C-none}"'], ["B", "C"])
    environ = {"PATH": os.defpath, "A": "1", "B": "2", "C": "3"}
    assert subprocess.run(["sh", "-c", line], env=environ, capture_output=True, text=True).stdout == "x y:none:none\n"


def test_shell_line_is_read_back_by_a_shell() -> None:
    line = shell_line([("A", ""), ("B", "x y")], ["a b", "ü", "$HOME", "it's", "--"])
    assert shlex.split(line) == ["A=", "B=x y", "a b", "ü", "$HOME", "it's", "--"]
    assert line.startswith("A='' B='x y' ")
