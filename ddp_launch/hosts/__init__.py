"""One run on several hosts over ssh: the checks, a launcher on each host, and the end of the whole run."""
