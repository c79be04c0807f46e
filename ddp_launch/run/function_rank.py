"""A rank of `ddp_launch.launch`: `python function_rank.py FOLDER` calls the function in FOLDER/call.pkl.

The result goes to FOLDER/result-RANK.pkl, the traceback of an exception to FOLDER/error-RANK.txt.
"""

from __future__ import annotations

import os
import pickle
import sys
import traceback
from pathlib import Path


def main(folder: Path) -> None:
    """Call the function and write its result to the folder."""
    with (folder / "call.pkl").open("rb") as file:
        # The caller's search path, so that the function's modules are found.
        sys.path[:], call = pickle.load(file)  # noqa: S301 (the caller's own)
    from ddp_core.process import end_process
    from ddp_launch.run.pickling import dumps

    rank = int(os.environ["RANK"])
    try:
        fn, args, kwargs = pickle.loads(call)  # noqa: S301
        result = fn(*args, **kwargs)
        try:
            data = dumps(result)
        except Exception as error:
            raise TypeError(f"the result, {type(result).__name__}, cannot be pickled: {error}") from None
        (folder / f"result-{rank:06}.pkl").write_bytes(data)
    except BaseException as error:
        error.__traceback__ = error.__traceback__ and error.__traceback__.tb_next
        (folder / f"error-{rank}.txt").write_text("".join(traceback.format_exception(error)), encoding="utf-8")
        raise
    distributed = sys.modules.get("torch.distributed")
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        # A process group that still exists may abort the process at exit. A DistributedDataParallel model that is still
        # referenced keeps it in spite of this call, so the process skips Python's shutdown, as multiprocessing's do.
        distributed.destroy_process_group()
        end_process(0, join_threads=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
