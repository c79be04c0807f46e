"""Datasets, the order of samples, augmentation, and the pipelines that bring batches to the device.

Data flows `dataset` (what there is, decoded once into `cache`) -> `sampler` (which samples, when, on which
rank) -> `pipeline` (`resident` or `loader`: the batches) -> `augment` (on whole batches, by `keyed` draws).
"""

from ddp_train.data.pipeline.build import build_pipeline
from ddp_train.data.pipeline.window import Batch, Pipeline, Window
from ddp_train.data.sources.dataset import load, prepare, resolve
from ddp_train.data.sources.samples import Dataset, Split

__all__ = ["Batch", "Dataset", "Pipeline", "Split", "Window", "build_pipeline", "load", "prepare", "resolve"]
