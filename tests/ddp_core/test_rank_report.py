"""The report of a failed rank: written, read back, and understood by torch's agent."""

from __future__ import annotations

from pathlib import Path

import pytest

from ddp_core import rank_report
from ddp_core.rank_report import Place, RankReport

HANG = RankReport(
    kind="hang",
    rank=1,
    messages=("HungRank: x",),
    stack=("Traceback", "  File"),
    phase="data",
    verdict="hung",
    seconds=3.1,
)


def chained() -> BaseException:
    try:
        try:
            raise ConnectionResetError("first")
        except ConnectionResetError as error:
            raise ValueError("second\nline") from error
    except ValueError as error:
        return error


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    path = tmp_path / "error.json"
    assert rank_report.write(HANG, str(path))
    assert rank_report.read(path) == HANG
    assert [found.name for found in tmp_path.iterdir()] == ["error.json"]
    assert HANG.place == Place("data")
    assert not rank_report.write(HANG, None)
    assert not rank_report.write(HANG, str(tmp_path / "missing" / "error.json"))


def test_an_error_with_its_cause() -> None:
    report = rank_report.of_error(chained(), rank=2, status=1, place=Place("forward", 13, 2))
    assert report.messages == ("ConnectionResetError: first", "ValueError: second\nline")
    assert report.stack[0] == "Traceback (most recent call last):"
    assert report.stack[-2:] == ("ValueError: second", "line")
    assert (report.rank, report.status, str(report.place)) == (2, 1, "step 13 (epoch 2), forward")
    plain = rank_report.of_error(ValueError("x"), rank=0, status=2, place=None, message="error: x")
    assert (plain.messages, plain.stack, plain.place) == (("error: x",), (), None)


def test_a_syntax_error_has_its_message_not_its_line() -> None:
    with pytest.raises(SyntaxError) as caught:
        compile("x = (", "train.py", "exec")
    (message,) = rank_report.of_error(caught.value, rank=0, status=1, place=None).messages
    assert message.startswith("SyntaxError: ")


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"message": "by another program"}', '{"kind": "hang"}'])
def test_no_report(tmp_path: Path, text: str) -> None:
    path = tmp_path / "error.json"
    path.write_text(text)
    assert rank_report.read(path) is None
    assert rank_report.read(None) is None
    assert rank_report.read(tmp_path / "missing") is None


def test_torchs_agent_understands_it(tmp_path: Path) -> None:
    from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

    path = tmp_path / "error.json"
    rank_report.write(HANG, str(path))
    failure = ProcessFailure(local_rank=0, pid=1, exitcode=-9, error_file=str(path))
    assert failure.error_file_data["message"]["message"] == "HungRank: x"
    assert failure.error_file_data["message"]["extraInfo"]["py_callstack"] == "Traceback\n  File"
    assert failure.timestamp > 1_700_000_000, "seconds since 1970"
