"""The page of a run: renders a RunRecord as HTML. A section is left out if the folder has no data for it."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import TYPE_CHECKING

from ddp_train.observers.epoch_table import duration, energy
from ddp_train.report import training
from ddp_train.report.json_value import Value
from ddp_train.report.launches import Launch, Plan
from ddp_train.report.read_run import RunRecord
from ddp_train.report.render import render
from ddp_train.report.troubles import moment, troubles
from gpu_topology.topology import Topology

if TYPE_CHECKING:
    from markupsafe import Markup

STOPPED = {129: "SIGHUP", 130: "SIGINT (Ctrl-C)", 131: "SIGQUIT", 143: "SIGTERM"}
VERSIONS = ("python", "torch", "platform", "device", "precision", "all_reduce", "threads_per_rank")

Rows = list[tuple[str, str]]


def page(record: RunRecord) -> str:
    """The HTML of a run's page."""
    last = record.launches[-1] if record.launches else None
    plan = record.plan or (last.plan if last is not None else None)
    environment = Value(dict(record.environment))
    typed = last.command if last is not None and last.command else environment["command"].texts
    found, more = troubles(record.launches)
    starts = len(record.launches)
    reasons = {one.name: one.reason for one in plan.settings} if plan is not None else {}
    machine, problem = _machine(record.topology, plan)
    return render(
        "run.html",
        title=record.name,
        state=state(record, last),
        tiles=_tiles(record, last),
        command=shlex.join(typed),
        shell=plan.shell if plan is not None else "",
        troubles=found,
        more_troubles=more,
        opened=max((at for at, one in enumerate(found) if one.kind == "failure"), default=-1),
        earlier=f"The launcher was started {starts} times in this folder." if starts > 1 else "",
        charts=training.charts(record),
        table=training.table(record),
        ranks=_ranks(record, last),
        waiting=_waiting(last),
        energy=_energy(record, last),
        plan=_plan(plan, last),
        machine=machine,
        changed=training.changed(record, typed, reasons),
        data=training.data(record),
        versions=_versions(record, last, environment),
        problems=[*record.problems, *([problem] if problem else [])],
    )


def state(record: RunRecord, last: Launch | None) -> Mapping[str, str]:
    """The state of the run: `kind` (for the style), `words` and `detail`."""
    done, wanted = len(record.epochs), Value(record.config.get("epochs")).whole
    epochs = f"{_last_epoch(record)} of {wanted} epochs" if record.trained and done and wanted else ""
    kind, words = "warn", "not finished"
    if last is None:
        kind, words = ("good", "finished") if record.finished else (kind, words)
    elif last.status is None and not record.finished:
        words = "running, or ended without recording it"
    elif last.status in STOPPED or last.signal:
        words = f"stopped by {last.signal or STOPPED.get(last.status or 0, '')}"
    elif last.status:
        kind, words = "bad", f"failed with status {last.status}"
    elif record.finished or not record.trained:
        kind, words = "good", "finished"
    begun = f"started {moment(last.time)}" if last is not None and last.time else ""
    host = f"on {last.host}" if last is not None and last.host else ""
    detail = ", ".join(filter(None, (epochs, f"{begun} {host}".strip())))
    return {"kind": kind, "words": words, "detail": detail}


def _last_epoch(record: RunRecord) -> int:
    return Value(record.epochs[-1])["epoch"].whole or len(record.epochs)


def _tiles(record: RunRecord, last: Launch | None) -> list[tuple[str, str, str]]:
    environment = Value(dict(record.environment))
    rows = []
    if record.best is not None:
        epoch, accuracy = record.best
        rows.append((f"best {record.split} accuracy", f"{accuracy:.2%}", f"epoch {epoch}"))
    if (top1 := record.examined.get("top1")) is not None and record.split == "val":
        rows.append(("test accuracy of the best model", f"{top1:.2%}", ""))
    seconds = [value for value in record.column("seconds") if value is not None]
    if seconds:
        rows.append(("training time", duration(sum(seconds)), f"{len(record.epochs)} epochs"))
    elif last is not None and last.seconds is not None:
        rows.append(("time", duration(last.seconds), ""))
    speeds = sorted(value for value in record.column("images_per_second") if value is not None)
    if speeds:
        rows.append(("throughput", f"{speeds[len(speeds) // 2]:,.0f}/s", "samples, the median epoch"))
    world_size = environment["world_size"].whole or (last.world_size if last is not None else None)
    if world_size:
        device = environment["device"].text or (last.plan.group if last is not None else "")
        rows.append(("ranks", str(world_size), device))
    if last is not None and last.attempts > 1:
        rows.append(("attempts", str(last.attempts), f"{len(last.failures)} failed"))
    if (joules := _joules(record, last)) is not None:
        rows.append(("energy", energy(joules), "by the GPUs' own counters"))
    if record.trained and environment["model"]:
        parameters = environment["parameters"].whole
        rows.append(("model", environment["model"].text, "" if parameters is None else f"{parameters:,} parameters"))
    return rows


def _joules(record: RunRecord, last: Launch | None) -> float | None:
    """Energy of the run in joules: of its training on all nodes, else what the launcher read for its own node."""
    if record.energy_joules is not None:
        return record.energy_joules
    return sum(gpu.joules for gpu in last.energy) if last is not None and last.energy else None


def _energy(record: RunRecord, last: Launch | None) -> dict[str, object] | None:
    rows: Rows = []
    if known := [value for value in record.column(training.ENERGY) if value is not None]:
        of = "all" if len(known) == len(record.epochs) else f"{len(known)} of {len(record.epochs)}"
        rows.append((f"training, {of} epochs", energy(sum(known))))
    if (found := training.energy_to(record)) is not None:
        rows.append((f"to {found[0]} {record.split} accuracy", energy(found[1])))
    if last is not None and last.energy:
        total = sum(gpu.joules for gpu in last.energy)
        rows.append(("from the launcher's start to its end", energy(total)))
        for gpu in last.energy:
            rows.append((f"GPU {'' if gpu.index is None else gpu.index}".strip(), energy(gpu.joules)))
    caption = "Energy by the GPUs' own counters: of each whole card, other users' work included, without the host"
    return {"caption": caption, "rows": rows} if rows else None


def _ranks(record: RunRecord, last: Launch | None) -> list[object]:
    waited = last.waited_for if last is not None else None
    found: list[object] = []
    if record.rank_seconds:
        caption = "Seconds of each rank by phase, since the run was last started or resumed"
        found.append(training.bars(record.rank_seconds, caption, duration))
    elif waited is not None and waited.shares:
        found.append(training.bars(waited.shares, "Share of each rank's time by phase", training.share))
    elif last is not None and len(last.waits) > 1:
        shares = {rank: {"waiting for others": part, "own work": 1 - part} for rank, part in last.waits.items()}
        found.append(
            training.bars(
                shares, "Share of the time for which each rank waited for the others in collectives", training.share
            )
        )
    return [one for one in found if one is not None]


def _waiting(last: Launch | None) -> str:
    found = last.waited_for if last is not None else None
    if found is None or found.rank is None:
        return ""
    share = "" if found.share is None else f", {found.share:.0%} of the time"
    each = "" if found.ms_a_step is None else f" {found.ms_a_step:.1f} ms a step"
    return f"The other ranks waited for rank {found.rank}:{each}{share}."


def _plan(plan: Plan | None, last: Launch | None) -> dict[str, object] | None:
    if plan is None:
        return None
    count = "" if plan.ranks_per_node is None else str(plan.ranks_per_node)
    on = f" on each of {plan.nodes} nodes" if plan.nodes not in ("", "1") else ""
    gpus = ", ".join(map(str, plan.indices))
    rows = [
        ("devices", plan.devices),
        ("GPUs", f"{gpus} ({plan.group})" if gpus and plan.group else gpus),
        ("ranks", f"{count}{on}" if count else ""),
        ("backend", plan.backend),
        ("policy", plan.policy if gpus else ""),
    ]
    shown = [(name, value) for name, value in rows if value]
    if not (shown or plan.environment or plan.settings):
        return None
    return {
        "facts": shown,
        "excluded": plan.excluded,
        "environment": plan.environment,
        "settings": plan.settings,
        "warnings": plan.warnings,
    }


def _machine(topology: Topology | None, plan: Plan | None) -> tuple[Markup | None, str]:
    """The picture of the machine (None without one), and why it could not be drawn ("" if it could)."""
    if topology is None or not topology.gpus:
        return None, ""
    from markupsafe import Markup

    from gpu_topology.drawing.picture import layout
    from gpu_topology.drawing.svg import to_svg
    from gpu_topology.select.select import Excluded, Selection

    selection = None
    if plan is not None and plan.indices:
        excluded = tuple(Excluded(*pair) for pair in plan.excluded)
        selection = Selection(plan.indices, plan.uuids, plan.group, plan.policy, excluded, plan.devices)
    try:
        return Markup(to_svg(layout(topology, selection))), ""  # noqa: S704 -- it escapes all words itself
    except Exception as error:  # plan and machine may not fit together
        return None, f"topology.json: the machine cannot be drawn ({type(error).__name__}: {error})"


def _versions(record: RunRecord, last: Launch | None, environment: Value) -> Rows:
    own = last.versions if last is not None else {}
    rows = [(name.replace("_", " "), environment[name].text or own.get(name, "")) for name in VERSIONS]
    if record.topology is not None:
        machine = record.topology
        rows += [("NVIDIA driver", machine.driver_version or ""), ("CUDA of the driver", machine.cuda_version or "")]
    if last is not None:
        rows += [("ddp-launch", last.version), ("host", last.host)]
    return [(name, value) for name, value in rows if value]
