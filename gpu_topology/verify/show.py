"""A verdict as plain data, and as a page for a terminal: the speed of each pair, and what to set."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from gpu_topology.verify_cache import PairResult, Verdict

_TITLES = {
    "copy": "CUDA copies, GB/s from row to column",
    "nccl": "NCCL send and receive, GB/s from row to column",
    "gloo": "gloo send and receive, GB/s from row to column",
}


def to_json(verdict: Verdict, devices: Sequence[int]) -> dict[str, object]:
    """The verdict's fields, `settings` as [{name, value, reason}], and `devices`: the NVML indices, [] on the CPU."""
    settings = [{"name": name, "value": value, "reason": reason} for name, value, reason in verdict.settings]
    return {**asdict(verdict), "settings": settings, "devices": list(devices)}


def page(verdict: Verdict, devices: Sequence[int]) -> str:
    """The tables and the verdict for a terminal, coloured where stdout is one."""
    console = Console(highlight=False)
    with console.capture() as text:
        for way, title in _TITLES.items():
            if pairs := [pair for pair in verdict.pairs if pair.way == way]:
                console.print(Text(title, style="bold"))
                for table in _matrices(pairs, "GPU" if devices else "rank ", console.width):
                    console.print(table)
                    console.print()
        for line in _lines(verdict):
            console.print(line, soft_wrap=True)
    return text.get()


def _matrices(pairs: Sequence[PairResult], noun: str, width: int) -> Iterator[Table]:
    """The pairs as a matrix: in one table, or in as many as the width of the screen requires."""
    numbers = list(dict.fromkeys(number for pair in pairs for number in (pair.a, pair.b)))
    column = 3 + max(len("wrong"), len(f"{noun}{max(numbers)}"))
    fit = max(1, width // column - 1)
    for first in range(0, len(numbers), fit):
        yield _matrix(pairs, noun, numbers, numbers[first : first + fit])


def _matrix(pairs: Sequence[PairResult], noun: str, rows: Sequence[int], columns: Sequence[int]) -> Table:
    """The table of speeds between pairs."""
    found = {(pair.a, pair.b): pair for pair in pairs}
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=True, padding=(0, 1), header_style="bold")
    table.add_column("", no_wrap=True)
    for number in columns:
        table.add_column(f"{noun}{number}", no_wrap=True, justify="right")
    for a in rows:
        table.add_row(Text(f"{noun}{a}", style="bold"), *(_cell(found.get((a, b)), a == b) for b in columns))
    return table


def _cell(pair: PairResult | None, same: bool) -> Text:
    """One cell of the table."""
    if pair is None:
        return Text("X" if same else "-", style="dim")
    if pair.problem is not None:
        return Text("wrong", style="bold red")
    return Text("?" if pair.gb_s is None else _speed(pair.gb_s))


def _speed(gb_s: float) -> str:
    """GB/s with three digits."""
    return f"{gb_s:.0f}" if gb_s >= 100 else f"{gb_s:.1f}" if gb_s >= 10 else f"{gb_s:.2f}"


def _lines(verdict: Verdict) -> list[Text]:
    """The verdict as lines for a terminal."""
    lines = []
    if verdict.compute:
        noun = "GPU" if verdict.backend == "nccl" else "rank"
        each = ", ".join(f"{noun} {number} {speed:.3g}" for number, speed in verdict.compute)
        lines.append(Text(f"matrix products, TFLOP/s: {each}"))
    if verdict.busbw_gb_s is not None:
        model = verdict.model_gb_s
        of_model = f", {verdict.busbw_gb_s / model:.0%} of the {_speed(model)} of its slowest link" if model else ""
        lines.append(Text(f"all-reduce over {verdict.ranks} ranks: busbw {_speed(verdict.busbw_gb_s)} GB/s{of_model}"))
    lines += [Text("slow", style="bold yellow").append(f": {line}", style="none") for line in verdict.concerns]
    if verdict.ok:
        alone = " (one rank: no pair to compare)" if verdict.ranks == 1 else ""
        what = f": every byte and every sum{alone}, in {verdict.seconds:.1f} s; nothing needs to be set"
        return [*lines, Text("right", style="bold green").append(what, style="none")]
    lines.append(Text("failed", style="bold red").append(f": {verdict.problem}", style="none"))
    lines += [Text(f"  │ {word}") for word in verdict.words]
    for name, value, _ in verdict.settings:
        lines.append(Text(f"set {name}={value}", style="bold").append(": with it the same job was right", style="none"))
    if verdict.remedy is not None:
        lines.append(Text("what to do: ", style="bold").append(verdict.remedy, style="none"))
    return lines
