"""A pickle of torch.save gone through opcode by opcode, with facts in the place of objects. Nothing is called.

Source: Python's pickletools, which documents every opcode.
"""

from __future__ import annotations

import io
import pickletools
from collections.abc import Callable, Iterator, Mapping

from ddp_train.checkpoint.inspection.values import Leaf, Name, Refused, Storage, TensorFacts, call, known, storage

_DEEPEST = 64
# An opcode of one byte can build 64 bytes. A tensor takes about 40 opcodes, and a record of its own in the file.
_OPCODES, _OPCODES_OF_STORAGE = 500_000, 60


class _Mark:
    """The bottom of an opcode's arguments on the stack."""


_CONSTANTS: dict[str, Callable[[], object]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_DICT": dict,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
    "MARK": _Mark,
}
_LITERALS = {"BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE"}
_TUPLES = {"TUPLE": None, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_KEYS = (str, int, float, type(None))


def facts(program: bytes, storages: Mapping[str, int]) -> object:
    """The value that the pickle describes, with TensorFacts for its tensors.

    `storages`: bytes by key. Raises Refused.
    """
    try:
        content = _Machine(dict(storages)).run(program)
    except Refused:
        raise
    except (ValueError, TypeError, IndexError, KeyError, OverflowError) as error:
        raise Refused(f"its pickle is not in order ({str(error)[:100]})") from None
    for place, value in _walk(content):
        if isinstance(value, TensorFacts):
            if (problem := value.problem()) is not None:
                raise Refused(f"its tensor {_words(place)} {problem}")
        elif isinstance(value, (Name, Storage, _Mark)):
            raise Refused(f"its {_words(place)} is neither a tensor nor a plain value")
    return content


class _Machine:
    def __init__(self, storages: dict[str, int]) -> None:
        self._storages = storages
        self._most = _OPCODES + _OPCODES_OF_STORAGE * len(storages)
        self._stack: list[object] = []
        self._memo: dict[object, object] = {}

    def run(self, program: bytes) -> object:
        """The value that stands alone on the stack at the end."""
        for count, (opcode, argument, _) in enumerate(pickletools.genops(io.BytesIO(program))):
            if count > self._most:
                raise Refused(f"its pickle has more than {self._most:,} opcodes for {len(self._storages):,} tensors")
            self._step(opcode.name, argument)
        (content,) = self._stack
        return content

    def _step(self, name: str, argument: object) -> None:
        stack = self._stack
        if name in _LITERALS:
            stack.append(argument)
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name]())
        elif name in ("BINPUT", "LONG_BINPUT"):
            self._memo[argument] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(_shareable(self._memo[argument]))
        elif name in _TUPLES:
            stack.append(tuple(self._take(_TUPLES[name])))
        elif name == "GLOBAL":
            module, _, attribute = str(argument).partition(" ")
            stack.append(known(module, attribute))
        elif name == "PROTO":
            if argument != 2:
                raise Refused(f"its pickle has protocol {argument}; torch.save writes 2")
        elif name != "STOP":
            self._build(name)

    def _build(self, name: str) -> None:
        stack = self._stack
        if name == "BINPERSID":
            stack.append(storage(stack.pop(), self._storages))
        elif name == "REDUCE":
            stack.append(call(*self._take(2)))
        elif name == "BUILD":
            attributes = self._take(1)[0]
            _check_attributes(stack[-1], attributes)
        elif name in ("APPEND", "APPENDS"):
            items = self._take(1 if name == "APPEND" else None)
            if not isinstance(target := stack[-1], list):
                raise Refused("its pickle appends to what is no list")
            target.extend(items)
        elif name in ("SETITEM", "SETITEMS"):
            items = self._take(2 if name == "SETITEM" else None)
            if not isinstance(target := stack[-1], dict):
                raise Refused("its pickle sets items of what is no dict")
            for key, value in zip(items[::2], items[1::2], strict=True):
                if not isinstance(key, _KEYS):
                    raise Refused(f"its pickle has a {type(key).__name__} as the key of a dict")
                target[key] = value
        else:
            raise Refused(f"its pickle has the opcode {name}, which torch.save does not write")

    def _take(self, count: int | None) -> list[object]:
        """The uppermost `count` values, or all down to the mark."""
        stack = self._stack
        if count is None:
            at = len(stack) - 1
            while not isinstance(stack[at], _Mark):
                at -= 1
                if at < 0:
                    raise Refused("its pickle misses a mark")
            items = stack[at + 1 :]
            del stack[at:]
            return items
        items = stack[-count:]
        if len(items) < count or any(isinstance(item, _Mark) for item in items):
            raise Refused("its pickle takes more values than there are")
        del stack[-count:]
        return items


def _shareable(value: object) -> object:
    """`value`, where a second reference to it can neither close a circle nor multiply what is in it."""
    parts = value if isinstance(value, tuple) else ()
    if isinstance(value, (list, dict, _Mark)) or any(isinstance(part, (tuple, list, dict)) for part in parts):
        raise Refused(f"its pickle refers to one {type(value).__name__} twice")
    return value


def _check_attributes(target: object, attributes: object) -> None:
    """The one attribute that is in order is a state_dict's `_metadata`: the versions of its modules."""
    if type(target) is not dict or type(attributes) is not dict or attributes.keys() - {"_metadata"}:
        raise Refused("its pickle sets attributes of an object")
    if any(isinstance(value, (TensorFacts, Leaf, Name, Storage, _Mark)) for _, value in _walk(attributes)):
        raise Refused("its pickle hides an object in the versions of modules")


def _walk(content: object) -> Iterator[tuple[object, object]]:
    """Every value that is no container, with its place: (key, place of the container), None for the content."""
    waiting: list[tuple[object, object, int]] = [(None, content, 0)]
    while waiting:
        place, value, depth = waiting.pop()
        if depth > _DEEPEST:
            raise Refused(f"its pickle is nested deeper than {_DEEPEST}")
        if isinstance(value, dict):
            waiting += [((key, place), item, depth + 1) for key, item in value.items()]
        elif isinstance(value, (list, tuple)):
            waiting += [((index, place), item, depth + 1) for index, item in enumerate(value)]
        else:
            yield place, value


def _words(place: object) -> str:
    keys = []
    while isinstance(place, tuple):
        key, place = place
        keys.append(f"[{str(key)[:60]!r}]" if isinstance(key, str) else f"[{key!r}]"[:60])
    return "".join(reversed(keys)) or "content"
