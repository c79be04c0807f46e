"""Runs a job with torch's own elastic agent, in this process. Importing this module imports torch.

torch starts, watches and restarts the ranks. Added here: the order in which ranks ended, to tell the first failure from
its victims; a grace time after failures too (torch always waits 30 s); signal handlers that do not interrupt the end of
the ranks; no warnings of the engine on the user's screen.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
import uuid
from collections.abc import Callable, Container, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from rich.console import Console
from torch.distributed.elastic.agent.server.api import RunResult, WorkerGroup, WorkerSpec
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.elastic.rendezvous import RendezvousParameters
from torch.distributed.elastic.rendezvous.registry import get_rendezvous_handler

from ddp_core.errors import UserError
from ddp_launch.events.jsonl import EventLog
from ddp_launch.events.run_events import RunEvents
from ddp_launch.failure.failures import Attempt, Failure, Outcome, blame, exit_status, first_failure, status_of
from ddp_launch.failure.restart_policy import why_not
from ddp_launch.plan.command import DEBUG_ADDRESS, LOOPBACK, Job, RestartPlan, escape_macros
from ddp_launch.rendezvous import multi_node, single_node
from ddp_launch.rendezvous.remote_failures import RemoteFailures
from ddp_launch.run import exec_with_pdeathsig
from ddp_launch.run.exit_order import Endings
from ddp_launch.run.process_tree import ProcessTree, with_pdeathsig
from ddp_launch.run.rank_logs import SIGNALS_VARIABLE, RankLogs
from ddp_launch.run.signals import Interrupts
from ddp_launch.run.torch_logging import silence_engine
from ddp_launch.stall.consequence import explain
from ddp_launch.stall.report import Reporter
from ddp_launch.stall.watch import StallWatch
from ddp_launch.torch_internals import HookedAgent, agent_has_hooks, numa_options, worker_spec

MONITOR_INTERVAL_S = 0.05
LEFT_BEHIND_S = 2
"""How long the processes that a successful program left behind may take to end."""
ENDING_S = 0.2
"""Processes in the background that end within this time were ending by themselves."""
MOST_NAMED = 3
SETTLE_S = 0.5
"""After the first failure: how long the other ranks may take to end by themselves."""
VICTIMS_S = 3.0
"""Replaces SETTLE_S where only victims have failed: the rank that broke the connections has not ended yet."""
HUNG_S = 0.25
"""Replaces SETTLE_S, VICTIMS_S and the grace time where a rank hung."""
LOST_S = 2
"""Replaces the grace time where the others cannot save without the failed rank."""
LAUNCHED = "DDP_LAUNCH"
"""A variable that indicates a planned environment: OMP_NUM_THREADS, for example, is not torchrun's default."""


def run(
    job: Job,
    log_dir: Path,
    events: RunEvents | None = None,
    next_attempt: Callable[[Mapping[int, Failure]], RestartPlan] | None = None,
) -> Outcome:
    """Run the job to its end and return how it ended; `events` records each step. Main thread only.

    next_attempt: called before a restart with the failures by local rank; returns the job and devices of the next
    attempt. None: run the same job again. The failure of a rank never raises.
    """
    events = events or RunEvents(EventLog(None))
    users = dict(os.environ)
    _set_variables(job, users)
    _set_own_variables(job)
    silence_engine()
    logs = RankLogs(log_dir, tee=job.tee, limit=job.log_size)
    interrupts = Interrupts(lambda number: SignalException(f"got {number.name}", number))
    with interrupts.installed():
        try:
            with ProcessTree() as process_tree:
                interrupts.kill = process_tree.kill
                spec = _spec(job)
                if not agent_has_hooks():
                    return _outcome_of_torch(LocalElasticAgent(spec, logs).run())
                stall = StallWatch(job.stall_report, job.stall_kill, Reporter(Console(stderr=True), events))
                agent = _Agent(spec, logs, job, interrupts, process_tree, events, stall)
                agent.before_restart(next_attempt, users)
                return agent.outcome(agent.run())
        except SignalException as stop:
            events.signal(stop.sigval)
            return Outcome(status=exit_status(-stop.sigval))
        except multi_node.MeetingFailed as error:
            return Outcome(status=1, message=str(error))
        except Exception as error:
            return Outcome(status=1, message=f"{type(error).__name__}: {' '.join(str(error).split())}")
        finally:
            logs.finish()


def _outcome_of_torch(result: RunResult) -> Outcome:
    """The outcome of torch's own agent, which knows the exit statuses, but not which rank failed first."""
    if not result.is_failed():
        return Outcome(status=0)
    rank, failure = min(result.failures.items())
    return Outcome(status=exit_status(failure.exitcode), message=f"rank {rank} failed: {failure.message}")


def _set_variables(job: Job, users: Mapping[str, str], earlier: Job | None = None) -> None:
    """Put the job's variables into this process's environment, from which the ranks inherit them. `earlier`: the job
    whose variables are reset to the user's values first."""
    for name in [] if earlier is None else [*dict(earlier.environment), *earlier.unset]:
        os.environ.pop(name, None)
        if name in users:
            os.environ[name] = users[name]
    for name in job.unset:
        os.environ.pop(name, None)
    os.environ.update(job.environment)


def _set_own_variables(job: Job) -> None:
    """Set the variables that the launcher itself uses for the ranks and torch's agent."""
    os.environ[LAUNCHED] = "1"
    if job.debug_rank is not None:
        os.environ[exec_with_pdeathsig.DEBUG] = f"{job.debug_rank} {DEBUG_ADDRESS}"
    # torch's own handlers would raise again on each further signal, and leave ranks behind.
    os.environ[SIGNALS_VARIABLE] = ""


def _spec(job: Job) -> WorkerSpec:
    """The job as torch's agent expects it."""
    entrypoint, *args = with_pdeathsig(job.worker)
    parameters = _rendezvous(job)
    return worker_spec(
        role="rank",
        local_world_size=job.nproc_per_node,
        rdzv_handler=get_rendezvous_handler(parameters),
        entrypoint=entrypoint,
        args=tuple(escape_macros(args)),
        max_restarts=job.max_restarts,
        monitor_interval=MONITOR_INTERVAL_S,
        local_addr=parameters.local_addr,
        virtual_local_rank=job.virtual_local_rank,
        numa_options=numa_options(job.numa_binding),
    )


def _rendezvous(job: Job) -> RendezvousParameters:
    """The rendezvous as torch's agent expects it."""
    single_node.register()
    multi_node.register()
    cluster = job.cluster
    if cluster.one_node:
        # A unique name, so that two runs do not collide in shared folders or memory.
        return RendezvousParameters(single_node.ONE_NODE, LOOPBACK, uuid.uuid4().hex, 1, 1, LOOPBACK)
    least, most = cluster.nnodes
    return multi_node.parameters(cluster, may_restart=least < most or job.max_restarts > 0)


class _Agent(HookedAgent):
    """torch's agent, with the order in which the ranks ended."""

    def __init__(
        self,
        spec: WorkerSpec,
        logs: RankLogs,
        job: Job,
        interrupts: Interrupts,
        process_tree: ProcessTree,
        events: RunEvents,
        stall: StallWatch,
    ) -> None:
        super().__init__(spec, logs, log_line_prefix_template="[rank ${rank}] ")
        self._logs = logs
        self._job = job
        self._grace = job.grace
        self._patience = float(job.grace)
        self._next_attempt: Callable[[Mapping[int, Failure]], RestartPlan] | None = None
        self._users: Mapping[str, str] = {}
        self._interrupts = interrupts
        self._process_tree = process_tree
        self._events = events
        self._stall = stall
        self._reported: set[int] = set()
        self._attempts: list[Attempt] = []
        self._refusal: str | None = None

    def before_restart(
        self, next_attempt: Callable[[Mapping[int, Failure]], RestartPlan] | None, users: Mapping[str, str]
    ) -> None:
        """Set what to call before each restart, see `run`. `users`: the environment without the job's variables."""
        self._next_attempt, self._users = next_attempt, users

    def outcome(self, result: RunResult) -> Outcome:
        """How the run ended, in the launcher's terms."""
        if not result.is_failed():
            return Outcome(status=0, attempts=tuple(self._attempts))
        attempts = tuple(self._attempts)
        if not attempts or (first := attempts[-1].first) is None:
            return Outcome(status=1, message="the ranks were ended by the elastic agent", attempts=attempts)
        return Outcome(status=status_of(first), attempts=attempts, refusal=self._refusal)

    def run(self, role: str = "default") -> RunResult:
        """See the base class; closes the rendezvous and the logs whatever happens."""
        try:
            result: RunResult = super().run(role)
            return result
        finally:
            self._close_rendezvous()
            self._logs.finish()
            self._stall.finish()

    def _close_rendezvous(self) -> None:
        """Leave the rendezvous, unless a signal ended this launcher."""
        # After a signal the other nodes may continue without this one: the rendezvous stays open for them.
        if self._interrupts.received is None:
            with suppress(Exception):
                self.rendezvous.shutdown()

    def start_workers(self, worker_group: WorkerGroup) -> dict[int, Any]:
        """Start the ranks, register them for watching, and record the attempt."""
        self._interrupts.ending = False
        # Nodes that join late, or lose each other, count restarts differently; rounds are the same on all nodes.
        self._logs.restarts = getattr(self.rendezvous, "round", None)
        with self._interrupts.held(), self._stall.offered():
            pids = super().start_workers(worker_group)
            self._process_tree.watch(pids.values())
            self._endings = Endings(pids)
            self._interrupts.install()
        self._patience = float(self._grace)
        self._over, self._begin_ms = False, time.monotonic() * 1000
        self._reported = set()
        ranks = {worker_group.workers[local_rank].global_rank: pid for local_rank, pid in pids.items()}
        world_size = worker_group.workers[0].world_size
        self._events.attempt(len(self._attempts), ranks, world_size, self._logs.attempt)
        errors = {worker_group.workers[local_rank].global_rank: file for local_rank, file in self._logs.errors.items()}
        self._stall.begin(ranks, world_size, errors)
        return pids

    def monitor_workers(self, worker_group: WorkerGroup) -> RunResult:
        """At the first failure, note it and end the other ranks before torch does."""
        # torch may have swallowed the exception that a signal raised.
        self._interrupts.check()
        self._process_tree.reap()
        self._report_ends()
        if not self._over and any(self._codes().values()):
            self._over = True
            views = self._stall.look()
            alone = self._settled()
            self._report_ends()
            first = first_failure(self._failures(alone))
            if first is not None and first.hang:
                # The others wait for the hung rank in a collective, and cannot save together.
                self._patience = min(self._grace, HUNG_S)
            elif self._job.saves_together:
                self._patience = min(self._grace, LOST_S)
            if (remote := self._remote_failures) is not None and None in self._codes().values():
                # Report the cause to the other nodes first: the ranks here may use their whole grace time.
                remote.tell(first)
            self.stop_workers(signal.SIGTERM)
            self._report_ends(stopped=True)
            self._logs.finish()
            self._take_down(explain(self._failures(alone), views, self.workers[0].world_size))
        if not self._over and any(code != 0 for code in self._codes().values()):
            # torch must not look now: a rank may have failed since we looked, and torch would end the others
            # before we know which rank it was.
            return self.state_of_running_workers(worker_group)
        return super().monitor_workers(worker_group)

    def _take_down(self, failures: tuple[Failure, ...]) -> None:
        """Record a failed attempt, and decide whether another one follows."""
        seconds = (min(failure.ended_ms or 0.0 for failure in failures) - self._begin_ms) / 1000
        nodes = 1
        if (remote := self._remote_failures) is not None:
            nodes, cause = remote.nodes, remote.compare(first_failure(failures))
            failures = failures if cause is None else (cause, *failures)
        self._attempts.append(Attempt(len(self._attempts), failures, seconds, nodes))
        following = None
        if self.remaining_restarts > 0:
            self._refusal = why_not(self._attempts, on_other_devices=True)
            if self._refusal is None:
                following = self._prepared(failures)
            if self._refusal is None and not (following and following.change):
                self._refusal = why_not(self._attempts)
            if self._refusal is not None:
                self.remaining_restarts = 0
        self._events.failure(self._attempts[-1], restarts=self.remaining_restarts, following=following)

    def _prepared(self, failures: Iterable[Failure]) -> RestartPlan | None:
        """Plan the next attempt on the present devices; None: the same job again, or none, for the `_refusal` given."""
        if self._next_attempt is None:
            return None
        local = {worker.global_rank: local_rank for local_rank, worker in enumerate(self.workers)}
        here = [failure for failure in failures if failure.remote is None and not failure.stopped]
        try:
            following = self._next_attempt({local[failure.rank]: failure for failure in here})
        except UserError as error:
            self._refusal = str(error)
            return None
        _set_variables(following.job, self._users, self._job)
        self._job = following.job
        self.resize(following.job.nproc_per_node, numa_options(following.job.numa_binding))
        return following

    def _report_ends(self, *, stopped: bool = False) -> None:
        """Record the ranks that have ended since the last call. `stopped`: the launcher ended them."""
        new = {rank: code for rank, code in self._codes().items() if code is not None and rank not in self._reported}
        if not new:
            return
        self._reported |= new.keys()
        ended = self._endings.ended_ms(new)
        for local_rank in sorted(new, key=ended.__getitem__):
            rank = self.workers[local_rank].global_rank
            self._stall.ended(rank, new[local_rank])
            self._events.rank_end(len(self._attempts), rank, new[local_rank], ended[local_rank], stopped=stopped)

    def stop_workers(self, death_sig: signal.Signals) -> None:
        """End the ranks and all their processes within the grace time, so that torch has nothing left to wait for."""
        self._interrupts.ending = True
        self._stall.rest()
        if self._interrupts.received is not None:
            self._events.signal(self._interrupts.received)
        handlers = self.handlers.values()
        alive = [handler.proc.pid for handler in handlers if handler.proc.poll() is None]
        well = all(handler.proc.returncode == 0 for handler in handlers)
        if well and self._interrupts.received is None:
            self._report_background()
        deadline = time.monotonic() + (min(self._patience, LEFT_BEHIND_S) if well else self._patience)
        self.close_processes(death_sig, self._patience)
        self._process_tree.end(deadline, told=alive if death_sig is signal.SIGTERM else ())
        if self._interrupts.received is not None:
            self._report_ends(stopped=True)
        super().stop_workers(death_sig)

    def _report_background(self) -> None:
        """Report the processes that a successful program put in the background: they are about to be ended."""
        if not (there := self._process_tree.in_background()):
            return
        time.sleep(ENDING_S)
        left = {pid: name for pid, name in self._process_tree.in_background().items() if pid in there}
        if left:
            which = ", ".join(f"{name} (process {pid})" for pid, name in sorted(left.items())[:MOST_NAMED])
            more = f" and {len(left) - MOST_NAMED} more" if len(left) > MOST_NAMED else ""
            print(
                f"note: the program has ended, and with it what it left in the background: {which}{more}",
                file=sys.stderr,
            )

    @property
    def _remote_failures(self) -> RemoteFailures | None:
        """The exchange with other nodes; None on a single node."""
        return getattr(self.rendezvous, "remote", None)

    def _codes(self) -> dict[int, int | None]:
        """Local rank -> its returncode, None while it runs."""
        return {rank: handler.proc.poll() for rank, handler in self.handlers.items()}

    def _settled(self) -> set[int]:
        """Wait a moment after the first failure; returns the local ranks that have ended by themselves.

        This gives a rank with a broken connection time to print its error, which marks it as a victim.
        """
        ended = {rank for rank, code in self._codes().items() if code is not None}
        failures = self._failures(ended)
        hung = any(failure.hang for failure in failures)
        victims = all(failure.victim for failure in failures)
        deadline = time.monotonic() + (HUNG_S if hung else VICTIMS_S if victims else SETTLE_S)
        while None in (codes := self._codes()).values() and time.monotonic() < deadline:
            time.sleep(MONITOR_INTERVAL_S)
        return {rank for rank, code in codes.items() if code is not None}

    def _failures(self, alone: Container[int]) -> tuple[Failure, ...]:
        """The failed ranks, in the order in which they ended. `alone`: the ranks that ended by themselves."""
        self._logs.drain()
        codes = {rank: code for rank, code in self._codes().items() if code is not None}
        ended = self._endings.ended_ms(codes)
        order = sorted(codes, key=ended.__getitem__)
        failed = [self._failure(rank, codes[rank], ended[rank], rank not in alone) for rank in order if codes[rank]]
        begin = next((index for index, rank in enumerate(order) if codes[rank]), 0)
        # Python takes a while to exit: the rank that broke the connections may end after those that noticed it.
        early = [rank for at, rank in enumerate(order) if codes[rank] == 0 and (at < begin or rank in alone)]
        return blame(failed, [self._failure(rank, 0, ended[rank], False) for rank in early])

    def _failure(self, local_rank: int, code: int, ended_ms: float, stopped: bool) -> Failure:
        """The facts of one rank's failure."""
        rank = self.workers[local_rank].global_rank
        logs, shown = self._logs.ranks.get(local_rank, ()), local_rank in self._logs.shown
        errors = self._logs.errors.get(local_rank)
        return Failure(rank, socket.gethostname(), code, logs, ended_ms, stopped, shown, error_file=errors)
