"""Plans for this machine as it is now and claims the GPUs: before a run, and again before each restart.

With --wait it repeats this until the requested GPUs are free.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from ddp_core.errors import UserError
from ddp_launch.cli.options import LaunchOptions
from ddp_launch.cluster.cluster import Cluster, find_cluster
from ddp_launch.cluster.network import locate
from ddp_launch.plan.command import RestartPlan
from ddp_launch.plan.plan import LaunchPlan, MachineFacts, make_plan, occupied
from ddp_launch.run.gpu_claims import Claims
from ddp_train.distributed.speed_cache import recall as recall_speeds
from gpu_topology import snapshot
from gpu_topology.driver.library import StuckDriverError
from gpu_topology.driver.read import read_or_explain
from gpu_topology.host.host import read_host
from gpu_topology.select.from_environment import read_inherited
from gpu_topology.select.select import Inherited
from gpu_topology.select.spares import label, replace_lost
from gpu_topology.topology import Topology

if TYPE_CHECKING:  # the tables of failures take a tenth of the time of a plan to import
    from ddp_launch.failure.evidence import EvidenceCollector
    from ddp_launch.failure.failures import Failure
from gpu_topology.verify_cache import recall

POLL_S = 2.0
"""How often --wait looks at the GPUs again."""


class _OccupiedError(Exception):
    """The run has to wait for GPUs. `used`: NVML index -> who uses it."""

    def __init__(self, used: Mapping[int, str]) -> None:
        super().__init__("; ".join(f"GPU {index} {why}" for index, why in used.items()))
        self.used = used


class Planner:
    """Plans for `options`; claims the GPUs of the latest plan, except with --dry-run."""

    def __init__(self, options: LaunchOptions, claims: Claims) -> None:
        self._options = options
        self._claims = claims
        # A copy: a plan changes the launcher's own environment, but later plans start from the user's.
        self._environ = dict(os.environ)
        self._first = Topology()
        self._left_out: dict[str, str] = {}
        # GPUs that the user names, or accepts busy, are used even if others use them: the plan warns.
        self._shared = options.allow_busy or (bool(options.gpus) and options.wait is None)

    def first(self) -> LaunchPlan:
        """The plan of the run. Errors: UserError."""
        options = self._options
        if options.topology is not None:
            other = snapshot.load(options.topology)
            facts = MachineFacts(topology=other, host=read_host(), environ=self._environ, known_speeds=recall_speeds)
            return make_plan(options, facts)
        cluster = locate(find_cluster(options, self._environ), wait=not options.dry_run)
        begin = time.monotonic()
        said: Mapping[int, str] = {}
        while True:
            facts = self._facts(cluster)
            self._first = facts.topology
            try:
                return self._claimed(facts)
            except _OccupiedError as error:
                left = begin + (options.wait or 0.0) - time.monotonic()
                if left <= 0:
                    raise UserError(f"--wait: after {time.monotonic() - begin:.0f} s still in use: {error}") from None
                # Memory use changes all the time: only a different set of GPUs is worth a line.
                if error.used.keys() != said.keys():
                    print(f"waiting: {error}", file=sys.stderr, flush=True)
                said = error.used
                time.sleep(min(POLL_S, left))

    def again(self, plan: LaunchPlan, suspects: Mapping[str, str]) -> tuple[LaunchPlan, str]:
        """The plan of another attempt of `plan`, and in words which GPUs it drops and adds.

        suspects: UUID -> a rank's error about its GPU. The program and its arguments stay the same: those for the whole
        run, such as the global batch, are right for fewer ranks too. Errors: UserError where no GPU is left.
        """
        facts = self._facts(plan.cluster)
        inherited = facts.inherited or Inherited()
        # The user's indices refer to the first reading: a lost GPU shifts the later ones.
        request = self._options.request(self._first)
        request = replace(request, exclude=(*request.exclude, *self._left_out))
        while True:
            request = replace(inherited, claims=self._claims.others()).completes(request)
            found = replace_lost(self._first, facts.topology, plan.selection, request, suspects)
            # Repeat if another launcher has taken a spare GPU meanwhile.
            if not self._claims.take(found.uuids, shared=True).keys() & set(found.spares):
                break
        self._left_out |= found.left_out
        out = ", ".join(f"{label(self._first, uuid)} is left out: {why}" for uuid, why in found.left_out.items())
        if not found.uuids:
            raise UserError(f"no GPU is left for another attempt ({out})")
        options = replace(self._options, gpus=found.uuids, exclude=(), nproc=None)
        made = make_plan(options, replace(facts, inherited=replace(inherited, visible=None)))
        job = replace(made.job, worker=plan.job.worker, max_restarts=plan.job.max_restarts)
        spares = ", ".join(label(facts.topology, uuid) for uuid in found.spares)
        return replace(made, program=plan.program, job=job), out + (f"; {spares} instead" if spares else "")

    def _facts(self, cluster: Cluster) -> MachineFacts:
        """Read the devices and the host again. Errors: StuckDriverError where GPUs are needed."""
        try:
            topology = read_or_explain()
        except StuckDriverError as error:
            if not self._options.cpu:
                raise
            topology = Topology(warnings=(str(error),))
        return MachineFacts(
            topology=topology,
            host=read_host(),
            environ=self._environ,
            recall=recall,
            cluster=cluster,
            inherited=read_inherited(topology, self._environ),
            known_speeds=recall_speeds,
        )

    def _claimed(self, facts: MachineFacts) -> LaunchPlan:
        """A plan that respects the claims of others, with its own GPUs claimed."""
        inherited = facts.inherited or Inherited()

        def plan_beside(others: Mapping[str, str]) -> LaunchPlan:
            """The plan that respects the claims of others. Errors: _OccupiedError with --wait."""
            beside = replace(facts, inherited=replace(inherited, claims=others))
            if self._options.wait is not None and (used := occupied(self._options, beside)):
                raise _OccupiedError(used)
            return make_plan(self._options, beside)

        if self._options.dry_run:
            others = self._claims.others()
            return make_plan(self._options, replace(facts, inherited=replace(inherited, claims=others)))
        plan = self._claims.settle(plan_beside, lambda plan: plan.selection.uuids, shared=self._shared)
        if self._claims.problem is None or not plan.selection.uuids:
            return plan
        note = f"another launcher may choose the same GPUs: no claims can be made ({self._claims.problem})"
        return replace(plan, warnings=(*plan.warnings, note))


class NextAttempt:
    """Plans each attempt after the first, from the present devices and the ranks' errors about their devices."""

    def __init__(self, plan: LaunchPlan, planner: Planner, evidence: EvidenceCollector) -> None:
        self._plan = plan
        self._planner = planner
        self._evidence = evidence
        self.indices = {*plan.selection.indices}
        """NVML indices of the GPUs of all attempts so far."""

    def __call__(self, failures: Mapping[int, Failure]) -> RestartPlan:
        """The next attempt after these failures, by local rank. Errors: UserError where no GPU is left."""
        from ddp_launch.failure.known_failures import GPU_FAULT

        if not self._plan.selection.uuids:
            return RestartPlan(self._plan.job, "the CPU")
        suspects = {}
        for local_rank, failure in failures.items():
            remedy = self._evidence.remedy(failure)
            if remedy is not None and remedy.name == GPU_FAULT:
                suspects[self._plan.selection.uuids[local_rank]] = failure.log_tail.error
        self._plan, change = self._planner.again(self._plan, suspects)
        self.indices |= {*self._plan.selection.indices}
        return RestartPlan(self._plan.job, "GPU " + ", ".join(map(str, self._plan.selection.indices)), change)
