"""Entry point of the trainer: under `launch.py`, under `torchrun`, or as a plain Python program.

Options are checked before torch is imported, so that a mistake is reported at once. The functions below are in order
of execution: `main` reads the options, `_run` turns errors into an exit status, `_train` prepares the process and
builds the run, `_use` trains. process_end.py defines how a failed rank exits.
Exit status: 0 success; 1 the run failed (diverged); 2 a user's mistake; 130 after Ctrl-C, 143 after SIGTERM.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

if __package__ in (None, ""):
    # Run as a script: the packages are next to this folder, whatever the working directory.
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from ddp_core import missing_packages
from ddp_core.cli import prepare_output
from ddp_core.errors import UserError
from ddp_core.process import collector_paused
from ddp_train.config.options import Config
from ddp_train.config.parse import parse, with_values
from ddp_train.config.validation import check_paths, resume_target
from ddp_train.distributed.heartbeat import heartbeat
from ddp_train.engine.stop_signals import StopSignals
from ddp_train.process_end import end_together, end_with
from ddp_train.process_setup import expand_segments, keep_heap, keep_private
from ddp_train.run_folder.claim import finished, is_restart

if TYPE_CHECKING:
    from ddp_train.assemble.build import Run
    from ddp_train.distributed.process_group import Ranks


def main(argv: Sequence[str] | None = None, stop: StopSignals | None = None) -> int:
    """Train with the options of the command line; returns the exit status. `stop`: handles the signals that end it."""
    prepare_output()
    try:
        config = parse(sys.argv[1:] if argv is None else argv)
        if is_restart():
            config = _continued(config)
        missing_packages.need("torch", "numpy", "psutil")
        missing_packages.need_torch((2, 11), "the trainer")
        check_paths(config)
        if config.model.expandable_segments:
            expand_segments(os.environ)
        keep_private(os.environ)
    except UserError as error:
        # Every rank reads the same command line and finds the same mistake.
        return end_together(f"error: {error}", status=2, speaks=os.environ.get("RANK", "0") == "0", error=error)
    if (line := finished(config)) is not None:
        return end_together(line, status=0, speaks=os.environ.get("RANK", "0") == "0")
    return _run(config, stop or StopSignals())


def _continued(config: Config) -> Config:
    """The options after a restart: continue from this run's last checkpoint, where it has written one, and not again
    from a checkpoint elsewhere from which it began."""
    run, own = config.run, resume_target("auto", config.run.out_dir)
    begun = resume_target(run.resume, run.out_dir)
    if begun is None or (own is not None and own.parent.resolve() != begun.parent.resolve()):
        return with_values(config, {"resume": "auto"})
    return config


def _run(config: Config, stop: StopSignals) -> int:
    """Train, and stop the process group; returns the exit status."""
    with collector_paused():
        from ddp_train.assemble import build  # noqa: F401 (loads torch and the rest while the collector is paused)
        from ddp_train.distributed import process_group

    try:
        with stop.raising():
            status = _train(config, process_group.Ranks.from_environment(), stop)
    except BaseException as error:
        return end_with(error, saves=_saves(config))
    heartbeat.beat("done")
    process_group.wait_for_all()
    process_group.stop()
    return status


def _train(config: Config, ranks: Ranks, stop: StopSignals) -> int:
    """Set the process up, build everything and train; returns the exit status."""
    from ddp_train.assemble.build import build
    from ddp_train.assemble.resolve_options import set_arithmetic
    from ddp_train.distributed import process_group
    from ddp_train.optim.precision import set_matmul_precision
    from ddp_train.watchdog import start

    heartbeat.beat("setup")
    if problem := start.start(ranks, config.run.step_timeout):
        print(f"note: {problem}", file=sys.stderr)
    device = process_group.choose_device(config.run.device, ranks)
    if device.type == "cpu" and config.run.tune is None:  # --tune measures the memory of a step
        keep_heap(os.environ)
    set_arithmetic(config, ranks, device)
    set_matmul_precision(config.model.matmul_precision)
    process_group.start(ranks, device)
    run = build(config, ranks, device, stop)
    status = _use(run, config, ranks)
    run.lock.release()
    return status


def _use(run: Run, config: Config, ranks: Ranks) -> int:
    """Train, or measure instead; returns the exit status."""
    from ddp_core.errors import Stopped, TrainingDiverged
    from ddp_train.evaluation.after_training import finish

    if not _saves(config):
        return _measure(run)
    skip_plots, failed = False, True
    try:
        for observer in run.observers:
            observer.on_start(run.facts)
        heartbeat.beat("training")
        run.trainer.fit()
        heartbeat.beat("closing")
        for observer in run.observers:
            observer.on_end(run.trainer.best)
        failed = False
    except BaseException as error:
        alone = ranks.world_size > 1 and not isinstance(error, (UserError, TrainingDiverged, KeyboardInterrupt))
        skip_plots = alone or isinstance(error, Stopped)
        raise
    finally:
        for observer in run.observers:
            # Plots take seconds, and the other ranks and the user would have to wait for them.
            observer.leave() if skip_plots else observer.close()
        if failed and not skip_plots:
            _write_page(run)
    finish(run)
    _write_page(run)
    return 0


def _write_page(run: Run) -> None:
    """Write report.html, unless a launcher started the run: its own report also covers failures."""
    if run.trainer.components.ranks.is_first and "DDP_LAUNCH" not in os.environ:
        from ddp_train.report.write import write_page_if_possible

        write_page_if_possible(run.folder.path)


def _measure(run: Run) -> int:
    """`--tune`, `--overfit-one-batch`: measure instead of training; the result goes to stdout and the run folder."""
    from ddp_train.distributed.process_group import on_first_rank
    from ddp_train.tune import overfit_one_batch
    from ddp_train.tune.measurements import MEASUREMENTS

    ranks, folder = run.trainer.components.ranks, run.folder.path
    if (steps := run.config.diagnostics.overfit_one_batch) is not None:
        found = overfit_one_batch.overfit_one_batch(run.trainer, steps, len(run.dataset.classes))
        path = on_first_rank(lambda: overfit_one_batch.write(found, folder), ranks)
        lines, status = [f"{overfit_one_batch.judge(found)}; {path}"], int(not found.learned)
    else:
        text, write = MEASUREMENTS[run.config.run.tune or "lr"](run.trainer, run.config, run.dataset)
        lines, status = [text, *map(str, on_first_rank(lambda: write(folder), ranks))], 0
    if ranks.is_first:
        print(*lines, sep="\n")
    return status


def _saves(config: Config) -> bool:
    """Whether this is a training run, which writes checkpoints, and not a measurement."""
    return config.run.tune is None and config.diagnostics.overfit_one_batch is None


def program() -> NoReturn:
    """`main` as a program: it handles signals, and exits as soon as everything is on disk."""
    stop = StopSignals()
    stop.install()
    status = main(stop=stop)
    if "torch" in sys.modules:
        from ddp_train.distributed import process_group

        process_group.leave(status)
    sys.exit(status)


if __name__ == "__main__":
    program()
