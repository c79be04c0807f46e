"""What is in this machine, which GPUs belong together, and how to set up CUDA and NCCL for them.

Data flows one way: nvml (or snapshot) -> topology -> selection -> nccl -> report -> cli. Nothing here imports torch.
"""
