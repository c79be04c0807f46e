"""The folders of a run: the trainer's run folder, and the folder of the ranks' logs."""

from __future__ import annotations

import dataclasses
import errno
import fcntl
import json
import os
import re
import shutil
import stat
import sys
import tempfile
from contextlib import nullcontext, suppress
from datetime import UTC, datetime
from pathlib import Path

from ddp_core.errors import OptionError
from ddp_launch.cli.options import LaunchOptions
from ddp_launch.cluster.cluster import RUN_ID, Cluster
from ddp_launch.plan.plain import to_json
from ddp_launch.plan.plan import LaunchPlan, with_arguments
from ddp_train.config.options import Config
from ddp_train.report.read_run import PLAN, TOPOLOGY
from ddp_train.report.write import is_foreign
from ddp_train.run_folder.claim import claim, new_name
from ddp_train.run_folder.lock import RunLock
from gpu_topology import snapshot

PREFIX = "ddp-launch-"
KEPT_S = 7 * 24 * 3600
FULL = (errno.ENOSPC, errno.EDQUOT)


class Folders:
    """The folders of one run. `logs`: the ranks' output; `temporary`: `logs` was made for this run alone; `run`: the
    run folder of the bundled trainer, None for other programs.

    `record`: the folder for plan, events and page: the trainer's run folder on the first node, else the log folder.
    """

    def __init__(
        self, logs: Path, *, temporary: bool, lock: RunLock, run: Path | None = None, record: Path | None = None
    ) -> None:
        self.logs, self.run = logs, run
        self.record = record or logs
        self.temporary = temporary
        self._lock = lock
        self._in_use = _hold(logs) if temporary else None

    @property
    def shown(self) -> str:
        """The folder of the logs, and whether it will be removed."""
        return f"{self.logs}{' (removed after a success; --log-dir DIR keeps them)' if self.temporary else ''}"

    def close(self, *, success: bool) -> None:
        """After the run: release the run folder, and after a success remove a temporary log folder."""
        self._lock.release()
        if self._in_use is not None:
            os.close(self._in_use)
        if self.temporary and success:
            shutil.rmtree(self.logs, ignore_errors=True)


def _hold(folder: Path) -> int | None:
    """A descriptor that holds a lock on the folder; None where another process has it, or locking fails."""
    try:
        file = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(file)
        return None
    return file


def _make(logs: Path) -> None:
    """Make the folder. A full disk is no error: the run continues without logs, and lost output is reported."""
    try:
        logs.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        if error.errno not in FULL:
            raise


def _temporary_folder() -> Path:
    """Make a new folder for logs; first remove those that this user's failed runs left more than a week ago."""
    folder = Path(tempfile.gettempdir())
    now = datetime.now(UTC).timestamp()
    for old in folder.glob(f"{PREFIX}????????"):
        with suppress(OSError):
            facts = old.lstat()
            ours = facts.st_uid == os.geteuid() and stat.S_ISDIR(facts.st_mode)
            if not ours or now - max(file.lstat().st_mtime for file in (old, *old.rglob("*"))) < KEPT_S:
                continue
            # A running launcher holds a lock on its folder.
            if (held := _hold(old)) is not None:
                shutil.rmtree(old, ignore_errors=True)
                os.close(held)
    return Path(tempfile.mkdtemp(prefix=PREFIX, dir=folder))


def _write_plan(plan: LaunchPlan, folder: Path, *, ours: bool) -> None:
    """Write the plan, and the topology that it is for in the format of `--topology`. `ours`: the folder holds no files
    of the user. Errors: OSError."""
    documents = {PLAN: to_json(plan)} | ({TOPOLOGY: snapshot.to_dict(plan.topology)} if plan.topology.gpus else {})
    for name, document in documents.items():
        if ours or not is_foreign(folder / name):
            (folder / name).write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


def _named_by_run(config: Config, cluster: Cluster) -> Config:
    """Name the run folder after the run, so that all nodes agree on it (their clocks differ); not for the default
    name."""
    if config.run.out_dir is not None or cluster.one_node or cluster.run_id == RUN_ID:
        return config
    folder = Path("runs") / re.sub(r"[^A-Za-z0-9.]+", "-", f"{cluster.run_id}-{config.model.model or 'model'}")
    return dataclasses.replace(config, run=dataclasses.replace(config.run, out_dir=str(folder)))


def prepare(plan: LaunchPlan, options: LaunchOptions) -> tuple[LaunchPlan, Folders]:
    """Make the folders. Returns the plan with the name of the run folder, so that ranks and launcher agree on it.

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
                lock.release()  # rank 0 takes the lock, on whichever node it runs
            if note is not None:
                print(note, file=sys.stderr)
        else:
            run_folder = Path(config.run.out_dir) if config.run.out_dir is not None else new_name(config.model.model)
        if plan.training.config.run.out_dir is None:
            plan = with_arguments(plan, ("--out-dir", str(run_folder)))
    if options.log_dir is None and run_folder is None:
        try:
            folders = Folders(_temporary_folder(), temporary=True, lock=lock)
        except OSError as error:
            raise OptionError(f"no temporary folder for logs ({error.strerror or error}): --log-dir DIR") from None
        with suppress(OSError):
            _write_plan(plan, folders.record, ours=True)
        return plan, folders
    logs = Path(options.log_dir) if options.log_dir is not None else (run_folder or Path()) / "logs"
    if not plan.cluster.one_node:
        # Each node has its own folder, even on a shared disk.
        logs /= plan.host.hostname
    folders = Folders(logs, temporary=False, lock=lock, run=run_folder, record=run_folder if first_node else None)
    try:
        _make(logs)
        ours = folders.record is run_folder
        with nullcontext() if ours else suppress(OSError):
            _write_plan(plan, folders.record, ours=ours)
    except OSError as error:
        option = "--log-dir" if options.log_dir is not None else "--out-dir"
        raise OptionError(f"{option} {str(logs)!r}: {error.strerror or error}") from None
    return plan, folders
