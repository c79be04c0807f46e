"""Random changes of images, keyed by sample so that a run can be repeated."""
