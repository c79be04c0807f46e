"""What is read from the logs of a rank that failed."""

from __future__ import annotations

from pathlib import Path

import pytest

from ddp_launch.failure.log_tail import TAIL_BYTES, LogTail, read, tail

HEAD = "Traceback (most recent call last):\n"
FRAME = '  File "train.py", line 3, in step\n    loss.backward()\n'
GLOO = "RuntimeError: [pair.cc:561] Connection closed by peer [127.0.0.1]:47810. GLHF!"
NCCL = """\
torch.distributed.DistBackendError: NCCL error in: NCCLUtils.hpp:77, remote process exited or there was a network error
ncclRemoteError: A call failed possibly due to a network error or a remote process exiting prematurely.
Exception raised from checkForNCCLErrorsInternal at ProcessGroupNCCL.cpp:2193 (most recent call first):
frame #0: c10::Error::Error() + 0x99 (0x7f in libc10.so)
frame #1: <unknown function> + 0x1"""


def words(text: str) -> LogTail:
    return LogTail(tuple(text.splitlines()))


def test_tail_of_a_log(tmp_path: Path) -> None:
    log = tmp_path / "log"
    assert tail(log) == []
    log.write_bytes(b"\xff\n" + b"".join(b"[rank3]: line %d\n" % i for i in range(50_000)) + b"\n\n")
    assert tail(log)[-2:] == ["line 49998", "line 49999"]
    log.write_bytes(b" \n\n")
    assert tail(log) == []


def test_a_terminals_orders_are_left_out(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_bytes(b"\x1b[2K\x1b[1;31mred\x1b[0m\r\n 10%\r 90%\r100%\n\x1b]0;title\x07end\n")
    assert tail(log) == ["red", "100%", "end"]
    log.write_bytes(b"a\x00b\x07\tc\x7f\n")
    assert tail(log) == ["ab\tc"]


def test_a_line_of_data_is_cut(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("begin" + "x" * 100_000 + "end\nlast\n")
    cut, last = tail(log)
    assert (cut[:5], cut[-3:], last) == ("begin", "end", "last")
    assert len(cut) < 3000


@pytest.mark.parametrize("after", ["", "\n[rank0]: noise\n"])
@pytest.mark.parametrize("size", [5_000_000, TAIL_BYTES - 30, TAIL_BYTES, TAIL_BYTES + 1000])
def test_an_error_with_a_message_of_megabytes(tmp_path: Path, after: str, size: int) -> None:
    log = tmp_path / "log"
    log.write_text("earlier\n" + HEAD + FRAME + "ValueError: begin" + "x" * size + "end" + after)
    found = read((log,))
    assert found.messages[0].startswith("ValueError: begin")
    assert found.messages[0].splitlines()[0].endswith("end")
    assert (found.shown(20)[0] + "\n", len(found.error) < 3000) == (HEAD, True)
    log.write_text("x" * 5_000_000)
    assert len(tail(log)) == 1


START = HEAD.removesuffix("\n")
GROUP_START = f"  + Exception Group {START}"


@pytest.mark.parametrize("head", [START, f"[rank1]: {START}", f"[rank1]:{START}", GROUP_START])
@pytest.mark.parametrize(
    "bar",
    [
        "  0%|          | 0/100 [00:00<?, ?it/s]",
        "\r  1%|#         | 1/100 [1:02:03<00:07, 12.7it/s, loss=2.3, lr=[0.1, 0.2]]",
        "12it [00:03,  4.11s/it]   ",
        " 3%|3 | 3/100 3.20it/s",
        "\n\n  0%|          | 0/10 [00:00<?, ?img/s]\x1b[A\x1b[A",
    ],
)
def test_a_traceback_after_a_progress_bar(tmp_path: Path, bar: str, head: str) -> None:
    log = tmp_path / "log"
    log.write_text(f"epoch 1\n{bar}{head}\n{FRAME}ValueError: true cause\n")
    found = read((log,))
    assert found.traceback[0].endswith(START)
    assert (found.messages, found.own_error) == (("ValueError: true cause",), True)
    assert found.lines[-5].endswith(bar.strip("\r\n\x1b[A ")[-4:]), "the bar is a line of its own"


@pytest.mark.parametrize("words", ["it/s]Original " + START, "it says " + START, "x [1] y" + START])
def test_what_only_contains_the_head_of_a_traceback_is_one_line(tmp_path: Path, words: str) -> None:
    log = tmp_path / "log"
    log.write_text(words + "\n")
    assert tail(log) == [words]
    assert not read((log,)).traceback


def test_a_traceback_in_a_log_has_its_line() -> None:
    failed = ["12:00 ERROR division failed, giving up", *(HEAD + FRAME + "ZeroDivisionError: x").splitlines()]
    assert words("\n".join(["step 1", *failed])).shown(20) == tuple(failed)
    assert words("\n".join(["step 1", *failed[1:]])).shown(20) == tuple(failed[1:])
    assert words("\n".join(failed)).messages == ("ZeroDivisionError: x",)
    child = ["the child says no", *(HEAD + FRAME + "subprocess.CalledProcessError: Command 'x'").splitlines()]
    assert words("\n".join(child)).shown(20) == tuple(child)


def test_error_output_before_output_but_a_traceback_before_both(tmp_path: Path) -> None:
    out, err = tmp_path / "out", tmp_path / "err"
    out.write_text("step 1\n")
    err.write_text("")
    assert read((out, err)).lines == ("step 1",)
    err.write_text("warning\n")
    assert read((out, err)).source == err
    out.write_text(HEAD + FRAME + "ValueError: x\n")
    assert read((out, err)).source == out
    for log in (out, err):
        log.write_text("in both\n")
    assert read((out, err)).shown(20) == ("in both",)
    assert read(()) == LogTail()


@pytest.mark.parametrize(
    "text",
    [
        HEAD + FRAME + GLOO,
        HEAD + FRAME + NCCL,
        HEAD + FRAME + "ConnectionResetError: [Errno 104] Connection reset by peer",
        HEAD + FRAME + "BrokenPipeError: [Errno 32] Broken pipe",
        HEAD + FRAME + "torch.distributed.DistNetworkError: failed to recv, got 0 bytes",
        HEAD + FRAME + GLOO + "\n\nThe above exception was the direct cause of the following exception:\n\n"
        + HEAD + FRAME + "TrainingError: gave up",
        "terminate called after throwing an instance of 'c10::DistBackendError'\n  what(): remote process exited",
    ],
)  # fmt: skip
def test_lost_connection(text: str) -> None:
    assert words(text).lost_connection
    assert not words(text).own_error


@pytest.mark.parametrize(
    "text",
    [
        "",
        HEAD + FRAME + "ValueError: no",
        "Connection reset by peer, trying again\n" + 20 * "step\n" + HEAD + FRAME + "ValueError: no",
        HEAD + FRAME + "KeyError: 'x'\n\nDuring handling of the above exception, another exception occurred:\n\n"
        + HEAD + FRAME + GLOO,
        HEAD + FRAME + "ValueError: no\n[W1105 07:02:30.123 TCPStore.cpp:125] [c10d] recvValue failed: Connection reset"
        " by peer",
        HEAD + FRAME + "torch.distributed.DistBackendError: NCCL error: unhandled cuda error",
        HEAD + FRAME + "torch.distributed.DistBackendError: Watchdog caught collective operation timeout",
        HEAD + FRAME + "requests.exceptions.ConnectionError: HTTPSConnectionPool(host='example.org', port=443): Max"
        " retries exceeded with url: /x (Caused by NewConnectionError('Connection refused'))",
        HEAD + FRAME + "urllib.error.URLError: <urlopen error [Errno 104] Connection reset by peer>",
    ],
)  # fmt: skip
def test_own_troubles(text: str) -> None:
    assert not words(text).lost_connection
    assert words(text).own_error == bool(text)


@pytest.mark.parametrize(
    "abort",
    [
        "terminate called without an active exception",
        "terminate called after throwing an instance of 'gloo::IoException'\n  what():  Connection closed by peer",
        "Fatal Python error: Aborted\n\nCurrent thread 0x00007f (most recent call first):\n  Garbage-collecting",
    ],
)
def test_an_abort_behind_a_traceback_is_no_part_of_the_error(abort: str) -> None:
    """It comes from the tear-down of the interpreter, that of the connections among it."""
    found = words(HEAD + FRAME + "ValueError: the cause\nin two lines\n" + abort)
    assert found.messages == ("ValueError: the cause\nin two lines",)
    assert found.abort == abort.splitlines()[0]
    assert found.own_error
    assert found.shown(20)[-1] == abort.splitlines()[-1], "it is shown all the same"
    assert not words(HEAD + FRAME + "ValueError: terminate called").abort
    assert not words(abort).abort, "nothing went before"


PIN_MEMORY = "Exception in thread Thread-2 (_pin_memory_loop):\n" + HEAD + FRAME + "ConnectionResetError: [Errno 104]"
DELETED = "Exception ignored in: <function Loader.__del__ at 0x7f>\n" + HEAD + FRAME + "AttributeError: 'Loader'"
ASIDES = [
    PIN_MEMORY,
    DELETED,
    DELETED.replace("in: <", "while calling deallocator <"),
    "Error in atexit._run_exitfuncs:\n" + HEAD + FRAME + "ValueError: I/O operation on closed file",
    PIN_MEMORY + "\n\nDuring handling of the above exception, another exception occurred:\n\n"
    + HEAD + FRAME + "OSError: x\n" + DELETED,
]  # fmt: skip


@pytest.mark.parametrize("aside", ASIDES)
def test_what_python_prints_aside_does_not_replace_the_error(aside: str) -> None:
    own = HEAD + FRAME + "ValueError: true cause\nin two lines"
    found = words(f"step 1\n{own}\n{aside}")
    assert found.messages == ("ValueError: true cause\nin two lines",)
    assert found.own_error and not found.lost_connection
    assert found.shown(50) == found.traceback == tuple(own.splitlines())
    aborted = words(f"{own}\n{aside}\nterminate called without an active exception")
    assert (aborted.messages, aborted.abort) == (found.messages, "terminate called without an active exception")
    logged = f"12:00 ERROR it failed\n{own}"
    assert words(f"{logged}\n{aside}").shown(50) == tuple(logged.splitlines())
    alone = words(f"step 1\n{aside}")
    assert alone.error == aside.splitlines()[-1], "without any other traceback it counts"
    child = HEAD + FRAME + "subprocess.CalledProcessError: Command 'x'"
    assert words(f"{own}\n{aside}\n{child}").messages == found.messages


LOGURU = """\
2026-11-30 10:33:21.500 | ERROR    | __main__:<module>:5 - it failed
Traceback (most recent call last):

> File "train.py", line 5, in <module>
    step()
    └ <function step at 0x7f>

  File "train.py", line 3, in step
    raise ValueError("real")

ValueError: real"""


def test_a_traceback_of_loguru() -> None:
    assert words(LOGURU).messages == ("ValueError: real",)
    assert words(LOGURU).shown(20) == tuple(LOGURU.splitlines())


@pytest.mark.parametrize(
    "line",
    [
        "wandb: Network error (ConnectionError), entering retry loop.",
        "mlflow: connection refused",
        "2026-11-30 10:33:21,500 WARNING connection lost",
        "[10:33:21] broken pipe",
        "INFO:root:connection refused",
    ],
)
def test_a_message_ends_where_the_log_continues(line: str) -> None:
    error = "ValueError: real\nin two lines"
    found = words(f"{HEAD}{FRAME}{error}\n{line}\nconnection refused")
    assert (found.messages, found.lost_connection) == ((error,), False)
    led_to = "\n\nDuring handling of the above exception, another exception occurred:\n\n"
    chain = words(f"{HEAD}{FRAME}{error}\n{line}{led_to}{HEAD}{FRAME}OSError: x")
    assert chain.messages == (error, "OSError: x")


def test_a_traceback_that_was_logged_long_ago_is_not_the_end() -> None:
    logged = f"10:00:00 ERROR upload failed, trying again\n{HEAD}{FRAME}ConnectionResetError: [Errno 104]\n"
    steps = "".join(f"11:00:{number % 60:02} INFO step {number}\n" for number in range(200))
    over = words(logged + steps + "loss is NaN")
    assert (over.error, over.lost_connection, over.traceback) == ("loss is NaN", False, ())
    assert words(logged + "10:00:01 INFO closing\n").lost_connection
    uncaught = logged.partition("\n")[2]
    assert words(uncaught + steps).lost_connection, "other threads may log for long"
    assert words(logged + steps + HEAD + FRAME + "ValueError: x").error == "ValueError: x"


def test_a_rank_that_a_signal_unwound_has_no_own_error() -> None:
    assert not words(HEAD + FRAME + "KeyboardInterrupt").own_error


def test_what_is_shown() -> None:
    noise = "\n[W1105 07:02:30.1 ProcessGroup.cpp:9] Warning: destroy_process_group() was not called\n"
    assert words("epoch 1\n" + HEAD + FRAME + "ValueError: a\nb" + noise).shown(10)[-2:] == ("ValueError: a", "b")
    assert not any("frame #" in line for line in words(HEAD + FRAME + NCCL).shown(50))
    assert words("a\nb\nc").shown(2) == ("b", "c")


GROUP = """Traceback (most recent call last):
  File "old.py", line 1, in <module>
OSError: handled long ago
  + Exception Group Traceback (most recent call last):
  |   File "train.py", line 9, in <module>
  | ExceptionGroup: unhandled errors in a TaskGroup (2 sub-exceptions)
  +-+---------------- 1 ----------------
    | Traceback (most recent call last):
    |   File "train.py", line 2, in load
    | ModuleNotFoundError: No module named 'email.nope'
    +---------------- 2 ----------------
    | ValueError: never raised, and
    | of two lines
    +------------------------------------"""


def test_an_exception_group_is_the_exceptions_that_it_holds() -> None:
    group = LogTail(tuple(GROUP.splitlines()))
    assert group.traceback == tuple(GROUP.splitlines()[3:])
    assert group.messages == (
        "ModuleNotFoundError: No module named 'email.nope'",
        "ValueError: never raised, and\nof two lines",
    )
    assert group.error == "ValueError: never raised, and"
    led_to = "\n\nThe above exception was the direct cause of the following exception:\n\n"
    chain = LogTail(tuple((GROUP + led_to + HEAD + FRAME + "RuntimeError: outer").splitlines()))
    assert (chain.cause, chain.error) == (group.cause, "RuntimeError: outer")
    assert chain.traceback == tuple(chain.lines[3:])


LOG = "E1130 10:33:21.500000 7 torch/distributed/elastic/multiprocessing/api.py:984] failed (exitcode: 1)\n"


@pytest.mark.parametrize(
    "parent",
    [
        HEAD + FRAME + "subprocess.CalledProcessError: Command '['python', 'x.py']' returned non-zero exit status 1.",
        LOG + HEAD + FRAME + "torch.distributed.elastic.multiprocessing.errors.ChildFailedError: \n=====\nx.py FAILED",
    ],
)
def test_a_child_that_failed_is_the_cause_of_its_parents_error(parent: str) -> None:
    child = HEAD + FRAME + "ValueError: the child's"
    both = LogTail(tuple(f"{child}\n{parent}".splitlines()))
    assert both.cause == both.error == "ValueError: the child's"
    assert both.traceback[: len(child.splitlines())] == tuple(child.splitlines())
    assert both.shown(6)[-1] == "ValueError: the child's"
    # What was handled long before is not.
    epochs = "".join(f"epoch {number}\n" for number in range(5))
    alone = LogTail(tuple(f"{child}\n{epochs}{parent}".splitlines()))
    assert alone.cause == LogTail(tuple(parent.splitlines())).cause


def test_the_error_in_one_line() -> None:
    chain = HEAD + FRAME + "KeyError: 'x'\n\nThe above exception was the direct cause of the following exception:\n\n"
    assert words(chain + HEAD + FRAME + "ConfigError: no key x\nsecond line").error == "ConfigError: no key x"
    assert words("a\nlast").error == "last"
    assert words("").error == ""
