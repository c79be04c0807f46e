"""Training techniques, one file each, which begins with its source, effect, cost, and exclusions."""
