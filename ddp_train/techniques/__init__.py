"""Training techniques, one file each, which opens with its source, effect, cost, and what it does not go with."""
