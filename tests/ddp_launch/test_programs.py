"""Programs that are not Python, and how much of the ranks is shown. Real runs."""

from __future__ import annotations

import re
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import pytest

from ddp_core.errors import OptionError
from ddp_launch.cli.options import Program
from ddp_launch.failure.missing_module import explain
from ddp_launch.plan.command import chooses_backend
from ddp_launch.run.program_check import check_program
from tests.docs.pages import Page

PERL = '#!/usr/bin/perl\nprint "$ENV{RANK} @ARGV\\n";\n'


@pytest.mark.parametrize(
    ("name", "text", "mode", "kind", "words"),
    [
        ("a.py", "#!/usr/bin/env python3\n", 0o755, "script", ["a.py"]),
        ("a", "#!/usr/bin/env -S python3.11 -u\n", 0o755, "script", ["a"]),
        ("a.py", "#! /usr/bin/pypy3\n", 0o644, "script", ["a.py"]),
        ("a.py", "import this\n", 0o644, "script", ["a.py"]),
        ("a.py", "#!/usr/bin/env no-such-runner\n", 0o755, "script", ["a.py"]),
        ("run.sh", "#!/bin/bash -eu\n", 0o755, "executable", ["./run.sh"]),
        ("run.sh", "#!/bin/bash -eu\n", 0o644, "executable", ["/bin/bash", "-eu", "run.sh"]),
        ("run.sh", "echo\n", 0o755, "executable", ["sh", "run.sh"]),
        ("run.bash", "echo\n", 0o644, "executable", ["bash", "run.bash"]),
        ("run", "#!/usr/bin/env -S X=1 perl -w\n", 0o644, "executable", ["/usr/bin/env", "-S X=1 perl -w", "run"]),
        ("run.pl", PERL, 0o755, "executable", ["./run.pl"]),
        ("a.out", "\x7fELF", 0o755, "executable", ["./a.out"]),
    ],
)
def test_a_file_runs_in_its_language(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, text: str, mode: int, kind: str, words: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path(name).write_text(text)
    Path(name).chmod(mode)
    made = check_program(Program("script", name, ("--its", "own")))
    assert (made.kind, [made.name, *made.args]) == (kind, [*words, "--its", "own"])


@pytest.mark.parametrize(
    ("kind", "name", "text", "mode", "words"),
    [
        ("script", "a.out", "\x7fELF", 0o644, "permission denied, it is not executable: chmod +x a.out"),
        ("script", "run", "#!/no/such/shell\n", 0o755, "its first line asks for /no/such/shell, which does not exist"),
        ("script", "run.sh", "#!/bin/sh\r\necho\r\n", 0o755, "'run.sh': its lines end as on Windows"),
        ("executable", "./run.sh", "#!/bin/sh\r\necho\r\n", 0o755, "sed -i 's/\\r$//' ./run.sh"),
        ("script", "train.ipynb", '{"cells": []}', 0o644, "is a notebook: jupyter nbconvert --to script"),
        ("executable", "run.sh", "#!/bin/sh\n", 0o644, "permission denied, it is not executable: chmod +x run.sh"),
        ("executable", "run.sh", "#!/bin/sh\n", 0o755, "the file in this folder is ./run.sh"),
        ("executable", "./run.sh", "#!/bin/sh\n", 0o644, "permission denied"),
    ],
)
def test_what_cannot_be_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: Any, name: str, text: str, mode: int, words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path(name).write_text(text)
    Path(name).chmod(mode)
    with pytest.raises(OptionError) as caught:
        check_program(Program(kind, name, ()))
    assert words in str(caught.value)


class Editable:
    """What setuptools puts on sys.meta_path for `pip install -e`; its own name differs from release to release."""

    @classmethod
    def find_spec(cls, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        return ModuleSpec(name, None, origin="/src/its_own/__init__.py") if name == "its_own" else None


def test_a_module_that_is_installed_to_be_edited(monkeypatch: pytest.MonkeyPatch) -> None:
    program = Program("module", "its_own.train", ())
    with pytest.raises(OptionError, match="no module named 'its_own'"):
        check_program(program)
    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path, Editable])
    assert check_program(program) is program
    assert explain("its_own.lost", None, own_python=True)[0] == "its_own is installed, and has no its_own.lost"
    with pytest.raises(OptionError, match="no module named 'not_mine'"):
        check_program(Program("module", "not_mine", ()))


def test_a_shell_script_and_one_line_about_it(launcher: Any) -> None:
    launcher.script(PERL, "run.pl").chmod(0o755)
    done = launcher.run("--cpu", "--quiet", "--local-ranks-filter", "1", "run.pl", "a b")
    assert (done.returncode, done.stdout) == (0, "[rank 1] 1 a b\n")
    assert done.stderr == "CPU, 2 ranks: ./run.pl 'a b'\n"
    launcher.script("echo $0 $RANK", "no-first-line").chmod(0o755)
    done = launcher.run("--cpu", "--tee", "--log-line-prefix-template", "<${rank}>", "--no-python", "./no-first-line")
    assert sorted(done.stdout.splitlines()) == ["<0>./no-first-line 0", "<1>./no-first-line 1"]


LINES = """
torchrun --nproc_per_node=2 --rdzv_backend c10d --rdzv_endpoint=localhost:0 --local-ranks-filter 0 --role rank --tee 3 -m package.train --job.config x
torchrun --standalone --redirect=3 -m --nproc_per_node=2 --max_restarts=0 package.train --job.config x
-m torch.distributed.launch --nnodes=1 --node_rank=0 --nproc_per_node=2 --master_port=29501 --use_env package/train.py --job.config x
""".strip().splitlines()  # noqa: E501


@pytest.mark.parametrize("line", LINES)
def test_pasted_torchrun_lines_run(launcher: Any, line: str) -> None:
    """tests/ddp_launch/cli/test_options.py has more of them."""
    launcher.script(
        "import os, sys\nprint(os.environ['RANK'], os.environ['WORLD_SIZE'], *sys.argv[1:])", "package/train.py"
    )
    done = launcher.run("--cpu", *line.split())
    assert (done.returncode, done.stdout.splitlines()[0]) == (0, "0 2 --job.config x"), done.stderr


@pytest.mark.parametrize(
    ("text", "chooses"),
    [
        ("init_process_group('mpi')", True),
        ("dist.init_process_group(args.b)", True),
        ("setup(backend=which)", True),
        ("init_process_group()", False),
        ("print()", False),
    ],
)
def test_the_header_claims_no_backend_that_the_program_chooses(tmp_path: Path, text: str, chooses: bool) -> None:
    (tmp_path / "a.py").write_text(text)
    assert chooses_backend(Program("script", str(tmp_path / "a.py"), ())) == chooses


def test_a_screen_without_unicode(launcher: Any) -> None:
    """LC_ALL=C: no \\u2502 in front of a traceback's lines."""
    script = launcher.script("raise ValueError('no')")
    done = launcher.run("--cpu", str(script), LC_ALL="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0", LANG="C")
    assert "  | ValueError: no" in done.stderr
    assert not re.search(r"\\u\d|[^\x00-\x7f]", done.stderr)


def test_the_script_of_the_page_for_beginners(launcher: Any) -> None:
    (text,) = [block for language, block in Page("docs/getting-started.md").blocks if language == "python"]
    launcher.script(text, "train.py")
    done = launcher.run("--cpu", "--quiet", "train.py")
    assert (done.returncode, done.stdout) == (0, "loss 0.0000 on 2 ranks\n"), done.stderr
    done = launcher.run("--cpu", "--quiet", "train.py", BREAK="1")
    assert done.returncode == 1 and "rank 1 failed first" in done.stderr
    assert "ValueError: a mistake on purpose" in done.stderr
