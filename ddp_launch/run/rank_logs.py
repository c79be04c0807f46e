"""Where the output of each rank goes: into files, one folder per attempt; that of local rank 0 to the screen too."""

from __future__ import annotations

import os
from pathlib import Path

from torch.distributed.elastic.multiprocessing import LogsDest, LogsSpecs, Std

from ddp_core.rank_report import ERROR_FILE
from ddp_launch.cli.value_types import BOTH, Tee
from ddp_launch.run.rank0_tty import Screen

BITS = STDOUT, STDERR = (1, 2)
SIGNALS_VARIABLE = "TORCHELASTIC_SIGNALS_TO_HANDLE"
SIGNALS = os.environ.get(SIGNALS_VARIABLE, "SIGTERM,SIGINT,SIGHUP,SIGQUIT")


class RankLogs(LogsSpecs):
    """Files `FOLDER/attempt-A/rank-R.stdout.log`, `...stderr.log` and `...error.json`; attempts of earlier runs stay.

    `tee`: which other ranks are shown on the screen too, line by line, each line with its rank.
    """

    def __init__(self, folder: Path, *, tee: Tee) -> None:
        super().__init__(str(folder), redirects=Std.ALL)
        self._folder = folder
        self._teed = tee
        self.attempt = folder
        """The folder of the latest attempt."""
        self.restarts: int | None = None
        """What the ranks get as TORCHELASTIC_RESTART_COUNT; None: the agent's own count."""
        self._screen: Screen | None = None
        self.ranks: dict[int, tuple[Path, ...]] = {}
        """Local rank -> its log files in the latest attempt: standard output, standard error."""
        self.errors: dict[int, Path] = {}
        """Local rank -> the file for its report (ddp_core/rank_report.py) in the latest attempt."""
        self._streams: dict[int, int] = {}

    @property
    def shown(self) -> frozenset[int]:
        """The local ranks whose error output is on the screen."""
        return frozenset(rank for rank, streams in self._streams.items() if streams & STDERR)

    @property
    def seen(self) -> tuple[Path, ...]:
        """The log files of the latest attempt whose content was on the screen as well."""
        each = ((logs, self._streams[rank]) for rank, logs in self.ranks.items())
        return tuple(log for logs, streams in each for bit, log in zip(BITS, logs, strict=True) if streams & bit)

    @property
    def root_log_dir(self) -> str:
        return str(self._folder)

    def reify(self, envs: dict[int, dict[str, str]]) -> LogsDest:
        """Make the folder of an attempt, and name each rank's files in it. See the base class."""
        self.finish()
        attempt = self.attempt = self._next_attempt()
        self.ranks, self._streams, self.errors = {}, {}, {}
        for local_rank, env in envs.items():
            base = attempt / f"rank-{env['RANK']}"
            if self.restarts is not None:
                env["TORCHELASTIC_RESTART_COUNT"] = str(self.restarts)
            self._streams[local_rank] = self._teed.streams(int(env["RANK"])) if local_rank else BOTH
            self.ranks[local_rank] = (Path(f"{base}.stdout.log"), Path(f"{base}.stderr.log"))
            # The launcher empties this variable for its own agent; a rank that starts one gets torch's default.
            env[SIGNALS_VARIABLE] = SIGNALS
            # Absolute: the watchdog and a program that changes its folder write there too.
            self.errors[local_rank] = Path(f"{base}.error.json").absolute()
            env[ERROR_FILE] = str(self.errors[local_rank])
        stdouts, stderrs = ({rank: str(logs[stream]) for rank, logs in self.ranks.items()} for stream in (0, 1))
        tee_out, tee_err = (
            {rank: path for rank, path in to.items() if rank and self._streams[rank] & bit}
            for bit, to in zip(BITS, (stdouts, stderrs), strict=True)
        )
        errors = {rank: str(path) for rank, path in self.errors.items()}
        if 0 in envs:
            self._screen = Screen(*self.ranks[0])
            stdouts[0], stderrs[0] = self._screen.stdout, self._screen.stderr
        return LogsDest(stdouts, stderrs, tee_out, tee_err, errors, os.devnull, os.devnull)

    def finish(self) -> None:
        """Once the ranks have ended: what local rank 0 said last is on the screen and in its files."""
        if self._screen is not None:
            self._screen.finish()
            self._screen = None

    def _next_attempt(self) -> Path:
        number = 0
        while True:
            attempt = self._folder / f"attempt-{number}"
            try:
                attempt.mkdir(parents=True)
            except FileExistsError:
                number += 1
            else:
                return attempt
