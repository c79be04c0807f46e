"""A failed run on one screen: which rank, how it ended, its last lines, how to fix it, where the logs are."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ddp_launch.failure.failures import Failure, Outcome, in_words
from ddp_launch.failure.known_failures import TIMEOUT
from ddp_launch.failure.remedies import Remedy

LINES = 20
LINES_SEEN = 6
LABELS = 9
SHOWN = 3


def show(console: Console, outcome: Outcome, remedy: Remedy | None, host: str = "") -> None:
    """Print the summary; nothing after a success, one line where the bundled trainer has explained a mistake.

    host: the machine that has the logs, for a reader on another one.
    """
    if outcome.message is not None:
        console.print(Text.assemble(("error: ", "red"), outcome.message), soft_wrap=True)
    if (failure := outcome.first) is None:
        return
    if (explained := failure.explained) is not None:
        failures = outcome.attempts[-1].failures
        if not any(other.on_screen and explained in other.log_tail.lines for other in failures):
            console.print(Text(explained), soft_wrap=True)
        return
    _show_failure(console, outcome, failure, remedy, host)


def _show_failure(console: Console, outcome: Outcome, failure: Failure, remedy: Remedy | None, host: str) -> None:
    """Print the title, the facts, the rank's last lines, and the advice."""
    console.print()
    console.rule(f"[bold red]{_title(outcome, failure)}[/bold red]", align="left", style="red")
    speaker = outcome.attempts[-1].speaker or failure
    console.print(_table(_facts(outcome, failure, remedy, speaker)))
    if words := speaker.log_tail.shown(LINES_SEEN if speaker.on_screen else LINES):
        bar = "|" if console.options.ascii_only else "│"
        console.print()
        for line in words:
            console.print(Text.assemble((f"  {bar} ", "red"), line), soft_wrap=True)
        console.print()
    console.print(_table(_advice(speaker, remedy, host)))


def _title(outcome: Outcome, failure: Failure) -> str:
    """Who failed, and how: "rank 3 failed first"."""
    if failure.hang and failure.hang.verdict == "device":
        return "a GPU did not answer"
    how = "lost its connection" if _unexplained(outcome) else "failed first"
    how = "held the others up" if failure.held_up else how
    how = "left early" if failure.left else "hung" if failure.hang else how
    return f"rank {failure.rank} {how}"


def _unexplained(outcome: Outcome) -> bool:
    """Whether the cause is on another node, which has not reported it."""
    attempt = outcome.attempts[-1]
    return attempt.nodes > 1 and attempt.first is not None and attempt.first.victim


def _table(rows: Iterable[tuple[str, str]]) -> Table:
    """Rows of a bold name and a text."""
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(style="bold", no_wrap=True, min_width=LABELS)
    table.add_column(overflow="fold")
    for name, value in rows:
        table.add_row(name, Text(value))
    return table


def _facts(outcome: Outcome, failure: Failure, remedy: Remedy | None, speaker: Failure) -> Iterator[tuple[str, str]]:
    """How the rank ended, and what happened to the others."""
    *earlier, last = outcome.attempts
    attempt = f", attempt {last.number + 1} of {last.number + 1}" if earlier else ""
    after = "" if last.seconds is None else f", {last.seconds:.1f} s after the start"
    yield "rank", f"{failure.rank} on {failure.host}{attempt}{after}"
    # A remedy says more than the general meaning of a signal.
    yield "ended by", failure.ending(meaning=remedy is None)
    if failure.place:
        yield "was at", str(failure.place)
    if failure.at:
        yield "was", failure.at
    if failure.found:
        yield "seen", failure.found
    others = [other for other in last.failures if other is not failure]
    for name, words, ranks in (
        (
            *(("as well", "lost a connection, too") if failure.victim else ("victims", "lost the connection to it")),
            [f for f in others if f.victim],
        ),
        (
            *(("so failed", "waited for it in vain") if failure.held_up else ("as well", "failed of themselves")),
            [f for f in others if not f.victim and not f.stopped],
        ),
        ("stopped", "by the launcher", [f for f in others if not f.victim and f.stopped]),
    ):
        if ranks:
            later = "" if failure.held_up else _later(failure, ranks)
            yield name, f"{names(f.rank for f in ranks)}: {words}{later}"
    if failure.left:
        for other in others[:SHOWN]:
            if other.place or other.at:
                yield "meanwhile", f"rank {other.rank} was {f'at {other.place}' if other.place else other.at}"
    if _unexplained(outcome):
        yield "look at", "the other nodes: one of them, or a rank there, was lost, and none has reported why"
    if remedy is not None and remedy.name == TIMEOUT:
        silent = [other.rank for other in others if other.stopped and not other.log_tail.timed_out]
        if silent:
            yield "look at", f"{names(silent)}: the others waited for {'it' if len(silent) == 1 else 'them'}"
    for before in earlier:
        if first := before.first:
            words = first.log_tail.error or in_words(first.code, meaning=False)
            yield f"attempt {before.number + 1}", f"rank {first.rank}: {words}"
    if speaker is not failure:
        why = "waited for it" if failure.held_up else "ended in the same way"
        yield "its words", f"none; those of rank {speaker.rank}, which {why}:"
    if outcome.refusal:
        yield "restart", f"none: {outcome.refusal}"


def _later(first: Failure, others: Sequence[Failure]) -> str:
    """In words, how long after the first failure the first of the others ended; empty where that is unknown."""
    times = [other.ended_ms for other in others if other.ended_ms is not None and not other.stopped]
    if first.ended_ms is None or not times:
        return ""
    after = min(times) - first.ended_ms
    return f", {after:.0f} ms later" if after >= 0 else f", and ended {-after:.0f} ms before it"


def _advice(failure: Failure, remedy: Remedy | None, host: str) -> Iterator[tuple[str, str]]:
    """What the failure means, what to do, and where the log is."""
    if remedy is not None:
        yield "because", remedy.meaning
        yield "to do", remedy.advice
    if source := failure.log_tail.source:
        more = [log.name for log in failure.logs if log != source and has_content(log)]
        there = host if failure.remote is None else failure.host
        where = f"{there}: " if there else ""
        yield "log", f"{where}{source}" + "".join(f", {name}" for name in more)
    else:
        yield "log", "it printed nothing" + (f" in {failure.logs[0].parent}" if failure.logs else "")


def names(ranks: Iterable[int]) -> str:
    """Ranks in few words: `rank 3`, `ranks 0, 2 to 7`."""
    numbers = sorted(ranks)
    runs: list[list[int]] = []
    for number in numbers:
        if runs and runs[-1][-1] == number - 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    parts = [f"{run[0]} to {run[-1]}" if len(run) > 2 else ", ".join(map(str, run)) for run in runs]
    return ("rank " if len(numbers) == 1 else "ranks ") + ", ".join(parts)


def has_content(log: Path) -> bool:
    """Whether the log exists and is not empty."""
    try:
        return log.stat().st_size > 0
    except OSError:
        return False
