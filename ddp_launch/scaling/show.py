"""The verdict of --scaling: a table with one sentence below it, or JSON."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ddp_launch.scaling.judge import Row, Verdict
from ddp_launch.scaling.trial import in_words

SCHEMA = "ddp-launch-scaling/1"
COLUMNS = ("computing", "input", "communication", "waiting", "fixed", "other")
HEADS = {"communication": "sending"}
LEGEND = (
    "in % of a step: sending: communication with nothing left to compute; waiting: for other ranks; fixed: computing"
    " that more ranks do not make shorter; other: the program's code outside of model, optimizer and loader"
)
SHARED_CORES = 1.01
BUSY = 0.2
"""From this share of time spent waiting for a CPU core on, the figures are doubtful."""


def to_json(verdict: Verdict, notes: list[str]) -> dict[str, Any]:
    """The verdict as docs/sizing.md describes it."""
    return {
        "schema": SCHEMA,
        "scaling": verdict.kind,
        "why": verdict.why,
        "trials": [
            {
                "ranks": row.ranks,
                "steps": row.steps,
                "steps_per_second": round(row.steps_per_second, 3),
                "speed_up": round(row.speed_up, 3),
                "possible_speed_up": round(row.possible, 3),
                "efficiency": round(row.efficiency, 3),
                "shares": {name: round(row.shares[name], 4) for name in COLUMNS},
                "waiting_for_a_core": round(row.queued, 4),
                "slow_rank": row.slow,
                "ended_early": row.ended,
            }
            for row in verdict.rows
        ],
        "main_cause": verdict.cause,
        "sentence": sentence(verdict),
        "recommended_ranks": verdict.recommended,
        "notes": notes,
    }


def show(console: Console, verdict: Verdict, notes: list[str]) -> None:
    """The table, the main cause and the number of ranks."""
    table = Table(box=None, padding=(0, 1, 0, 0))
    for head in ("ranks", "steps/s", "speed-up", "efficiency", *(HEADS.get(name, name) for name in COLUMNS)):
        table.add_column(head, justify="right")
    for row in verdict.rows:
        shares = (f"{row.shares[name]:.0%}" for name in COLUMNS)
        speed = (f"{row.steps_per_second:.2f}", f"{row.speed_up:.2f} x", f"{row.efficiency:.0%}")
        table.add_row(str(row.ranks), *speed, *shares)
    console.print(table)
    console.print(Text(LEGEND, style="dim"))
    console.print()
    for line in (sentence(verdict), recommendation(verdict), _assumed(verdict), *notes):
        console.print(Text(line), soft_wrap=True)


def sentence(verdict: Verdict) -> str:
    """The main cause on the largest number of ranks, as a sentence."""
    row = verdict.rows[-1]
    if verdict.cause is None:
        return f"main cause: none; on {in_words(row.ranks)} computing takes {row.shares['computing']:.0%} of a step"
    share = f"{row.shares[verdict.cause]:.0%} of a step on {in_words(row.ranks)}"
    return f"main cause: {_cause(verdict.cause, row)} ({share})"


def _cause(cause: str, row: Row) -> str:
    at = f", most at {place}" if (place := row.places.get(cause)) else ""
    match cause:
        case "input":
            return f"input: the ranks wait for data{at}"
        case "communication":
            return "communication: the ranks wait while gradients are sent, with nothing left to compute meanwhile"
        case "waiting" if row.slow is not None:
            return f"waiting: the others wait for rank {row.slow}, which spends {row.slow_place}"
        case "waiting":
            return "waiting: the ranks wait for one another, and no single rank is the slow one"
        case "other":
            return f"other code of the program, outside of model, optimizer and loader{at}"
    busy = (
        f"; the ranks wait for a free CPU core {row.queued:.0%} of the time"
        if row.queued >= row.shares[cause] / 3
        else ""
    )
    return f"fixed cost: computing that more ranks do not make shorter{busy}"


def recommendation(verdict: Verdict) -> str:
    """The recommended number of ranks, and why."""
    found = next(row for row in verdict.rows if row.ranks == verdict.recommended)
    best = max(row.speed_up for row in verdict.rows)
    if found.ranks == 1:
        return f"recommended: 1 rank; more have at most {best:.2f} x its throughput"
    more = "" if found is verdict.rows[-1] else f"; the best of those tried is {best:.2f} x"
    return f"recommended: {in_words(found.ranks)}, {found.speed_up:.2f} x the throughput of one{more}"


def _assumed(verdict: Verdict) -> str:
    what = {
        "weak": "each rank keeps its batch, so that the throughput counts (weak scaling)",
        "strong": "the ranks divide one batch, so that the time of a step counts (strong scaling)",
    }[verdict.kind]
    return f"assumed: {what}: {verdict.why}"


def notes_of(verdict: Verdict, *, gpus: bool) -> list[str]:
    """What the reader should know about the figures."""
    last = verdict.rows[-1]
    notes = []
    if not gpus and last.possible < last.ranks / SHARED_CORES:
        notes.append(
            f"note: the ranks share the CPU's cores: on {last.ranks} a speed-up of {last.possible:.2f} x is possible,"
            " and efficiency is the part of it"
        )
    if gpus:
        notes.append("note: a GPU may work while its host loads data: input is at most what the table says")
    if (busy := max(row.queued for row in verdict.rows)) >= BUSY:
        notes.append(
            f"note: ranks waited for a free CPU core for up to {busy:.0%} of the time: with other programs on this"
            " machine, or more threads than cores, the figures differ from run to run"
        )
    if any(row.ended for row in verdict.rows):
        some = ", ".join(str(row.ranks) for row in verdict.rows if row.ended)
        notes.append(f"note: the program ended by itself before the time was over (ranks: {some})")
    return notes
