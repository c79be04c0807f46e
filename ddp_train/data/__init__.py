"""Datasets, the order of samples, augmentation, and the pipelines that bring batches to the device.

Data flows from `sources` (datasets, decoded once into `cache`) through `pipeline` (`sampler`: which samples, when, on
which rank; `resident` or `loader`: the batches) to `augment` (whole batches, with draws from `keyed_random`).
"""

from ddp_train.data.pipeline.build import build_pipeline
from ddp_train.data.pipeline.window import Batch, Pipeline, Window
from ddp_train.data.sources.dataset import load, normalised, prepare, resolve
from ddp_train.data.sources.samples import Dataset, Split

__all__ = [
    "Batch",
    "Dataset",
    "Pipeline",
    "Split",
    "Window",
    "build_pipeline",
    "load",
    "normalised",
    "prepare",
    "resolve",
]
