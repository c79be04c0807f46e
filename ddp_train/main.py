"""Entry point of the trainer: under `launch.py`, under `torchrun`, or as a plain Python program.

Options are checked before torch is imported, so that a mistake is reported at once. The order is that of the functions
below: `main` reads the options, `_run` turns errors into an exit status, `_train` prepares the process and builds the
run, `_use` trains. A rank that fails alone ends in `_exit_alone`, all ranks together in `_end`.
Exit status: 0 success; 1 the run failed (diverged); 2 a user's mistake; 130 after Ctrl-C, 143 after SIGTERM.
"""

from __future__ import annotations

import os
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

if __package__ in (None, ""):
    # Run as a file: the packages are beside this folder, whatever the working directory.
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from ddp_core import missing_packages, rank_report
from ddp_core.cli import prepare_output
from ddp_core.collector import collector_paused
from ddp_core.errors import UserError
from ddp_train.config.options import Config
from ddp_train.config.parse import parse, with_values
from ddp_train.config.validation import check_paths
from ddp_train.distributed.heartbeat import heartbeat
from ddp_train.engine.stop_signals import StopSignals
from ddp_train.process_setup import expand_segments, keep_heap, keep_private
from ddp_train.run_folder.claim import finished, is_restart

if TYPE_CHECKING:
    from ddp_train.assemble.build import Run
    from ddp_train.distributed.process_group import Ranks

OTHER_RANKS_WAIT_S = 0.3


def main(argv: Sequence[str] | None = None, stop: StopSignals | None = None) -> int:
    """Train with the options of the command line; returns the exit status. `stop`: the signals that may end it."""
    prepare_output()
    try:
        config = parse(sys.argv[1:] if argv is None else argv)
        if is_restart() and config.run.resume is None:
            # The ranks were restarted after a failure: continue from the last checkpoint.
            config = with_values(config, {"resume": "auto"})
        missing_packages.need("torch", "numpy", "psutil")
        check_paths(config)
        if config.model.expandable_segments:
            expand_segments(os.environ)
        keep_private(os.environ)
    except UserError as error:
        # Every rank reads the same command line and finds the same mistake.
        return _end(f"error: {error}", status=2, speaks=os.environ.get("RANK", "0") == "0", error=error)
    if (line := finished(config)) is not None:
        return _end(line, status=0, speaks=os.environ.get("RANK", "0") == "0")
    return _run(config, stop or StopSignals())


def _end(message: str, *, status: int, speaks: bool, error: BaseException | None = None) -> int:
    """All ranks end with this status: one prints why and ends first, so that no other looks like the cause."""
    if error is not None:
        _report(error, status, message)
    if speaks:
        print(message, file=sys.stderr, flush=True)
    else:
        time.sleep(OTHER_RANKS_WAIT_S)
    return status


def _run(config: Config, stop: StopSignals) -> int:
    from ddp_core.errors import SharedError, Stopped, TrainingDiverged

    with collector_paused():
        from ddp_train.assemble import build  # noqa: F401 (for torch and what else it imports)
        from ddp_train.distributed import process_group

    try:
        with stop.raising():
            status = _train(config, ranks := process_group.Ranks.from_environment(), stop)
    except SharedError as error:
        heartbeat.withdraw()
        return _end(f"error: {error}", status=2, speaks=error.speaks, error=error)
    except TrainingDiverged as error:
        process_group.wait_for_all()  # rank 0 draws curves
        return _end(f"error: {error}", status=1, speaks=ranks.is_first, error=error)
    except Stopped as error:
        if error.together:
            process_group.wait_for_all()  # rank 0 writes a checkpoint
            return _end(str(error), status=error.status, speaks=ranks.is_first)
        _exit_alone(error, saves=_saves(config))
    except BaseException as error:
        # This rank alone failed. The others wait for it in a collective, and so would leaving the process group:
        # report the error and exit at once.
        _exit_alone(error, saves=_saves(config))
    heartbeat.beat("done")
    process_group.wait_for_all()
    process_group.stop()
    return status


def _train(config: Config, ranks: Ranks, stop: StopSignals) -> int:
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
    skip_plots = False
    try:
        for observer in run.observers:
            observer.on_start(run.facts)
        heartbeat.beat("training")
        run.trainer.fit()
        heartbeat.beat("closing")
        for observer in run.observers:
            observer.on_end(run.trainer.best)
    except BaseException as error:
        alone = ranks.world_size > 1 and not isinstance(error, (UserError, TrainingDiverged, KeyboardInterrupt))
        skip_plots = alone or isinstance(error, Stopped)
        raise
    finally:
        for observer in run.observers:
            # Plots take seconds, for which the other ranks and the user would wait.
            observer.leave() if skip_plots else observer.close()
    finish(run)
    return 0


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
    """Whether it is a training run, which has checkpoints, and not a measurement."""
    return config.run.tune is None and config.diagnostics.overfit_one_batch is None


def _exit_alone(error: BaseException, *, saves: bool) -> NoReturn:
    """End this process at once: one line for a user's mistake and after a signal, else the traceback."""
    from ddp_core.errors import Stopped

    status = 1
    if isinstance(error, Stopped):
        status = error.status
        heartbeat.withdraw()
        if os.environ.get("RANK", "0") == "0":
            at = f"at step {heartbeat.step + 1} (epoch {heartbeat.epoch + 1}): what was saved before stands"
            if not saves:
                at = "before the measurement was done: there is nothing to save"
            elif heartbeat.step < 0:
                at = "before the first step: there is nothing to save"
            print(f"{error} {at}", file=sys.stderr)
    elif isinstance(error, UserError):
        status = 2
        _report(error, status, f"error: {error}")
        print(f"error: {error}", file=sys.stderr)
    elif isinstance(error, KeyboardInterrupt):
        status = 130  # the user knows why: no traceback
    else:
        if place := heartbeat.place:
            error.add_note(f"rank {os.environ.get('RANK', '0')} was at {place}")
        _report(error, status)
        traceback.print_exception(error)
    heartbeat.fail()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _report(error: BaseException, status: int, message: str = "") -> None:
    """Write the error for the launcher, or torchrun, into the error file of this rank."""
    rank = int(os.environ.get("RANK", "0"))
    found = rank_report.of_error(error, rank=rank, status=status, place=heartbeat.place, message=message)
    rank_report.write(found, os.environ.get(rank_report.ERROR_FILE))


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
