"""Datasets, the order of samples, augmentation, and the pipelines that bring batches to the device.

Data flows `dataset` (what there is, decoded once into `cache`) -> `sampler` (which samples, when, on which
rank) -> `pipeline` (`resident` or `loader`: the batches) -> `augment` (on whole batches, by `keyed` draws).
"""

from ddp_train.data.pipeline.build import Batch, Pipeline, Window, build_pipeline
from ddp_train.data.sources.dataset import Dataset, Split, load, prepare, resolve

__all__ = ["Batch", "Dataset", "Pipeline", "Split", "Window", "build_pipeline", "load", "prepare", "resolve"]
