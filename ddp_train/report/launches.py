"""What the launcher recorded in a run folder: its plan, and the events of each of its starts (docs/events.md)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from ddp_train.report.json_value import Value


@dataclass(frozen=True)
class Setting:
    """An environment variable or option that was decided, and the reason. how: "", "kept" or "removed"."""

    name: str
    value: str
    reason: str
    how: str = ""


@dataclass(frozen=True)
class Plan:
    """The contents of plan.json. devices: why these were chosen; excluded: (NVML index, reason) of the GPUs left out.

    indices, uuids, group, policy: the selection, as in gpu_topology. trainer: whether it starts the bundled trainer;
    settings: those decided for that.
    """

    devices: str = ""
    indices: tuple[int, ...] = ()
    uuids: tuple[str, ...] = ()
    group: str = ""
    policy: str = ""
    excluded: tuple[tuple[int, str], ...] = ()
    environment: tuple[Setting, ...] = ()
    trainer: bool = False
    settings: tuple[Setting, ...] = ()
    ranks_per_node: int | None = None
    nodes: str = ""
    backend: str = ""
    shell: str = ""
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Failure:
    """The failure of an attempt. rank, host: which failed first; words: how it ended; error: its last line.

    others: what became of the other ranks, as (words, ranks). meaning, advice: from a known remedy, else "".
    """

    attempt: int | None
    rank: int | None
    host: str
    words: str
    error: str
    place: str
    found: str
    hang_s: float | None
    stack: tuple[str, ...]
    last_lines: tuple[str, ...]
    others: tuple[tuple[str, tuple[int, ...]], ...]
    meaning: str
    advice: str
    time: str


@dataclass(frozen=True)
class Restart:
    """Another attempt after a failure. attempt: its number, from 0; devices: in words; change: the GPUs left out."""

    attempt: int | None
    ranks: int | None
    devices: str
    change: str
    time: str


@dataclass(frozen=True)
class Stall:
    """Ranks made no progress for `seconds`. doing: (ranks, what they did)."""

    seconds: float | None
    words: str
    collective: str
    doing: tuple[tuple[tuple[int, ...], str], ...]
    time: str


@dataclass(frozen=True)
class WaitedFor:
    """The others waited for `rank`, for `share` of the time (0 to 1). shares: rank -> phase -> share of its time."""

    rank: int | None
    ms_a_step: float | None
    share: float | None
    steps: int | None
    shares: Mapping[int, Mapping[str, float]] = field(default_factory=dict)


@dataclass(frozen=True)
class GpuEnergy:
    """The energy of a GPU from the launcher's start to its end, by the GPU's own counter."""

    index: int | None
    joules: float


@dataclass(frozen=True)
class Launch:
    """One start of the launcher. time: ISO 8601, UTC; command: as it was typed; status: None if no end is recorded.

    troubles: in the order in which they were recorded. energy: of this node's GPUs; () where a card has no counter.
    signal: the one that asked the launcher to end. waits: rank -> share of the time for which it waited for others.
    versions: of Python, torch and the system, by name.
    """

    time: str
    host: str
    command: tuple[str, ...]
    version: str
    versions: Mapping[str, str]
    plan: Plan
    world_size: int | None
    attempts: int
    troubles: tuple[Failure | Restart | Stall, ...]
    waited_for: WaitedFor | None
    waits: Mapping[int, float]
    energy: tuple[GpuEnergy, ...]
    signal: str
    status: int | None
    seconds: float | None
    message: str

    @property
    def failures(self) -> tuple[Failure, ...]:
        """The failures of its attempts, one each."""
        return tuple(one for one in self.troubles if isinstance(one, Failure))


def plan_of(value: Value) -> Plan:
    """Read a plan as the launcher writes it (`--dry-run --json`), or a trainer that ran without the launcher."""
    selection, training = value["selection"], value["training"]
    decided = [
        Setting(name, item.text, training["reasons"][name].text) for name, item in training.items() if name != "reasons"
    ]
    recommended = [_setting(item) for item in value["recommendations"]]
    excluded = ((item["index"].whole, item["reason"].text) for item in selection["excluded"])
    return Plan(
        devices=selection["reason"].text,
        indices=selection["indices"].wholes,
        uuids=selection["uuids"].texts,
        group=selection["group"].text,
        policy=selection["policy"].text,
        excluded=tuple((index, reason) for index, reason in excluded if index is not None),
        environment=tuple(_setting(item) for item in value["environment"]),
        trainer=bool(training or recommended),
        settings=tuple(decided or recommended),
        ranks_per_node=value["nproc_per_node"].whole,
        nodes=value["nnodes"].text,
        backend=value["backend"].text,
        shell=value["shell"].text,
        warnings=value["warnings"].texts,
    )


def _setting(item: Value) -> Setting:
    how = "removed" if item["unset"].raw is True else "kept" if item["kept"].raw is True else ""
    return Setting(item["name"].text, item["value"].text, item["reason"].text, how)


def launches_of(events: Iterable[Value]) -> tuple[Launch, ...]:
    """The starts of the launcher, each of which begins with the event `plan`."""
    parts: list[list[Value]] = []
    for event in events:
        if event["event"].raw == "plan" or not parts:
            parts.append([])
        parts[-1].append(event)
    return tuple(map(_launch, parts))


def _launch(events: list[Value]) -> Launch:
    def of(name: str) -> list[Value]:
        """The events of this name."""
        return [event for event in events if event["event"].raw == name]

    def last(name: str) -> Value:
        """The last event of this name; an empty Value without one."""
        return (of(name) or [Value()])[-1]

    first, end, waited = (of("plan") or [Value()])[0], last("end"), last("waited-for")
    return Launch(
        time=events[0]["time"].text,
        host=first["host"].text,
        command=first["argv"].texts,
        version=first["version"].text,
        versions={name: item.text for name, item in first["versions"].items()},
        plan=plan_of(first["plan"]),
        world_size=last("attempt")["world_size"].whole,
        attempts=len(of("attempt")),
        troubles=tuple(_TROUBLES[name](event) for event in events if (name := event["event"].text) in _TROUBLES),
        waited_for=_waited_for(waited) if waited else None,
        waits=_numbers(last("waits")["ranks"]),
        energy=_energy(last("energy")),
        signal=last("signal")["signal"].text,
        status=end["status"].whole,
        seconds=end["seconds"].number,
        message=end["message"].text,
    )


def _failure(event: Value) -> Failure:
    place, hang, remedy = event["place"], event["hang"], event["remedy"]
    step, epoch, phase = place["step"].whole, place["epoch"].whole, place["phase"].text
    where = phase if step is None else f"step {step} (epoch {epoch}), {phase}"
    kinds = {"victims": "lost the connection to it", "failed_as_well": "failed as well", "stopped": "were stopped"}
    return Failure(
        attempt=event["attempt"].whole,
        rank=event["rank"].whole,
        host=event["host"].text,
        words=event["words"].text,
        error=event["error"].text,
        place=where or event["at"].text,
        found=event["found"].text,
        hang_s=hang["seconds"].number,
        stack=hang["stack"].texts,
        last_lines=event["last_lines"].texts,
        others=tuple((words, event[kind].wholes) for kind, words in kinds.items() if event[kind].wholes),
        meaning=remedy["meaning"].text,
        advice=remedy["advice"].text,
        time=event["time"].text,
    )


def _restart(event: Value) -> Restart:
    numbers = event["attempt"].whole, event["ranks"].whole
    return Restart(*numbers, event["devices"].text, event["change"].text, event["time"].text)


def _stall(event: Value) -> Stall:
    doing = tuple((item["ranks"].wholes, item["doing"].text) for item in event["doing"])
    return Stall(event["seconds"].number, event["words"].text, event["collective"].text, doing, time=event["time"].text)


_TROUBLES: Mapping[str, Callable[[Value], Failure | Restart | Stall]] = {
    "failure": _failure,
    "restart": _restart,
    "stall": _stall,
}


def _waited_for(event: Value) -> WaitedFor:
    numbers = event["rank"].whole, event["ms_a_step"].number, event["share"].number, event["steps"].whole
    return WaitedFor(*numbers, by_rank(event["ranks"]))


def by_rank(value: Value) -> dict[int, dict[str, float]]:
    """Read an object of objects as rank -> name -> number."""
    return {rank: _named(parts) for rank, parts in _ranks(value)}


def _ranks(value: Value) -> Iterator[tuple[int, Value]]:
    return ((int(rank), item) for rank, item in value.items() if rank.isascii() and rank.isdecimal() and len(rank) < 9)


def _named(value: Value) -> dict[str, float]:
    return {name: item.number for name, item in value.items() if item.number is not None}


def _numbers(value: Value) -> dict[int, float]:
    return {rank: item.number for rank, item in _ranks(value) if item.number is not None}


def _energy(event: Value) -> tuple[GpuEnergy, ...]:
    rows = [(item["index"].whole, item["joules"].number) for item in event["gpus"]]
    return tuple(GpuEnergy(index, joules) for index, joules in rows if joules is not None)
