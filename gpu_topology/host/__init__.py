"""Facts about the host: CPUs, NUMA nodes, sysfs, containers and virtual machines."""
