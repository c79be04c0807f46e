"""What is in this machine, which GPUs belong together, and what CUDA and NCCL should be told about them.

Data flows one way: nvml (or snapshot) -> topology -> selection -> nccl -> report -> cli. Nothing here imports torch.
"""
