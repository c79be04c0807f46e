"""From options to a run: fills in the options that are not set, and creates the objects that the options describe."""
