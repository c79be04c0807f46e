"""Which GPUs belong together, and which of them to use."""
