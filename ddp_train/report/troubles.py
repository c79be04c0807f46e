"""What went wrong in a run, in order: failures with their causes, restarts, stalls, and the end of the launcher."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from ddp_train.report.launches import Failure, Launch, Restart, Stall

MOST = 24
"""Most troubles that are shown; if there are more, the first and the last MOST / 2."""
MOST_LINES = 40
MOST_CHARACTERS = 12_000


@dataclass(frozen=True)
class Trouble:
    """One entry. kind: "failure", "restart" or "stall"; error: the line that says most; output: more lines."""

    kind: str
    title: str
    error: str = ""
    lines: tuple[str, ...] = ()
    advice: str = ""
    output: str = ""
    output_title: str = ""


def troubles(launches: Sequence[Launch]) -> tuple[list[Trouble], str]:
    """The entries of all starts of the launcher, and a line about those that are left out ("" if none are)."""
    found = []
    for number, launch in enumerate(launches, 1):
        start = f"Start {number}: " if len(launches) > 1 else ""
        found += [replace(one, title=start + one.title) for one in _of_launch(launch)]
    if len(found) <= MOST:
        return found, ""
    return [*found[: MOST // 2], *found[-MOST // 2 :]], f"{len(found) - MOST:,} more in the middle are in events.jsonl"


def _of_launch(launch: Launch) -> Iterator[Trouble]:
    for one in launch.troubles:
        if isinstance(one, Failure):
            yield _failure(one)
        else:
            yield _restart(one) if isinstance(one, Restart) else _stall(one)
    if launch.status and launch.message and not launch.failures:
        yield Trouble("failure", f"The launcher ended with status {launch.status}", launch.message)


def _failure(one: Failure) -> Trouble:
    who = f"Rank {one.rank}" if one.rank is not None else "A rank"
    attempt = f"Attempt {one.attempt + 1}: " if one.attempt is not None else ""
    host = f" on {one.host}" if one.host else ""
    lines = [
        f"It ended with: {one.words}" if one.words and one.error not in ("", one.words) else "",
        f"It was at {one.place}" if one.place else "",
        f"It had made no progress for {one.hang_s:.0f} s" if one.hang_s is not None else "",
        f"All ranks: {one.found}" if one.found else "",
        *(f"{ranks(which)} {words}" for words, which in one.others),
        one.meaning,
    ]
    title, output = "The last lines of its output", one.last_lines
    if one.stack and not output:
        title, output = "Where it hung", one.stack
    return Trouble(
        kind="failure",
        title=f"{attempt}{who.lower() if attempt else who}{host} failed first{_at(one.time)}",
        error=one.error or one.words,
        lines=tuple(line[0].upper() + line[1:] for line in lines if line),
        advice=one.advice,
        output="\n".join(output[-MOST_LINES:])[-MOST_CHARACTERS:],
        output_title=title,
    )


def _restart(one: Restart) -> Trouble:
    with_ = f" with {one.ranks} rank{'s' * (one.ranks != 1)}" if one.ranks is not None else ""
    number = "" if one.attempt is None else f": attempt {one.attempt + 1} started"
    on = f" on {one.devices}" if one.devices else ""
    return Trouble("restart", f"Restart{number}{with_}{on}", lines=(one.change,) if one.change else ())


def _stall(one: Stall) -> Trouble:
    seconds = "" if one.seconds is None else f" for {one.seconds:.0f} s"
    doing = [f"{ranks(which)}: {what}" for which, what in one.doing[:MOST_LINES]]
    return Trouble(
        kind="stall",
        title=f"No progress{seconds}{_at(one.time)}",
        error=one.words,
        lines=(f"Collective: {one.collective}",) if one.collective else (),
        output="\n".join(doing)[:MOST_CHARACTERS],
        output_title="What each rank did",
    )


def ranks(which: Iterable[int]) -> str:
    """Rank numbers in words, runs of them shortened: "ranks 0 to 3, 7"."""
    numbers = sorted(set(which))
    parts: list[tuple[int, int]] = []
    for number in numbers:
        if parts and parts[-1][1] == number - 1:
            parts[-1] = (parts[-1][0], number)
        else:
            parts.append((number, number))
    words = (str(first) if first == last else f"{first} to {last}" for first, last in parts)
    return f"rank{'s' * (len(numbers) != 1)} {', '.join(words)}"


def _at(time: str) -> str:
    """The moment after a comma, for the end of a title; "" without a time."""
    return f", {moment(time)}" if time else ""


def moment(time: str) -> str:
    """An ISO 8601 time in UTC as "2026-11-30 15:21:27 UTC"; any other text as it is."""
    day, mark, rest = time.partition("T")
    clock = rest[:8]
    return f"{day} {clock} UTC" if mark and rest.endswith("+00:00") and len(day) == 10 else time
