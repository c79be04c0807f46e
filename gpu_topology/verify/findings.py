"""The findings of one verify job: the pairs, the bandwidth, and the main problem in words."""

from __future__ import annotations

import re
import signal
from dataclasses import dataclass

from gpu_topology.verify.job import JobResult
from gpu_topology.verify.journal import KINDS, Record, Result, Step
from gpu_topology.verify_cache import PairResult

# Messages about a failing or full /dev/shm, as of NCCL 2.27 to 2.30 (src/misc/shmutils.cc, src/os/linux.cc).
_SHM_WORDS = re.compile(r"/dev/shm|shared memory segment|posix_fallocate")


@dataclass(frozen=True, slots=True)
class Naming:
    """How ranks are named: `devices` are their NVML indices, empty on the CPU; `backend` is "nccl" or "gloo"."""

    backend: str
    devices: tuple[int, ...] = ()

    def number(self, rank: int) -> int:
        """The NVML index of a rank's GPU; on the CPU the rank."""
        return self.devices[rank] if self.devices else rank

    def rank(self, rank: int) -> str:
        """ "rank 1 (GPU 3)"."""
        return f"rank {rank} (GPU {self.devices[rank]})" if self.devices else f"rank {rank}"

    def step(self, step: Step) -> str:
        """ "send GPU 0 -> GPU 3 (NCCL)"."""
        if step.a is None or step.b is None:
            return _STEPS[step.kind]
        thing = "GPU" if self.devices else "rank"
        way = "" if step.kind == "copy" else " (NCCL)" if self.backend == "nccl" else " (gloo)"
        return f"{step.kind} {thing} {self.number(step.a)} -> {thing} {self.number(step.b)}{way}"


_STEPS = {
    "start": "the start (import of torch)",
    "init": "the set-up of the process group",
    "compute": "the matrix products",
    "sum": "the all-reduce",
    "done": "the end",
}


@dataclass(frozen=True, slots=True)
class Findings:
    """The outcome of one job.

    compute     (number of the rank's device, 10^12 operations per second)
    problem     one line, None where everything was right in time
    stage       the kind of step of the problem: see journal.KINDS
    stopped     whether the time limit ended the job
    shm         whether the output, or a rank's end by SIGBUS, points to /dev/shm
    words       the last output lines of the rank at fault, or of torchrun where no rank is
    """

    pairs: tuple[PairResult, ...] = ()
    busbw_gb_s: float | None = None
    compute: tuple[tuple[int, float], ...] = ()
    problem: str | None = None
    stage: str | None = None
    stopped: bool = False
    shm: bool = False
    words: tuple[str, ...] = ()


def judge(result: JobResult, naming: Naming, time_limit_s: float) -> Findings:
    """Judge a job by its records. Wrong data take precedence over the way in which the job ended."""
    results = [_spoken(entry) for entry in enumerate(result.records)]
    ended = sorted((entry for record in results for entry in record), key=lambda entry: _place(entry.step))
    wrong = [entry for entry in ended if entry.problem is not None]
    problem, stage, words = _ending(result, naming, time_limit_s)
    if wrong:
        first, stage = wrong[0], wrong[0].step.kind
        more = len({entry.step for entry in wrong}) - 1
        also = f" (and in {more} more step{'s' * (more != 1)})" if more else ""
        data = f"wrong data in {naming.step(first.step)}: {first.problem}{also}"
        problem = data if problem is None else f"{data}; then {problem}"
    speeds = [entry.gb_s for entry in ended if entry.step.kind == "sum" and entry.gb_s is not None]
    said = [line for lines in result.words for line in lines]
    return Findings(
        pairs=tuple(_pair(entry, naming) for entry in ended if entry.step.kind in ("copy", "send")),
        # The bandwidth of the slowest rank, which is that of the all-reduce.
        busbw_gb_s=min(speeds) if speeds else None,
        compute=tuple(
            (naming.number(rank), ended.tflop_s)
            for rank, record in enumerate(result.records)
            for ended in record.results
            if ended.tflop_s is not None
        ),
        problem=problem,
        stage=stage,
        stopped=result.status is None,
        shm=problem is not None
        and (-signal.SIGBUS in result.codes.values() or bool(_SHM_WORDS.search("\n".join(said)))),
        words=words,
    )


def _spoken(entry: tuple[int, Record]) -> list[Result]:
    """The results of a rank that count: a send is reported by its receiver alone."""
    rank, record = entry
    return [result for result in record.results if result.step.kind != "send" or result.step.b == rank]


def _pair(result: Result, naming: Naming) -> PairResult:
    """The result of a step between two ranks or GPUs."""
    assert result.step.a is not None and result.step.b is not None
    way = "copy" if result.step.kind == "copy" else naming.backend
    a, b = naming.number(result.step.a), naming.number(result.step.b)
    return PairResult(a, b, way, result.gb_s, result.problem)


def _ending(result: JobResult, naming: Naming, time_limit_s: float) -> tuple[str | None, str | None, tuple[str, ...]]:
    """(problem, stage, words) of how the job ended: (None, None, ()) where every rank finished."""
    for rank, record in enumerate(result.records):
        if record.unreadable is not None:
            problem = f"{naming.rank(rank)} wrote what is no result: {record.unreadable!r}"
            return problem, _stage(record), result.words[rank]
    if result.status is None:
        return _stopped(result, naming, time_limit_s)
    if result.status != 0:
        return _failed(result, naming)
    for rank, record in enumerate(result.records):
        if not record.done or not _complete(rank, record, len(result.records)):
            return f"{naming.rank(rank)} ended without its results", _stage(record), result.words[rank]
    return None, None, ()


def _complete(rank: int, record: Record, ranks: int) -> bool:
    """Whether the all-reduce and every send that this rank has part in came to an end."""
    ended = {result.step for result in record.results}
    others = [other for other in range(ranks) if other != rank]
    sends = {step for other in others for step in (Step("send", rank, other), Step("send", other, rank))}
    return {*sends, Step("sum")} <= ended


def _stopped(result: JobResult, naming: Naming, time_limit_s: float) -> tuple[str, str, tuple[str, ...]]:
    """The ending of a job at its time limit. The earliest unfinished step hangs; later ones wait for it."""
    limit = f"after {time_limit_s:g} s"
    # A rank that wrote nothing has not reached the import.
    places = [record.open if record.results else record.open or Step("start") for record in result.records]
    working = [place for place in places if place is not None]
    if not working:
        return f"stopped {limit}, between two steps", "done", ()
    where = min(working, key=_place)
    ranks = [rank for rank, place in enumerate(places) if place == where]
    words = next((result.words[rank] for rank in ranks if result.words[rank]), ())
    stuck = f"; process {', '.join(map(str, result.left))} does not end by SIGKILL" if result.left else ""
    return f"stopped {limit} in: {naming.step(where)}{stuck}", where.kind, words


def _place(step: Step) -> tuple[int, int, int]:
    """The order in which the ranks take the steps."""
    return KINDS.index(step.kind), step.a or 0, step.b or 0


def _failed(result: JobResult, naming: Naming) -> tuple[str, str, tuple[str, ...]]:
    """The ending of a job by the rank that ended by itself: torchrun ends the others by SIGTERM."""
    own = [rank for rank, code in result.codes.items() if code != -signal.SIGTERM]
    reported = [rank for rank, record in enumerate(result.records) if record.failed is not None]
    # A rank that dies takes its partners' connections with it: their exceptions come second.
    killed = [rank for rank in own if result.codes[rank] < 0]
    rank = next(iter([*killed, *reported, *own]), None)
    if rank is None or rank >= len(result.records):
        last = f": {result.talk[-1].strip()}" if result.talk else ""
        return f"torchrun ended with status {result.status}{last}", "start", result.talk
    record = result.records[rank]
    stage = _stage(record)
    if record.failed is not None:
        how = f"failed in {_where(record, naming)}: {record.failed}"
    else:
        how = f"ended by {_in_words(result.codes[rank])} in {_where(record, naming)}"
    return f"{naming.rank(rank)} {how}", stage, result.words[rank]


def _stage(record: Record) -> str:
    """The kind of the step that the rank is in, or else of the last that it finished."""
    if record.open is not None:
        return record.open.kind
    return record.results[-1].step.kind if record.results else "start"


def _where(record: Record, naming: Naming) -> str:
    """The step that a rank is in, in words."""
    return naming.step(record.open) if record.open is not None else f"the step after {naming.step(_last(record))}"


def _last(record: Record) -> Step:
    """The last step that a rank finished."""
    return record.results[-1].step if record.results else Step("start")


def _in_words(code: int) -> str:
    """A returncode in words."""
    if code >= 0:
        return f"exit code {code}"
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"
