"""What a file of torch.save may hold, looked at before torch reads it: tensors and plain values, and no more.

torch's restricted unpickler runs no code, but it builds what a file asks for: a bytearray of any length,
tensors of other kinds, a tensor that repeats four bytes into terabytes. So the file is inspected first:

    zip_directory.py   stored records under one folder, together no longer than the file
    pickled.py         only the opcodes and objects that torch.save writes; each tensor within its storage, each
                       storage as long as its record

Accepted are exactly the values that checkpoint/format.py writes, and those of a plain state_dict.
"""

from __future__ import annotations

import os
from typing import IO

from ddp_train.checkpoint.inspection.pickled import ITEM_BYTES, ForeignObject, TensorFacts, facts
from ddp_train.checkpoint.inspection.zip_directory import Refused, read_records

__all__ = ["ITEM_BYTES", "ForeignObject", "Refused", "TensorFacts", "inspect"]

FREE_BYTES = 64 << 20
"""What the zip file's directory may take of memory, beside the length of the file."""


def inspect(file: IO[bytes], *, comment: int = 0) -> object:
    """The content of the file of torch.save that ends in a zip comment of `comment` bytes.

    Plain values are themselves, tensors are TensorFacts. Raises Refused, one line.
    """
    length = file.seek(0, os.SEEK_END)
    program, storages = read_records(file, length, comment, most_memory=FREE_BYTES + length)
    return facts(program, storages)
