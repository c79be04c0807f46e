"""A table of error messages, what they mean, and how to fix them.

The first row whose pattern matches applies (see remedies.py).
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ddp_launch.failure.missing_module import explain, explain_file

MIB = 2**20
SHM = "/dev/shm"
TIMEOUT = "collective-timeout"
GPU_FAULT = "gpu-fault"


@dataclass(frozen=True)
class Batch:
    """The bundled trainer's batch: images per optimizer step over all `ranks`, in `accumulate` micro-batches.

    `by_rank`: it was given as --batch-size-per-rank.
    """

    size: int
    ranks: int
    accumulate: int = 1
    by_rank: bool = False

    @property
    def at_once(self) -> int:
        """Images in a rank's micro-batch."""
        return max(1, self.size // (self.ranks * self.accumulate))

    def halved(self, times: int) -> str:
        """The option for the batch, halved this many `times`."""
        name, size = ("-per-rank", self.size // self.ranks) if self.by_rank else ("", self.size)
        return f"--batch-size{name} {max(1, size >> times)}"


@dataclass(frozen=True)
class Evidence:
    """What else is known about a failed run.

    memory_kills  how many processes the kernel killed for memory during the run; None where that is unknown
    kills_where   where those processes were: "of this job's cgroup", "on this machine"
    shm_free      bytes free in /dev/shm after the failure, of `shm_total` bytes; both None where there is no /dev/shm
    batch         the bundled trainer's batch; None for a user's program
    logs_free     bytes free where the ranks' logs are; None where that is not known
    trainer       whether the bundled trainer ran, which has its own options
    script        the file of a user's program; None for a module, or where that is not known
    on_gpu        whether the ranks had GPUs
    own_python    whether they ran in the launcher's Python; False for an executable, which may start another
    """

    memory_kills: int | None = None
    kills_where: str = ""
    shm_free: int | None = None
    shm_total: int | None = None
    batch: Batch | None = None
    logs_free: int | None = None
    trainer: bool = False
    script: Path | None = None
    on_gpu: bool = True
    own_python: bool = True


Words = str | Callable[[re.Match[str], Evidence], str]


@dataclass(frozen=True)
class Known:
    """A row of the table. `meaning` and `advice` may use the groups of the pattern: {0}, {1}, ..."""

    name: str
    pattern: str
    meaning: Words
    advice: Words


def shm_state(evidence: Evidence) -> str:
    """The free and total size of /dev/shm, in words."""
    if evidence.shm_free is None or evidence.shm_total is None:
        return f"{SHM} is too small for what the loader workers or NCCL share there"
    return f"{SHM} is full or too small: {evidence.shm_free // MIB} of {evidence.shm_total // MIB} MiB are free now"


def _smaller_batch(found: re.Match[str], evidence: Evidence) -> str:
    """Advice for GPU memory that ran out: options with a smaller batch, where the run's batch is known."""
    batch = evidence.batch
    if batch is None:
        advice = "halve the batch of each rank, and accumulate gradients over two of them for the same global batch"
    elif batch.at_once == 1:
        advice = "each rank has a single image at a time already: a smaller model, or --amp bf16"
    else:
        advice = (
            f"--accumulate {2 * batch.accumulate} ({batch.at_once // 2} images at a time instead of {batch.at_once}, in"
            f" the same global batch of {batch.size}); or {batch.halved(1)}, then {batch.halved(2)}"
        )
    if "expandable_segments" in found.string and "PYTORCH_CUDA_ALLOC_CONF" not in os.environ:
        advice += "; or PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True where much is reserved but unallocated"
    return advice


def _not_a_package(found: re.Match[str], evidence: Evidence) -> tuple[str, str]:
    """Meaning and advice for `No module named X`, and for `'X' is not a package`."""
    module = found[1].strip(".")
    if found[2] is not None:
        return explain_file(module, evidence.script)
    return explain(module, evidence.script, own_python=evidence.own_python)


def _port(found: re.Match[str], evidence: Evidence) -> str:
    """Advice for a port that is in use."""
    # Only in the line of the error, and no line number of a source file: the log around it has times of day.
    line = found.string[found.string.rfind("\n", 0, found.start()) + 1 :].partition("\n")[0]
    number = re.search(r"port:? ?(\d{2,5})\b|(?<!\.cc)(?<!\.cpp)(?<!\.py):(\d{4,5})\b", line)
    who = f"ss -ltnp 'sport = :{number[1] or number[2]}' shows which process has it; " if number else ""
    return (
        f"{who}set no port in the program: the launcher gives each run its own MASTER_PORT; a server that is not"
        " torch's belongs in one rank alone"
    )


def _file(found: re.Match[str], evidence: Evidence) -> str:
    """Advice for a file that does not exist."""
    path = Path(found[1])
    if not path.is_absolute():
        # So says Python also of a program that it cannot start: nvcc, ninja, git.
        program = "; if a program is meant, it is not on PATH" if path.name == found[1] and not path.suffix else ""
        return f"the program runs in {Path.cwd()}: a relative path starts there{program}"
    above = next((folder for folder in path.parents if folder.exists()), Path("/"))
    return f"ls {above} shows what is there; in a container only what was mounted is"


def more_shm(evidence: Evidence) -> str:
    """Advice for more shared memory, or a smaller need of it."""
    option = "--num-workers 0" if evidence.trainer else "num_workers=0"
    return (
        "docker run --ipc=host or --shm-size=8g; in Kubernetes an emptyDir with medium Memory at /dev/shm; or no loader"
        f" workers ({option})"
    )


def _disk(found: re.Match[str], evidence: Evidence) -> str:
    """Advice for a full disk."""
    where = "--out-dir or TMPDIR" if evidence.trainer else "the program's own folder for its files, or TMPDIR,"
    return f"df -h . and df -i . show what is left; put {where} on another disk"


def _did_not_end(found: re.Match[str], evidence: Evidence) -> str:
    """Meaning of a collective that timed out."""
    why = ", or the GPUs do not reach each other" if evidence.on_gpu else ""
    return f"a collective did not end: another rank did not enter it{why}"


def _who_did_not_come(found: re.Match[str], evidence: Evidence) -> str:
    """Advice for a collective that timed out."""
    skips = "look for a rank that skips a collective, or does more work than the others"
    if not evidence.on_gpu:
        return skips
    return f"python -m gpu_topology verify tests the GPUs and their links in a minute; where it passes, {skips}"


def _import_of_name(found: re.Match[str], evidence: Evidence) -> tuple[str, str]:
    """Meaning and advice for `cannot import name X from Y (FILE)`: incompatible versions, or a file without it."""
    name, module, file = found[1], found[2], found[3] or ""
    if module is None or re.search(r"(site|dist)-packages", file):
        return (
            "two packages have incompatible versions",
            "python launch.py --doctor lists the versions; torch and torchvision are released in pairs",
        )
    if re.search(r"/lib\d*/python3", file):
        return f"{module} of this Python has no {name}", "the program is written for another version of Python"
    where = file if "/" in file else module
    return f"{where} has no {name}", "a misspelled name; or a file that hides a package of its name: rename it"


def _no_cuda(found: re.Match[str], evidence: Evidence) -> tuple[str, str]:
    """Meaning and advice for a program that finds no GPU: its rank has none, or its torch cannot use one."""
    if evidence.on_gpu and re.search("not compiled|doesn't have", found[0], re.IGNORECASE):
        return (
            "the rank has a GPU, but this torch is a build without CUDA",
            "install a build of torch for CUDA (pytorch.org has the commands) in the Python that runs the program",
        )
    return (
        "the program wants a GPU and its rank has none",
        "without a GPU use gloo and torch.device('cpu'); python launch.py --doctor shows why there is none",
    )


def _device_ids(found: re.Match[str], evidence: Evidence) -> str:
    """Advice for a model on the CPU in DistributedDataParallel with device_ids."""
    if evidence.on_gpu:
        return "model.to(device) before DistributedDataParallel"
    return "DistributedDataParallel(model) without device_ids and output_device: on the CPU there is none to name"


LESS_MEMORY = (
    "fewer loader workers (each holds its own copy of the data set's objects), fewer ranks, or more memory for the job"
    " (Slurm --mem, Kubernetes limits.memory, docker -m)"
)
HANG = (
    "python -m gpu_topology verify tests the GPUs and their links in a minute; where it passes, look for a rank that"
    " skips a collective, or does more work than the others"
)
BLOCKING = "run it again with CUDA_LAUNCH_BLOCKING=1, so that the traceback names the line, or with --cpu"

TABLE: tuple[Known, ...] = (
    Known(
        "host-memory",
        r"DataLoader worker \(pid[^)]*\) is killed by signal: Killed|in the process pool was terminated abruptly",
        "a worker process was killed: most often by the kernel, because memory ran out",
        LESS_MEMORY,
    ),
    Known(
        "shared-memory",
        r"out of shared memory|Bus error"
        r"|(No space left on device|unable to \w+)(?!.*(Too many open files|Cannot allocate)).*(/dev/shm|shm|/torch_\d)"
        r"|(/dev/shm|shared memory segment).*No space left|Error while creating shared memory segment",
        lambda found, evidence: shm_state(evidence),
        lambda found, evidence: more_shm(evidence),
    ),
    Known(
        "gpu-memory",
        r"CUDA out of memory|CUDA error: out of memory|CUDNN_STATUS_ALLOC_FAILED|CUBLAS_STATUS_ALLOC_FAILED"
        r"|cuda\.OutOfMemoryError|torch\.OutOfMemoryError|Cuda failure \d* ?'out of memory'",
        "the GPU's memory is full",
        _smaller_batch,
    ),
    Known(
        "host-memory",
        r"DefaultCPUAllocator: (can't|not enough)|Cannot allocate memory|^MemoryError|Unable to allocate .* an array",
        "the memory of this machine, or of this job, is full",
        LESS_MEMORY,
    ),
    Known(
        "different-shapes",
        r"op\.preamble\.length <= op\.nbytes\. (\d+) vs (\d+)",
        "the ranks brought tensors of different sizes to a collective, {1} and {2} bytes, or were in different ones",
        "every rank must call the same collectives with the same shapes: look for a short last batch",
    ),
    Known(
        TIMEOUT,
        r"collective operation timeout|Timed out waiting \d+ms for (recv|send)|Watchdog caught",
        _did_not_end,
        _who_did_not_come,
    ),
    Known(
        "duplicate-gpu",
        r"Duplicate GPU detected",
        "two ranks use the same GPU",
        'torch.cuda.set_device(int(os.environ["LOCAL_RANK"])) before the first collective',
    ),
    Known(
        "device-ordinal",
        r"invalid device ordinal",
        "the program asks for a GPU that this rank does not see",
        "use LOCAL_RANK, which counts from 0; RANK and the numbers of nvidia-smi differ from it",
    ),
    Known(
        "no-kernel-image",
        r"no kernel image is available",
        "this build of torch has no code for this GPU's compute capability",
        "install a build of torch for it (python launch.py --doctor names both), or --exclude this GPU",
    ),
    Known(
        "driver-too-old",
        r"driver on your system is too old|driver version is insufficient",
        "the NVIDIA driver is older than this build of torch needs",
        "a newer driver, or a build of torch for an older CUDA; python launch.py --doctor names both",
    ),
    Known(
        GPU_FAULT,
        r"uncorrectable ECC|fallen off the bus|GPU is lost|hardware stack error"
        r"|CUDA error: (unspecified launch failure|unknown error)",
        "the GPU itself failed",
        "dmesg | grep -i xid shows what the driver reported; --exclude this GPU until it is reset or replaced",
    ),
    Known(
        "device-assert",
        r"device-side assert triggered",
        "an index was out of range on the GPU: often a label that is not below the number of classes",
        BLOCKING,
    ),
    Known("illegal-access", r"illegal memory access", "a GPU kernel read or wrote outside its memory", BLOCKING),
    Known(
        "no-cuda",
        r"not compiled with CUDA enabled|Found no NVIDIA driver|No CUDA GPUs are available"
        r"|ProcessGroupNCCL is only supported with GPUs|doesn't have NCCL",
        lambda found, evidence: _no_cuda(found, evidence)[0],
        lambda found, evidence: _no_cuda(found, evidence)[1],
    ),
    Known(
        "forked-cuda",
        r"Cannot re-initialize CUDA in forked subprocess",
        "a forked process cannot use CUDA once its parent has",
        'multiprocessing_context="spawn" for the loader, or no CUDA call before the fork',
    ),
    Known(
        "unused-parameters",
        r"Expected to have finished reduction in the prior iteration",
        "some parameters did not contribute to the loss, and DDP waits for their gradients",
        "DistributedDataParallel(..., find_unused_parameters=True), or use every output of forward in the loss;"
        " TORCH_DISTRIBUTED_DEBUG=DETAIL names the parameters",
    ),
    Known(
        "ready-twice",
        r"Expected to mark a variable ready only once",
        "a parameter was used twice in one backward: shared modules, or re-entrant activation checkpointing",
        "checkpoint(..., use_reentrant=False), or DistributedDataParallel(..., static_graph=True)",
    ),
    Known(
        "no-process-group",
        r"Default process group has not been initialized",
        "a collective or DDP came before init_process_group",
        "torch.distributed.init_process_group() first; the launcher has set its variables",
    ),
    Known(
        "device-ids-on-cpu",
        r"device_ids and output_device arguments only work with single-device/multiple-device GPU modules",
        "DDP was given device_ids, which name GPUs, and the model is on the CPU",
        _device_ids,
    ),
    Known(
        "local-rank-argument",
        r"(unrecognized arguments|arguments are required):.*--local[-_]rank",
        "the program takes its local rank from an argument that no launcher passes any more",
        'int(os.environ["LOCAL_RANK"]), also as the default of the argument if you keep it',
    ),
    Known(
        "port-in-use",
        r"EADDRINUSE|address already in use",
        "a port that the program wants to listen on is taken",
        _port,
    ),
    Known(
        "no-store",
        r"client socket has (?:timed out after \d+ms while trying|failed) to connect to (?:any network address of )?"
        r"\(([^,()]+), (\d+)\)",
        "torch's store, where the ranks meet, does not answer at {1}, port {2}",
        "leave MASTER_ADDR, MASTER_PORT and init_method to the launcher: a program that sets its own points torch to a"
        " place where nothing listens; between nodes, a firewall may close the port",
    ),
    Known(
        "late-rank",
        r"waiting for clients\. \d+/\d+ clients joined|wait timeout after \d+ms",
        "another rank did not come to the start of torch.distributed, or to its store, within the time limit",
        "look for a rank that does more before init_process_group, such as a download, or give that a longer timeout;"
        " leave world_size to the launcher",
    ),
    Known(
        "name-resolution",
        r"Name or service not known|Temporary failure in name resolution|gaierror",
        "a host name has no address here",
        "for a machine of the run: an IP address instead of the name, or a line in /etc/hosts; for a server outside:"
        " this machine has no way to it, so fetch what it has beforehand, on one that has",
    ),
    Known(
        "socket-interface",
        r"no socket interface found|ncclSystemError|unhandled system error",
        "NCCL found no usable network interface, or the system refused a call",
        "NCCL_SOCKET_IFNAME=INTERFACE (ip -br address lists them); NCCL_DEBUG=INFO shows what it tried",
    ),
    Known(
        "missing-module",
        r"No module named '?([\w.-]+)'?(; '[\w.-]+' is not a package)?",
        lambda found, evidence: _not_a_package(found, evidence)[0],
        lambda found, evidence: _not_a_package(found, evidence)[1],
    ),
    Known(
        "relative-import",
        r"attempted relative import with no known parent package|attempted relative import beyond top-level package",
        "the file is part of a package, but was started as a program of its own",
        "start it as a module, from the folder above the package: python launch.py ... -m PACKAGE.MODULE",
    ),
    Known(
        "circular-import",
        r"partially initialized module '([\w.]+)'",
        "{1} is not complete yet: two files import each other, or a file of yours has the name of what it imports",
        "import inside the function that needs it, or rename the file",
    ),
    Known(
        "missing-library",
        r"(lib[\w+.-]+\.so[\w.]*): cannot open shared object file",
        "the library {1} is not on this system, or not in a folder that is searched",
        "install the system package that has it, or add its folder to LD_LIBRARY_PATH",
    ),
    Known(
        "version-mismatch",
        r"undefined symbol|cannot import name '([\w.]+)' from(?: '([\w.]+)' \(([^)]+)\))?",
        lambda found, evidence: _import_of_name(found, evidence)[0],
        lambda found, evidence: _import_of_name(found, evidence)[1],
    ),
    Known(
        "syntax-error",
        r"^(Syntax|Indentation|Tab)Error: (.*)",
        "Python cannot read the program",
        "fix the line above; a restart cannot help",
    ),
    Known(
        "open-files",
        r"Too many open files|received 0 items of ancdata",
        "the limit on open files is reached",
        "ulimit -n 65536, or torch.multiprocessing.set_sharing_strategy('file_system')",
    ),
    Known(
        "disk-full",
        r"No space left on device(?:: '([^']+)')?|Disk quota exceeded",
        "the disk is full, or a quota is reached",
        _disk,
    ),
    Known(
        "permission",
        r"Permission denied(?! \((?:publickey|password|keyboard))(?:: '([^']+)')?",
        "this user lacks the permission",
        "ls -ld on the path and on its folder; in a container the user's number counts, not the name",
    ),
    Known("missing-file", r"No such file or directory: '([^']+)'", "{1} does not exist", _file),
    Known(
        "wrong-checkpoint",
        r"Error\(s\) in loading state_dict",
        "the checkpoint is of another model",
        "names that begin with module. were saved from a model inside DDP: load into model.module",
    ),
    Known(
        "two-devices",
        r"Expected all tensors to be on the same device",
        "model and data are on different devices",
        'both .to(torch.device("cuda", int(os.environ["LOCAL_RANK"])))',
    ),
    Known(
        "abort-in-leaving",
        r"^terminate called without an active exception",
        "torch's own gloo threads aborted the program while Python was ending: its process group was still open, or"
        " a DistributedDataParallel model held it. This is a race in torch, which bare torchrun has too",
        "torch.distributed.destroy_process_group() before leaving, in a finally clause: the exit status is then the"
        " program's own; with a DistributedDataParallel model also flush the streams and call os._exit(0) at the end",
    ),
)
