"""What the NVIDIA driver says, through nvidia-ml-py and libcuda."""
