"""Starts Python programs that import torch without waiting for the import: forked from a server that has done it.

`WarmPopen([sys.executable, PROGRAM, ...])`, or with `-m MODULE`, is subprocess.Popen, and the program is a process of
its own as ever: a child of this one, with its own session, environment, folder and streams. Two things differ: /proc
shows the environment and the command line of the server, and the dynamic linker read its variables (LD_...) there.
"""

from __future__ import annotations

import ctypes
import functools
import gc
import importlib
import inspect
import io
import json
import os
import runpy
import socket
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
IMPORTS = (
    "torch.distributed.elastic.agent.server.local_elastic_agent",
    "torch.distributed.elastic.multiprocessing",
    "torch.distributed.elastic.rendezvous.registry",
    "torch.numa.binding",
    "psutil",
    "jsonargparse",
    "rich.console",
    "rich.table",
    "yaml",
)
"""What the launcher imports of others; torch itself is all that most programs need."""
LARGEST_REQUEST = 1 << 17
SUBREAPER = 36
"""PR_SET_CHILD_SUBREAPER of prctl(2)."""


class WarmPopen(subprocess.Popen[str]):
    """A Popen of a Python program, with pipes or /dev/null for its streams."""

    def _execute_child(self, *given: Any, **named: Any) -> None:
        """What Popen calls to make the process."""
        call = inspect.signature(subprocess.Popen._execute_child).bind(self, *given, **named).arguments  # type: ignore[attr-defined]
        request = {"words": [str(word) for word in call["args"][1:]], "cwd": str(call["cwd"]), "env": call["env"]}
        server = _server()
        prctl(SUBREAPER, 1)  # the process that forks it ends at once, and it becomes a child of this one
        try:
            streams = [call[name] for name in ("p2cread", "c2pwrite", "errwrite")]
            socket.send_fds(server, [json.dumps(request).encode()], streams)
            self.pid = int(server.recv(100))
        finally:
            prctl(SUBREAPER, 0)
        self._child_created = True
        pipes = ("p2cread", "p2cwrite", "c2pread", "c2pwrite", "errread", "errwrite")
        self._close_pipe_fds(*(call[name] for name in pipes))  # type: ignore[attr-defined]


def prctl(option: int, value: int) -> None:
    """prctl(2) on this process."""
    if ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl")


@functools.cache
def _server() -> socket.socket:
    """The way to this process's server, which ends with it."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {"OMP_NUM_THREADS": "1"}
    with theirs:
        subprocess.Popen([sys.executable, __file__, str(theirs.fileno())], env=env, pass_fds=[theirs.fileno()], cwd="/")
    return ours


def serve(requests: socket.socket) -> dict[str, Any]:
    """Fork a process for each request; returns in that process, with its request."""
    for name in IMPORTS:
        importlib.import_module(name)
    gc.freeze()
    user = os.getppid()
    while True:
        message, streams, _, _ = socket.recv_fds(requests, LARGEST_REQUEST, 3)
        if not message:
            os._exit(0)
        middle = os.fork()
        if middle:
            os.waitpid(middle, 0)
            for stream in streams:
                os.close(stream)
        elif os.fork():
            os._exit(0)
        else:
            while os.getppid() != user:
                os.sched_yield()
            os.setsid()
            for number, stream in enumerate(streams):
                os.dup2(stream, number)
                os.close(stream)
            requests.send(str(os.getpid()).encode())
            requests.close()
            return json.loads(message)


def become(words: list[str], cwd: str, env: dict[str, str]) -> None:
    """Make this process what `python WORDS` would be in the folder with the environment."""
    os.chdir(cwd)
    os.environ.clear()
    os.environ |= env
    for number, name in ((0, "stdin"), (1, "stdout"), (2, "stderr")):
        errors = "backslashreplace" if number == 2 else "strict"
        raw = open(number, "rb" if number == 0 else "wb", closefd=False)  # noqa: SIM115 (for as long as the process)
        stream = io.TextIOWrapper(raw, encoding="utf-8", errors=errors, line_buffering=number == 2)
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)
    sys.orig_argv = [sys.executable, *words]
    sys.path[1:1] = filter(None, env.get("PYTHONPATH", "").split(os.pathsep))
    if words[0] == "-m":
        sys.argv, sys.path[0] = words[1:], cwd
        runpy._run_module_as_main(words[1])  # type: ignore[attr-defined]
        return
    sys.argv, sys.path[0] = words, str(Path(words[0]).parent)
    main = sys.modules["__main__"] = types.ModuleType("__main__")
    main.__file__ = words[0]
    exec(compile(Path(words[0]).read_bytes(), words[0], "exec"), vars(main))  # noqa: S102


if __name__ == "__main__":
    try:
        wanted = serve(socket.socket(fileno=int(sys.argv[1])))
    except KeyboardInterrupt:  # at the terminal, for the tests
        os._exit(130)
    become(**wanted)
