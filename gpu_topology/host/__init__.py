"""What the host says: CPUs, NUMA nodes, sysfs, containers and virtual machines."""
