"""Export a network as a torch.export program or as ONNX, once its outputs have been checked against the network."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from ddp_core.errors import UserError
from ddp_core.files import replacing
from ddp_train.evaluation.saved_model import SavedModel

EXAMPLES, CHECKED = 4, 7
"""Images in the batch that is traced, and in the one that is compared: two sizes, since any must work."""
TOLERANCE = 1e-4
"""Largest difference of a logit, relative to the largest logit: other kernels sum in a different order."""

Answer = Callable[[Tensor], Tensor]


def export(saved: SavedModel, output: str) -> str:
    """Write `output` in the format of its ending; returns a line on it. Errors: UserError, and nothing is written."""
    if output.endswith(".onnx"):
        missing = [name for name in ("onnx", "onnxscript") if find_spec(name) is None]
        if missing:
            raise UserError(f"--output {output}: ONNX needs {' and '.join(missing)}: pip install {' '.join(missing)}")
    write = _onnx if output.endswith(".onnx") else _program
    generator = torch.Generator().manual_seed(0)
    shape = saved.facts.image_shape
    before = logging.root.manager.disable
    try:  # without the exporters' own messages
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            logging.disable(logging.WARNING)
            data, answer = write(saved, torch.randn((EXAMPLES, *shape), generator=generator))
            images = torch.randn((CHECKED, *shape), generator=generator)
            with torch.no_grad():
                expected, found = saved.network(images), answer(images)
            difference = float((found - expected).abs().max() / expected.abs().max().clamp_min(1e-6))
    except UserError:
        raise
    except Exception as error:  # the exporters raise many kinds, for what they cannot express
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise UserError(f"--output {output}: this model cannot be exported ({reason})") from None
    finally:
        logging.disable(before)
    if not difference <= TOLERANCE:
        raise UserError(
            f"--output {output}: not written: the exported model differs from the network by {difference:.1e}"
        )
    with replacing(output, size=lambda: len(data)) as file:
        file.write(data)
    size = ", ".join(map(str, shape))
    return (
        f"{output}: images float32 [n, {size}] to logits [n, {len(saved.facts.classes)}]; {len(data):,} bytes; "
        f"answers on {CHECKED} images differ from the network's by at most {difference:.1e} of the largest"
    )


def _program(saved: SavedModel, example: Tensor) -> tuple[bytes, Answer]:
    """The torch.export file's bytes, and what the loaded program computes."""
    batch = torch.export.Dim("batch", min=1, max=1 << 16)
    program = torch.export.export(saved.network, (example,), dynamic_shapes=({0: batch},))
    file = io.BytesIO()
    torch.export.save(program, file, extra_files={"dataset.json": saved.facts.dump()})
    loaded = torch.export.load(io.BytesIO(file.getvalue())).module()
    return file.getvalue(), loaded


def _onnx(saved: SavedModel, example: Tensor) -> tuple[bytes, Answer]:
    """The ONNX file's bytes, and what onnx's reference evaluator computes."""
    import onnx
    from onnx.reference import ReferenceEvaluator

    batch = torch.export.Dim("batch", min=1, max=1 << 16)
    names: dict[str, Any] = {"input_names": ["images"], "output_names": ["logits"], "verbose": False}
    made = torch.onnx.export(saved.network, (example,), dynamo=True, dynamic_shapes=({0: batch},), **names)
    assert made is not None
    model = made.model_proto
    onnx.helper.set_model_props(model, {"dataset.json": saved.facts.dump()})
    onnx.checker.check_model(model)
    data: bytes = model.SerializeToString()
    evaluator = ReferenceEvaluator(onnx.load_from_string(data))
    return data, lambda images: torch.from_numpy(evaluator.run(None, {"images": images.numpy()})[0])
