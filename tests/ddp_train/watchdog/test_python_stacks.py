"""What faulthandler writes, read back; and what a stack tells of a rank that waits."""

from __future__ import annotations

import faulthandler
import os
import signal
import sys
import tempfile
import threading
from pathlib import Path

from ddp_train.watchdog.python_stacks import Frame, handles, parse, traceback_lines, waits, written

BACKWARD = """\
Thread 0x00007f1c2b7fe6c0 (most recent call first):
  File "/env/torch/autograd/function.py", line 307 in apply
  File "/home/me/model.py", line 9 in backward

Current thread 0x00007f1c9d1a1740 [python] (most recent call first):
  File "/env/torch/autograd/graph.py", line 1113 in _engine_run_backward
  File "/home/me/train.py", line ??? in <module>
"""


def test_a_real_dump() -> None:
    """Of two threads, by the Python that runs the tests."""
    done = threading.Event()
    other = threading.Thread(target=done.wait)
    other.start()
    with tempfile.TemporaryFile() as file:
        file.write(b"earlier\n")
        file.flush()
        faulthandler.dump_traceback(file, all_threads=True)
        text = written(file.fileno(), len(b"earlier\n"), wait_s=5)
    done.set()
    other.join()
    frames = parse(text)
    assert frames[-1].function == "test_a_real_dump"
    assert Path(frames[-1].file).samefile(__file__)
    shown = traceback_lines(frames)
    assert shown[0] == "Traceback (most recent call last):"
    assert shown[-1] == "    faulthandler.dump_traceback(file, all_threads=True)"
    assert "in wait" not in "\n".join(shown), "another thread's"


def test_a_dump_that_takes_its_time() -> None:
    """A busy machine may halt the writer between two lines: what counts is that its handler has ended."""
    with tempfile.TemporaryFile() as file:
        answers = [True] * 60 + [False]

        def writes() -> bool:
            if len(answers) in (55, 10):  # further apart than any pause that would count as the end
                os.write(file.fileno(), b"a line\n")
            return answers.pop(0)

        assert written(file.fileno(), 0, wait_s=30, writes=writes) == "a line\na line\n"


def test_a_thread_in_its_handler() -> None:
    number, thread = signal.SIGUSR1, threading.get_native_id()
    seen: list[bool] = []
    earlier = signal.signal(number, lambda *_: None)
    try:
        assert not handles(os.getpid(), thread, number)
        # As the kernel does for a handler in C.
        signal.pthread_sigmask(signal.SIG_BLOCK, [number])
        seen.append(handles(os.getpid(), thread, number))
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [number])
        assert seen == [True]
        assert not handles(os.getpid(), thread, number)
    finally:
        signal.signal(number, earlier)
    assert not handles(2**22 + 1, 1, number)


def test_no_answer() -> None:
    with tempfile.TemporaryFile() as file:
        assert written(file.fileno(), 0, wait_s=0.05) == ""
    assert parse("") == []
    assert not waits([])


def test_where_a_backward_pass_that_waits_leads() -> None:
    own, waiting = BACKWARD.split("\n\n")
    assert parse(waiting) == [
        Frame("/home/me/train.py", 0, "<module>"),
        Frame("/env/torch/autograd/graph.py", 1113, "_engine_run_backward"),
    ]
    assert waits(parse(waiting))
    assert parse(BACKWARD)[-1].function == "apply", "the thread that runs a function of the user's"
    assert not waits(parse(BACKWARD))
    assert own


def test_a_collective_waits_and_a_sleep_does_not() -> None:
    at = Frame("/home/me/train.py", 3, "step")
    assert waits([at, Frame(f"{sys.prefix}/torch/distributed/distributed_c10d.py", 3170, "all_reduce")])
    assert not waits([Frame("/env/torch/distributed/distributed_c10d.py", 3170, "all_reduce"), at])
