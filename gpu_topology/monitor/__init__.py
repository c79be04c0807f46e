"""How GPUs are used over time: single readings (`read_gpus`, which a program may call), and the live monitor."""

from gpu_topology.monitor.readings import Reading, read_gpus

__all__ = ["Reading", "read_gpus"]
