"""The ranks: process group, gradient exchange, flags, load balance, heartbeat."""
