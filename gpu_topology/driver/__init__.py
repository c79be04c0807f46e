"""What the NVIDIA driver reports, through nvidia-ml-py and libcuda."""
