"""Measurements that choose a setting: `--tune WHAT` runs one of them in place of the training."""
