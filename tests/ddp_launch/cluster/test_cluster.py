"""Options and variables to the nodes of a run: nothing is started and nobody is asked."""

from __future__ import annotations

import pytest

from ddp_core.errors import OptionError
from ddp_launch.cli.options import parse
from ddp_launch.cluster.cluster import RUN_ID, Cluster, find_cluster

STEP = {
    "SLURM_JOB_ID": "4711",
    "SLURM_JOB_NUM_NODES": "4",
    "SLURM_NNODES": "4",
    "SLURM_JOB_NODELIST": "node[01-03,7]",
    "SLURM_NTASKS": "4",
    "SLURM_TASKS_PER_NODE": "1(x4)",
    "SLURM_STEP_ID": "2",
    "SLURM_STEP_NUM_NODES": "2",
    "SLURM_STEP_NODELIST": "node[03,7]",
    "SLURM_STEP_NUM_TASKS": "2",
    "SLURM_STEP_TASKS_PER_NODE": "1(x2)",
    "SLURM_NODEID": "1",
    "SLURM_PROCID": "1",
    "SLURM_LOCALID": "0",
}
BATCH = {
    "SLURM_JOB_ID": "4711",
    "SLURM_JOB_NUM_NODES": "2",
    "SLURM_NNODES": "2",
    "SLURM_JOB_NODELIST": "node[01-02]",
    "SLURM_TASKS_PER_NODE": "1(x2)",
    "SLURM_NODEID": "0",
    "SLURM_PROCID": "0",
}
OPEN_MPI = {"OMPI_COMM_WORLD_SIZE": "3", "OMPI_COMM_WORLD_RANK": "2", "OMPI_COMM_WORLD_LOCAL_SIZE": "1"}
PYTORCH_JOB = {"MASTER_ADDR": "job-master-0", "MASTER_PORT": "23456", "WORLD_SIZE": "2", "RANK": "1"}


def found(*argv: str, **environ: str) -> Cluster:
    return find_cluster(parse([*argv, "a.py"]), environ)


def refused(*argv: str, **environ: str) -> str:
    with pytest.raises(OptionError) as caught:
        found(*argv, **environ)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_one_node() -> None:
    assert found() == Cluster()
    assert found().one_node


def test_options() -> None:
    made = found("--nnodes", "2:4", "--node-rank", "0", "--rdzv-endpoint", "h:1", "--rdzv-id", "x")
    assert (made.nnodes, made.node_rank, made.endpoint, made.run_id) == ((2, 4), 0, "h:1", "x")
    assert (made.first, made.source) == (True, "the command line")
    assert found("--nnodes", "2", "--rdzv-endpoint", "h:1").run_id == RUN_ID
    assert found("--nnodes", "2", "--master-addr", "h").endpoint == "h:29500"
    assert found("--nnodes", "2", "--master-addr", "::1", "--master-port", "5").endpoint == "[::1]:5"
    assert found("--nnodes", "2", "--rdzv-endpoint", "h:1", "--rdzv-timeout", "7").rdzv_timeout_s == 7


def test_nodes_that_cannot_meet() -> None:
    assert "--rdzv-endpoint" in refused("--nnodes", "2")
    assert "--node-rank" in refused("--nnodes", "2", "--rdzv-endpoint", "h:1", "--node-rank", "2")


def test_an_endpoint_without_nodes_is_not_used_and_said() -> None:
    made = found("--rdzv-endpoint", "h:1")
    assert made.endpoint is None
    assert "not used" in made.warnings[0]


def test_slurm_step_smaller_than_its_job() -> None:
    made = found(**STEP)
    assert (made.nnodes, made.node_rank, made.names) == ((2, 2), 1, ("node03", "node7"))
    assert made.endpoint is not None
    assert made.endpoint.startswith("node03:")
    assert made.source == "Slurm job 4711, step 2"
    assert made.name(1) == "node rank 1 (node7)"
    other = found(**STEP | {"SLURM_NODEID": "0", "SLURM_PROCID": "0"})
    assert (other.endpoint, other.run_id, other.node_rank) == (made.endpoint, made.run_id, 0)
    assert (other.first, made.first) == (True, False)


def test_slurm_runs_are_told_apart() -> None:
    first, later = found(**STEP), found(**STEP | {"SLURM_JOB_ID": "4712"})
    assert first.endpoint != later.endpoint
    assert len({first.run_id, later.run_id, found(**STEP | {"SLURM_RESTART_COUNT": "1"}).run_id}) == 3
    assert found(**STEP | {"SLURM_STEP_ID": "3"}).endpoint != first.endpoint


def test_slurm_by_its_job_alone() -> None:
    made = found(**BATCH | {"SLURM_PROCID": "1", "SLURM_NODEID": "1"})
    assert (made.nnodes, made.node_rank, made.names) == ((2, 2), 1, ("node01", "node02"))
    assert found(**BATCH | {"SLURM_STEP_ID": "0", "SLURMD_NODENAME": "node02"}).node_rank == 1


@pytest.mark.parametrize(
    "tasks",
    [
        {"SLURM_STEP_TASKS_PER_NODE": "4(x2)", "SLURM_STEP_NUM_TASKS": "8"},
        {"SLURM_STEP_TASKS_PER_NODE": "1,4"},
        {"SLURM_STEP_TASKS_PER_NODE": "", "SLURM_STEP_NUM_TASKS": "8"},
        {"SLURM_STEP_TASKS_PER_NODE": "", "SLURM_STEP_NUM_TASKS": "", "SLURM_TASKS_PER_NODE": "4(x2)"},
        {
            "SLURM_STEP_TASKS_PER_NODE": "",
            "SLURM_STEP_NUM_TASKS": "",
            "SLURM_TASKS_PER_NODE": "",
            "SLURM_NTASKS_PER_NODE": "4",
        },
        {"SLURM_LOCALID": "3"},
    ],
)
def test_slurm_with_several_launchers_on_a_node(tasks: dict[str, str]) -> None:
    more = {"SLURM_CPUS_PER_TASK": "8", "SLURM_GPUS_PER_TASK": "a100:1"}
    message = refused("--dry-run", **STEP | tasks | more)
    assert "4 launchers on a node" in message
    assert "#SBATCH --nodes=2 --ntasks-per-node=1" in message
    assert "srun --nodes=2 --ntasks=2 --ntasks-per-node=1 --cpus-per-task=32 --gpus-per-node=a100:4 python" in message
    assert found("--nnodes", "1", **STEP | tasks).one_node, "four runs of their own, on request"


def test_one_of_several_launchers_says_so() -> None:
    tasks = STEP | {"SLURM_STEP_TASKS_PER_NODE": "4(x2)"}
    for environ, speaks in (
        (tasks | {"SLURM_PROCID": "0"}, True),
        (tasks | {"SLURM_PROCID": "5"}, False),
        (OPEN_MPI | {"OMPI_COMM_WORLD_LOCAL_SIZE": "3"}, False),
        (OPEN_MPI | {"OMPI_COMM_WORLD_LOCAL_SIZE": "3", "OMPI_COMM_WORLD_RANK": "0"}, True),
    ):
        with pytest.raises(OptionError) as caught:
            found("--rdzv-endpoint", "h:1", **environ)
        assert caught.value.speaks == speaks


def test_slurm_without_srun() -> None:
    """A batch script, and the shell of salloc, are one process whatever the job is."""
    for step in ({}, {"SLURM_STEP_ID": str(0xFFFFFFFB)}, {"SLURM_STEP_ID": str(0xFFFFFFFA)}):
        message = refused(**BATCH | step)
        assert "use srun --nodes=2 --ntasks=2 --ntasks-per-node=1 python" in message
        assert "--nnodes 1" in message
        planned = found("--dry-run", **BATCH | step)
        assert planned.nnodes == (2, 2)
        assert "use srun" in planned.warnings[0]
    assert found("--nnodes", "1", **BATCH).one_node
    assert found("--nnodes", "2", "--rdzv-endpoint", "h:1", **BATCH).endpoint == "h:1", "started by other means"
    single = {"SLURM_JOB_NUM_NODES": "1", "SLURM_JOB_NODELIST": "node01", "SLURM_NTASKS_PER_NODE": "4"}
    assert found(**{"SLURM_JOB_ID": "1"} | single).one_node


def test_slurm_with_fewer_tasks_than_nodes() -> None:
    assert "1 launcher for the 2 nodes" in refused(**STEP | {"SLURM_STEP_NUM_TASKS": "1", "SLURM_NODEID": "0"})


@pytest.mark.parametrize("name", ["SLURM_STEP_NODELIST", "SLURM_STEP_NUM_NODES", "SLURM_NODEID"])
def test_slurm_variables_that_cannot_be_read(name: str) -> None:
    assert refused(**STEP | {name: "a["}).startswith(f"{name}='a['")


def test_options_and_slurm_share_the_work() -> None:
    made = found("--nnodes", "1:2", **STEP)
    assert (made.nnodes, made.node_rank, made.names) == ((1, 2), 1, ("node03", "node7"))
    assert made.source == "nodes from the command line; node rank and endpoint from Slurm job 4711, step 2"
    elsewhere = found("--rdzv-endpoint", "h:1", **STEP | {"SLURM_NODEID": "0"})
    assert (elsewhere.endpoint, elsewhere.first) == ("h:1", None)


def test_open_mpi() -> None:
    made = found("--rdzv-endpoint", "h:1", **OPEN_MPI)
    assert (made.nnodes, made.node_rank) == ((3, 3), 2)
    assert "--rdzv-endpoint" in refused(**OPEN_MPI)
    assert "--rdzv-endpoint" in refused(**OPEN_MPI, MASTER_ADDR="127.0.0.1")
    passed_on = found(**OPEN_MPI, MASTER_ADDR="node01", MASTER_PORT="2900")
    assert (passed_on.endpoint, passed_on.first) == ("node01:2900", False)
    assert found(**OPEN_MPI, MASTER_ADDR="node01").endpoint == "node01:29500"
    crowded = refused("--rdzv-endpoint", "h:1", **OPEN_MPI | {"OMPI_COMM_WORLD_LOCAL_SIZE": "3"})
    assert "mpirun -np 1 --map-by ppr:1:node" in crowded
    assert found(**OPEN_MPI | {"OMPI_COMM_WORLD_SIZE": "1", "OMPI_COMM_WORLD_RANK": "0"}).one_node
    assert found("--rdzv-endpoint", "h:1", **STEP | OPEN_MPI).nnodes == (3, 3), "mpirun inside of a Slurm job"


def test_pmi() -> None:
    hydra = {"PMI_SIZE": "2", "PMI_RANK": "1", "MPI_LOCALNRANKS": "1"}
    assert found("--rdzv-endpoint", "h:1", **hydra).node_rank == 1
    assert "mpiexec -n 1 -ppn 1" in refused("--rdzv-endpoint", "h:1", **hydra | {"MPI_LOCALNRANKS": "2"})
    assert found(**STEP | {"PMI_SIZE": "9", "PMI_RANK": "1"}).nnodes == (2, 2), "srun speaks PMI, too"


def test_pytorch_job() -> None:
    made = found(**PYTORCH_JOB)
    assert (made.nnodes, made.node_rank, made.endpoint) == ((2, 2), 1, "job-master-0:23456")
    assert made.source == "PyTorchJob"
    first = found(
        **PYTORCH_JOB | {"MASTER_ADDR": "localhost", "RANK": "0", "KUBERNETES_SERVICE_HOST": "h", "HOSTNAME": "pod-0"}
    )
    assert (first.endpoint, first.first) == ("pod-0:23456", True)


@pytest.mark.parametrize("port", ["tcp://10.0.0.1:29500", "70000", "0"])
def test_a_port_that_is_none(port: str) -> None:
    """A Kubernetes service named master sets MASTER_PORT to an address."""
    expected = f"={port!r} in the environment: expected a whole number from 1 to 65535"
    assert refused(**PYTORCH_JOB | {"MASTER_PORT": port}) == f"MASTER_PORT{expected}"
    assert refused(PET_NNODES="2", PET_MASTER_ADDR="h", PET_MASTER_PORT=port) == f"PET_MASTER_PORT{expected}"


def test_torchruns_own_variables() -> None:
    pet = {"PET_NNODES": "1:2", "PET_RDZV_ENDPOINT": "h", "PET_NODE_RANK": "1", "PET_RDZV_ID": "x"}
    made = found(**PYTORCH_JOB | pet)
    assert (made.nnodes, made.node_rank, made.endpoint, made.run_id) == ((1, 2), 1, "h:29400", "x")
    assert made.source == "PET_ variables"
    assert found("--nnodes", "3", **pet).nnodes == (3, 3), "options come first"
    static = {"PET_NNODES": "2", "PET_MASTER_ADDR": "fd00::1", "PET_MASTER_PORT": "29600"}
    assert found(**static).endpoint == "[fd00::1]:29600"
    assert refused(**pet | {"PET_NNODES": "two"}).startswith("PET_NNODES='two' in the environment: expected")


@pytest.mark.parametrize("word", ["--standalone", "--rdzv-endpoint=localhost:0", "--rdzv-endpoint=127.0.0.1"])
def test_standalone_means_this_node_alone(word: str) -> None:
    for environ in (STEP, BATCH, PYTORCH_JOB, {"PET_NNODES": "2", "PET_RDZV_ENDPOINT": "h:1"}):
        assert found(word, **environ).one_node
    notes = parse([word, "a.py"]).notes
    assert len(notes) == 1 and " means this node alone" in notes[0]


def test_standalone_beside_a_number_of_nodes() -> None:
    assert parse(["--standalone", "--hosts", "a,b", "a.py"]).nnodes is None
    assert found("--standalone", "--nnodes", "2", **STEP).nnodes == (2, 2)


@pytest.mark.parametrize(
    "environ",
    [
        {"PET_NNODES": "2", "PET_RDZV_ENDPOINT": "h:1", "PET_RDZV_CONF": "join_timeout=60,last_call_timeout=5"},
        STEP | {"PET_RDZV_CONF": "join_timeout=60,last_call_timeout=5"},
    ],
)
def test_settings_of_the_rendezvous_where_variables_give_the_nodes(environ: dict[str, str]) -> None:
    options = parse(["a.py"], environ)
    made = find_cluster(options, environ)
    assert (made.nnodes, made.rdzv_timeout_s, made.last_call_s) == ((2, 2), 60, 5)
    assert options.notes == made.warnings == ()
    alone = find_cluster(options, {})
    assert alone.warnings == ("one node, so the times of --rdzv-timeout and --rdzv-conf are not used",)


@pytest.mark.parametrize("endpoint", ["localhost:0", "127.0.0.1:0", "localhost", "[::1]:0"])
def test_a_loopback_endpoint_in_a_variable_means_this_node_alone(endpoint: str) -> None:
    pet = {"PET_RDZV_ENDPOINT": endpoint}
    assert found(**pet, PET_NNODES="1").one_node
    assert found(**pet, **STEP).one_node
    if endpoint.endswith(":0"):
        assert refused(**pet, PET_NNODES="2").startswith(f"PET_RDZV_ENDPOINT={endpoint!r} in the environment: expected")


def test_another_backend_in_a_variable_is_refused() -> None:
    environ = {"PET_RDZV_BACKEND": "etcd-v2", "PET_RDZV_ENDPOINT": "etcd:2379", "PET_NNODES": "2"}
    with pytest.raises(OptionError, match=r"PET_RDZV_BACKEND='etcd-v2' in the environment .*: the rendezvous is c10d"):
        parse(["a.py"], environ)
    assert parse(["--rdzv-backend=c10d", "a.py"], environ).program.name == "a.py"
    for accepted in ("c10d", "static", ""):
        options = parse(["a.py"], environ | {"PET_RDZV_BACKEND": accepted})
        assert find_cluster(options, environ).endpoint == "etcd:2379"


def test_index_of_a_kubernetes_job() -> None:
    assert found(JOB_COMPLETION_INDEX="3").one_node, "an Indexed Job may as well count independent tasks"
    made = found("--nnodes", "2", "--rdzv-endpoint", "job-0.svc:29500", JOB_COMPLETION_INDEX="1")
    assert (made.node_rank, made.first) == (1, None)


def test_variables_left_from_elsewhere_do_not_mislead() -> None:
    notebook = {"MASTER_ADDR": "localhost", "MASTER_PORT": "1", "WORLD_SIZE": "2", "RANK": "0"}
    made = found(**notebook)
    assert made.one_node
    assert made.warnings == (
        "MASTER_ADDR, RANK, WORLD_SIZE in the environment: ignored, they belong to a rank of some other run",
    )
    assert found(WORLD_SIZE="1", RANK="0").one_node
    assert found(**PYTORCH_JOB | {"LOCAL_RANK": "0"}).one_node


def test_inside_of_torchrun() -> None:
    rank = {"TORCHELASTIC_RUN_ID": "x", "LOCAL_WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2"}
    assert "without torchrun" in refused(**rank)
    assert found(**rank | {"LOCAL_WORLD_SIZE": "1"}).warnings


def test_interactive_shell_of_srun() -> None:
    """srun -N1 --ntasks-per-node=4 --pty bash: only the first task gets the terminal, and so the shell."""
    one_node = {"SLURM_STEP_NUM_NODES": "1", "SLURM_STEP_NODELIST": "node03", "SLURM_STEP_TASKS_PER_NODE": "4"}
    shell = STEP | one_node | {"SLURM_PROCID": "0", "SLURM_NODEID": "0", "SLURMD_NODENAME": "node03"}
    assert "(or --nnodes 1 for this process alone)" in refused(**shell)
    made = found(**shell, SLURM_PTY_PORT="40001")
    assert (made.one_node, made.warnings) == (True, ())
    # srun --pty python launch.py starts four of them.
    assert "4 launchers" in refused(**shell | {"SLURM_PTY_PORT": "40001", "SLURM_PROCID": "1", "SLURM_LOCALID": "1"})
    # The second node has no launcher.
    several = {"SLURM_STEP_NUM_NODES": "2", "SLURM_STEP_NODELIST": "node[03,7]", "SLURM_STEP_TASKS_PER_NODE": "4(x2)"}
    assert "4 launchers" in refused(**shell | several, SLURM_PTY_PORT="40001")


def test_shell_of_salloc_outside_of_the_jobs_nodes() -> None:
    job = {"SLURM_JOB_ID": "8", "SLURM_JOB_NUM_NODES": "1", "SLURM_JOB_NODELIST": "node01"}
    (note,) = found(**job).warnings
    assert "login node" in note
    assert "use srun --nodes=1 --ntasks=1 --ntasks-per-node=1 python launch.py" in note
    assert found(**job, SLURMD_NODENAME="node01").warnings == ()
    assert "login node" in found("--nnodes", "1", **BATCH).warnings[0]
    assert found(**job, SLURM_STEP_ID="0").warnings == (), "srun started it"
