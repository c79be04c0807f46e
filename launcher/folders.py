"""Where a run leaves its files: the trainer's run folder, and the folder of the ranks' logs."""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from collections.abc import Container
from pathlib import Path

from ddp_train.config import claim, new_name
from launcher.options import LaunchOptions, OptionError
from launcher.plan import LaunchPlan, with_arguments
from launcher.show import to_json

__all__ = ["Folders", "prepare"]

PREFIX = "ddp-launch-"


class Folders:
    """The folders of one run. `logs`: output of the ranks; `temporary`: made for this run alone."""

    def __init__(self, logs: Path, *, temporary: bool) -> None:
        self.logs = logs
        self.temporary = temporary

    def tidy(self, seen: Container[Path]) -> None:
        """After a success: a temporary folder is of no use when it holds nothing but what was `seen` on the screen."""
        if self.temporary and not any(p.is_file() and p.stat().st_size and p not in seen for p in self.logs.rglob("*")):
            shutil.rmtree(self.logs, ignore_errors=True)


def prepare(plan: LaunchPlan, options: LaunchOptions) -> tuple[LaunchPlan, Folders]:
    """Make the folders; the plan with the run folder named, so that ranks and launcher agree on it.

    Errors: OptionError or UserError where a folder cannot be made.
    """
    first_node = plan.cluster.node_rank in (None, 0)
    run_folder: Path | None = None
    if plan.training is not None:
        config = plan.training.config
        if first_node:
            run_folder, note = claim(config)
            if note is not None:
                print(note, file=sys.stderr)
        else:
            run_folder = Path(config.run.out_dir) if config.run.out_dir is not None else new_name(config.model.model)
        if config.run.out_dir is None:
            plan = with_arguments(plan, ("--out-dir", str(run_folder)))
    if options.log_dir is None and run_folder is None:
        return plan, Folders(Path(tempfile.mkdtemp(prefix=PREFIX)), temporary=True)
    logs = Path(options.log_dir) if options.log_dir is not None else (run_folder or Path()) / "logs"
    try:
        logs.mkdir(parents=True, exist_ok=True)
        if run_folder is not None and first_node:
            (run_folder / "plan.json").write_text(json.dumps(to_json(plan), indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        option = "--log-dir" if options.log_dir is not None else "--out-dir"
        raise OptionError(f"{option} {str(logs)!r}: {error.strerror or error}") from None
    return plan, Folders(logs, temporary=False)
