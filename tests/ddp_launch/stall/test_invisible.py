"""A program cannot tell whether its ranks can be asked: the same facts with and without, from the same real run."""

from __future__ import annotations

import json
import re
from importlib.util import find_spec
from typing import Any

import pytest

FACTS = """
import atexit, json, multiprocessing, os, pickle, subprocess, sys, threading, time, traceback
import user_module

class Mine:
    pass

def child(queue):
    main = sys.modules["__main__"]
    queue.put([__name__, main.__name__, os.environ.get("PYTHONPATH"), os.path.basename(main.__file__)])

def facts():
    import __main__
    try:
        import sitecustomize
        own = getattr(sitecustomize, "MINE", "Debian's")
    except ImportError as error:
        own = repr(error)
    try:
        import nothing_of_this_name
    except ImportError:
        missing = traceback.format_exc()
    first = os.open("/dev/null", os.O_RDONLY)
    os.close(first)
    queue = multiprocessing.get_context("spawn").Queue()
    process = multiprocessing.get_context("spawn").Process(target=child, args=(queue,))
    process.start()
    spawned = queue.get(timeout=60)
    process.join()
    code = "import os, sys; print(sys.path[1:], os.environ.get('PYTHONPATH'), 'faulthandler' in sys.modules)"
    return {
        "main": [__name__, __main__.__file__, repr(__main__.__spec__), sorted(vars(__main__))],
        "argv": [sys.argv, sys.orig_argv, sys.flags[:], sys._xoptions],
        "path": [sys.path, sorted(sys.path_importer_cache)],
        "environment": {k: v for k, v in os.environ.items() if k.startswith(("PYTHON", "TORCH_FR", "TORCH_NCCL"))},
        "own": own,
        "modules": [name for name in sys.modules if "ddp_launch" in name or "customize" in name],
        "threads": [str(threading.enumerate()[0].name), threading.active_count(), len(os.listdir("/proc/self/task"))],
        "missing": missing,
        "pickled": pickle.dumps(Mine()).hex(),
        "lowest": first,
        "spawned": spawned,
        "signals": [str(__import__("signal").getsignal(number)) for number in range(1, 32) if number not in (9, 19)],
        "other": subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout,
    }

if __name__ == "__main__":
    atexit.register(print, "at exit")
    with open(f"part-{os.environ['RANK']}", "w") as file:
        json.dump(facts(), file)
    os.rename(file.name, f"facts-{os.environ['RANK']}.json")
    # The first rank that ends, with an error, ends the others.
    while sum(name.startswith("facts-") for name in os.listdir()) < int(os.environ["WORLD_SIZE"]):
        time.sleep(0.01)
    if sys.argv[1:] == ["torch"]:
        import torch, torch.distributed as dist
        dist.init_process_group("gloo")
        dist.barrier()
        dist.destroy_process_group()
        print(sorted(getattr(f, "__name__", type(f).__name__) for f in sys.meta_path), threading.enumerate())
        print(dist.distributed_c10d._update_default_pg.__module__)
    raise ValueError("as ever")
"""


def facts(launcher: Any, *arguments: str, **env: str) -> tuple[list[Any], str, str, int]:
    for path in launcher.folder.glob("facts-*"):
        path.unlink()
    done = launcher.run("--cpu", "--log-dir", "logs", *arguments, **env)
    found = [json.loads(path.read_text()) for path in sorted(launcher.folder.glob("facts-*"))]
    assert found, done.stderr
    log = max(launcher.folder.glob("logs/attempt-*/rank-0.stderr.log"), key=lambda path: path.stat().st_mtime)
    return json.loads(_plain(json.dumps(found))), _plain(done.stdout), _plain(log.read_text()), done.returncode


def _plain(text: str) -> str:
    """Without addresses."""
    return re.sub(r"0x[0-9a-f]+|started \d+", "#", text)


@pytest.mark.parametrize("arguments", [("program.py", "torch"), ("-m", "package.program")])
@pytest.mark.parametrize("own", [True, False])
def test_a_program_sees_no_difference(launcher: Any, arguments: tuple[str, ...], own: bool) -> None:
    if own != ("torch" in arguments):
        pytest.skip("each with one kind is enough")
    for name in ("program.py", "package/program.py"):
        launcher.script(FACTS, name)
    launcher.script("", "package/__init__.py")
    launcher.script("", "modules/user_module.py")
    if own:
        launcher.script("MINE = 'my own'", "modules/sitecustomize.py")
    path = str(launcher.folder / "modules")
    without = facts(launcher, "--stall-report", "0", *arguments, PYTHONPATH=path)
    with_it = facts(launcher, *arguments, PYTHONPATH=path)
    assert with_it == without
    none = "ModuleNotFoundError(\"No module named 'sitecustomize'\")"
    assert with_it[0][0]["own"] == ("my own" if own else none if find_spec("sitecustomize") is None else "Debian's")
    assert with_it[3] == 1
    assert with_it[2].rstrip().endswith("ValueError: as ever")


def test_without_pythonpath_there_is_none_afterwards(launcher: Any) -> None:
    launcher.script(FACTS)
    launcher.script("", "user_module.py")
    found, *_ = facts(launcher, "--nproc", "1", "program.py")
    assert "PYTHONPATH" not in found[0]["environment"]
    assert found[0]["spawned"][2] is None


def test_signals_and_descriptors_of_a_program(launcher: Any) -> None:
    """A program that handles every signal it can, masks them, and closes descriptors that it does not know."""
    text = """
import faulthandler, os, signal, sys, threading, time
import torch, torch.distributed as dist
seen = []
for number in (signal.SIGUSR1, signal.SIGUSR2, signal.SIGALRM, signal.SIGCHLD, signal.SIGRTMIN, signal.SIGRTMAX):
    signal.signal(number, lambda number, frame: seen.append(number))
dist.init_process_group("gloo")
signal.setitimer(signal.ITIMER_REAL, 0.01, 0.01)
for _ in range(50):
    dist.all_reduce(torch.ones(3))
    time.sleep(0.02)
signal.setitimer(signal.ITIMER_REAL, 0)
os.kill(os.getpid(), signal.SIGRTMAX)
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
# To this thread: a thread of gloo's, which masks nothing, may take what is sent to the process.
signal.pthread_kill(threading.get_ident(), signal.SIGUSR1)
assert signal.sigwait([signal.SIGUSR1]) == signal.SIGUSR1
assert seen.count(signal.SIGALRM) > 20 and signal.SIGRTMAX in seen
dist.barrier()
dist.destroy_process_group()
os.closerange(90, 1100)
files = [os.open("mine-" + os.environ["RANK"], os.O_RDWR | os.O_CREAT) for _ in range(1000)]
time.sleep(1.5)
assert os.fstat(files[0]).st_size == 0
print("well")
"""
    launcher.script(text)
    done = launcher.run("--cpu", "--stall-report", "1", "program.py")
    assert (done.returncode, done.stdout) == (0, "well\n"), done.stderr
