"""How GPUs are used over time: single readings (`read_gpus`, which a program may call), and the live monitor."""

from gpu_topology.driver.energy import taken
from gpu_topology.monitor.readings import Reading, read_energy, read_gpus

__all__ = ["Reading", "read_energy", "read_gpus", "taken"]
