"""`launch.py --scaling`: runs the trials one after the other and reports the result."""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path

from rich.console import Console

from ddp_core.cli import print_json
from ddp_core.errors import UserError
from ddp_launch.cli.options import LaunchOptions
from ddp_launch.plan.plan import LaunchPlan
from ddp_launch.run.torch_logging import importing_silently
from ddp_launch.scaling.judge import judge
from ddp_launch.scaling.show import notes_of, show, to_json
from ddp_launch.scaling.trial import Launch, Trial, TrialFailed, in_words, measure, options_of_a_trial


def numbers_of_ranks(most: int) -> tuple[int, ...]:
    """The numbers of ranks to try: 1, 2, 4 ... and `most`."""
    doubled = (1 << power for power in range(most.bit_length()))
    return tuple(sorted({*doubled, most}))


def run(options: LaunchOptions, plan: LaunchPlan, launch: Launch) -> int:
    """Measure and report; returns the exit status. `plan`: the plan of the run with all ranks; `launch`: plans and runs
    a trial. Errors: UserError."""
    assert options.scaling is not None
    if not plan.cluster.one_node:
        raise UserError("--scaling measures on one machine: leave out --nnodes, or run it outside of the cluster's job")
    most = plan.nproc_per_node
    if most == 1:
        raise UserError("--scaling compares numbers of ranks, and this plan has one: give --nproc or more GPUs")
    with importing_silently():
        from ddp_launch.run import agent  # noqa: F401 (imported once for all forked trials)
    console = Console(stderr=True)
    trials: list[Trial] = []
    folder = Path(tempfile.mkdtemp(prefix="ddp-launch-scaling-"))
    keep = False
    try:
        for ranks in numbers_of_ranks(most):
            console.print(f"{in_words(ranks)}: {options.scaling:g} s after a warm-up", style="dim", highlight=False)
            own = folder / str(ranks)
            trials.append(measure(options_of_a_trial(options, ranks, own), launch, options.scaling, own))
    except TrialFailed as error:
        keep = True
        print(*error.lines, f"error: --scaling: {error}; its files are in {folder}", sep="\n", file=sys.stderr)
        return error.status
    finally:
        if not keep:
            shutil.rmtree(folder, ignore_errors=True)
    training = plan.training
    verdict = judge(
        trials,
        global_batch=None if training is None else "batch_size_per_rank" not in training.config.given,
        cores=plan.host.usable_cpus,
    )
    notes = notes_of(verdict, gpus=bool(plan.selection.indices))
    if options.json:
        print_json(to_json(verdict, notes))
    else:
        show(Console(), verdict, notes)
    return 0
