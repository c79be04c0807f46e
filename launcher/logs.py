"""Where the output of each rank goes: local rank 0 on the screen, the others into files, one folder per attempt."""

from __future__ import annotations

import os
from pathlib import Path

from torch.distributed.elastic.multiprocessing import LogsDest, LogsSpecs, Std

__all__ = ["SIGNALS_VARIABLE", "RankLogs"]

SCREEN = ""
SIGNALS_VARIABLE = "TORCHELASTIC_SIGNALS_TO_HANDLE"
SIGNALS = os.environ.get(SIGNALS_VARIABLE, "SIGTERM,SIGINT,SIGHUP,SIGQUIT")


class RankLogs(LogsSpecs):
    """Files `FOLDER/attempt-A/rank-R.stdout.log`, `...stderr.log` and `...error.json`; attempts of earlier runs stay.

    `tee`: the other ranks are also shown on the screen, line by line.
    """

    def __init__(self, folder: Path, *, tee: bool) -> None:
        super().__init__(str(folder), redirects=Std.ALL, tee=Std.ALL if tee else Std.NONE)
        self._folder = folder
        self._shown = tee
        self.ranks: dict[int, tuple[Path, ...]] = {}
        """Local rank -> its log files in the latest attempt; () for the rank on the screen."""

    @property
    def root_log_dir(self) -> str:
        return str(self._folder)

    def reify(self, envs: dict[int, dict[str, str]]) -> LogsDest:
        """Make the folder of an attempt, and name each rank's files in it. See the base class."""
        attempt = self._next_attempt()
        self.ranks = {}
        stdouts, stderrs, errors = {}, {}, {}
        for local_rank, env in envs.items():
            base = attempt / f"rank-{env['RANK']}"
            out, err = Path(f"{base}.stdout.log"), Path(f"{base}.stderr.log")
            self.ranks[local_rank] = () if local_rank == 0 else (out, err)
            stdouts[local_rank] = SCREEN if local_rank == 0 else str(out)
            stderrs[local_rank] = SCREEN if local_rank == 0 else str(err)
            # The launcher empties this variable for its own agent; a rank that starts one gets torch's default.
            env[SIGNALS_VARIABLE] = SIGNALS
            errors[local_rank] = env["TORCHELASTIC_ERROR_FILE"] = f"{base}.error.json"
        others = {rank: path for rank, path in stdouts.items() if self._shown and path != SCREEN}
        return LogsDest(
            stdouts, stderrs, others, {rank: stderrs[rank] for rank in others}, errors, os.devnull, os.devnull
        )

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
