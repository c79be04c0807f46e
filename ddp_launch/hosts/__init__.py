"""One run on several hosts over ssh: the checks, a launcher on each, and the end of all of it."""
