"""Runs in each rank before its program, so that the launcher can ask the rank where it is.

Python imports the module `sitecustomize` when it starts; the launcher puts this folder in front of PYTHONPATH. The
program sees nothing of it: PYTHONPATH, sys.path and sys.modules are restored, the user's own sitecustomize is imported
as usual, and processes that the rank starts are not affected. Two things stay:

- faulthandler writes the Python stacks of all threads into a memfd on a signal that only the launcher sends, also while
  native code holds Python's lock;
- once torch has a process group, a thread waits for the launcher's questions (torch_internals.py beside this file).

Nothing here may raise. Ranks may use a different Python from the launcher's, 3.8 or newer.
"""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False  # that of typing takes milliseconds to import
if TYPE_CHECKING:
    from types import ModuleType
    from typing import Any

STACKS = "ddp-launch-stacks"
"""The memory that faulthandler writes to, by the name that /proc/PID/fd shows."""
SIGNAL_BELOW_LAST = 5
"""SIGRTMAX minus this asks for the stacks: job managers, libraries and users use other signals."""
HIGH_NUMBERS = (900, 100)
"""Programs may rely on low file descriptors, so ours start at the first of these that the limit allows."""
RECORDER_SIZES = ("TORCH_FR_BUFFER_SIZE", "TORCH_NCCL_TRACE_BUFFER_SIZE")
RECORDED = "2000"
"""How many collectives torch's flight recorder keeps, unless the user has set it: torch's present default."""
HERE = os.path.dirname(__file__)  # noqa: PTH120 (pathlib takes milliseconds to import)
C10D = "torch.distributed.distributed_c10d"
HOOK = "_update_default_pg"
"""The function that torch calls once there is a default process group."""
OBSERVE = "DDP_LAUNCH_OBSERVE"
"""A variable that is set for the ranks of --scaling, and removed before the program can see it."""


def high(file: int) -> int:
    """Move a descriptor to a high number; the new number."""
    import fcntl

    for least in HIGH_NUMBERS:
        try:
            moved = fcntl.fcntl(file, fcntl.F_DUPFD_CLOEXEC, least)
        except OSError:
            continue
        os.close(file)
        return moved
    return file


class _WhenTorchIsThere:
    """An import finder that finds nothing. It is called at each import, and so notices that torch has been loaded.

    Wrapping the loader instead would add a line of this file to the traceback of a failing import.
    `observe`: also observe what the program does from then on.
    """

    def __init__(self, observe: bool) -> None:
        self._observe = observe

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        """Called at each import: once torch.distributed is loaded, hook its process group."""
        module = sys.modules.get(C10D)
        if module is not None and not getattr(module.__spec__, "_initializing", False):
            # A new list: the import system is iterating over the present one.
            sys.meta_path = [finder for finder in sys.meta_path if finder is not self]
            _wait_for_process_group(module, self._observe)


def _wait_for_process_group(c10d: ModuleType, observe: bool) -> None:
    """Begin to answer once the program makes its process group; `observe`: at once, since one rank may make none."""
    # putenv: torch reads it at its first record, and os.environ does not show it to the program.
    if not any(name in os.environ for name in RECORDER_SIZES):
        os.putenv(RECORDER_SIZES[0], RECORDED)
    original = getattr(c10d, HOOK, None)
    if observe or not callable(original):
        _begin(c10d, observe)
        return

    def hooked(group: object) -> None:
        """torch's own function, then the start of the answering thread."""
        original(group)
        if group is not None:
            setattr(c10d, HOOK, original)
            _begin(c10d)

    setattr(c10d, HOOK, hooked)


def _begin(c10d: ModuleType, observe: bool = False) -> None:
    """Start the thread that answers."""
    try:
        internals = _load("torch_internals.py")
        observer = _load("observer.py").Observer(internals.exposed_ns, internals.batch_size) if observe else None
        internals.begin(c10d, high, observer)
    except Exception:  # noqa: S110 (the program matters more than its record)
        pass


def _load(name: str) -> Any:
    """A module of this folder, by file."""
    from importlib.util import module_from_spec, spec_from_file_location

    spec = spec_from_file_location("ddp_launch_" + name[:-3], HERE + "/" + name)
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _offer_stacks() -> None:
    """Register faulthandler for the launcher's signal, with a memfd for the stacks."""
    import faulthandler
    import signal

    file = high(os.memfd_create(STACKS))
    faulthandler.register(signal.SIGRTMAX - SIGNAL_BELOW_LAST, file=file, all_threads=True)


def _leave_no_trace() -> None:
    """Restore PYTHONPATH and sys.path, through which Python found this file."""
    first, _, rest = os.environ.get("PYTHONPATH", "").partition(os.pathsep)
    if first == HERE:
        os.environ.pop("PYTHONPATH")
        if rest:
            os.environ["PYTHONPATH"] = rest
    sys.path[:] = [entry for entry in sys.path if entry != HERE]
    sys.path_importer_cache.pop(HERE, None)


def _import_the_users_own() -> None:
    """Import the user's own sitecustomize, which this one hides. Errors: its own; Python reports them as always."""
    del sys.modules["sitecustomize"]
    import sitecustomize  # type: ignore[import-not-found]  # noqa: F401


if __name__ == "sitecustomize":
    try:
        _leave_no_trace()
        _offer_stacks()
        sys.meta_path.insert(0, _WhenTorchIsThere(os.environ.pop(OBSERVE, "") == "1"))  # type: ignore[arg-type]
    except Exception:  # noqa: S110
        pass
    _import_the_users_own()
