"""A command as its real parser sees it, without running it."""

from __future__ import annotations

import argparse
import io
import os
import runpy
import sys
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout, suppress
from importlib import import_module
from typing import Any, NoReturn
from unittest import mock

from ddp_launch.cli import options
from ddp_launch.main import COMMANDS
from ddp_train.config import parse as config
from tests.docs.pages import ROOT

TRAINER = ("ddp_train/main.py", "ddp_train.main", "ddp_train")
LAUNCHER = ("launch.py", "ddp_launch")
LAUNCHES = ("ddp_train.tune", "benchmarks.training_run")
"""What follows -- goes to the launcher."""
PACKAGES = ("ddp_train", "gpu_topology", "benchmarks", "ddp_launch")
INSTALLED = {"ddp-launch": "ddp_launch", "ddp-train": "ddp_train", "gpu-topology": "gpu_topology"}
"""The commands that the wheel installs, and the package that each one runs."""


class Wrong(Exception):
    """What the parser says against a command."""


class _Parsed(BaseException):
    """Ends a program after its parser. Not an Exception, so that nothing catches it on the way."""


def is_ours(words: Sequence[str]) -> bool:
    """Whether a command runs a program of this repository."""
    if words[0] == "torchrun" or words[0] in INSTALLED:
        return True
    if words[0] == "bash":
        return words[1].startswith("scripts/")
    if words[0] != "python" or len(words) == 1:
        return False
    if words[1] == "-m":
        return words[2].partition(".")[0] in PACKAGES
    return words[1] in (LAUNCHER[0], TRAINER[0])


def check(words: Sequence[str]) -> None:
    """Let a command's own parser read it. Errors: Wrong."""
    if words[0] in INSTALLED:
        words = ["python", "-m", INSTALLED[words[0]], *words[1:]]
    if words[0] == "bash":
        if not (ROOT / words[1]).is_file():
            raise Wrong(f"there is no {words[1]}")
        if words[1] == "scripts/run.sh":
            _launcher(("--auto", *words[2:]))
    elif words[0] == "torchrun":
        _torchrun(words[1:])
    else:
        _python(*(words[2:] if words[1] == "-m" else words[1:]))


def _python(program: str, *words: str) -> None:
    if program in LAUNCHER and words[:1] in (("report",), ("compare",)):
        _command(*words)
    elif program in LAUNCHER:
        _launcher(words)
    elif program in TRAINER:
        _trainer(words)
    else:
        _module(program, words)


def _command(name: str, *words: str) -> None:
    """A command of the launcher's that is no run, ended by its parser."""
    parse = argparse.ArgumentParser.parse_args

    def parse_and_end(self: argparse.ArgumentParser, *args: Any, **kwargs: Any) -> NoReturn:
        parse(self, *args, **kwargs)
        raise _Parsed

    said = io.StringIO()
    with suppress(_Parsed), mock.patch.object(argparse.ArgumentParser, "parse_args", parse_and_end):
        with redirect_stderr(said):
            import_module(COMMANDS[name]).run(words)
        raise Wrong(said.getvalue())


def _trainer(words: Sequence[str]) -> None:
    try:
        with redirect_stdout(io.StringIO()):
            config.parse(words)
    except config.UserError as error:
        raise Wrong(str(error)) from None
    except SystemExit as end:
        _no_failure(end, "")


def _launcher(words: Sequence[str]) -> None:
    try:
        with redirect_stdout(io.StringIO()):
            found = options.parse(words)
    except options.OptionError as error:
        raise Wrong(str(error)) from None
    except SystemExit as end:
        _no_failure(end, "")
        return
    if found.program.kind == "trainer":
        _trainer(found.program.args)


def _torchrun(words: Sequence[str]) -> None:
    from torch.distributed.run import get_args_parser

    said = io.StringIO()
    try:
        with redirect_stderr(said):
            found = get_args_parser().parse_args(list(words))
    except SystemExit as end:
        _no_failure(end, said.getvalue())
        return
    if found.module and found.training_script.partition(".")[0] in PACKAGES:
        check(["python", "-m", found.training_script, *found.training_script_args])
    elif found.training_script in TRAINER:
        _trainer(found.training_script_args)


def _module(name: str, words: Sequence[str]) -> None:
    """`python -m NAME WORDS`, ended by the first parser that has read its words."""
    if name in LAUNCHES and "--" in words:
        _launcher(words[words.index("--") + 1 :])
    parse, parse_known = argparse.ArgumentParser.parse_args, argparse.ArgumentParser.parse_known_args
    inside = False

    def parse_and_end(self: argparse.ArgumentParser, *args: Any, **kwargs: Any) -> NoReturn:
        nonlocal inside
        inside = True
        parse(self, *args, **kwargs)
        raise _Parsed

    def parse_known_and_end(self: argparse.ArgumentParser, *args: Any, **kwargs: Any) -> Any:
        nonlocal inside
        if inside:
            return parse_known(self, *args, **kwargs)
        inside = True
        _, others = parse_known(self, *args, **kwargs)
        _trainer(others)  # a program that leaves words over hands them to the trainer's options
        raise _Parsed

    said = io.StringIO()
    try:
        with (
            mock.patch.object(argparse.ArgumentParser, "parse_args", parse_and_end),
            mock.patch.object(argparse.ArgumentParser, "parse_known_args", parse_known_and_end),
            mock.patch.object(sys, "argv", [name, *words]),
            mock.patch.dict(os.environ),
            redirect_stderr(said),
            redirect_stdout(io.StringIO()),
        ):
            _run(name)
    except _Parsed:
        return
    except SystemExit as end:
        _no_failure(end, said.getvalue())
        return
    except ImportError as error:
        raise Wrong(f"python -m {name}: {error}") from None
    raise Wrong(f"python -m {name} read no arguments: {said.getvalue()}")


def help_of(name: str, *words: str) -> str:
    """What `python -m NAME WORDS --help` prints."""
    said = io.StringIO()
    with mock.patch.object(sys, "argv", [name, *words, "--help"]), redirect_stdout(said), suppress(SystemExit):
        _run(name)
    return said.getvalue()


def _run(name: str) -> None:
    """`python -m NAME` in this process, as if no test had imported that module before."""
    held = {each: sys.modules.get(each) for each in (name, f"{name}.__main__")}
    held = {each: module for each, module in held.items() if module is not None and not hasattr(module, "__path__")}
    for each in held:
        del sys.modules[each]
    try:
        runpy.run_module(name, run_name="__main__", alter_sys=False)
    finally:
        sys.modules |= held


def _no_failure(end: SystemExit, said: str) -> None:
    if end.code:
        raise Wrong(said.strip() or f"exit status {end.code}")
