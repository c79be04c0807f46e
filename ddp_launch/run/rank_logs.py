"""Where each rank's output goes: into files, one folder per attempt; local rank 0's to the screen too."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from dataclasses import fields
from pathlib import Path

from torch.distributed.elastic.multiprocessing import LogsDest, LogsSpecs, Std

from ddp_core.rank_report import ERROR_FILE
from ddp_launch.cli.value_types import LOG_BYTES, Tee
from ddp_launch.run.rank_output import RankOutput

STDERR = 2
SIGNALS_VARIABLE = "TORCHELASTIC_SIGNALS_TO_HANDLE"
SIGNALS = os.environ.get(SIGNALS_VARIABLE, "SIGTERM,SIGINT,SIGHUP,SIGQUIT")
MOST_WATCHED = 64
"""The launcher needs about eight open files for a rank whose output it copies. Ranks beyond this number write their
files themselves."""


class RankLogs(LogsSpecs):
    """Files `FOLDER/attempt-A/rank-R.stdout.log`, `...stderr.log` and `...error.json`; attempts of earlier runs are
    kept.

    Where both streams of a rank go to the same screen, both are in the first file, and the second is a link to it.
    `tee`: which ranks are shown on the screen too; `limit`: bytes of a stream that its file keeps.
    """

    def __init__(self, folder: Path, *, tee: Tee, limit: int = LOG_BYTES) -> None:
        super().__init__(str(folder), redirects=Std.ALL)
        self._folder = folder
        self._teed = tee
        self._limit = limit
        self.attempt = folder
        """The folder of the latest attempt."""
        self.restarts: int | None = None
        """The ranks' TORCHELASTIC_RESTART_COUNT; None: the agent's own count."""
        self._output: RankOutput | None = None
        self.ranks: dict[int, tuple[Path, ...]] = {}
        """Local rank -> its log files in the latest attempt: standard output, standard error."""
        self.errors: dict[int, Path] = {}
        """Local rank -> the file for its report (ddp_core/rank_report.py) in the latest attempt."""
        self._streams: dict[int, int] = {}

    @property
    def shown(self) -> frozenset[int]:
        """The local ranks whose standard error is on the screen."""
        return frozenset(rank for rank, streams in self._streams.items() if streams & STDERR)

    @property
    def root_log_dir(self) -> str:
        """See the base class."""
        return str(self._folder)

    def reify(self, envs: dict[int, dict[str, str]]) -> LogsDest:
        """Make the folder of an attempt, and name each rank's files in it. See the base class."""
        self.finish()
        attempt = self.attempt = self._next_attempt()
        self.ranks, self._streams, self.errors = {}, {}, {}
        self._output = RankOutput(self._limit)
        paths: dict[int, tuple[str, str]] = {}
        for local_rank, env in envs.items():
            base = attempt / f"rank-{env['RANK']}"
            if self.restarts is not None:
                env["TORCHELASTIC_RESTART_COUNT"] = str(self.restarts)
            # The launcher empties this variable for its own agent; an agent that a rank starts gets the usual value.
            env[SIGNALS_VARIABLE] = SIGNALS
            # An absolute path, for the watchdog and for programs that change their working directory.
            self.errors[local_rank] = Path(f"{base}.error.json").absolute()
            env[ERROR_FILE] = str(self.errors[local_rank])
            logs = self.ranks[local_rank] = (Path(f"{base}.stdout.log"), Path(f"{base}.stderr.log"))
            streams, prefix = self._teed.shown(int(env["RANK"]), local_rank)
            self._streams[local_rank] = streams
            if streams or local_rank < MOST_WATCHED:
                paths[local_rank] = self._output.add(*logs, shown=streams, prefix=prefix)
            else:
                paths[local_rank] = (str(logs[0]), str(logs[1]))
        self._output.start()
        stdouts, stderrs = ({rank: both[stream] for rank, both in paths.items()} for stream in (0, 1))
        errors = {rank: str(path) for rank, path in self.errors.items()}
        filtered = [os.devnull] * (len(fields(LogsDest)) - 5)  # two more fields since torch 2.10
        return LogsDest(stdouts, stderrs, {}, {}, errors, *filtered)

    def drain(self) -> None:
        """Write all output of ended ranks to their logs, which are about to be read."""
        if self._output is not None:
            self._output.drain()

    def finish(self) -> None:
        """After the ranks have ended: write their last output to the screen and the files."""
        if self._output is None:
            return
        self._output.finish()
        for log, lost, why in self._output.lost:
            self._note(f"{log}: {lost:,} bytes of the output are not in it ({why})")
        unshown, why = self._output.unshown
        if unshown:
            self._note(f"the launcher's output: {unshown:,} bytes of the ranks' output are not in it ({why})")
        self._output = None

    @staticmethod
    def _note(words: str) -> None:
        """Print a note, unless standard error is on the full disk too."""
        with suppress(OSError):
            print(f"note: {words}", file=sys.stderr)

    def _next_attempt(self) -> Path:
        """Make the folder of the next attempt's logs."""
        number = 0
        while True:
            attempt = self._folder / f"attempt-{number}"
            try:
                attempt.mkdir(parents=True)
            except FileExistsError:
                number += 1
            except OSError:
                # The disk is full: the ranks run without logs, and the loss is reported at the end.
                return attempt
            else:
                return attempt
