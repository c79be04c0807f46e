"""`python -m gpu_topology verify`: a real collective over the selection."""
