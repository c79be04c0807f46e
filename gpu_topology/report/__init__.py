"""`python -m gpu_topology report`: tables for the terminal."""
