"""A trainer for PyTorch DistributedDataParallel; see docs/architecture.md for the reading order."""
