"""Facts about a machine to a plan, without a machine."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Mapping
from dataclasses import replace

import pytest
from rich.console import Console

from ddp_core.errors import TopologyError, UserError
from ddp_launch.cli.options import parse
from ddp_launch.plan.plan import LaunchPlan, MachineFacts, make_plan, with_arguments
from ddp_launch.plan.show import show_full
from gpu_topology.host.cpus import NumaNode
from gpu_topology.host.host import Host
from gpu_topology.host.torch_build import TorchBuild
from gpu_topology.select.select import Inherited
from gpu_topology.topology import Gpu, MigDevice, Topology

GIB = 2**30


def gpu(index: int, name: str, gib: int, capability: tuple[int, int], **more: object) -> Gpu:
    return Gpu(
        index=index,
        uuid=f"GPU-{index:08d}-0000-0000-0000-000000000000",
        name=name,
        memory_total=gib * GIB,
        memory_used=0,
        compute_capability=capability,
        mig_mode=False,
        processes=(),
        **more,  # type: ignore[arg-type]
    )


WORKSTATION = Topology(
    gpus=(
        gpu(0, "NVIDIA A100-PCIE-40GB", 40, (8, 0)),
        gpu(1, "NVIDIA RTX A5000", 24, (8, 6)),
        gpu(2, "NVIDIA RTX A5000", 24, (8, 6)),
        gpu(3, "NVIDIA RTX A5000", 24, (8, 6)),
        gpu(4, "NVIDIA T400", 2, (7, 5), display_active=True),
    )
)
LAPTOP = Topology(warnings=("no NVIDIA driver on this machine",))


def host(cpus: int = 8) -> Host:
    return Host(
        hostname="box",
        usable_cpus=cpus,
        physical_cores=cpus,
        numa_nodes=1,
        memory_total=32 * GIB,
        memory_available=30 * GIB,
        glibc=True,
    )


def plan(
    *argv: str, topology: Topology = WORKSTATION, cpus: int = 8, environ: Mapping[str, str] | None = None
) -> LaunchPlan:
    return make_plan(parse(argv), MachineFacts(topology=topology, host=host(cpus), environ=environ or {}))


def values(made: LaunchPlan) -> dict[str, str]:
    return {setting.name: setting.value for setting in made.environment}


def test_largest_group_of_like_gpus() -> None:
    made = plan("--auto", "a.py")
    assert made.selection.indices == (1, 2, 3)
    assert (made.backend, made.nproc_per_node, made.cluster.nnodes) == ("nccl", 3, (1, 1))
    assert values(made)["CUDA_VISIBLE_DEVICES"] == "1,2,3"
    assert values(made)["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"
    assert values(made)["OMP_NUM_THREADS"] == "2"
    assert made.shell.startswith("CUDA_DEVICE_ORDER=PCI_BUS_ID CUDA_VISIBLE_DEVICES=1,2,3 OMP_NUM_THREADS=2 ")
    assert {excluded.index for excluded in made.selection.excluded} == {0, 4}
    assert made.training is None


@pytest.mark.parametrize(
    ("argv", "indices"),
    [
        (("--gpus", "0"), (0,)),
        (("--devices", "3,1"), (3, 1)),
        (("--gpus", "GPU-00000002-0000-0000-0000-000000000000"), (2,)),
        (("--exclude", "1"), (2, 3)),
        (("--min-memory", "30GB"), (0,)),
        (("--policy", "mixed", "--exclude", "4"), (0, 1, 2, 3)),
    ],
)
def test_requests(argv: tuple[str, ...], indices: tuple[int, ...]) -> None:
    made = plan(*argv, "a.py")
    assert made.selection.indices == indices
    assert made.nproc_per_node == len(indices)


def test_ranks_asked_for_are_gpus() -> None:
    assert len(plan("--nproc", "2", "a.py").selection.indices) == 2


@pytest.mark.parametrize(
    "argv", [("--gpus", "9"), ("--nproc", "4"), ("--gpus", "1,1"), ("--gpus", "1", "--nproc", "2")]
)
def test_gpus_that_cannot_be_had(argv: tuple[str, ...]) -> None:
    with pytest.raises(TopologyError) as caught:
        plan(*argv, "a.py")
    assert "\n" not in str(caught.value)


def test_as_many_ranks_as_gpus_where_there_are_none() -> None:
    assert plan("--nproc-per-node", "gpu", "a.py").nproc_per_node == 3
    with pytest.raises(UserError, match="--nproc-per-node gpu: this machine has no GPU"):
        plan("--nproc-per-node", "gpu", "a.py", topology=LAPTOP)
    assert plan("--nproc-per-node", "gpu", "--cpu", "a.py", topology=LAPTOP).backend == "gloo"
    assert plan("--nproc-per-node", "auto", "a.py", topology=LAPTOP).backend == "gloo"


def test_visible_devices_are_respected() -> None:
    made = plan("a.py", environ={"CUDA_VISIBLE_DEVICES": "0,1,2", "CUDA_DEVICE_ORDER": "PCI_BUS_ID"})
    assert made.selection.indices == (1, 2)
    assert ("CUDA_VISIBLE_DEVICES", "1,2") in made.job.environment


def test_a_variable_of_the_user_is_kept_and_not_assigned_again() -> None:
    made = plan("a.py", environ={"OMP_NUM_THREADS": "5", "NCCL_DEBUG": "INFO"})
    kept = {setting.name: setting.value for setting in made.environment if setting.kept}
    assert kept == {"OMP_NUM_THREADS": "5", "NCCL_DEBUG": "INFO"}
    assert not kept.keys() & dict(made.job.environment).keys()
    assert "OMP_NUM_THREADS" not in made.shell


@pytest.mark.parametrize(("cpus", "ranks", "threads"), [(1, 1, 1), (2, 2, 1), (3, 2, 1), (8, 2, 4), (64, 2, 32)])
def test_cpu_ranks_and_threads_share_the_cores(cpus: int, ranks: int, threads: int) -> None:
    made = plan("a.py", topology=LAPTOP, cpus=cpus)
    assert (made.backend, made.nproc_per_node, values(made)["OMP_NUM_THREADS"]) == ("gloo", ranks, str(threads))
    assert made.selection.reason == "no NVIDIA driver on this machine"
    assert not any(name.startswith(("CUDA", "NCCL")) for name in values(made))


def test_cpu_on_request_hides_the_gpus() -> None:
    made = plan("--cpu", "--nproc", "4", "a.py")
    assert (made.backend, made.nproc_per_node, values(made)["CUDA_VISIBLE_DEVICES"]) == ("gloo", 4, "")
    assert made.selection.reason == "--cpu was given"
    assert len(made.selection.excluded) == 5


def test_more_ranks_than_cores_is_said() -> None:
    assert any(
        "4 ranks share 2" in warning for warning in plan("--nproc", "4", "a.py", topology=LAPTOP, cpus=2).warnings
    )


def test_restarts_keep_the_attempts_apart() -> None:
    made, name = plan("--max-restarts", "2", "a.py"), "TORCH_DISABLE_SHARE_RDZV_TCP_STORE"
    assert f"{name}=1 " in made.shell
    assert name not in dict(made.job.environment), "the launcher's own store is a new one for each attempt"
    assert name not in plan("a.py").shell


def test_ranks_that_the_run_does_not_have() -> None:
    with pytest.raises(UserError, match="--debug-rank 2: expected a rank of this run, from 0 to 1"):
        plan("--cpu", "--nproc", "2", "--debug-rank", "2", "train.py")
    assert plan("--cpu", "--nproc", "2", "--debug-rank", "1", "train.py").job.debug_rank == 1
    words = "nothing to show of local rank {}: there are 0 to 1"
    for option, ranks, missing in (("--tee", "1,9", "9"), ("--local-ranks-filter", "7,8", "7, 8")):
        made = plan("--cpu", "--nproc", "2", option, ranks, "train.py")
        assert words.format(missing) in made.warnings
        assert not any("nothing to show" in line for line in plan("--cpu", option, "1", "train.py").warnings)


def test_ranks_to_show_are_counted_over_all_nodes() -> None:
    nodes = "--cpu --nproc 4 --nnodes 2 --rdzv-endpoint h:1"

    def missing(words: str, environ: Mapping[str, str] | None = None) -> list[str]:
        made = plan(*words.split(), "train.py", environ=environ)
        return [line for line in made.warnings if "nothing to show" in line]

    assert missing(f"{nodes} --tee 1,5") == []
    assert missing(f"{nodes} --tee 1,8") == ["nothing to show of rank 8: there are 0 to 7"]
    assert missing(f"{nodes} --local-ranks-filter 1,5") == ["nothing to show of local rank 5: there are 0 to 3"]
    for names, expected in (("ab", []), ("a", ["nothing to show of local rank 8: there are 0 to 3"])):
        seat = {"names": list(names), "rank": 0, "endpoint": "h:1", "run_id": "x"}
        # Over ssh the other host may have more ranks than this one.
        assert missing("--cpu --nproc 4 --tee 1,8", {"DDP_LAUNCH_HOST": json.dumps(seat)}) == expected


def test_trainer_gets_what_the_machine_decides_as_options() -> None:
    made = plan("--auto", "--lr", "0.1", "--batch_size", "64")
    assert made.training is not None
    decided = {setting.name: setting.value for setting in made.training.settings}
    assert decided["device"] == "cuda"
    assert decided["model"] == "power"
    assert decided["amp"] == "bf16"
    assert "batch_size" not in decided, "the user has chosen it"
    assert made.program.args[:4] == ("--lr", "0.1", "--batch_size", "64"), "the user's words come first, unchanged"
    assert made.program.args[4:6] == ("--device", "cuda")
    assert made.command[-len(made.program.args) :] == made.program.args
    again = parse_trainer(made.program.args)
    assert again == (made.training.config.model, made.training.config.data)


def parse_trainer(argv: tuple[str, ...]) -> tuple[object, object]:
    from ddp_train.config.parse import parse as parse_config

    config = parse_config(argv)
    return config.model, config.data


def test_memory_over_all_nodes_sizes_the_batch() -> None:
    one = plan("--auto")
    two = plan("--auto", "--gpus", "1", "--nnodes", "2", "--rdzv-endpoint", "h:1")
    assert one.training is not None
    assert two.training is not None
    assert one.training.config.data.batch_size == 512
    assert two.training.config.data.batch_size == 384, "2 nodes with one A5000 each: more than 40 GB"


def test_the_nodes_compare_what_their_machines_decided() -> None:
    nodes = ("--nnodes", "2", "--rdzv-endpoint", "h:1")
    names = ("RTX 3090", 24, (8, 6)), ("RTX 2080 Ti", 11, (7, 5))
    newer, older = (dict(plan(*nodes, topology=Topology((gpu(0, *one),))).job.cluster.settings) for one in names)
    assert {name: (newer[name], older[name]) for name in newer if newer[name] != older[name]} == {
        "amp": ("bf16", "fp16"),
        "batch_size": ("384", "256"),
    }
    assert plan("--auto").job.cluster.settings == plan(*nodes, "a.py").job.cluster.settings == ()


def test_memory_that_is_not_known_sizes_nothing_and_is_no_zero() -> None:
    topology = Topology(tuple(replace(one, memory_total=None) for one in WORKSTATION.gpus[1:3]))
    made = plan("--auto", topology=topology)
    assert made.training is not None
    assert made.training.config.data.batch_size == 128, "the least"
    why = {setting.name: setting.reason for setting in made.training.settings}["batch_size"]
    assert why == "2 GPUs of unknown memory"
    assert any("does not report the memory" in warning for warning in made.warnings)


def test_the_page_says_nothing_twice() -> None:
    lost = tuple(replace(one, error="GPU is lost") for one in WORKSTATION.gpus[2:4])
    topology = Topology((*WORKSTATION.gpus[:2], *lost), warnings=("GPU 2, 3: GPU is lost", "GPU 0: it is hot"))
    console = Console(width=200, record=True, file=io.StringIO())
    show_full(console, plan("--auto", topology=topology))
    page = console.export_text()
    assert page.count("GPU is lost") == 2 and "not GPU 3 (NVIDIA RTX A5000, 24 GiB): GPU is lost" in page
    assert "note: GPU 0: it is hot" in page


def test_trainer_on_the_cpu_by_its_own_option() -> None:
    made = plan("--auto", "--device", "cpu")
    assert made.backend == "gloo"
    assert made.selection.reason == "--device cpu was given"


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (("--device", "cuda"), "--device cuda: no NVIDIA driver"),
        (("--learning-rat", "1"), "unknown option --learning-rat"),
        (("--max-restart", "1"), "did you mean --max-restarts?"),
        (("--epochs", "many"), "--epochs"),
        (("--data-dir", "/nowhere", "--dataset", "folder"), "/nowhere"),
    ],
)
def test_mistakes_in_the_trainers_options(argv: tuple[str, ...], words: str) -> None:
    with pytest.raises(UserError) as caught:
        plan("--auto", *argv, topology=LAPTOP)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_more_arguments_reach_ranks_command_and_shell_line() -> None:
    made = with_arguments(plan("a.py", "x"), ("--out-dir", "a b"))
    assert made.job.worker[-3:] == ("x", "--out-dir", "a b")
    assert made.command[-3:] == ("x", "--out-dir", "a b")
    assert made.shell.endswith("x --out-dir 'a b'")


def test_plan_for_another_machine_says_whose_cores_it_counts() -> None:
    made = plan("--dry-run", "--topology", "file", "a.py")
    assert any("those of this machine" in warning for warning in made.warnings)


def test_the_environment_of_the_process_is_not_touched() -> None:
    before = dict(os.environ)
    plan("--auto")
    assert dict(os.environ) == before


def sliced(index: int) -> Gpu:
    one = MigDevice(uuid=f"MIG-{index}", profile="3g.20gb", memory_total=20 * GIB)
    return replace(gpu(index, "NVIDIA A100-PCIE-40GB", 40, (8, 0)), mig_mode=True, mig_devices=(one,))


def test_each_rank_sees_one_mig_slice() -> None:
    """CUDA shows a process the first slice that it is given, and no other."""
    found = plan("--auto", topology=Topology(gpus=(sliced(0), sliced(1))))
    assert found.nproc_per_node == 2 and found.selection.uuids == ("MIG-0", "MIG-1")
    assert found.job.virtual_local_rank
    assert "--virtual-local-rank" in found.command
    assert not plan("--auto", topology=Topology(gpus=(sliced(0),))).job.virtual_local_rank
    assert not plan("--auto").job.virtual_local_rank


def on_two_nodes(**changes: object) -> LaunchPlan:
    """Two like GPUs, each on a NUMA node of its own."""
    gpus = tuple(replace(gpu(index, "NVIDIA A40", 48, (8, 6)), numa_node=index) for index in (0, 1))
    nodes = (NumaNode(0, 0, 4), NumaNode(1, 1, 4))
    facts = {"usable_nodes": nodes, "usable_cores": 8, "numactl": True, "numa_policy": True, **changes}
    argv = [str(word) for word in facts.pop("argv", ())]  # type: ignore[attr-defined]
    inherited = Inherited(torch=TorchBuild(str(facts.pop("torch", "2.15.0")), "13.0"))
    made = replace(host(), **facts)  # type: ignore[arg-type]
    machine = MachineFacts(topology=Topology(gpus=gpus), host=made, environ={}, inherited=inherited)
    return make_plan(parse([*argv, "a.py"]), machine)


def test_ranks_are_bound_to_numa_nodes_where_that_works() -> None:
    bound = on_two_nodes()
    assert bound.job.numa_binding == "node" and "--numa-binding=node" in bound.command
    assert any("--numa-binding=node" in warning for warning in bound.warnings)
    free = on_two_nodes(numactl=False)
    assert free.job.numa_binding is None and not any(word.startswith("--numa-binding") for word in free.command)
    assert any("numactl" in warning for warning in free.warnings)
    assert not any("NUMA" in warning for warning in plan("--auto", "a.py").warnings)


def test_numa_binding_as_asked() -> None:
    assert on_two_nodes(argv=("--numa-binding", "exclusive")).job.numa_binding == "exclusive"
    off = on_two_nodes(argv=("--numa-binding", "off"))
    assert off.job.numa_binding is None and not any("NUMA" in warning for warning in off.warnings)
    with pytest.raises(TopologyError, match=r"--numa-binding socket cannot be done here: .*numactl"):
        on_two_nodes(argv=("--numa-binding", "socket"), numactl=False)
    with pytest.raises(TopologyError, match="no GPU is used"):
        plan("--cpu", "--numa-binding", "node", "a.py")


def test_an_older_torch_that_cannot_bind_ranks() -> None:
    free, off = on_two_nodes(torch="2.8.0+cu128"), on_two_nodes(argv=("--numa-binding", "off"))
    assert free.job.numa_binding is None and free.job.environment == off.job.environment
    with pytest.raises(TopologyError, match=r"--numa-binding node cannot be done here: torch 2.9"):
        on_two_nodes(argv=("--numa-binding", "node"), torch="2.8.0")


def test_two_allocator_variables_become_one() -> None:
    environ = {"PYTORCH_ALLOC_CONF": "a:1", "PYTORCH_CUDA_ALLOC_CONF": "b:2"}
    made = plan("a.py", environ=environ)
    assert ("PYTORCH_ALLOC_CONF", "a:1,b:2") in made.job.environment
    assert made.job.unset == ("PYTORCH_CUDA_ALLOC_CONF",)
    assert "PYTORCH_CUDA_ALLOC_CONF" not in dict(made.job.environment)
    assert made.shell.startswith("env -u PYTORCH_CUDA_ALLOC_CONF CUDA_DEVICE_ORDER=PCI_BUS_ID ")
    assert with_arguments(made, ("x",)).shell.startswith("env -u PYTORCH_CUDA_ALLOC_CONF ")


def test_gpus_are_named_by_uuid_where_cuda_may_not_count_all_of_them() -> None:
    lost = replace(gpu(0, "NVIDIA RTX A5000", 24, (8, 6)), error="lost")
    others = tuple(gpu(index, "NVIDIA RTX A5000", 24, (8, 6)) for index in (1, 2))
    for first, value in ((lost, ",".join(one.uuid for one in others)), (sliced(0), ",".join(o.uuid for o in others))):
        settings = plan("--auto", topology=Topology(gpus=(first, *others))).environment
        assert next(s.value for s in settings if s.name == "CUDA_VISIBLE_DEVICES") == value


def test_the_grace_time_leaves_something_of_what_the_manager_gives() -> None:
    slurm, pod = {"SLURM_JOB_ID": "7"}, {"KUBERNETES_SERVICE_HOST": "10.0.0.1"}
    assert plan("a.py").job.grace == 30
    assert plan("a.py", environ=slurm).job.grace == plan("a.py", environ=pod).job.grace == 25
    longer = plan("--grace", "120", "a.py", environ=slurm)
    assert longer.job.grace == 120, "the user may know of a longer one"
    assert any("KillWait" in warning for warning in longer.warnings)
    assert not any("KillWait" in warning for warning in plan("--grace", "120", "a.py").warnings)
