"""Runs a program that ends with the launcher: `python -I -S exec_with_pdeathsig.py LAUNCHER_PID PROGRAM ARGUMENT...`.

The kernel kills this process when the thread that started it ends (prctl(2)), also after exec. Only the standard
library is imported, and as little of it as possible: every rank starts through this file.
"""

import ctypes
import errno
import os
import signal
import sys

PR_SET_PDEATHSIG = 1  # linux/prctl.h
OOM_SCORE = 50  # proc_pid_oom_score_adj(5): in thousandths of the memory, here 5% of it
DEBUG = "DDP_LAUNCH_DEBUG"
NOT_FOUND, NOT_EXECUTABLE = 127, 126  # as in a shell


def main() -> None:
    """Tie this process to its launcher, then exec the program."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL))
    if os.getppid() != int(sys.argv[1]):
        # The launcher ended before the call above.
        os._exit(1)
    # Python ignores these signals, and the program would inherit that.
    for number in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_DFL)
    _offer_to_the_kernel()
    program = _with_debugger(sys.argv[2:])
    try:
        os.execvp(program[0], program)
    except OSError as error:
        if error.errno == errno.ENOEXEC:
            # A script without an interpreter line: do what the C library's execvp(3) does.
            os.execv("/bin/sh", ["sh", *program])
        print(f"error: {program[0]}: {error.strerror}", file=sys.stderr, flush=True)
        os._exit(NOT_FOUND if isinstance(error, FileNotFoundError) else NOT_EXECUTABLE)


def _with_debugger(program: list[str]) -> list[str]:
    """The program, under debugpy in the rank that the variable names: `RANK HOST:PORT`."""
    rank, _, address = os.environ.pop(DEBUG, "").partition(" ")
    if not rank or os.environ.get("RANK") != rank:
        return program
    # debugpy follows the interpreter and its -u. It runs a script or -m MODULE, with its arguments.
    # Breakpoints do not work in frozen modules.
    options = ["-Xfrozen_modules=off", *program[1:2], "-m", "debugpy"]
    return [*program[:1], *options, "--listen", address, "--wait-for-client", *program[2:]]


def _offer_to_the_kernel() -> None:
    """Raise the OOM score: when memory runs out, the kernel should kill a rank, not the launcher, which reports it."""
    try:
        with open("/proc/self/oom_score_adj", "r+") as file:  # noqa: PTH123 (pathlib takes milliseconds to import)
            score = int(file.read())
            file.seek(0)
            file.write(str(min(score + OOM_SCORE, 1000)))
    except (OSError, ValueError):
        pass


if __name__ == "__main__":
    main()
