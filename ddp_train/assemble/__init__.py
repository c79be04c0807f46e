"""Options to a run: what the machine fills in, and the objects that the options describe."""
