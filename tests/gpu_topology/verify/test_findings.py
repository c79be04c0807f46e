"""What is said about every kind of end that a job can come to; the ranks' journals are written by the test."""

from __future__ import annotations

import json
import signal
from dataclasses import replace
from itertools import permutations
from pathlib import Path

import pytest

from gpu_topology.verify.findings import Findings, Naming, judge
from gpu_topology.verify.job import JobResult
from gpu_topology.verify.journal import Journal, Record, Result, Step, read_record
from gpu_topology.verify_cache import PairResult

GPUS = Naming("nccl", (0, 2, 5))
WRONG = "byte 7 is 0x00 and should be 0x1f, 1 of 4099 bytes are wrong"


def whole(rank: int, ranks: int = 3, *, copies: bool = False) -> Record:
    """The record of a rank that did everything."""
    results = [Result(Step("start")), Result(Step("init")), Result(Step("compute"), tflop_s=300.0 - rank)]
    if copies and rank == 0:
        results += [Result(Step("copy", a, b), gb_s=20.0) for a, b in permutations(range(ranks), 2)]
    pairs = [pair for pair in permutations(range(ranks), 2) if rank in pair]
    results += [Result(Step("send", a, b), gb_s=10.0 if rank == b else None) for a, b in pairs]
    return Record((*results, Result(Step("sum"), gb_s=5.0 + rank), Result(Step("done"))))


def job(*records: Record, status: int | None = 0, codes: dict[int, int] | None = None, **more: object) -> JobResult:
    words = more.pop("words", tuple(() for _ in records))
    return JobResult(status, 4.0, records, codes or {}, words, **more)  # type: ignore[arg-type]


def stopped_in(rank: int, *steps: Step, failed: str | None = None) -> Record:
    """A rank that ended some steps and is in the last one."""
    return Record(tuple(Result(step) for step in steps[:-1]), steps[-1], failed)


def find(result: JobResult, naming: Naming = GPUS) -> Findings:
    return judge(result, naming, 60)


def test_all_right() -> None:
    found = find(job(*(whole(rank, copies=True) for rank in range(3))))
    assert (found.problem, found.stage, found.words, found.shm) == (None, None, (), False)
    assert found.busbw_gb_s == 5.0
    assert found.compute == ((0, 300.0), (2, 299.0), (5, 298.0))
    pairs = [(0, 2), (0, 5), (2, 0), (2, 5), (5, 0), (5, 2)]
    assert found.pairs == tuple(
        PairResult(a, b, way, speed) for way, speed in (("copy", 20.0), ("nccl", 10.0)) for a, b in pairs
    )


def test_wrong_data_names_gpus_and_byte() -> None:
    record = whole(2)
    results = [replace(r, problem=WRONG) if r.step == Step("send", 1, 2) else r for r in record.results]
    found = find(job(whole(0), whole(1), replace(record, results=tuple(results))))
    assert found.problem == f"wrong data in send GPU 2 -> GPU 5 (NCCL): {WRONG}"
    assert found.stage == "send"
    assert [(pair.a, pair.b) for pair in found.pairs if pair.problem] == [(2, 5)]


def test_what_the_sender_says_does_not_count() -> None:
    record = whole(0)
    results = [replace(r, problem=WRONG) if r.step == Step("send", 0, 1) else r for r in record.results]
    assert find(job(replace(record, results=tuple(results)), whole(1), whole(2))).problem is None


def test_wrong_data_and_then_a_hang_are_both_told() -> None:
    first = Record((Result(Step("start")), Result(Step("copy", 0, 1), WRONG)), Step("copy", 0, 2))
    waiting = Record((Result(Step("start")), Result(Step("init"))))
    found = find(job(first, waiting, waiting, status=None))
    assert found.problem == (
        f"wrong data in copy GPU 0 -> GPU 2: {WRONG}; then stopped after 60 s in: copy GPU 0 -> GPU 5"
    )
    assert found.stage == "copy"


def test_a_hang_names_the_earliest_open_step() -> None:
    """Rank 2 is ahead and waits; ranks 0 and 1 hang in their pair."""
    pair, later = Step("send", 0, 1), Step("sum")
    found = find(job(stopped_in(0, Step("init"), pair), stopped_in(1, pair), stopped_in(2, later), status=None))
    assert (found.problem, found.stage) == ("stopped after 60 s in: send GPU 0 -> GPU 2 (NCCL)", "send")


@pytest.mark.parametrize(
    "records",
    [
        (Record(), Record()),
        (stopped_in(0, Step("start")), Record()),
        (stopped_in(0, Step("start"), Step("init")), Record()),
    ],
    ids=["both", "one imports", "one waits"],
)
def test_a_slow_start_is_told_from_a_hang(records: tuple[Record, ...]) -> None:
    found = find(job(*records, status=None), Naming("gloo"))
    assert (found.problem, found.stage) == ("stopped after 60 s in: the start (import of torch)", "start")


def test_a_process_that_nothing_ends_is_named() -> None:
    found = find(job(stopped_in(0, Step("sum")), stopped_in(1, Step("sum")), status=None, left=(71, 72)))
    assert found.problem == "stopped after 60 s in: the all-reduce; process 71, 72 does not end by SIGKILL"


def test_a_killed_rank_is_named_before_its_victims() -> None:
    pair = Step("send", 1, 0)
    records = (stopped_in(0, pair, failed="RuntimeError: connection closed by peer"), stopped_in(1, pair), whole(2))
    codes = {0: 1, 1: -signal.SIGSEGV, 2: -signal.SIGTERM}
    found = find(job(*records, status=1, codes=codes, words=(("a",), ("b",), ("c",))))
    assert found.problem == "rank 1 (GPU 2) ended by SIGSEGV in send GPU 2 -> GPU 0 (NCCL)"
    assert found.words == ("b",)


def test_an_exception_is_told() -> None:
    records = (
        stopped_in(0, Step("init"), failed="DistBackendError: unhandled cuda error"),
        stopped_in(1, Step("init")),
    )
    found = find(job(*records, status=1, codes={0: 1, 1: -signal.SIGTERM}))
    assert found.problem == (
        "rank 0 (GPU 0) failed in the set-up of the process group: DistBackendError: unhandled cuda error"
    )
    assert found.stage == "init"


def test_torchrun_that_fails_by_itself_gives_its_last_line() -> None:
    found = find(job(Record(), Record(), status=1, talk=("usage: ...", "run.py: error: no such option")))
    assert found.problem == "torchrun ended with status 1: run.py: error: no such option"
    assert found.stage == "start"


@pytest.mark.parametrize(
    "record",
    [
        Record(),
        replace(whole(1), results=whole(1).results[:-1]),
        replace(whole(1), results=tuple(r for r in whole(1).results if r.step != Step("send", 2, 1))),
        replace(whole(1), results=tuple(r for r in whole(1).results if r.step.kind != "sum")),
    ],
    ids=["nothing", "no end", "a pair missing", "no sum"],
)
def test_success_without_results_is_no_success(record: Record) -> None:
    assert find(job(whole(0), record, whole(2))).problem == "rank 1 (GPU 2) ended without its results"


@pytest.mark.parametrize(
    ("codes", "words", "evidence"),
    [
        ({0: 1}, "NCCL WARN Error while creating shared memory segment /dev/shm/nccl-x (size 9637888)", True),
        ({0: -signal.SIGBUS}, "", True),
        ({0: 1}, "Cuda failure 'invalid device ordinal'", False),
    ],
)
def test_what_points_to_shared_memory(codes: dict[int, int], words: str, evidence: bool) -> None:
    result = job(stopped_in(0, Step("init")), status=1, codes=codes, words=((words,),))
    assert find(result, Naming("nccl", (0,))).shm is evidence


def test_a_journal_reads_back(tmp_path: Path) -> None:
    journal = Journal(tmp_path, 1)
    for step in (Step("start"), Step("send", 0, 1)):
        journal.begin(step)
    assert read_record(tmp_path, 1) == Record((), Step("send", 0, 1))
    journal.end(Step("send", 0, 1), WRONG, 1.5)
    assert read_record(tmp_path, 1) == Record((Result(Step("send", 0, 1), WRONG, 1.5),))
    journal.fail("ValueError: no")
    assert read_record(tmp_path, 1).failed == "ValueError: no"
    assert read_record(tmp_path, 0) == Record()


@pytest.mark.parametrize(
    "line",
    [
        *("\x00\x01", "[]", "3", "[" * 9999, '{"begin": "dance", "a": null, "b": null}', '{"end": "sum"}'),
        json.dumps({"end": "sum", "a": None, "b": None, "problem": None, "gb_s": "fast"}),
    ],
)
def test_what_is_no_journal_is_told(tmp_path: Path, line: str) -> None:
    Journal(tmp_path, 0).begin(Step("init"))
    with (tmp_path / "rank-0.jsonl").open("a") as file:
        file.write(line + "\n")
    record = read_record(tmp_path, 0)
    assert (record.open, record.unreadable) == (Step("init"), line[:200])
    found = find(job(record), Naming("gloo"))
    assert found.problem == f"rank 0 wrote what is no result: {line[:200]!r}"


def test_a_line_that_a_killed_rank_did_not_finish_does_not_count(tmp_path: Path) -> None:
    Journal(tmp_path, 0).begin(Step("init"))
    with (tmp_path / "rank-0.jsonl").open("a") as file:
        file.write('{"end": "in')
    assert read_record(tmp_path, 0) == Record((), Step("init"))
