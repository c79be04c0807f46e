"""The check before a run: a short real job on the plan's GPUs, where the driver's report is doubtful.

If a variable fixes a hang or wrong data, the plan gets the variable; otherwise the launch ends before it can hang or
train on wrong gradients. The job is that of `gpu_topology verify`; this module imports no torch.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from rich.console import Console
from rich.text import Text

from ddp_core.errors import PreflightError
from ddp_launch.cli.options import LaunchOptions
from ddp_launch.plan.plan import LaunchPlan, MachineFacts, make_plan
from ddp_train.distributed.speed_cache import recall as recall_speeds
from gpu_topology.verify_cache import Verdict

OWN_ACCORD = "--no-preflight starts the run without this check"


def is_due(plan: LaunchPlan, options: LaunchOptions) -> bool:
    """Whether to check: the user's choice; by default where several GPUs are doubtful and were never checked."""
    if options.preflight is not None:
        return options.preflight
    return plan.nproc_per_node > 1 and plan.doubt is not None


def preflight(plan: LaunchPlan, options: LaunchOptions, console: Console, worker: Sequence[str] = ()) -> LaunchPlan:
    """Check the GPUs for some seconds; returns the plan with the result, or the same plan where no check is due.

    Only this node's GPUs are checked. `worker`: another program for the check's ranks. Errors: PreflightError;
    TopologyError where the check cannot be started.
    """
    if not is_due(plan, options):
        if plan.verdict is not None and plan.verdict.settings:
            _say(console, f"checked on {plan.verdict.when[:10]}: {_mended(plan.verdict)}")
        return plan
    # Imported here, since most launches check nothing.
    from gpu_topology.verify.check import RANK, check

    if plan.doubt is not None:
        _say(console, plan.doubt)
    verdict = check(
        plan.topology,
        plan.selection,
        plan.host,
        ranks=plan.nproc_per_node,
        worker=worker or RANK,
        say=lambda line: _say(console, line),
    )
    if not verdict.ok and not verdict.settings:
        return _unmended(plan, options, console, verdict)
    if verdict.ok:
        speed = "" if verdict.busbw_gb_s is None else f", busbw {verdict.busbw_gb_s:.1f} GB/s"
        _say(console, f"every byte and every sum right in {verdict.seconds:.1f} s{speed}")
    else:
        _say(console, _mended(verdict))
    facts = MachineFacts(
        topology=plan.topology,
        host=plan.host,
        environ=os.environ,
        recall=lambda topology, uuids: verdict,
        cluster=plan.cluster,
        inherited=plan.inherited,
        known_speeds=recall_speeds,
    )
    return make_plan(options, facts)


def _unmended(plan: LaunchPlan, options: LaunchOptions, console: Console, verdict: Verdict) -> LaunchPlan:
    """A failed check without a fix: the plan if an automatic check could not start. Errors: PreflightError if not."""
    for line in verdict.words:
        console.print(Text(f"  │ {line}"), soft_wrap=True)
    if verdict.stage == "start" and not options.preflight:
        # This says nothing about the GPUs, and the user did not ask for the check.
        _say(console, f"{verdict.problem}; the run continues unchecked")
        return plan
    remedy = f"; {verdict.remedy}" if verdict.remedy else ""
    raise PreflightError(f"preflight: {verdict.problem}{remedy}; {OWN_ACCORD}")


def _mended(verdict: Verdict) -> str:
    """The line for a problem that variables fix."""
    names = " ".join(f"{name}={value}" for name, value, _ in verdict.settings)
    return f"{verdict.problem}; the run continues with {names}: the same job passed with that"


def _say(console: Console, line: str) -> None:
    """One line on the console, after "preflight: "."""
    console.print(Text("preflight: ", style="bold") + Text(line, style="none"), soft_wrap=True, highlight=False)
