"""Where a run leaves its files: the trainer's run folder, and the folder of the ranks' logs."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import sys
import tempfile
from collections.abc import Container
from pathlib import Path

from ddp_core.errors import OptionError
from ddp_launch.cli.options import LaunchOptions
from ddp_launch.cluster.cluster import RUN_ID, Cluster
from ddp_launch.plan.plain import to_json
from ddp_launch.plan.plan import LaunchPlan, with_arguments
from ddp_train.config.options import Config
from ddp_train.run_folder.claim import claim, new_name
from ddp_train.run_folder.lock import RunLock

PREFIX = "ddp-launch-"


class Folders:
    """The folders of one run. `logs`: output of the ranks; `temporary`: made for this run alone."""

    def __init__(self, logs: Path, *, temporary: bool, lock: RunLock) -> None:
        self.logs = logs
        self.temporary = temporary
        self._lock = lock

    def close(self) -> None:
        """After the run: others may use its folder."""
        self._lock.release()

    def tidy(self, seen: Container[Path]) -> None:
        """After a success: a temporary folder is of no use when it holds nothing but what was `seen` on the screen."""
        if self.temporary and not any(p.is_file() and p.stat().st_size and p not in seen for p in self.logs.rglob("*")):
            shutil.rmtree(self.logs, ignore_errors=True)


def _named_by_run(config: Config, cluster: Cluster) -> Config:
    """The nodes of a run agree on its folder by the run's name; clocks differ. A name that nobody gave is no name."""
    if config.run.out_dir is not None or cluster.one_node or cluster.run_id == RUN_ID:
        return config
    folder = Path("runs") / re.sub(r"[^A-Za-z0-9.]+", "-", f"{cluster.run_id}-{config.model.model or 'model'}")
    return dataclasses.replace(config, run=dataclasses.replace(config.run, out_dir=str(folder)))


def prepare(plan: LaunchPlan, options: LaunchOptions) -> tuple[LaunchPlan, Folders]:
    """Make the folders; the plan with the run folder named, so that ranks and launcher agree on it.

    Errors: OptionError or UserError where a folder cannot be made, or another run is using it.
    """
    first_node = plan.cluster.hosts_store in (None, True)
    lock = RunLock()
    run_folder: Path | None = None
    if plan.training is not None:
        config = _named_by_run(plan.training.config, plan.cluster)
        if first_node:
            run_folder, note = claim(config, lock)
            if not plan.cluster.one_node:
                lock.release()  # rank 0 takes it, on whatever node it is
            if note is not None:
                print(note, file=sys.stderr)
        else:
            run_folder = Path(config.run.out_dir) if config.run.out_dir is not None else new_name(config.model.model)
        if plan.training.config.run.out_dir is None:
            plan = with_arguments(plan, ("--out-dir", str(run_folder)))
    if options.log_dir is None and run_folder is None:
        return plan, Folders(Path(tempfile.mkdtemp(prefix=PREFIX)), temporary=True, lock=lock)
    logs = Path(options.log_dir) if options.log_dir is not None else (run_folder or Path()) / "logs"
    if not plan.cluster.one_node:
        # On a shared disk, each node keeps its own.
        logs /= plan.host.hostname
    try:
        logs.mkdir(parents=True, exist_ok=True)
        if run_folder is not None and first_node:
            (run_folder / "plan.json").write_text(json.dumps(to_json(plan), indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        option = "--log-dir" if options.log_dir is not None else "--out-dir"
        raise OptionError(f"{option} {str(logs)!r}: {error.strerror or error}") from None
    return plan, Folders(logs, temporary=False, lock=lock)
