"""Which GPUs this machine has, which of them belong together, and how to set up CUDA and NCCL for them.

Data flows one way: driver (or snapshot) -> topology -> select -> environment -> report. Only verify imports torch.
"""
