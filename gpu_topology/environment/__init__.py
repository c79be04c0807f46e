"""The CUDA and NCCL variables of a selection, each with its reason."""
