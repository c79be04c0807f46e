"""Measurements that choose a setting: `--tune WHAT` runs one of them instead of the training."""
